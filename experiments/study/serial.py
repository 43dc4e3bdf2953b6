"""Execute a study's runs one after another; experiments/study/workers.py executes several at a time."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.cell import launch
from experiments.config.run import RunConfig
from experiments.records.layout import SCHEMA, FinishedRecord
from experiments.records.record import RunFolder, is_done, read_record, run_folder, write_record
from experiments.study.claims import claim, is_running
from experiments.study.plan import remember
from recpeft import processes, stopping
from recpeft.errors import DiskError, LeftOut, RecpeftError, printable
from recpeft.stopping import STOP_FILE, Interrupted
from recpeft.terminal import say


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt at a run."""

    state: Literal["done", "finished before", "failed", "left", "left out"]
    """``left``: another process is running it; ``left out``: this machine cannot hold it."""
    value: float | None = None
    """Value of the monitored metric on test."""
    seconds: float = 0.0
    error: str = ""
    trace: str = ""

    @property
    def text(self) -> str:
        """Return the text shown after the run's name."""
        if self.state in ("failed", "left out"):
            return f"{self.state}: {self.error}"
        if self.state == "left":
            return "left to another process, which is running it"
        if self.state == "finished before":
            return self.state
        return f"{'–' if self.value is None else f'{self.value:.4f}'} in {self.seconds:.0f} s"


def run_study(
    configs: Sequence[RunConfig],
    out: Path,
    debug: bool = False,
    plan: Sequence[RunConfig] = (),
    clear_stop: bool = True,
    wait: bool = True,
) -> int:
    """Execute the unfinished runs, and return how many runs failed.

    A failed run is recorded with its error and the next one starts; the same command tries it again. A run that
    another process holds is left to that process, and taken over if it dies.

    Args:
        plan: all planned runs of the study, written down for ``recpeft status``.
        clear_stop: discard an earlier ``recpeft stop`` and continue; False for a part of a study that others run too.
        wait: wait at the end until other processes have finished their runs; otherwise count those runs as failed.
    Raises:
        RecpeftError: data or a backbone are missing (nothing is written), or the disk is full.
    """
    from experiments.cell.train import preflight  # imports torch; with several workers, only their processes import it

    launch.join()
    waiting = processes.of_first(unfinished(configs, out))
    if waiting:
        preflight(waiting, out)
    if processes.number() == 0:
        with contextlib.nullcontext() if waiting else contextlib.suppress(DiskError):  # a finished one may be read-only
            remember(plan, out)
    failed, left = 0, []
    stopping.watch(sorted({out / config.study / STOP_FILE for config in configs}), clear_stop)
    for number, config in enumerate(configs, 1):
        name = f"[{number}/{len(configs)}] {label(config)}"
        outcome = _attempt(config, out, name, f"{number - 1} of {len(configs)} runs were reached", debug)
        failed += outcome.state == "failed"
        left += [(config, name)] if outcome.state == "left" else []
    if left and wait:
        say(f"{len(left)} of {len(configs)} runs are other processes'; waiting for them")
    return failed + _go_on_with(left, out, debug, wait)


def _go_on_with(left: list[tuple[RunConfig, str]], out: Path, debug: bool, wait: bool) -> int:
    """Handle runs that other processes held; return how many failed or, without ``wait``, are still held."""
    failed = 0
    while left:
        held = []
        for config, name in left:
            if processes.of_first(processes.number() == 0 and is_held(config, out)):
                held.append((config, name))
                continue
            state = _attempt(config, out, name, "all runs were reached", debug).state
            failed += state == "failed"
            held += [(config, name)] if state == "left" else []
        left = held
        if left and not wait:
            for config, _ in left if processes.number() == 0 else ():
                text = "another process has it, so that it is not done here; recpeft slurm status tells how it ends"
                say(f"{label(config)}: {text}", error=True)
            return failed + len(left)
        if left:
            _stop_if_asked("all runs were reached")
            time.sleep(0.5)
    return failed


def is_held(config: RunConfig, out: Path) -> bool:
    """Return whether a process is running ``config``, or the run whose lists it reorders."""
    return any(is_running(_folder(each, out)) for each in (config, config.undiversified))


