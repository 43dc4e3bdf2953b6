"""The runs of a study, one after another."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.report import write_report
from experiments.results import SCHEMA, read_record, run_folder, write_record
from experiments.train import preflight, run
from recpeft.errors import DiskError, RecpeftError


def run_study(configs: list[RunConfig], out: Path, debug: bool = False) -> int:
    """Run what is not finished, print the study's table, and return how many runs failed.

    A failed run is recorded with its error and the next one starts; the same command tries it again.

    Raises:
        RecpeftError: data or a backbone are missing (nothing is written), or the disk is full.
    """
    waiting = []
    for config in configs:
        record = read_record(run_folder(out, config.study, config.run_id))
        if record is None or record["status"] != "done":
            waiting.append(config)
    if waiting:
        preflight(waiting)
    failed = 0
    for number, config in enumerate(configs, 1):
        name = f"[{number}/{len(configs)}] {config.run_id} {config.method}, width {config.width}"
        if config not in waiting:
            print(f"{name}: finished before", flush=True)
            continue
        print(name, flush=True)
        start = time.perf_counter()
        try:
            record = run(config, out)
        except DiskError:
            raise
        except Exception as error:  # one run's failure must not take the others with it
            failed += 1
            _record_failure(config, out, error)
            print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
            if debug:
                traceback.print_exc()
            continue
        value = record["test"][config.evaluation.monitor]
        seconds = time.perf_counter() - start
        print(f"    test {config.evaluation.monitor} {value:.4f} in {seconds:.0f} s", flush=True)
    if failed < len(configs):
        for study in sorted({out / config.study for config in configs}):
            write_report(study)
    return failed


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
