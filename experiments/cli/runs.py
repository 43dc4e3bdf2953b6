"""Commands for an experiment file and its study: run, retry, plan, status, stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.options import Debug, File, Mixed, Out, Overrides, Study, Trust, Workers
from recpeft import stopping
from recpeft.errors import DiskError, RecpeftError
from recpeft.terminal import say

if TYPE_CHECKING:
    from experiments.config.search import Search


def run(
    file: File,
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this run_id alone; repeatable.")] = None,
    workers: Workers = None,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Run an experiment file's cells; finished ones are skipped, and interrupted ones resume.

    On Ctrl-C, SIGTERM, SIGUSR1 or ``recpeft stop`` the step is saved; the exit code is then 75.
    """
    stopping.listen()  # before the imports that take seconds

    from experiments.cli.run_all import run_all
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search

    search = load_search(file, overrides or [])
    if search is not None:
        _run_search(file, search, only, workers, mixed_versions, out, debug)
        return
    configs = load_runs(file, overrides or [])
    known = {config.run_id for config in configs}
    missing = [run_id for run_id in only or [] if run_id not in known]
    if missing:
        raise RecpeftError(f"--only {missing[0]} is no run of {file}; it has {', '.join(sorted(known))}.")
    with _named(file):
        failed = run_all(configs, out, workers, only=only or (), mixed_versions=mixed_versions, debug=debug)
    if failed:
        raise typer.Exit(1)


def _run_search(
    file: Path,
    search: Search,
    only: list[str] | None,
    workers: int | None,
    mixed_versions: bool,
    out: Path,
    debug: bool,
) -> None:
    """Run a file with ``search:``."""
    from experiments.study.same_study import check_same_study
    from lightning_modules._backbone import locate

    if only:
        raise RecpeftError(f"{file}: --only names runs, which a search finds as it goes; leave it out.")
    check_same_study([search.base], out, mixed_versions)
    with _named(file):
        for name in {config.backbone.name for config in search.probes()}:
            locate(name)

        from experiments.cli.run_all import write_reports
        from experiments.study import workers as pool
        from experiments.study.search import run_search

        workers = workers or pool.default_workers([search.base])
        failed = run_search(search, out, workers, debug, report=write_reports)
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Prefix errors of the experiment with its file's name."""
    try:
        yield
    except (DiskError, stopping.Interrupted):
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{file}: {error}") from error


def retry(
    file: File,
    overrides: Overrides = None,
    workers: Workers = None,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Run only an experiment file's failed cells again."""
    from experiments.config.grid import load_runs
    from experiments.study.plan import cells

    failed = [cell.config.run_id for cell in cells(load_runs(file, overrides or []), out) if cell.state == "failed"]
    if not failed:
        say(f"{file}: no run has failed")
        return
    run(file, overrides, failed, workers, mixed_versions, out, debug=debug)


def plan(
    file: File,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """List an experiment file's runs: which are done, running, failed or waiting, and how long the rest may take."""
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search
    from experiments.study.plan import cells, show

    search = load_search(file, overrides or [])
    if search is not None:
        from experiments.study.search import show as show_search

        show_search(search, out)
        return
    show(cells(load_runs(file, overrides or []), out), str(file))


def status(
    directory: Study,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """List a study's runs as ``plan`` does, with their progress, from its folder alone."""
    from experiments.study.plan import cells, recall, show

    show(cells(recall(directory), directory.resolve().parent), str(directory))


def stop(
    directory: Study,
    debug: Debug = False,
) -> None:
    """Ask the processes that run a study to save their step and stop; ``recpeft run`` resumes from there.

    A study in SLURM stays stopped: running tasks are not requeued, and waiting ones end as soon as they start.
    """
    from experiments.study.plan import is_study

    try:
        if not directory.is_dir():
            raise RecpeftError(f"there is no folder {directory}; give a study's folder, such as runs/quickstart.")
        if not is_study(directory):
            raise RecpeftError(f"{directory} holds no study; give a study's own folder, such as runs/quickstart.")
        (directory / stopping.STOP_FILE).touch()
    except OSError as error:
        raise DiskError(
            f"{directory / stopping.STOP_FILE} may not be written ({error.strerror}); have the study's owner stop it."
        ) from error
    say(f"{directory}: whoever runs it saves and stops; recpeft run or slurm resubmit goes on from there")
