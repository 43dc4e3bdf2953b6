"""Files as tables with row numbers; every source reads with this module.

A source names its files' columns and passes them to ``_build.build`` as ``Table``s. Reading is lazy: text is read in
chunks and only the kept rows stay in memory. All problems of a file are reported at once: the first ten rows, and the
number of further ones.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import polars as pl

from recpeft.errors import RecpeftError, cut, shown
from recpeft.reading import is_utf16

SHOWN = 10
"""Number of bad rows of a file that are shown; the others are counted."""

PART = 1 << 40
"""Offset of row numbers in tables of several files: rows of the n-th file (from 0) are numbered from n times this."""


@dataclass(frozen=True)
class Table:
    """A file's rows. ``frame`` has ``row``, the row's number in the file, beside the columns."""

    path: Path
    """Path for error messages."""
    frame: pl.LazyFrame
    problems: Problems | None = None
    """Problems that the source has found; ``build`` reports them with its own."""
    parts: tuple[Path, ...] = ()
    """The files, if there are several."""
    own: dict[str, str] = field(default_factory=dict)
    """Name in the file of each renamed column."""
    typed: bool = True
    """True if the files have types; CSV and TSV have only text."""
    headed: bool = False
    """True if the columns' names were read from a first row, which may be data by mistake."""

    @property
    def columns(self) -> list[str]:
        return [name for name in self.schema.names() if name != "row"]

    @property
    def schema(self) -> pl.Schema:
        with self.reading():
            return self.frame.collect_schema()

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the reader's errors become sentences about this table's files."""
        return _reading(self.path, self.parts)

    def found(self) -> Problems:
        """Return the problems that the source has found, or an empty ``Problems``."""
        return self.problems or Problems(self.path, parts=self.parts)

    def require(self, columns: Sequence[str], remedy: str, header: str | None = None) -> None:
        """Raise if a column of ``columns`` is missing, or if the row that names them is data.

        Args:
            header: remedy for a file without a header, if it may lack one.
        Raises:
            RecpeftError: names every missing column and the existing ones.
        """
        missing = [name for name in columns if name not in self.columns]
        asked = missing or [name for name in columns if _is_value(name)]
        if self.headed and asked and _are_data(self.columns):
            raise RecpeftError(
                f"{self.path} has no header: its first row, {cut(', '.join(self.columns))}, is data; "
                f"{header or 'write a first row that names the columns'}."
            )
        if missing:
            # A first row of names and titles looks like a header.
            otherwise = f", or where its first row is data, {header}" if self.headed and header else ""
            raise RecpeftError(
                f"{self.path} has no column {', '.join(missing)}; it has {', '.join(self.columns)}; "
                f"{remedy}{otherwise}."
            )

    def select(self, **columns: pl.Expr | str) -> Table:
        """Return the same rows with these columns."""
        parts = {name: pl.col(value) if isinstance(value, str) else value for name, value in columns.items()}
        own = {name: value for name, value in columns.items() if isinstance(value, str)}
        return replace(self, frame=self.frame.select("row", **parts), own=own)

    def collect(self) -> pl.DataFrame:
        """Return the rows, in memory.

        Raises:
            RecpeftError: the file cannot be read; names the rows if possible.
        """
        with self.reading():
            return self.frame.collect(engine="streaming").sort("row")

    def summary(self, **values: pl.Expr) -> dict[str, Any]:
        """Return aggregates over all rows, in one pass.

        Raises:
            RecpeftError: as ``collect``.
        """
        with self.reading():
            return self.frame.select(**values).collect(engine="streaming").row(0, named=True)


@dataclass
class Problems:
    """Problems of one file, which ``check`` reports at once."""

    path: Path
    count: int = 0
    shown: list[tuple[int, str]] = field(default_factory=list)
    parts: tuple[Path, ...] = ()
    """The files, if ``path`` is a folder."""

    def rows(self, table: pl.DataFrame, bad: pl.Expr, found: str, remedy: str = "mend the row") -> None:
        """Note the rows that are ``bad``.

        Args:
            table: table with ``row`` and the columns that ``found`` names.
            found: text with ``{column}`` or ``{column!r}``, filled with each row's values.
        """
        rows = table.filter(bad).sort("row")
        self.note(rows.height, [(row["row"], f"{found.format_map(row)}; {remedy}") for row in _dicts(rows)])

    def note(self, count: int, shown: Sequence[tuple[int, str]]) -> None:
        """Note ``count`` bad rows, the first of which are ``shown``: row and problem."""
        self.count += count
        self.shown = sorted([*self.shown, *shown])[:SHOWN]

    def check(self) -> None:
        """Raise if there are problems.

        Raises:
            RecpeftError: shows the first ten, by row, and the number of further ones.
        """
        if not self.count:
            return
        listed = "; ".join(f"{self._place(row)}: {text}" for row, text in self.shown)
        more = self.count - len(self.shown)
        total = "" if self.count == 1 else f"{self.count} problems: "
        raise RecpeftError(f"{self.path}: {total}{listed}{f'; and {more} more' if more else ''}.")

    def _place(self, row: int) -> str:
        number, row = divmod(row, PART)
        parts = self.parts or (parts_of(self.path) if self.path.is_dir() else [])
        return f"{_below(self.path, parts[number])}, row {row}" if len(parts) > 1 else f"row {row}"


def _are_data(names: Sequence[str]) -> bool:
    """Return whether a first row is data: at least half of its cells are numbers or dates.

    pandas names columns without names 0, 1, 2, …, which is a header.
    """
    numbered = [str(place) for place in range(len(names))]
    return list(names) != numbered and 2 * sum(map(_is_value, names)) >= len(names)


def _is_value(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|\d{4}-\d\d-\d\d([T ].*)?", cell) is not None


def _dicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.head(SHOWN).to_dicts()


# --- files ---


def scan(
    path: Path | Sequence[Path],
    *,
    separator: str | None = None,
    columns: Sequence[str] | None = None,
    encoding: Literal["utf-8", "latin-1"] = "utf-8",
    quotes: bool = True,
) -> Table:
    """Scan the rows of a CSV, TSV, Parquet, JSONL or JSON file, a folder of such parts, as Spark writes it, or several.

    Cells of CSV and TSV are text, trimmed, null if empty; Parquet and JSON have their own types. ``.gz`` is
    unpacked. Rows of CSV and TSV are numbered like an editor's lines, with the header as row 1, as long as no cell
    holds a line break; those of Parquet and JSON from 1, without blank lines.

    Args:
        separator: separator of cells; the default depends on the suffix.
        columns: column names of a file without a header.
        quotes: True if ``"`` encloses cells; False treats it like any other character.
    Raises:
        RecpeftError: there is no such file, its kind is unknown, or rows have too few or too many cells.
    """
    given = [path] if isinstance(path, Path) else list(path)
    parts = [part for each in given for part in parts_of(each)]
    shown = given[0] if len(given) == 1 else Path(os.path.commonpath([each.parent for each in given]))
    kinds = {_kind(part, separator) for part in parts}
    if len(kinds) > 1:
        raise RecpeftError(f"{shown}: {', '.join(part.name for part in parts)} are of several kinds; give one kind.")
    kind = kinds.pop()
    typed = kind in _TYPED
    headed = not typed and columns is None
    with _reading(shown, parts):
        if kind == "parquet":
            frames = [pl.scan_parquet(part, glob=False) for part in parts]
        elif kind == "jsonl":
            frames = _scan_json([part if encoding == "utf-8" else decode(part, encoding).encode() for part in parts])
        elif kind == "json":
            frames = _scan_json([_as_lines(part, encoding) for part in parts])
        else:
            frames = [_scan_csv(part, separator or kind, columns, encoding, quotes) for part in parts]
        names = [frame.collect_schema().names() for frame in frames]
        if not typed:
            names = [[name for name in each if name != "row"] for each in names]  # its own
        for part, others in zip(parts, names, strict=True):
            if "row" in others:
                _refuse_name(part)
            if sorted(others) != sorted(names[0]):
                raise RecpeftError(
                    f"{part} has the columns {', '.join(others)}, but {_below(shown, parts[0])} has "
                    f"{', '.join(names[0])}; "
                    "give parts with the same columns."
                )
        if typed:
            frames = [frame.with_row_index("row", offset=1) for frame in frames]
        if len(frames) == 1:
            return Table(shown, frames[0], typed=typed, headed=headed)
        numbered = [frame.with_columns(pl.col("row").cast(pl.Int64) + n * PART) for n, frame in enumerate(frames)]
        # A column may be whole numbers in one part and others in the next.
        joined = pl.concat([frame.select("row", *names[0]) for frame in numbered], how="vertical_relaxed")
        joined.collect_schema()
    return Table(shown, joined, parts=tuple(parts), typed=typed, headed=headed)


def _scan_json(sources: Sequence[Path | bytes]) -> list[pl.LazyFrame]:
    # A key may be missing from a whole part.
    schema = pl.concat(
        [pl.scan_ndjson(source, infer_schema_length=None) for source in sources], how="diagonal_relaxed"
    ).collect_schema()
    return [pl.scan_ndjson(source, schema=schema) for source in sources]


def _as_lines(path: Path, encoding: str) -> bytes:
    """Return the records of a JSON file, one object per line.

    The file is an array, a dictionary, whose keys become ``key`` (and its values ``value`` if they are not objects),
    or has one record per line already.
    """
    text = decode(path, encoding)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise RecpeftError(f"{path} is nested too deep; give an array or a dictionary of records.") from None
    except ValueError as error:
        lines = [_object(line.encode(), strict_json) for line in text.splitlines() if line.strip()]
        if "Extra data" not in str(error) or None in lines:  # json's words for a second line
            raise RecpeftError(f"{path} is no JSON ({error}); mend it.") from None
        value = lines
    if isinstance(value, dict):
        first = next(iter(value.values()), None)
        if isinstance(first, dict) and first and list(first) == [str(place) for place in range(len(first))]:
            raise RecpeftError(f"{path} holds columns, as pandas writes them; write records (orient='records').")
        if any(isinstance(each, dict) and "key" in each for each in value.values()):
            raise RecpeftError(f"{path}: its records have a field key, which is kept for the dictionary's; rename it.")
        value = [{"key": key, **(each if isinstance(each, dict) else {"value": each})} for key, each in value.items()]
    if not isinstance(value, list):
        raise RecpeftError(f"{path} is neither an array nor a dictionary of records; give one.")
    if not value:
        raise RecpeftError(f"{path} is empty; give a file with rows.")
    problems = Problems(path)
    for row, each in enumerate(value, 1):
        if not isinstance(each, dict):
            problems.note(1, [(row, "no object; write one for each row")])
    problems.check()
    return "\n".join(json.dumps(each) for each in value).encode()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def scan_objects(path: Path, keys: Sequence[str]) -> Table:
    """Scan these keys of a JSONL file's objects, whatever its suffix, each as text and null if missing.

    Raises:
        RecpeftError: there is no such file.
    """
    schema = dict.fromkeys(keys, pl.String)
    with _reading(path):
        frame = pl.scan_ndjson(parts_of(path), schema=schema, row_index_name="row", row_index_offset=1)
    return Table(path, frame)


def _scan_csv(path: Path, separator: str, columns: Sequence[str] | None, encoding: str, quotes: bool) -> pl.LazyFrame:
    # A file in Latin-1 cannot be scanned, and two characters are no separator to a CSV reader.
    scannable = encoding == "utf-8" and len(separator) == 1
    source: Path | bytes = path if scannable else _as_utf8(path, encoding, separator)
    separator = separator if len(separator) == 1 else _UNIT_SEPARATOR
    row, names = _header(path, source, separator, columns, quotes)
    _check_width(path, source, separator, quotes, len(names))
    frame = pl.scan_csv(
        source,
        has_header=columns is None,
        separator=separator,
        quote_char='"' if quotes else None,
        infer_schema=False,
        encoding="utf8",
        extra_columns="raise",
        new_columns=names,
        row_index_name="row",
        row_index_offset=1 if columns else row + 1,
        glob=False,
    )
    cells = pl.col(names).str.strip_chars()
    frame = frame.with_columns(pl.when(cells != "").then(cells))
    return frame.filter(pl.any_horizontal(pl.col(names).is_not_null()))  # blank lines


def _header(
    path: Path, source: Path | bytes, separator: str, columns: Sequence[str] | None, quotes: bool
) -> tuple[int, list[str]]:
    """Return the first row's number and the columns' names, which it holds unless ``columns`` are given."""
    lines = pl.scan_lines(source, name="line", row_index_name="row", row_index_offset=1, glob=False)
    first = lines.filter(pl.col("line").str.strip_chars("\ufeff \t\r") != "").head(1).collect()
    if first.is_empty():
        raise RecpeftError(f"{path} is empty; give a file with rows.")
    row, line = first.row(0)
    reader = _cells([line.removeprefix("\ufeff")], separator, quotes)
    try:
        cells = next(reader)
    except csv.Error:
        _refuse_returns(path)
        raise
    if columns is not None and len(columns) != len(cells):
        raise RecpeftError(
            f"{path} has {len(cells)} columns, but {len(columns)} names are given: {', '.join(columns)}; "
            "name each column once, in the file's order."
        )
    names = [cell.strip() for cell in columns or cells]
    for name in names:
        if names.count(name) > 1:
            raise RecpeftError(f"{path} has {names.count(name)} columns named {name!r}; give each its own name.")
        if name == "row":
            _refuse_name(path)
    return row, names


def _cells(lines: Iterable[str], separator: str, quotes: bool) -> Any:
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)


def _refuse_name(path: Path) -> None:
    raise RecpeftError(f"{path} has a column named row, which is kept for row numbers; rename it.")


def _check_width(path: Path, source: Path | bytes, separator: str, quotes: bool, width: int) -> None:
    """Raise if a row does not have ``width`` cells; the reader itself would silently fill short rows with nulls."""
    line = pl.col("line")
    outside = line.str.replace_all('"[^"]*"', "") if quotes else line
    wrong = (line.str.strip_chars() != "") & (outside.str.count_matches(separator, literal=True) != width - 1)
    strange = pl.scan_lines(source, name="line", glob=False).filter(wrong).head(1).collect(engine="streaming")
    if strange.is_empty():
        return
    # A cell with a line break also matches, so rows are now read exactly, which is slow.
    problems = Problems(path)
    binary: BinaryIO = _open(source) if isinstance(source, Path) else io.BytesIO(source)
    with io.TextIOWrapper(binary, encoding="utf-8", newline="") as file:
        reader = _cells(file, separator, quotes)
        row = 1
        try:
            for cells in reader:
                if len(cells) != width and any(cell.strip() for cell in cells):
                    hint = ", or set data.quotes: false" if quotes and any('"' in cell for cell in cells) else ""
                    problems.note(1, [(row, f"{len(cells)} cells, where there are {width} columns; mend it{hint}")])
                row = reader.line_num + 1
        except csv.Error:
            _refuse_quotes(path)
            _refuse_returns(path)
            raise
    problems.check()


_UNIT_SEPARATOR = "\x1f"


def _as_utf8(path: Path, encoding: str, separator: str) -> bytes:
    text = decode(path, encoding)
    return (text if len(separator) == 1 else text.replace(separator, _UNIT_SEPARATOR)).encode()


def decode(path: Path, encoding: str = "latin-1") -> str:
    """Read a file as UTF-8, or else in ``encoding``.

    Raises:
        RecpeftError: it cannot be read, or is not UTF-8 although ``encoding`` is; names the rows.
    """
    data = read(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if encoding == "utf-8":
            _refuse_encoding(path)
        return data.decode(encoding)


def read(path: Path) -> bytes:
    """Read the whole file, unpacked.

    Raises:
        RecpeftError: it cannot be read.
    """
    try:
        with _open(path) as file:
            return file.read()
    except (OSError, EOFError) as error:
        raise RecpeftError(f"{path} could not be read ({_reason(error)}); check it, or fetch it again.") from None


def json_lines(
    path: Path, parse: Callable[[bytes], object] | None = None
) -> Iterator[tuple[int, dict[str, object] | None]]:
    """Yield each row's number and object, None if it holds no object; blank rows are left out.

    Args:
        parse: returns a row's value or raises ValueError; the default parses JSON.
    Raises:
        RecpeftError: the file cannot be read.
    """
    try:
        with _open(path) as file:
            for row, line in enumerate(file, 1):
                if line.strip():
                    yield row, _object(line, parse or strict_json)
    except (OSError, EOFError) as error:
        raise RecpeftError(f"{path} could not be read ({_reason(error)}); check it, or fetch it again.") from None


def _object(line: bytes, parse: Callable[[bytes], object]) -> dict[str, object] | None:
    try:
        value = parse(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def strict_json(line: bytes) -> object:
    """Parse as ``json.loads`` does, but raise ValueError for NaN and Infinity."""
    return json.loads(line, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


_KINDS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".parquet": "parquet"}
_KINDS |= {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}


def parts_of(path: Path) -> list[Path]:
    """Return the file, or the files of a folder of parts.

    Raises:
        RecpeftError: there are no files, or the file is empty.
    """
    try:
        there = path.exists()
    except OSError as error:  # a name that no disk takes
        raise RecpeftError(f"{cut(str(path))} could not be read ({_reason(error)}); name another file.") from None
    if not there:
        raise RecpeftError(f"there is no file {path}; set data.path and the file's name under data.")
    if not path.is_dir():
        if not path.stat().st_size:
            raise RecpeftError(f"{path} is empty; give a file with rows.")
        _check_start(path)
        return [path]
    # Spark puts markers such as _SUCCESS and hidden checksums beside the parts.
    parts = sorted(part for part in path.rglob("*") if part.is_file() and part.name[0] not in "._")
    parts = [part for part in parts if part.stat().st_size]  # Spark writes empty parts too
    if not parts:
        raise RecpeftError(f"the folder {path} holds no files; give a file or a folder of Parquet parts.")
    for part in parts:
        _check_start(part)
    return parts


def _check_start(path: Path) -> None:
    """Raise if a file's first bytes show that it cannot be read: broken gzip, or UTF-16."""
    try:
        with _open(path) as file:
            start = file.read(2)
    except (OSError, EOFError, zlib.error) as error:
        raise RecpeftError(f"{path} could not be read ({_reason(error)}); check it, or fetch it again.") from None
    if is_utf16(start):
        raise RecpeftError(f"{path} is UTF-16, as some editors save what they call Unicode; save it as UTF-8.")


