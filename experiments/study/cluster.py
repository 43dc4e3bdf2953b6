"""Run a study as a SLURM job array: submit, monitor and resubmit it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slurm
from experiments.config.run import RunConfig, TextRun, build_run
from experiments.records.record import read_record, run_folder
from experiments.study.plan import cells as states
from experiments.study.plan import remember
from experiments.study.same_study import check_same_study
from recpeft import stopping, trust
from recpeft.errors import DiskError, RecpeftError, shown
from recpeft.files import locked, write_text
from recpeft.terminal import say


def submit(
    configs: list[RunConfig],
    out: Path,
    site: Path | None,
    given: Mapping[str, Any],
    dry_run: bool,
    mixed_versions: bool = False,
) -> tuple[str, Path | None, str | None]:
    """Submit the unfinished runs: write their manifest and script, and pass the script to sbatch.

    Runs that an earlier submission still has in SLURM are left out, with a message.

    Args:
        site: YAML of the site's defaults; None is $RECPEFT_SLURM, if that is set.
        given: SLURM options from the command line.
        dry_run: write nothing and submit nothing.
        mixed_versions: add to a study even if other versions of libraries made its runs.
    Returns:
        The script's text; its path and the job's id if it was submitted, else None.
    Raises:
        RecpeftError: nothing is left, the runs belong to several studies, or sbatch refuses (with its own message).
    """
    studies = sorted({config.study for config in configs})
    if len(studies) > 1:
        raise RecpeftError(f"the runs are of the studies {', '.join(studies)}; submit one at a time.")
    check_same_study(configs, out, mixed_versions)
    options = slurm.read_options(site, given)
    # Without the lock, two concurrent calls would both find nothing in SLURM and submit everything twice.
    with contextlib.nullcontext() if dry_run else locked(submissions(out / studies[0])):
        return _submit(configs, out, studies[0], options, dry_run)


def _submit(
    configs: list[RunConfig], out: Path, study: str, options: slurm.Options, dry_run: bool
) -> tuple[str, Path | None, str | None]:
    left = [cell.config for cell in states(configs, out) if cell.state not in ("done", "running")]
    taken = _in_slurm(out / study) if left else set()
    # If another job has the run whose lists are reordered, that job reorders them too.
    waiting = [run for run in left if not taken & {run.run_id, run.undiversified.run_id}]
    if not waiting:
        raise RecpeftError(
            f"all {len(configs)} runs of {study} are done, running or in SLURM; there is nothing to submit."
        )
    options = _with_processes(options, waiting)
    if len(waiting) < len(left):
        say(f"{len(left) - len(waiting)} of {len(left)} runs are in SLURM already and left out", error=True)
    most = slurm.most_tasks()
    if most is not None and len(waiting) > most:
        text = (
            f"a job array has at most {most} tasks here (SLURM's MaxArraySize), so the first {most} of {len(waiting)} "
            "runs are submitted; give the same command again for the rest, at once or later"
        )
        say(text, error=True)
        waiting = waiting[:most]
    manifest = slurm.Manifest(
        study=study,
        out=str(out.resolve()),
        working_directory=str(Path.cwd()),
        created=slurm.now(),
        options=options,
        cells=tuple(
            slurm.Cell(
                index=n, run_id=run.run_id, config=run.model_dump(mode="json"), label=f"{run.method} {run.width}"
            )
            for n, run in enumerate(waiting)
        ),
    )
    array = slurm.array_text(
        [index for index, leader in _leaders(manifest).items() if index == leader], options.max_parallel
    )
    if dry_run:
        return _text(manifest, out / study / "slurm" / "001", array), None, None
    folder = slurm.new_folder((out / study).resolve())
    script = folder / "job.sh"
    text = _text(manifest, folder, array)
    slurm.write_manifest(folder / "manifest.json", manifest)
    write_text(script, text)
    try:
        job = hand_over(script, out / study)
    except RecpeftError as error:
        if str(error).startswith(("sbatch refused", "there is no sbatch")):
            shutil.rmtree(folder)  # it was not submitted; after any other error, it may have been
        raise
    slurm.write_manifest(folder / "manifest.json", manifest.with_job(job, array))
    remember(configs, out)
    return text, script, job


def submissions(study: Path) -> Path:
    """Return the folder of a study's submissions, which is locked during a submission."""
    return study / "slurm"


