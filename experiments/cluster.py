"""A study as a SLURM job array: submitted, looked after, and gone on with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slurm
from experiments.config import RunConfig, build_run
from experiments.plan import cells as states
from experiments.results import read_record, run_folder
from recpeft.errors import RecpeftError
from recpeft.files import locked, write_text


def submit(
    configs: list[RunConfig], out: Path, site: Path | None, given: Mapping[str, Any], dry_run: bool
) -> tuple[str, Path | None, str | None]:
    """Write manifest and script of what is not done, and hand the script to sbatch.

    Args:
        site: YAML of the site's defaults; None is $RECPEFT_SLURM, if that is set.
        given: what is said of it at the command line.
        dry_run: write nothing and submit nothing.
    Returns:
        The script's text; its path and the job's id where it was submitted.
    Raises:
        RecpeftError: nothing is left, the runs are of several studies, or sbatch refuses, in its own words.
    """
    studies = sorted({config.study for config in configs})
    if len(studies) > 1:
        raise RecpeftError(f"the runs are of the studies {', '.join(studies)}; submit one at a time.")
    waiting = [cell.config for cell in states(configs, out) if cell.state not in ("done", "running")]
    if not waiting:
        raise RecpeftError(f"all {len(configs)} runs of {studies[0]} are done or running; there is nothing to submit.")
    options = slurm.read_options(site, given)
    manifest = slurm.Manifest(
        study=studies[0],
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
        return _text(manifest, out / studies[0] / "slurm" / "001", array), None, None
    folder = slurm.new_folder((out / studies[0]).resolve())
    script = folder / "job.sh"
    text = _text(manifest, folder, array)
    slurm.write_manifest(folder / "manifest.json", manifest)
    write_text(script, text)
    try:
        job = slurm.submit(script)
    except RecpeftError as error:
        if str(error).startswith(("sbatch refused", "there is no sbatch")):
            shutil.rmtree(folder)  # what was not submitted is no submission; of any other answer nobody knows
        raise
    slurm.write_manifest(folder / "manifest.json", manifest.with_job(job, array))
    return text, script, job


def status(study: Path) -> tuple[list[slurm.Row], str | None]:
    """How each cell of a study's last submission stands, and the array of what is lost or has failed."""
    manifest = slurm.read_manifest(slurm.find_manifests(study)[-1])
    rows = _rows(manifest)
    return rows, missing(manifest, rows, failed=True)


def resubmit(study: Path, failed: bool) -> tuple[str, str] | None:
    """Submit what of a study's last submission is lost, and what has failed if asked for.

    Returns:
        The array and the job's id; None where there is nothing.
    """
    path = slurm.find_manifests(study)[-1]
    with locked(path):  # two at once would submit everything twice
        manifest = slurm.read_manifest(path)
        array = missing(manifest, _rows(manifest), failed)
        if array is None:
            return None
        script = path.parent / f"job-{len(manifest.jobs) + 1}.sh"
        write_text(script, _text(manifest, path.parent, array))
        job = slurm.submit(script)
        slurm.write_manifest(path, manifest.with_job(job, array))
    return array, job


def missing(manifest: slurm.Manifest, rows: Sequence[slurm.Row], failed: bool) -> str | None:
    """sbatch's ``--array`` of the tasks whose cells are lost, or failed if asked for; None where there are none."""
    leaders = _leaders(manifest)
    tasks = sorted({leaders[index] for index in slurm.to_resubmit(rows, failed)})
    return slurm.array_text(tasks, manifest.options.max_parallel) if tasks else None


def run_cell(path: Path, index: int) -> int:
    """Run a cell, and the cells that reorder its lists; how many failed.

    Raises:
        Interrupted: the step is saved, and the cell goes on where it is started again.
    """
    manifest = slurm.read_manifest(path)
    slurm.cell_of(manifest, index)
    own = [place for place, leader in _leaders(manifest).items() if leader == index]
    configs = [build_run(manifest.cells[place].config) for place in own]

    from experiments.study import run_study

    return run_study(configs, Path(manifest.out), report=False)


def _label(run: RunConfig) -> str:
    stage = "" if run.diversify is None else f", {run.diversify.method} {run.diversify.strength:g}"
    seed = getattr(run, "seed", None)
    return f"{run.method}, width {run.width}{'' if seed is None else f', seed {seed}'}{stage}"


def _leaders(manifest: slurm.Manifest) -> dict[int, int]:
    """Index of each cell to that of the cell whose task runs it: its own, or of the run whose lists it reorders."""
    place = {cell.run_id: cell.index for cell in manifest.cells}
    runs = [build_run(cell.config) for cell in manifest.cells]
    return {index: place.get(run.undiversified.run_id, index) for index, run in enumerate(runs)}


def _rows(manifest: slurm.Manifest) -> list[slurm.Row]:
    queue = slurm.queue(manifest.job_ids)
    leaders = _leaders(manifest)
    # A cell that another's task runs waits and runs with it.
    queue = {index: queue[leader] for index, leader in leaders.items() if leader in queue}
    return slurm.rows(manifest, _records(manifest), queue)


def _records(manifest: slurm.Manifest) -> dict[str, tuple[str, str | None] | None]:
    found: dict[str, tuple[str, str | None] | None] = {}
    for cell in manifest.cells:
        try:
            record = read_record(run_folder(Path(manifest.out), manifest.study, cell.run_id))
        except RecpeftError as error:
            found[cell.run_id] = ("failed", str(error))
            continue
        found[cell.run_id] = None if record is None else (record["status"], record.get("error"))
    return found


def _text(manifest: slurm.Manifest, folder: Path, array: str) -> str:
    command: Sequence[str] = slurm.cell_command(sys.executable, folder / "manifest.json")
    place = Path(manifest.working_directory)
    return slurm.sbatch_text(manifest.study, array, command, manifest.options, folder / "logs", place)
