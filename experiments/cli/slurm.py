"""Commands ``recpeft slurm``: run a study as a job array."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import Debug, File, Mixed, Out, Overrides, Study, Trust
from recpeft import stopping
from recpeft.terminal import say


def submit(
    file: File,
    overrides: Overrides = None,
    partition: Annotated[str | None, typer.Option(help="As sbatch has it, like the options below.")] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    gres: Annotated[str | None, typer.Option(help="Such as gpu:1.")] = None,
    time: Annotated[str | None, typer.Option(help="Of one start; before it the cell saves and is requeued.")] = None,
    mem: Annotated[str | None, typer.Option()] = None,
    cpus_per_task: Annotated[int | None, typer.Option()] = None,
    max_parallel: Annotated[int | None, typer.Option(help="Most cells at a time.")] = None,
    site: Annotated[Path | None, typer.Option(help="YAML of the site's defaults; else $RECPEFT_SLURM.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and write and submit nothing.")] = False,
    mixed_versions: Mixed = False,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Submit an experiment file's unfinished runs as one job array."""
    from experiments.config.grid import load_runs
    from experiments.config.search import load_search
    from experiments.study import cluster, search_cluster

    given = {
        "partition": partition,
        "account": account,
        "qos": qos,
        "gres": gres,
        "time": time,
        "mem": mem,
        "cpus_per_task": cpus_per_task,
        "max_parallel": max_parallel,
    }
    said = {key: value for key, value in given.items() if value is not None}
    search = load_search(file, overrides or [])
    text, script, job = (
        cluster.submit(load_runs(file, overrides or []), out, site, said, dry_run, mixed_versions)
        if search is None
        else search_cluster.submit(search, out, site, said, dry_run, mixed_versions)
    )
    if script is None:
        say(text)
    else:
        asked = f"recpeft slurm status {script.parents[2]}" if search is None else f"recpeft plan {file}"
        say(f"job {job} of {script}; {asked}")


def status(
    directory: Study,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """List each cell as done, running, queued, failed, stopped or lost."""
    import slurm
    from experiments.study import cluster

    found, array = cluster.status(directory)
    for row in found:
        say(f"{row.index:4d} {row.run_id} {row.state:8s}{row.label}{': ' if row.detail else ''}{row.detail}")
    say(", ".join(f"{number} {state}" for state, number in slurm.counts(found).items()))
    if array:
        say(f"lost, stopped or failed: --array={array}; recpeft slurm resubmit {directory} --failed")


def resubmit(
    directory: Study,
    failed: Annotated[bool, typer.Option("--failed", help="What has failed too.")] = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Submit lost and stopped cells again."""
    from experiments.study import cluster

    found = cluster.resubmit(directory, failed)
    say("there is nothing to submit again" if found is None else f"job {found[1]}, --array={found[0]}")


def cell(
    manifest: Annotated[Path, typer.Argument(help="What slurm submit wrote.")],
    index: Annotated[int, typer.Argument(help="Which of its cells.")],
    debug: Debug = False,
) -> None:
    """Run one cell, as an array's task does: exit code 0 is done, 1 or 2 failed, 75 saved and to be resumed.

    It is also 1 if another process has the cell; this one does not wait for it.
    After ``recpeft stop`` it is 3: saved, and not to be resumed until somebody asks for it.
    """
    stopping.listen(second_ends=False)  # before the imports that take seconds

    from experiments.study.cluster import run_cell

    _run_task(lambda: run_cell(manifest, index))


def trials(
    file: Annotated[Path, typer.Argument(help="What slurm submit wrote of a search.")],
    index: Annotated[int, typer.Argument(help="Which of the array's tasks.")],
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Run trials of a search, as an array's task does; exit codes are those of ``cell``."""
    stopping.listen(second_ends=False)

    from experiments.cli.run_all import write_reports
    from experiments.study.search_cluster import run_task

    _run_task(lambda: run_task(file, index, out, partial(write_reports, page=False)))


def _run_task(task: Callable[[], int]) -> None:
    """Run an array's task and translate its result into exit codes."""
    try:
        failed = task()
    except stopping.Interrupted as error:
        if not stopping.asked_by_file():
            raise
        say(f"recpeft: {error}", error=True)
        raise typer.Exit(stopping.STAY_STOPPED) from None
    if failed:
        raise typer.Exit(1)
