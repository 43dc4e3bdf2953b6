"""Runs from a list to their table: checked together, in this process or in several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.config.run import RunConfig, TextRun
from experiments.study.same_study import check_same_study
from recpeft import processes
from recpeft.errors import DiskError
from recpeft.terminal import say


def run_all(
    configs: Sequence[RunConfig],
    out: Path | str = Path("runs"),
    workers: int | None = None,
    *,
    only: Sequence[str] = (),
    mixed_versions: bool = False,
    debug: bool = False,
) -> int:
    """Run what is not finished, print and write the report of each study, and return how many runs failed.

    A failed run is recorded with its error, and the next one starts; the same call tries it again.

    Args:
        configs: as ``load_runs`` gives them, of one file or of several.
        out: records are ``<out>/<study>/<run_id>/result.json``.
        workers: runs at a time, each in a process of its own if there are several; None is one for each GPU, else 1.
        only: run ids of those to run now; none is all.
        mixed_versions: add to a study whose runs other versions of libraries have made.
        debug: print the tracebacks of failures.
    Raises:
        RecpeftError: the runs do not belong into a study that is there, or data or a backbone are missing (nothing has
            been run), or the disk is full.
        Interrupted: somebody asked to stop; the step is saved, and the same call goes on from it.
    """
    out = Path(out)
    check_same_study(configs, out, mixed_versions)
    chosen = [config for config in configs if not only or config.run_id in only]

    from lightning_modules._backbone import locate

    for name in {config.backbone.name for config in chosen if isinstance(config, TextRun)}:
        locate(name)  # before torch is imported, which takes seconds

    from experiments.study import serial
    from experiments.study import workers as pool

    at_a_time = workers or pool.default_workers(chosen)
    if at_a_time == 1:
        failed = serial.run_study(chosen, out, debug=debug, plan=configs)
    else:
        failed = pool.run_in_processes(chosen, out, at_a_time, debug=debug, plan=configs)
    if processes.number() == 0:
        write_reports(chosen, out)
    return failed


def write_reports(configs: Sequence[RunConfig], out: Path, page: bool = True) -> None:
    """Print the table of each study that has a finished run, and write it, with the page unless that is left out."""
    from experiments.reporting import write_report
    from experiments.study.serial import unfinished

    left = unfinished(configs, out)
    for study in sorted({out / config.study for config in configs if config not in left}):
        try:
            write_report(study, page=page)
        except DiskError as error:  # the records are whole
            say(f"no report is written: {error} recpeft report {study} --to FOLDER does.", error=True)
