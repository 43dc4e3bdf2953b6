"""A search: trials, in this process or several, and the winner, which alone is tested."""

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
"""Processes of a search that may die before it is given up."""


def run_search(
    search: Search,
    out: Path,
    workers: int = 1,
    debug: bool = False,
    clear_stop: bool = True,
    to_the_end: bool = True,
    report: Callable[[Sequence[RunConfig], Path], None] | None = None,
) -> int:
    """Try, name the winner, and train and test it with the file's seeds and references; how many of these failed.

    Args:
        clear_stop: go on where ``recpeft stop`` was asked before.
        report: called with the winner's runs and ``out`` when they have ended.
        to_the_end: wait for trials of others, and see to the winner; or end once there is no trial to take.
    Raises:
        RecpeftError: data or a backbone are missing, no trial has ended well, or the disk is full.
        Interrupted: somebody asked to stop; each process has saved the step it was at.
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
    """Print how many trials have ended, and the best so far; of a finished search, its winner's runs too."""
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
    """Have ``workers`` processes work on the trials; one that dies is replaced.

    Raises:
        RecpeftError: one has ended with a mistake, or too many have died.
        Interrupted: somebody asked to stop.
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
                process.stdin.close()  # it saves and stops
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
    """A process of a search: works on what its first line of input says, and saves and stops where the input ends."""
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