def hand_over(script: Path, study: Path) -> str:
    """Pass ``script`` to sbatch and return the job's id; this also lifts an earlier ``recpeft stop``.

    Raises:
        RecpeftError: sbatch refuses (with its own message); the study stays stopped.
    """
    file = study / stopping.STOP_FILE
    asked = file.read_text(encoding="utf-8") if file.exists() else None
    file.unlink(missing_ok=True)  # removed first, or a task that starts at once would stop at once
    try:
        return slurm.submit(script)
    except BaseException:
        if asked is not None:
            write_text(file, asked)
        raise


def _with_processes(options: slurm.Options, configs: list[RunConfig]) -> slurm.Options:
    """Return ``options`` with one SLURM task for each process of a cell.

    Raises:
        RecpeftError: cells differ in their number of processes, or the site asks for other numbers.
    """
    asked = {(run.distributed.num_nodes, run.distributed.devices) for run in configs if isinstance(run, TextRun)}
    if len(asked) > 1:
        raise RecpeftError(
            "the cells of a job array are of one size, but these ask for "
            + " and ".join(f"{devices} devices on {nodes} nodes" for nodes, devices in sorted(asked))
            + " (distributed); submit them apart, by --set or from two files."
        )
    for nodes, devices in asked:
        wanted = {"nodes": nodes, "ntasks_per_node": devices}
        for key, value in wanted.items():
            said = getattr(options, key)
            if key in options.model_fields_set and said != value:
                raise RecpeftError(f"SLURM's {key} is {said}, but distributed asks for {value}; leave {key} out.")
        options = options.model_copy(update=wanted)
    return options


def status(study: Path) -> tuple[list[slurm.Row], str | None]:
    """Return the state of each cell of a study's last submission, and the array of lost, stopped and failed tasks."""
    path = slurm.find_manifests(study)[-1]
    manifest = slurm.read_manifest(path)
    rows = _rows(manifest, path)
    return rows, missing(manifest, rows, failed=True)


def resubmit(study: Path, failed: bool) -> tuple[str, str] | None:
    """Resubmit the lost and stopped cells of a study's last submission, and the failed ones if ``failed``.

    Returns:
        The array and the job's id; None if there is nothing to resubmit.
    """
    slurm.find_manifests(study)  # raises if there is no submission, before anything is locked
    with locked(submissions(study)):  # two concurrent calls would submit everything twice
        path = slurm.find_manifests(study)[-1]
        manifest = slurm.read_manifest(path)
        array = missing(manifest, _rows(manifest, path), failed)
        if array is None:
            return None
        _check_script(manifest, path)
        script = path.parent / f"job-{len(manifest.jobs) + 1}.sh"
        write_text(script, _text(manifest, path.parent, array))
        job = hand_over(script, Path(manifest.out) / manifest.study)
        slurm.write_manifest(path, manifest.with_job(job, array))
    return array, job


def _check_script(manifest: slurm.Manifest, path: Path) -> None:
    """Refuse setup and extra lines that a manifest adds to a job's script, unless the site's defaults have them."""
    site = slurm.read_options()
    lines = [line for line in manifest.options.setup if line not in site.setup]
    lines += [line for line in manifest.options.extra if line not in site.extra]
    if lines:
        with trust.data_alone(path):
            trust.check(trust.SETUP, f"{shown(lines[0])} in each job, which is none of $RECPEFT_SLURM's defaults")


