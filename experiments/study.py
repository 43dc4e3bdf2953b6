"""The runs of a study, one after another."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.report import write_report
from experiments.results import SCHEMA, RunFolder, lock_path, read_record, run_folder, write_record
from experiments.train import preflight, run
from recpeft import stopping
from recpeft.errors import DiskError, RecpeftError
from recpeft.files import disk_errors
from recpeft.stopping import STOP_FILE, Interrupted


def run_study(configs: list[RunConfig], out: Path, debug: bool = False, report: bool = True) -> int:
    """Run what is not finished, print the study's table where a ``report`` is wanted, and return how many runs failed.

    A failed run is recorded with its error and the next one starts; the same command tries it again.

    Raises:
        RecpeftError: data or a backbone are missing (nothing is written), or the disk is full.
    """
    waiting = [config for config in configs if not _is_done(config, out)]
    if waiting:
        preflight(waiting, out)
    failed = 0
    stopping.watch(sorted({out / config.study / STOP_FILE for config in configs}))
    for number, config in enumerate(configs, 1):
        if stopping.asked():
            stopping.stop(f"{number - 1} of {len(configs)} runs were reached")
        name = f"[{number}/{len(configs)}] {config.run_id} {config.method}, width {config.width}"
        with _claim(run_folder(out, config.study, config.run_id)) as claimed:
            if not claimed:
                print(f"{name}: left to another process, which is running it", flush=True)
                continue
            if _is_done(config, out):
                print(f"{name}: finished before", flush=True)
                continue
            print(name, flush=True)
            start = time.perf_counter()
            try:
                record = run(config, out)
            except (DiskError, Interrupted):
                raise
            except Exception as error:  # one run's failure must not take the others with it
                failed += 1
                _record_failure(config, out, error)
                print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
                if debug:
                    traceback.print_exc()
                continue
            value = record["test"][config.evaluation.monitored]
            text = "–" if value is None else f"{value:.4f}"
            seconds = time.perf_counter() - start
            print(f"    test {config.evaluation.monitored} {text} in {seconds:.0f} s", flush=True)
    if report and any(_is_done(config, out) for config in configs):
        for study in sorted({out / config.study for config in configs}):
            write_report(study)
    return failed


def _is_done(config: RunConfig, out: Path) -> bool:
    record = read_record(run_folder(out, config.study, config.run_id))
    return record is not None and record["status"] == "done"


@contextlib.contextmanager
def _claim(folder: RunFolder) -> Iterator[bool]:
    """Whether this process alone may run what belongs into ``folder``; the system ends a dead one's claim."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: there, one process a study
        yield True
        return
    path = lock_path(folder)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        for _ in range(10):  # a look at who runs what (is_running) holds it for a moment too
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        else:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _record_failure(config: RunConfig, out: Path, error: Exception) -> None:
    sentence = str(error) if isinstance(error, RecpeftError) else f"{type(error).__name__}: {error}"
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "failed",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "config": config.model_dump(mode="json"),
        "error": sentence,
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_record(run_folder(out, config.study, config.run_id), record)