def _stop_if_asked(reached: str) -> None:
    """Raise ``Interrupted`` in all processes if any has a stop request; otherwise the rest would wait for it."""
    if any(processes.gathered(stopping.asked() is not None)):
        stopping.stop(reached)


def _attempt(config: RunConfig, out: Path, name: str, reached: str, debug: bool) -> Outcome:
    """Attempt one run and report it on the terminal."""
    _stop_if_asked(reached)
    say(name)
    outcome = run_cell(config, out)
    if outcome.state in ("failed", "left out"):
        say(f"{name}: {outcome.text}", error=True)
        if debug:
            say(outcome.trace, error=True)
    else:
        what = f"test {config.evaluation.monitored} " if outcome.state == "done" else ""
        say(f"    {what}{outcome.text}")
    return outcome


def run_cell(config: RunConfig, out: Path) -> Outcome:
    """Run ``config``, after the run whose lists it reorders, unless another process holds it.

    Raises:
        DiskError: the disk is full.
        Interrupted: a stop was requested.
    """
    if processes.of_first(not unfinished([config], out)):  # returns before a claim, so that nothing is written
        return Outcome("finished before")

    from experiments.cell.train import run

    if config.diversify is not None:
        try:
            there = processes.of_first(read_record(_folder(config.undiversified, out))) is not None
        except RecpeftError as error:  # the record cannot be read
            return _failed(config, out, error)
        if not there:
            base = run_cell(config.undiversified, out)
            if base.state == "left":
                return base
    with claim(_folder(config, out)) as claimed:
        if not processes.of_first(claimed):
            return Outcome("left")
        try:
            if processes.of_first(is_done(_folder(config, out))):
                return Outcome("finished before")
            start = time.perf_counter()
            record = run(config, out)
        except (DiskError, Interrupted):
            launch.ignore_termination()
            raise
        except Exception as error:  # one run's failure must not end the others
            outcome = _failed(config, out, error)
            if processes.several():
                say(f"{label(config)}: {outcome.text}", error=True)
                launch.leave()  # the others wait for this one, and cannot go on without it
            return outcome
        value = record["test"][config.evaluation.monitored]
        return Outcome("done", value, time.perf_counter() - start)


def _failed(config: RunConfig, out: Path, error: Exception) -> Outcome:
    record_failure(config, out, error)
    state: Literal["failed", "left out"] = "left out" if isinstance(error, LeftOut) else "failed"
    return Outcome(state, error=sentence_of(error), trace="".join(traceback.format_exception(error)))


def unfinished(configs: Sequence[RunConfig], out: Path) -> list[RunConfig]:
    """Return the runs that are not done; a run with an unreadable record counts as not done."""
    found = []
    for config in configs:
        with contextlib.suppress(RecpeftError):
            if is_done(_folder(config, out)):
                continue
        found.append(config)
    return found


def _folder(config: RunConfig, out: Path) -> RunFolder:
    return run_folder(out, config.study, config.run_id)


def label(config: RunConfig) -> str:
    """Return a run's label for the terminal."""
    seed = getattr(config, "seed", None)
    parts = [f"{config.method}, width {config.width}", *([] if seed is None else [f"seed {seed}"])]
    if config.diversify is not None:
        parts.append(f"{config.diversify.method} {config.diversify.strength:g}")
    return f"{config.run_id} {', '.join(parts)}"


def sentence_of(error: Exception) -> str:
    """Return the error's message for a record and for the terminal."""
    return str(error) if isinstance(error, RecpeftError) else printable(f"{type(error).__name__}: {error}")


def record_failure(config: RunConfig, out: Path, error: Exception) -> None:
    """Write the record of a run that ``error`` ended; leave an unreadable record and a finished run's as they are."""
    folder = _folder(config, out)
    try:
        before = read_record(folder)
    except RecpeftError:
        return
    if before is not None and (processes.several() or isinstance(before, FinishedRecord)):
        return  # another process failed first and caused this failure, or this one failed after the record was written
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "failed",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "config": config.model_dump(mode="json", exclude={"trackers"}),
        "left_out": isinstance(error, LeftOut),
        "error": sentence_of(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_record(folder, record)