def missing(manifest: slurm.Manifest, rows: Sequence[slurm.Row], failed: bool) -> str | None:
    """Return sbatch's ``--array`` for the tasks of ``slurm.to_resubmit``'s cells; None if there are none."""
    leaders = _leaders(manifest)
    tasks = sorted({leaders[index] for index in slurm.to_resubmit(rows, failed)})
    return slurm.array_text(tasks, manifest.options.max_parallel) if tasks else None


def run_cell(path: Path, index: int) -> int:
    """Run a cell and the cells that reorder its lists; return how many failed or are held by another process.

    Raises:
        Interrupted: a stop was requested; the step is saved, and the cell resumes when started again.
        RecpeftError: data or a backbone are missing; the cell's record holds this error too, which ``status`` reads.
    """
    manifest = slurm.read_manifest(path)
    slurm.cell_of(manifest, index)
    stopping.watch([_stop_file(manifest)], clear=False)
    if stopping.asked():  # before the imports that take seconds
        stopping.stop(f"cell {index} did not begin")
    own = [place for place, leader in _leaders(manifest).items() if leader == index]
    configs = [build_run(manifest.cells[place].config) for place in own]

    from experiments.study.serial import record_failure, run_study

    out = Path(manifest.out)
    try:
        return run_study(configs, out, clear_stop=False, wait=False)
    except (DiskError, stopping.Interrupted):
        raise
    except Exception as error:  # raised before the first run, so nothing is recorded yet
        for cell in states(configs, out):
            if cell.state in ("waiting", "failed"):
                record_failure(cell.config, out, error)
        raise


def _leaders(manifest: slurm.Manifest) -> dict[int, int]:
    """Map each cell's index to that of the cell whose task runs it: itself, or the run whose lists it reorders."""
    place = {cell.run_id: cell.index for cell in manifest.cells}
    runs = [build_run(cell.config) for cell in manifest.cells]
    return {index: place.get(run.undiversified.run_id, index) for index, run in enumerate(runs)}


def _rows(manifest: slurm.Manifest, path: Path) -> list[slurm.Row]:
    queue = slurm.queue(manifest.job_ids)
    with trust.data_alone(path):
        leaders = _leaders(manifest)
    # A cell run by another cell's task shares that task's state and log.
    queue = {index: queue[leader] for index, leader in leaders.items() if leader in queue}
    logs = {index: path.parent / "logs" / f"{leader}.txt" for index, leader in leaders.items()}
    logs = {index: log for index, log in logs.items() if log.exists()}
    return slurm.rows(manifest, _records(manifest), queue, _stop_file(manifest).exists(), logs)


def _in_slurm(study: Path) -> set[str]:
    """Return the ids of runs that wait or run in SLURM, from any submission of the study."""
    found = set()
    for path in slurm.find_manifests(study) if list(study.glob("slurm/*/manifest.json")) else []:
        manifest = slurm.read_manifest(path)
        queue = slurm.queue(manifest.job_ids)
        if queue:  # only then, because this version may reject the configs of submissions that ended long ago
            with trust.data_alone(path):
                leaders = _leaders(manifest)
            found |= {manifest.cells[index].run_id for index, leader in leaders.items() if leader in queue}
    return found


def _stop_file(manifest: slurm.Manifest) -> Path:
    return Path(manifest.out) / manifest.study / stopping.STOP_FILE


def _records(manifest: slurm.Manifest) -> dict[str, tuple[str, str | None] | None]:
    found: dict[str, tuple[str, str | None] | None] = {}
    for cell in manifest.cells:
        try:
            record = read_record(run_folder(Path(manifest.out), manifest.study, cell.run_id))
        except RecpeftError as error:
            found[cell.run_id] = ("failed", str(error))
            continue
        found[cell.run_id] = None if record is None else (record.status, getattr(record, "error", None))
    return found


def _text(manifest: slurm.Manifest, folder: Path, array: str) -> str:
    command: Sequence[str] = slurm.cell_command(sys.executable, folder / "manifest.json")
    place = Path(manifest.working_directory)
    return slurm.sbatch_text(manifest.study, array, command, manifest.options, folder / "logs", place)
