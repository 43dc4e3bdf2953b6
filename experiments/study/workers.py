"""Execute several of a study's runs at a time: one process per GPU, or as many as asked for.

Each process does its heavy imports once and takes run after run. A process that dies, for example when memory runs
out, is replaced, and its run resumes from its last checkpoint. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.cell.launch import wanted
from experiments.config.run import RunConfig
from experiments.records.record import RunFolder, run_folder
from experiments.study.plan import remember
from experiments.study.serial import Outcome, is_held, label, record_failure, unfinished
from experiments.study.worker import MARK
from recpeft import gpus, stopping
from recpeft.errors import DiskError, RecpeftError, printable
from recpeft.stopping import STOP_FILE
from recpeft.terminal import console, say

MOST_DEATHS = 3
"""Number of processes that may die in a row on a run that makes no progress, before the run counts as failed."""

MOST_STARTS = 10
"""Number of processes that may die in a row before any has begun to work."""


def default_workers(configs: Sequence[RunConfig]) -> int:
    """Return one worker per GPU, or per as many GPUs as a run has processes; at least one."""
    return max(1, len(gpus.visible()) // _processes(configs))


def share_threads(config: RunConfig, workers: int) -> RunConfig:
    """Return ``config`` with its threads limited to each worker's share of the cores."""
    share = max(1, len(_cores()) // (workers * wanted(config)))
    return config.model_copy(update={"threads": min(config.threads, share)})


def run_in_processes(
    configs: Sequence[RunConfig], out: Path, workers: int, debug: bool = False, plan: Sequence[RunConfig] = ()
) -> int:
    """Do as ``experiments.study.serial.run_study``, in ``workers`` processes.

    Raises:
        RecpeftError: data or a backbone are missing (nothing is written), or the disk is full.
        Interrupted: a stop was requested; each process has saved its current step.
    """
    configs = [share_threads(config, workers) for config in configs]
    stopping.watch(sorted({out / config.study / STOP_FILE for config in configs}))
    runner = _Runner(configs, out, debug, plan)
    waiting = unfinished(configs, out)
    with _display(len(configs), min(workers, len(waiting))) as show:
        return runner.run(waiting, min(workers, len(waiting)), show) if waiting else 0


class _Worker:
    """A worker process and its current run."""

    def __init__(
        self, number: int, out: Path, processes: int, events: queue.Queue[tuple[_Worker, dict[str, Any]]]
    ) -> None:
        self.number = number
        self.config: RunConfig | None = None
        self.free = False
        """Whether the worker waits for a run."""
        self.process = start_process(["experiments.study.worker", str(out)], number, processes)
        self._events = events
        threading.Thread(target=self._read, daemon=True).start()

    def give(self, task: str, configs: Sequence[RunConfig]) -> None:
        """Send the worker a task; if it has died, an event reports that."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            runs = [config.model_dump(mode="json") for config in configs]
            self.process.stdin.write(json.dumps({"do": task, "runs": runs}) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Close the worker's input, so that it saves its run and ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text, mark, answer = line.rstrip("\n").partition(MARK)
            if text:
                self._events.put((self, {"what": "said", "text": text}))
            if mark:
                self._events.put((self, json.loads(answer)))
        self._events.put((self, {"what": "dead", "code": self.process.wait()}))


def start_process(module: Sequence[str], number: int, processes: int = 1) -> subprocess.Popen[str]:
    """Start a recpeft Python process that ends with its input, on GPUs of its own if there are any.

    Args:
        module: name of the module, followed by its arguments.
        number: number of the worker, from 0.
        processes: number of processes per run, each of which needs a GPU.
    """
    found = gpus.visible()
    own = [found[(number * processes + nth) % len(found)] for nth in range(min(processes, len(found)))]
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-m", *module],  # -P: see slurm.cell_command
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}),
        start_new_session=True,  # Ctrl-C reaches only this process, which makes the others save
    )


class _Runner:
    """Hand out runs until all have ended."""

    def __init__(self, configs: Sequence[RunConfig], out: Path, debug: bool, plan: Sequence[RunConfig]) -> None:
        self._out = out
        self._plan = plan
        self._debug = debug
        self._number = {config.run_id: number for number, config in enumerate(configs, 1)}
        self._events: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
        self._alive: list[_Worker] = []
        self._waiting: deque[RunConfig] = deque()
        self._elsewhere: list[RunConfig] = []
        """Runs left to processes of another runner."""
        self._deaths: Counter[str] = Counter()
        self._reached: dict[str, int] = {}
        """Time of the last save, in nanoseconds, of runs whose process died."""
        self._stillborn = 0
        self._ended = 0
        self._failed = 0
        self._checked = False

    def run(self, waiting: Sequence[RunConfig], workers: int, show: _Display) -> int:
        """Execute ``waiting`` in ``workers`` processes, and return the number of runs that failed."""
        self._show, self._all = show, waiting
        self._waiting.extend(waiting)
        show.ended(len(self._number) - len(waiting), 0)
        try:
            for number in range(workers):
                self._start(number)
            while self._ended < len(waiting):
                if stopping.asked():
                    self._stop()
                self._look_elsewhere()
                with contextlib.suppress(queue.Empty):
                    worker, event = self._events.get(timeout=0.2)
                    getattr(self, f"_on_{event['what']}")(worker, event)
        finally:
            self._close()
        return self._failed

    # Events from processes -------------------------------------------------------------------------

    def _on_ready(self, worker: _Worker, event: dict[str, Any]) -> None:
        if worker.number == 0 and not self._checked:
            worker.give("preflight", self._all)
        else:
            worker.free = True
            self._hand_out()

    def _on_checked(self, worker: _Worker, event: dict[str, Any]) -> None:
        remember(self._plan, self._out)
        self._stillborn = 0
        self._checked = worker.free = True
        self._hand_out()

    def _on_said(self, worker: _Worker, event: dict[str, Any]) -> None:
        self._show.line(worker.number, self._name(worker), event["text"])

    def _on_ended(self, worker: _Worker, event: dict[str, Any]) -> None:
        config = worker.config
        assert config is not None
        self._stillborn = 0
        fields = {key: value for key, value in event.items() if key != "what"}
        outcome = Outcome(**fields)
        worker.config, worker.free = None, True
        if outcome.state == "left":
            self._elsewhere.append(config)
        else:
            self._end(config, outcome)
        self._hand_out()

    def _on_refused(self, worker: _Worker, event: dict[str, Any]) -> None:
        if self._debug:
            self._show.line(worker.number, self._name(worker), event["trace"])
        raise (DiskError if event["disk"] else RecpeftError)(event["error"])

    def _on_dead(self, worker: _Worker, event: dict[str, Any]) -> None:
        self._alive.remove(worker)
        config, code = worker.config, event["code"]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if stopping.asked():
            return
        if config is None:
            self._stillborn += not worker.free
            if self._stillborn == MOST_STARTS:
                raise RecpeftError(
                    f"{MOST_STARTS} processes in a row ended before they had a run, the last by {how}; see above what "
                    "they printed."
                )
            self._start(worker.number)
            return
        saved = last_saved(run_folder(self._out, config.study, config.run_id))
        if saved != self._reached.get(config.run_id):
            self._deaths[config.run_id] = 0  # it made progress since the last death
        self._reached[config.run_id] = saved
        self._deaths[config.run_id] += 1
        if self._deaths[config.run_id] < MOST_DEATHS:
            self._show.line(worker.number, self._name(worker), f"its process ended by {how}; another goes on with it")
            self._waiting.appendleft(config)
        else:
            sentence = (
                f"its process ended by {how}, {MOST_DEATHS} times in a row at the same step; where memory runs out, "
                "lower training.users_per_step or training.max_bucket_tokens, or run fewer workers."
            )
            record_failure(config, self._out, RecpeftError(sentence))
            self._end(config, Outcome("failed", error=sentence))
        self._start(worker.number)
        self._hand_out()

    # Actions on events -------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give each free worker a run that depends on no unfinished run, if there is one."""
        if not self._checked:
            return
        for worker in self._alive:
            config = self._first() if worker.free else None
            if config is not None:
                self._waiting.remove(config)
                worker.config, worker.free = config, False
                worker.give("run", [config])
                self._show.started(worker.number, self._name(worker))
            elif worker.free:
                self._show.idle(worker.number)

    def _first(self) -> RunConfig | None:
        """Return the next run; lists are reordered only after the run that made them has ended."""
        at_work = [worker.config for worker in self._alive if worker.config is not None]
        open_runs = {config.run_id for config in (*at_work, *self._waiting, *self._elsewhere)}
        free = (c for c in self._waiting if c.diversify is None or c.undiversified.run_id not in open_runs)
        return next(free, None)

    def _end(self, config: RunConfig, outcome: Outcome) -> None:
        self._ended += 1
        self._failed += outcome.state == "failed"
        what = f"test {config.evaluation.monitored} " if outcome.state == "done" else ""
        self._show.says(f"{self._title(config)}: {what}{outcome.text}", outcome.state == "failed")
        if self._debug and outcome.trace:
            self._show.says(outcome.trace, failure=True)
        self._show.ended(len(self._number) - len(self._all) + self._ended, self._failed)

    def _look_elsewhere(self) -> None:
        """Record runs that another runner has finished, and take over runs that it has abandoned."""
        for config in list(self._elsewhere):
            if is_held(config, self._out):
                continue
            self._elsewhere.remove(config)
            if unfinished([config], self._out):
                self._waiting.append(config)
            else:
                self._end(config, Outcome("finished before"))
            self._hand_out()

    def _start(self, number: int) -> None:
        self._alive.append(_Worker(number, self._out, _processes(self._all), self._events))

    def _stop(self) -> None:
        """Make every process save and end.

        Raises:
            Interrupted: always.
        """
        at_work = sum(worker.config is not None for worker in self._alive)
        self._close()
        stopping.stop(f"{self._ended} of {len(self._all)} runs had ended, and {at_work} are saved where they were")

    def _close(self) -> None:
        for worker in self._alive:
            worker.close()
        try:
            for worker in self._alive:
                worker.process.wait()
        except KeyboardInterrupt:  # a second Ctrl-C
            for worker in self._alive:
                worker.process.kill()
            raise

    def _name(self, worker: _Worker) -> str:
        return self._title(worker.config) if worker.config is not None else ""

    def _title(self, config: RunConfig) -> str:
        return f"[{self._number[config.run_id]}/{len(self._number)}] {label(config)}"


def last_saved(folder: RunFolder) -> int:
    """Return the time of a run's last save, in nanoseconds; 0 if it was never saved."""
    try:
        return (folder.checkpoints / "last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _processes(configs: Sequence[RunConfig]) -> int:
    """Return the largest number of processes of any run."""
    return max(map(wanted, configs), default=1)


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class _Display:
    """Print lines suited to a log file."""

    def __enter__(self) -> _Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def says(self, text: str, failure: bool = False) -> None:
        say(text, error=failure)

    def line(self, number: int, name: str, text: str) -> None:
        """Print a line of a run's output."""
        self.says(f"{name}: {text.strip()}" if name else text)

    def started(self, number: int, name: str) -> None:
        self.says(name)

    def idle(self, number: int) -> None:
        """Show that worker ``number`` is idle."""

    def ended(self, ended: int, failed: int) -> None:
        """Show how many runs have ended and failed."""


class _LiveDisplay(_Display):
    """Show a progress bar for the study, and each worker's last line of output."""

    def __init__(self, runs: int, workers: int) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console(highlight=False))
        self._study: TaskID = self._bars.add_task("runs", total=runs)
        self._lines = [self._bars.add_task("starts", total=None) for _ in range(workers)]

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def says(self, text: str, failure: bool = False) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)

    def line(self, number: int, name: str, text: str) -> None:
        if name:
            self._bars.update(self._lines[number], description=printable(f"{name}: {text.strip()}"))
        else:
            self.says(text)

    def started(self, number: int, name: str) -> None:
        self._bars.reset(self._lines[number], description=printable(name))

    def idle(self, number: int) -> None:
        self._bars.update(self._lines[number], description="waits")

    def ended(self, ended: int, failed: int) -> None:
        self._bars.update(self._study, completed=ended, description=f"runs, {failed} failed" if failed else "runs")


def _display(runs: int, workers: int) -> _Display:
    return _LiveDisplay(runs, workers) if sys.stdout.isatty() else _Display()
