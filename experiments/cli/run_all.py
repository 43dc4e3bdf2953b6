"""Execute a list of runs and report on them: checked together, in this process or in several."""

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
    """Execute the unfinished runs, print and write each study's report, and return how many runs failed.

    A failed run is recorded with its error, and the next one starts; the same call tries it again.

    Args:
        configs: runs from ``load_runs``, of one or several files.
        out: records are ``<out>/<study>/<run_id>/result.json``.
        workers: number of runs at a time, each in its own process if there are several; None is one per GPU, else 1.
        only: ids of the runs to execute now; empty is all.
        mixed_versions: add to a study even if other versions of libraries made its runs.
        debug: print the tracebacks of failures.
    Raises:
        RecpeftError: the runs do not fit an existing study, data or a backbone are missing (nothing has been run), or
            the disk is full.
        Interrupted: a stop was requested; the step is saved, and the same call resumes from it.
    """
    out = Path(out)
    check_same_study(configs, out, mixed_versions)
    chosen = [config for config in configs if not only or config.run_id in only]

    from lightning_modules._backbone import locate

    for name in {config.backbone.name for config in chosen if isinstance(config, TextRun)}:
        locate(name)  # reports a missing backbone before the seconds that importing torch takes

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
    """Print and write the report of each study with a finished run; ``page`` adds the HTML page."""
    from experiments.reporting import write_report
    from experiments.study.serial import unfinished

    left = unfinished(configs, out)
    for study in sorted({out / config.study for config in configs if config not in left}):
        try:
            write_report(study, page=page)
        except DiskError as error:  # the records are complete
            say(f"no report is written: {error} recpeft report {study} --to FOLDER does.", error=True)
