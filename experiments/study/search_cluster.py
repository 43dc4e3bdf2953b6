"""Run a search as a SLURM job array whose tasks share its trials."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import slurm
from experiments.config.run import RunConfig
from experiments.config.search import Search, build_search
from experiments.study import cluster
from experiments.study.same_study import check_same_study
from recpeft import stopping
from recpeft.errors import RecpeftError
from recpeft.files import locked, write_text
from recpeft.reading import read_yaml
from recpeft.terminal import say


def submit(
    search: Search,
    out: Path,
    site: Path | None,
    given: Mapping[str, Any],
    dry_run: bool,
    mixed_versions: bool = False,
) -> tuple[str, Path | None, str | None]:
    """Submit a search: write its script and file, and pass the script to sbatch; ``max_parallel`` tasks take trials.

    Arguments and return value are those of ``experiments.study.cluster.submit``. Another submission adds tasks.

    Raises:
        RecpeftError: ``max_parallel`` is not set, or sbatch refuses (with its own message).
    """
    base = search.base
    options = slurm.read_options(site, given)
    if options.max_parallel is None:
        raise RecpeftError(
            "a search needs to know how many tasks share its trials; give --max-parallel. With fewer, each trial "
            "learns from more that have ended."
        )
    check_same_study([base], out, mixed_versions)
    tasks = min(options.max_parallel, search.config.most_trials)
    most = slurm.most_tasks()
    if most is not None and tasks > most:
        say(f"a job array has at most {most} tasks here (SLURM's MaxArraySize), which share the trials")
        tasks = most
    array = slurm.array_text(range(tasks))
    study = (out / base.study).resolve()
    folder = study / "slurm" / "001" if dry_run else slurm.new_folder(study)
    # Options first: the script appends the task's index after the last argument.
    command = [sys.executable, "-P", "-m", "experiments.cli", "slurm", "trials", "--out", str(out.resolve())]
    command.append(str(folder / "search.yaml"))
    text = slurm.sbatch_text(base.study, array, command, options, folder / "logs", Path.cwd())
    if dry_run:
        return text, None, None
    write_text(folder / "search.yaml", yaml.safe_dump(search.file, sort_keys=False))
    write_text(folder / "job.sh", text)
    try:
        with locked(cluster.submissions(study)):  # or a refused one would restore .stop for all
            return text, folder / "job.sh", cluster.hand_over(folder / "job.sh", study)
    except RecpeftError as error:
        if str(error).startswith(("sbatch refused", "there is no sbatch")):
            shutil.rmtree(folder)
        raise


def run_task(
    path: Path, index: int, out: Path, report: Callable[[Sequence[RunConfig], Path], None] | None = None
) -> int:
    """Run trials until none are left; task 0 then waits for the other tasks' trials and tests the winner.

    Args:
        report: called with the winner's runs and ``out`` when they have ended.
    Returns:
        Number of runs that failed.
    Raises:
        Interrupted: a stop was requested; the step is saved, and the trial resumes when any task starts again.
    """
    search = build_search(read_yaml(path, "the search that recpeft slurm submit wrote"))
    assert search is not None
    stopping.watch([out / search.base.study / stopping.STOP_FILE], clear=False)
    if stopping.asked():  # before the imports that take seconds
        stopping.stop(f"task {index} did not begin")

    from experiments.study.search import run_search

    return run_search(search, out, clear_stop=False, to_the_end=index == 0, report=report)
