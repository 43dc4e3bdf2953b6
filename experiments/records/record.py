"""Write, read and find the records of runs; a record is written completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records.layout import SCHEMA, FinishedRecord, Record, parse
from recpeft import __version__
from recpeft.config import plain
from recpeft.errors import RecpeftError, cut, shown
from recpeft.files import write_text
from recpeft.reading import read_json, reason
from recpeft.terminal import say

if TYPE_CHECKING:
    import polars as pl


class CorruptRecord(RecpeftError):
    """Error of a damaged record file; other records beside it can still be read."""


@dataclass(frozen=True)
class RunFolder:
    """Paths in ``<out>/<study>/<run_id>/``, a run's folder."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "result.json"

    @property
    def per_user(self) -> Path:
        return self.path / "per_user.parquet"

    @property
    def per_pair(self) -> Path:
        """Return the file of each test pair with its score and label, written if candidates are rated."""
        return self.path / "per_pair.parquet"

    def lists(self, part: str) -> Path:
        """Return the file of each user's best items in ``validation`` (at the best epoch) or ``test``."""
        return self.path / f"{part}_lists.parquet"

    @property
    def adapter(self) -> Path:
        """Return the adapter's folder, in PEFT's format."""
        return self.path / "adapter"

    @property
    def head(self) -> Path:
        return self.path / "head.safetensors"

    @property
    def ranker(self) -> Path:
        """Return the file of a fitted ranker, without its tensors."""
        return self.path / "ranker.json"

    @property
    def ranker_tensors(self) -> Path:
        return self.path / "ranker.safetensors"

    @property
    def progress(self) -> Path:
        """Return the file with the progress of a run that has not ended."""
        return self.path / "progress.json"

    @property
    def encodings(self) -> Path:
        """Return the file of the catalogue's encodings, kept for later processes that recommend."""
        return self.path / "encodings.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def run_folder(out: Path, study: str, run_id: str) -> RunFolder:
    return RunFolder(out / study / run_id)


def write_record(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """Write ``record``, and return it as written: NaN (a metric without users) becomes null."""
    written: dict[str, Any] = plain(record)
    write_text(folder.record, json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return written


def read_record(folder: RunFolder) -> Record | None:
    """Return the record, or None if there is none yet.

    Raises:
        RecpeftError: the file is no record, or has another schema.
    """
    try:
        values = plain(read_json(folder.record))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecpeftError(f"{folder.record} cannot be read: {error.strerror}; choose another folder.") from None
    except ValueError as error:
        raise CorruptRecord(
            f"{folder.record} is no JSON ({reason(error)}); move it away and run the study again."
        ) from None
    remedy = "move it away and run the study again"
    if not isinstance(values, dict) or values.get("status") not in ("done", "failed"):
        raise CorruptRecord(f"{folder.record} is no record of a run; {remedy}.")
    if type(values.get("schema")) is not int:
        raise CorruptRecord(f"{folder.record} is no record of a run (schema is no version); {remedy}.")
    if values["schema"] != SCHEMA:
        raise RecpeftError(f"{folder.record} is {_of_another_schema(values)}.")
    try:
        return parse(values)
    except ValueError as error:
        raise CorruptRecord(f"{folder.record} is no record of a run ({error}); {remedy}.") from None


def _of_another_schema(values: dict[str, Any]) -> str:
    versions = values.get("versions")
    version = versions.get("recpeft") if isinstance(versions, dict) else None
    by = f" (recpeft {cut(version)})" if isinstance(version, str) else ""
    newer = values["schema"] > SCHEMA
    return (
        f"of schema {shown(values['schema'])}{by}, {'newer' if newer else 'older'} than schema {SCHEMA}, which this "
        f"recpeft {__version__} reads; "
        + ("use the version that wrote it or a later one" if newer else "use the version that wrote it, or move it ")
        + ("" if newer else "away and run the study again")
    )


def is_done(folder: RunFolder) -> bool:
    """Return whether the folder's run is finished.

    Raises:
        RecpeftError: the file is no record.
    """
    record = read_record(folder)
    return isinstance(record, FinishedRecord)


def find_records(directory: Path) -> list[tuple[RunFolder, Record]]:
    """Return every record below ``directory``, sorted by path; corrupt ones are reported and left out.

    Raises:
        RecpeftError: there is no such folder, or it holds no record.
    """
    if not directory.is_dir():
        raise RecpeftError(f"there is no folder {directory}; give a study's folder, such as runs/quickstart.")
    found = []
    for path in sorted(directory.glob("**/result.json")):
        folder = RunFolder(path.parent)
        try:
            record = read_record(folder)
        except CorruptRecord as error:
            say(f"left out: {error}", error=True)
            continue
        assert record is not None
        found.append((folder, record))
    if not found:
        raise RecpeftError(f"{directory} holds no record (result.json); run the study first.")
    return found


def read_table(folder: RunFolder, path: Path, ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pl.DataFrame:
    """Return the table at ``path``, beside the record of ``folder``.

    Args:
        ids: required columns of ids, without nulls. Only ``ids`` and ``numbers`` are read; all columns if both are
            empty.
        numbers: further required columns, of numbers.
    Raises:
        RecpeftError: the table is missing or cannot be read.
    """
    import polars as pl  # a slow import that reading records alone does not need

    if not path.exists():
        raise RecpeftError(f"there is no {path}, which stands beside a record; remove {folder.path} and run it again.")
    try:
        table = pl.read_parquet(path, columns=[*ids, *numbers] or None)
        table = table.with_columns(pl.col(name).cast(pl.Float64) for name in numbers)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(folder, path, " ".join(str(error).split())[:300]) from None
    for name in numbers:
        if not table[name].dtype.is_numeric():  # casting a struct leaves a struct
            raise damaged(folder, path, f"{name} holds no numbers")
    for name in ids:
        if not (table[name].dtype == pl.String or table[name].dtype.is_integer()) or table[name].null_count():
            raise damaged(folder, path, f"{name} holds no id in each row")
    return table.with_columns(pl.col(name).cast(pl.String) for name in ids)


def damaged(folder: RunFolder, path: Path, problem: str) -> RecpeftError:
    """Return the error of a table that has changed since its run wrote it."""
    return RecpeftError(f"{path} cannot be read ({problem}); remove {folder.path} and run it again.")