def _suffix(path: Path) -> str:
    """Return the file name's suffix, without those of compression."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".snappy", ".zstd")]
    return suffixes[-1].lower() if suffixes else ""


def _kind(path: Path, separator: str | None) -> str:
    suffix = _suffix(path)
    if separator is not None and _KINDS.get(suffix) not in _TYPED:
        return separator
    if suffix not in _KINDS:
        raise RecpeftError(
            f"{path} is of an unknown kind; give one of {', '.join(_KINDS)} (or these with .gz), or set separator."
        )
    return _KINDS[suffix]


_TYPED = ("parquet", "jsonl", "json")


@contextlib.contextmanager
def _reading(path: Path, parts: Sequence[Path] = ()) -> Iterator[None]:
    """Turn polars' errors about a file, or these parts of it, into sentences that name the rows."""
    try:
        yield
    except (pl.exceptions.PolarsError, csv.Error, OSError) as error:
        text = str(error)
        if isinstance(error, pl.exceptions.NoDataError) or "empty reader" in text:
            raise RecpeftError(f"{path} is empty; give a file with rows.") from None
        for part in parts or parts_of(path):
            if "found more fields" in text:
                _refuse_returns(part)
            if "utf-8" in text.lower() or "utf8" in text.lower():
                _refuse_encoding(part)
            if ".parquet" in part.suffixes:
                _refuse_parquet(part)
                continue
            if "CSV" in text or "as dtype `str`" in text:
                _refuse_quotes(part)
            elif _KINDS.get(_suffix(part)) == "jsonl" or any(
                word in text.lower() for word in ("json", "expected", "infer", "parsing line")
            ):
                _refuse_json(part)
        raise RecpeftError(f"{path} could not be read ({text.splitlines()[0]}); mend the file.") from error


