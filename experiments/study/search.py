"""Run a search: trials, in this process or several, and the winner, the only trial that is tested."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from experiments.config.run import RunConfig
from experiments.config.search import Search, build_search
from experiments.records.layout import FinishedRecord
from experiments.records.record import read_record, run_folder
from experiments.study import workers as pool
from experiments.study.plan import cells
from experiments.study.plan import show as show_cells
from experiments.study.serial import run_study
from experiments.study.trials import ENDED, Trials, count_alike, line_of, number_text, work
from recpeft import stopping
from recpeft.errors import RecpeftError
from recpeft.stopping import STOP_FILE
from recpeft.terminal import say

MOST_STARTS = 10
"""Number of processes of a search that may die before it is given up."""


def run_search(
    search: Search,
    out: Path,
    workers: int = 1,
    debug: bool = False,
    clear_stop: bool = True,
    to_the_end: bool = True,
    report: Callable[[Sequence[RunConfig], Path], None] | None = None,
) -> int:
    """Run the trials, name the winner, and train and test it with the file's seeds and references.

    Args:
        clear_stop: discard an earlier ``recpeft stop`` and continue.
        report: called with the winner's runs and ``out`` when they have ended.
        to_the_end: wait for other processes' trials and run the winner; otherwise return when no trial is left to take.
    Returns:
        Number of the winner's runs and references that failed.
    Raises:
        RecpeftError: data or a backbone are missing, no trial succeeded, or the disk is full.
        Interrupted: a stop was requested; each process has saved its current step.
    """
    trials = Trials(search, out, read_only=True)
    stopping.watch([trials.folder / STOP_FILE], clear_stop)
    if not trials.over:
        from experiments.cell.train import preflight

        preflight([*search.probes()], out)
        trials = Trials(search, out)
        work(trials, debug, to_the_end) if workers == 1 else _work_in_processes(trials, workers, debug)
    if not to_the_end:
        return 0
    winner = trials.name_winner()
    say(f"the winner is {line_of(winner, trials.monitor)}")
    alike = count_alike(trials.rows())
    if alike:
        say(f"WARNING: all {alike} trials validate alike, so that the winner is no better than the others")
    for key in search.at_an_end(winner["values"]):
        say(f"WARNING: its {key} lies at an end of the space, beyond which nothing was tried; widen space.{key}")
    configs = search.final(winner["values"])
    failed = (
        run_study(configs, out, debug=debug, plan=configs, clear_stop=False)
        if workers == 1
        else pool.run_in_processes(configs, out, workers, debug=debug, plan=configs)
    )
    if report is not None:
        report(configs, out)
    trials.drop_checkpoints(but_best=failed > 0)
    record = read_record(run_folder(out, trials.folder.name, winner["run_id"]))
    if isinstance(record, FinishedRecord):
        say(f"the winner, trial {winner['number']}: test {trials.monitor} {number_text(record.test[trials.monitor])}")
    return failed


def show(search: Search, out: Path) -> None:
    """Print the trials, how many have ended, and the best so far; for a finished search, also its winner's runs."""
    trials = Trials(search, out, read_only=True)
    rows = trials.rows()
    for row in rows:
        say(line_of(row, trials.monitor))
    ended = [row for row in rows if row["state"] in ENDED]
    say(f"{len(ended)} of {search.config.most_trials} trials have ended")
    best = trials.best()
    if best is not None:
        say(f"the best so far is {line_of(best, trials.monitor)}")
        if trials.over:
            show_cells(cells(search.final(best["values"]), out), "the winner, and what it is compared with")


def _work_in_processes(trials: Trials, workers: int, debug: bool) -> None:
    """Run the trials in ``workers`` processes; a process that dies is replaced.

    Raises:
        RecpeftError: a process ended with an error, or too many have died.
        Interrupted: a stop was requested.
    """
    content = trials.search.file | {"threads": pool.share_threads(trials.search.base, workers).threads}
    task = json.dumps({"file": yaml.safe_dump(content, sort_keys=False), "out": str(trials.out), "debug": debug})
    alive: dict[int, subprocess.Popen[str]] = {}
    died = 0
    try:
        for number in range(min(workers, trials.search.config.most_trials)):
            alive[number] = _start(number, task)
        while alive:
            if stopping.asked():
                break
            time.sleep(0.2)
            for number, process in list(alive.items()):
                code = process.poll()
                if code is None:
                    continue
                del alive[number]
                if code > 0 and code != stopping.EXIT_CODE:
                    raise RecpeftError(
                        f"a process of the search ended with exit code {code}; see above what it printed."
                    )
                died += code < 0
                if died == MOST_STARTS:
                    raise RecpeftError(f"{died} processes of the search have died; see above what they printed.")
                if code < 0:
                    say(f"worker {number}: its process has died; another takes its place")
                    alive[number] = _start(number, task)
    finally:
        for process in alive.values():
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # tells the process to save and stop
        try:
            for process in alive.values():
                process.wait()
        except KeyboardInterrupt:  # a second Ctrl-C
            for process in alive.values():
                process.kill()
            raise
    if not trials.over:
        stopping.stop("what was tried is kept, and what was being tried is saved")


def _start(number: int, task: str) -> subprocess.Popen[str]:
    process = pool.start_process(["experiments.study.search"], number)

    def copy() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(f"worker {number}: {line.rstrip()}")

    threading.Thread(target=copy, daemon=True).start()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(task + "\n")
        process.stdin.flush()
    return process


def main() -> None:
    """Run as a process of a search: work on the task in the first input line; save and stop when the input ends."""
    stopping.listen()
    task = json.loads(sys.stdin.readline())

    def wait_for_end() -> None:
        sys.stdin.read()
        stopping.ask("the end of the process that began the search")

    threading.Thread(target=wait_for_end, daemon=True).start()
    search = build_search(yaml.safe_load(task["file"]))
    assert search is not None
    try:
        trials = Trials(search, Path(task["out"]))
        stopping.watch([trials.folder / STOP_FILE], clear=False)
        work(trials, task["debug"])
    except RecpeftError as error:
        if task["debug"]:
            say(traceback.format_exc(), error=True)
        say(str(error))
        sys.exit(stopping.EXIT_CODE if isinstance(error, stopping.Interrupted) else 2)


if __name__ == "__main__":
    main()
