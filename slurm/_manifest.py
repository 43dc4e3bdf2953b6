"""Manifests: a record of each submission, so that cells, records and queue can be joined later."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import NonNegativeInt, ValidationError, model_validator

from recpeft.config import Config
from recpeft.errors import RecpeftError, shortened
from recpeft.files import disk_errors, write_text
from recpeft.reading import read_json, reason
from slurm._script import Options

SCHEMA: Final = 1
"""Version of the manifest's layout."""


class Cell(Config):
    """One run of the study."""

    index: NonNegativeInt
    """Index in the job array."""
    run_id: str
    config: dict[str, Any]
    label: str
    """Name in tables."""


class Job(Config):
    """One call of sbatch."""

    job_id: str
    array: str
    """Indices of the submitted cells, as in sbatch's ``--array``."""
    submitted: str
    """Time of submission, UTC, ISO 8601."""


class Manifest(Config):
    """A submission; its cells never change, because array tasks that start later read them by index."""

    # `schema` is a method's name in pydantic.
    schema_version: Literal[1] = SCHEMA
    study: str
    out: str
    """Absolute path of the folder with all studies' records."""
    working_directory: str
    created: str
    """Time of creation, UTC, ISO 8601."""
    options: Options
    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...] = ()
    """sbatch calls: the first submission and each resubmission."""

    @model_validator(mode="after")
    def _indices_are_places(self) -> Manifest:
        if [cell.index for cell in self.cells] != list(range(len(self.cells))):
            raise ValueError("cells are not numbered 0, 1, 2, …")
        return self

    @property
    def job_ids(self) -> tuple[str, ...]:
        return tuple(job.job_id for job in self.jobs)

    def with_job(self, job_id: str, array: str) -> Manifest:
        """Return a copy of this manifest with another sbatch call."""
        return self.model_copy(update={"jobs": (*self.jobs, Job(job_id=job_id, array=array, submitted=now()))})


def now() -> str:
    """Return the current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_folder(study: Path) -> Path:
    """Make the folder of a new submission, ``<study>/slurm/<number>`` with ``logs/``, for manifest, script and logs."""
    with disk_errors(study / "slurm"):
        (study / "slurm").mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in _folders(study)), default=0)
        while True:
            number += 1
            folder = study / "slurm" / f"{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:  # another process has just submitted
                continue
            (folder / "logs").mkdir()
            return folder


def find_manifests(study: Path) -> list[Path]:
    """Return the paths of the manifests below a study's folder, newest last.

    Raises:
        RecpeftError: there is no manifest.
    """
    found = [path / "manifest.json" for path in _folders(study) if (path / "manifest.json").exists()]
    if not found:
        raise RecpeftError(f"{study} was not submitted to SLURM; use recpeft slurm submit, or give a study's folder.")
    return found


def _folders(study: Path) -> list[Path]:
    names = [path for path in (study / "slurm").glob("*") if re.fullmatch(r"\d+", path.name)]
    return sorted(names, key=lambda path: int(path.name))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest`` to ``path`` atomically."""
    content = manifest.model_dump(mode="json")
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at ``path``.

    Raises:
        RecpeftError: there is no such file, or it is not a manifest of this version; names the invalid key.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise RecpeftError(f"there is no file {path}; give a manifest that recpeft slurm submit wrote.") from None
    except OSError as error:
        raise RecpeftError(f"{path} cannot be read: {error.strerror}; give a manifest.") from None
    except ValueError as error:
        raise RecpeftError(
            f"{path} is no JSON ({reason(error)}); move its folder away and submit the study again."
        ) from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise RecpeftError(
            f"{path} is no manifest of schema {SCHEMA}; move its folder away and submit the study again."
        )
    try:
        return Manifest(**content)
    except (ValidationError, TypeError) as error:
        what = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            message = shortened(first["msg"].removeprefix("Value error, "), first["input"])
            what = f"{'.'.join(str(part) for part in first['loc'])}: {message}"
        raise RecpeftError(
            f"{path} is no manifest ({what.removeprefix(': ')}); move its folder away and submit the study again."
        ) from None


def cell_of(manifest: Manifest, index: int) -> Cell:
    """Return the cell of an array task.

    Raises:
        RecpeftError: there is no such index.
    """
    if not 0 <= index < len(manifest.cells):
        raise RecpeftError(f"the manifest has no cell {index}; it has 0 to {len(manifest.cells) - 1}.")
    return manifest.cells[index]