def without_empty(entries: pl.Expr) -> pl.Expr:
    """Return lists of text with trimmed entries and without empty ones; null becomes an empty list."""
    trimmed = entries.list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != "")).fill_null(pl.lit([], pl.List(pl.String)))


def _below(folder: Path, part: Path) -> Path:
    """Return ``part`` relative to ``folder``, as several folders may have files of one name."""
    return part.relative_to(folder) if part.is_relative_to(folder) else part


def _refuse_parquet(path: Path) -> None:
    try:
        pl.read_parquet_schema(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecpeftError(f"{path} could not be read ({reason}); give a whole Parquet file.") from None


def _refuse_encoding(path: Path) -> None:
    problems = Problems(path)
    with _open(path) as file:
        for row, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                text = (
                    f"byte {error.start + 1} is not UTF-8; save the file as UTF-8, or set data.encoding: latin-1 "
                    "where the source has it"
                )
                problems.note(1, [(row, text)])
    problems.check()


def _refuse_returns(path: Path) -> None:
    with _open(path) as file:
        for row, line in enumerate(file, 1):
            if b"\r" in line.rstrip(b"\r\n"):
                raise RecpeftError(
                    f"{path}: row {row} has a carriage return (CR) with no line feed (LF) behind it; save the file "
                    "with LF or CRLF at the end of each row."
                )


def _refuse_quotes(path: Path) -> None:
    problems = Problems(path)
    with _open(path) as file:
        for row, line in enumerate(file, 1):
            if line.count(b'"') % 2:
                text = 'a quote (") without its pair; mend it, or set data.quotes: false where quotes enclose no cells'
                problems.note(1, [(row, text)])
    problems.check()


NO_OBJECT = "no JSON object in UTF-8 (NaN is no JSON); write one to a line"


def _refuse_json(path: Path) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        strict_json(read(path))
        return  # one whole value: what is wrong is not where lines end
    problems, lines = Problems(path), 0
    for row, value in json_lines(path):
        lines += 1
        if value is None:
            problems.note(1, [(row, NO_OBJECT)])
    problems.check()
    if not lines:
        raise RecpeftError(f"{path} is empty; give a file with rows.")
