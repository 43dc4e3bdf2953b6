"""From a file's rows to a data set: what every source shares.

A source names its files' columns and hands them over as ``Table``s; ``build`` checks them, gives dense ids and
returns the ``RecDataset``. Reading is lazy: text goes through in chunks and only what is kept stays in memory.
Whatever is wrong with a file is told at once, the first ten rows of it and how many more there are.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import polars as pl

from datamodules._dataset import RecDataset
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from datamodules._source import SourceConfig

SHOWN = 10
"""How many bad rows of a file are shown; the others are counted."""

LATEST_SECONDS = 100_000_000_000
"""A time above this (the year 5138) is none in seconds."""

TimeUnit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

PART = 1 << 40
"""Where a table is of several files, rows of the n-th (from 0) are numbered from n times this."""


@dataclass(frozen=True)
class Table:
    """A file's rows. ``frame`` has ``row``, the row's number in the file, beside the columns."""

    path: Path
    """Named where something is wrong."""
    frame: pl.LazyFrame
    problems: Problems | None = None
    """What the source has found already; ``build`` tells it with what it finds itself."""
    parts: tuple[Path, ...] = ()
    """The files, where they are several."""
    own: dict[str, str] = field(default_factory=dict)
    """A column's name in the file, where it is another."""
    typed: bool = True
    """Whether the files have types; CSV and TSV have text alone."""

    @property
    def columns(self) -> list[str]:
        return [name for name in self.schema.names() if name != "row"]

    @property
    def schema(self) -> pl.Schema:
        with self.reading():
            return self.frame.collect_schema()

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Within it, errors of the reader become sentences about this table's files."""
        return _reading(self.path, self.parts)

    def found(self) -> Problems:
        """What the source has found already, if anything."""
        return self.problems or Problems(self.path, parts=self.parts)

    def require(self, columns: Sequence[str], remedy: str) -> None:
        """Raise where ``columns`` are not all there.

        Raises:
            RecpeftError: names every missing column and those there are.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise RecpeftError(
                f"{self.path} has no column {', '.join(missing)}; it has {', '.join(self.columns)}; {remedy}."
            )

    def select(self, **columns: pl.Expr | str) -> Table:
        """The same rows with these columns."""
        parts = {name: pl.col(value) if isinstance(value, str) else value for name, value in columns.items()}
        own = {name: value for name, value in columns.items() if isinstance(value, str)}
        return replace(self, frame=self.frame.select("row", **parts), own=own)

    def collect(self) -> pl.DataFrame:
        """The rows, in memory.

        Raises:
            RecpeftError: the file cannot be read; names the rows where it can.
        """
        with self.reading():
            return self.frame.collect(engine="streaming").sort("row")

    def summary(self, **values: pl.Expr) -> dict[str, Any]:
        """Aggregates over all rows, in one pass.

        Raises:
            RecpeftError: as ``collect``.
        """
        with self.reading():
            return self.frame.select(**values).collect(engine="streaming").row(0, named=True)


@dataclass
class Problems:
    """What is wrong with one file; told at once by ``check``."""

    path: Path
    count: int = 0
    shown: list[tuple[int, str]] = field(default_factory=list)
    parts: tuple[Path, ...] = ()
    """The files, where ``path`` is a folder."""

    def rows(self, table: pl.DataFrame, bad: pl.Expr, found: str, remedy: str = "mend the row") -> None:
        """Note the rows that are ``bad``.

        Args:
            table: with ``row`` and what ``found`` names.
            found: a text with ``{column}`` or ``{column!r}``, filled with each row's values.
        """
        rows = table.filter(bad).sort("row")
        self.note(rows.height, [(row["row"], f"{found.format_map(row)}; {remedy}") for row in _dicts(rows)])

    def note(self, count: int, shown: Sequence[tuple[int, str]]) -> None:
        """``count`` bad rows, the first of which are ``shown``: row and what is wrong."""
        self.count += count
        self.shown = sorted([*self.shown, *shown])[:SHOWN]

    def check(self) -> None:
        """Raise if there are any.

        Raises:
            RecpeftError: the first ten, by row, and how many more.
        """
        if not self.count:
            return
        listed = "; ".join(f"{self._place(row)}: {text}" for row, text in self.shown)
        more = self.count - len(self.shown)
        total = "" if self.count == 1 else f"{self.count} problems: "
        raise RecpeftError(f"{self.path}: {total}{listed}{f'; and {more} more' if more else ''}.")

    def _place(self, row: int) -> str:
        number, row = divmod(row, PART)
        parts = self.parts or (_parts(self.path) if self.path.is_dir() else [])
        return f"{parts[number].name}, row {row}" if len(parts) > 1 else f"row {row}"


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
    """The rows of a CSV, TSV, Parquet or JSONL file, of a folder of such parts, as Spark writes it, or of several.

    Cells of CSV and TSV are text, trimmed, null where empty; Parquet and JSONL have their own types. ``.gz`` is
    unpacked on the way. Rows of CSV and TSV are counted as an editor counts lines, the header being row 1, as long
    as no cell holds a line break; those of Parquet and JSONL from 1, without blank lines.

    Args:
        separator: between cells; by the suffix unless given.
        columns: the names, in a file without a header.
        quotes: whether ``"`` encloses cells; False takes it for a character like any other.
    Raises:
        RecpeftError: there is no such file, its kind is unknown, or rows have too few or too many cells.
    """
    given = [path] if isinstance(path, Path) else list(path)
    parts = [part for each in given for part in _parts(each)]
    shown = given[0] if len(given) == 1 else given[0].parent
    kinds = {_kind(part, separator) for part in parts}
    if len(kinds) > 1:
        raise RecpeftError(f"{shown}: {', '.join(part.name for part in parts)} are of several kinds; give one kind.")
    kind = kinds.pop()
    typed = kind in ("parquet", "jsonl")
    with _reading(shown, parts):
        if kind == "parquet":
            frames = [pl.scan_parquet(part, glob=False) for part in parts]
        elif kind == "jsonl":
            frames = _scan_json(parts, encoding)
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
                    f"{part} has the columns {', '.join(others)}, but {parts[0].name} has {', '.join(names[0])}; "
                    "give parts with the same columns."
                )
        if typed:
            frames = [frame.with_row_index("row", offset=1) for frame in frames]
        if len(frames) == 1:
            return Table(shown, frames[0], typed=typed)
        numbered = [frame.with_columns(pl.col("row").cast(pl.Int64) + n * PART) for n, frame in enumerate(frames)]
        # A column may be whole numbers in one part and others in the next.
        joined = pl.concat([frame.select("row", *names[0]) for frame in numbered], how="vertical_relaxed")
        joined.collect_schema()
    return Table(shown, joined, parts=tuple(parts), typed=typed)


def _scan_json(parts: list[Path], encoding: str) -> list[pl.LazyFrame]:
    sources = [part if encoding == "utf-8" else decode(part, encoding).encode() for part in parts]
    # A key may be missing from a whole part.
    schema = pl.concat(
        [pl.scan_ndjson(source, infer_schema_length=None) for source in sources], how="diagonal_relaxed"
    ).collect_schema()
    return [pl.scan_ndjson(source, schema=schema) for source in sources]


def scan_objects(path: Path, keys: Sequence[str]) -> Table:
    """These keys of a JSONL file's objects, whatever its suffix, each as text and null where it is missing.

    Raises:
        RecpeftError: there is no such file.
    """
    schema = dict.fromkeys(keys, pl.String)
    with _reading(path):
        frame = pl.scan_ndjson(_parts(path), schema=schema, row_index_name="row", row_index_offset=1)
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
    """The first row's number and the names of the columns, which it holds unless they are given."""
    lines = pl.scan_lines(source, name="line", row_index_name="row", row_index_offset=1, glob=False)
    first = lines.filter(pl.col("line").str.strip_chars("\ufeff \t\r") != "").head(1).collect()
    if first.is_empty():
        raise RecpeftError(f"{path} is empty; give a file with rows.")
    row, line = first.row(0)
    reader = _cells([line.removeprefix("\ufeff")], separator, quotes)
    cells = next(reader)
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
    """Raise where a row has not ``width`` cells; the reader itself fills short rows with nulls, without a word."""
    line = pl.col("line")
    outside = line.str.replace_all('"[^"]*"', "") if quotes else line
    wrong = (line.str.strip_chars() != "") & (outside.str.count_matches(separator, literal=True) != width - 1)
    strange = pl.scan_lines(source, name="line", glob=False).filter(wrong).head(1).collect(engine="streaming")
    if strange.is_empty():
        return
    # A cell with a line break looks the same, so rows are now read exactly, which is slow.
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
    problems.check()


_UNIT_SEPARATOR = "\x1f"


def _as_utf8(path: Path, encoding: str, separator: str) -> bytes:
    text = decode(path, encoding)
    return (text if len(separator) == 1 else text.replace(separator, _UNIT_SEPARATOR)).encode()


def decode(path: Path, encoding: str = "latin-1") -> str:
    """The text of a file that is UTF-8, or else in ``encoding``.

    Raises:
        RecpeftError: it cannot be read, or is not UTF-8 where ``encoding`` is; names the rows.
    """
    data = read(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if encoding == "utf-8":
            _refuse_encoding(path)
        return data.decode(encoding)


def read(path: Path) -> bytes:
    """The whole file, unpacked.

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
    """Each row's number and object; None where the row holds none. Blank rows are left out.

    Args:
        parse: a row's value, or a ValueError; JSON unless given.
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
    """As ``json.loads``, but NaN and Infinity are no JSON."""
    return json.loads(line, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


_KINDS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def _parts(path: Path) -> list[Path]:
    if not path.exists():
        raise RecpeftError(f"there is no file {path}; set data.path and the file's name under data.")
    if not path.is_dir():
        if not path.stat().st_size:
            raise RecpeftError(f"{path} is empty; give a file with rows.")
        return [path]
    # Spark puts markers such as _SUCCESS and hidden checksums beside the parts.
    parts = sorted(part for part in path.rglob("*") if part.is_file() and part.name[0] not in "._")
    parts = [part for part in parts if part.stat().st_size]  # Spark writes empty parts too
    if not parts:
        raise RecpeftError(f"the folder {path} holds no files; give a file or a folder of Parquet parts.")
    return parts


def _kind(path: Path, separator: str | None) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".snappy", ".zstd")]
    suffix = suffixes[-1].lower() if suffixes else ""
    if separator is not None and _KINDS.get(suffix) not in ("parquet", "jsonl"):
        return separator
    if suffix not in _KINDS:
        raise RecpeftError(
            f"{path} is of an unknown kind; give one of {', '.join(_KINDS)} (or these with .gz), or set separator."
        )
    return _KINDS[suffix]


@contextlib.contextmanager
def _reading(path: Path, parts: Sequence[Path] = ()) -> Iterator[None]:
    """Turn polars' errors about a file, or these parts of it, into sentences that name the rows."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        text = str(error)
        if isinstance(error, pl.exceptions.NoDataError) or "empty reader" in text:
            raise RecpeftError(f"{path} is empty; give a file with rows.") from None
        for part in parts or _parts(path):
            if "utf-8" in text.lower() or "utf8" in text.lower():
                _refuse_encoding(part)
            if ".parquet" in part.suffixes:
                continue
            if "CSV" in text or "as dtype `str`" in text:
                _refuse_quotes(part)
            elif any(word in text.lower() for word in ("json", "expected", "infer", "parsing line")):
                _refuse_json(part)
        raise RecpeftError(f"{path} could not be read ({text.splitlines()[0]}); mend the file.") from error


def without_empty(entries: pl.Expr) -> pl.Expr:
    """Lists of text, each entry trimmed and empty ones left out; null is an empty list."""
    trimmed = entries.list.eval(pl.element().str.strip_chars())
    return trimmed.list.eval(pl.element().filter(pl.element() != "")).fill_null(pl.lit([], pl.List(pl.String)))


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
    problems, lines = Problems(path), 0
    for row, value in json_lines(path):
        lines += 1
        if value is None:
            problems.note(1, [(row, NO_OBJECT)])
    problems.check()
    if not lines:
        raise RecpeftError(f"{path} is empty; give a file with rows.")


# --- the data set ---


def build(
    name: str,
    config: SourceConfig,
    interactions: Table,
    users: Table | None = None,
    items: Table | None = None,
    time_unit: TimeUnit = "s",
    rating_range: tuple[float, float] | None = None,
    whole_ids: bool | None = None,
) -> RecDataset:
    """The data set of these tables, checked, with dense ids.

    Ids are whole numbers where all of a key's are written as such, else text; dense ids are their ranks.
    A table that is not given is the distinct ids of the interactions.

    Args:
        config: what to do about duplicates, unknown ids and empty texts.
        interactions: ``user``, ``item`` and, where there are any, ``rating`` and ``timestamp`` (whole numbers, or
            dates in text or in Parquet's types, which are read as UTC).
        users: ``user`` and attributes.
        items: ``item``, ``title``, ``categories`` and further text.
        rating_range: smallest and largest rating; given, every interaction must have a rating and a time.
        whole_ids: whether ids are whole numbers, where the source knows; None looks.
    Raises:
        RecpeftError: a file's problems, all at once.
    """
    tables = {"user": users, "item": items}
    for key, table in tables.items():
        for each in (interactions, table):
            if each is not None:
                _refuse_types(each, key, each is interactions)
    numeric = {
        key: _all_whole(key, interactions, table) if whole_ids is None else whole_ids for key, table in tables.items()
    }
    too_late = f"no time in {'seconds' if time_unit == 's' else time_unit}"
    if "time_unit" in type(config).model_fields:
        too_late += "; set data.time_unit to what it counts: ms, where these are milliseconds"
    elif time_unit == "s":
        too_late += "; if these are milliseconds, divide them by 1000"
    rows = _typed_interactions(interactions, numeric, time_unit, too_late, rating_range)
    dropped: dict[str, int] = {}
    frames = {}
    for key, table in tables.items():
        if table is None:
            ids = rows.select(pl.col(key).unique().sort())
            frames[key] = _numbered(ids, key)
        else:
            frames[key] = _entities(table, key, numeric[key], config, dropped)
        rows = _with_dense(interactions, rows, frames[key], key, config, dropped)
    rows = _without_duplicates(interactions, rows, frames, config, dropped)
    if rows.is_empty():
        raise RecpeftError(f"{interactions.path} holds no interactions; give data that has some.")
    rows = rows.select("user", "item", "rating", "timestamp").sort("user", "item")
    return RecDataset(name, rows, frames["user"].drop("id"), frames["item"].drop("id"), dropped)


def _refuse_types(table: Table, key: str, interactions: bool) -> None:
    """Raise where the type of an id, or of a rating or time of ``interactions``, can be none."""
    text = (pl.String, pl.Categorical, pl.Enum, pl.Null)
    for column, dtype in table.schema.items():
        # 1.0 as text would be no id of a file that has 1; pandas makes floats of whole numbers where one is missing.
        if column == key and not (dtype.is_integer() or dtype in text):
            wanted = "ids are whole numbers or text; write them as such, with no row that has none"
        elif interactions and column == "rating" and not (dtype.is_numeric() or dtype in (*text, pl.Boolean)):
            wanted = "ratings are numbers"
        elif (
            interactions
            and column == "timestamp"
            and not (dtype.is_numeric() or dtype in (*text, pl.Date, pl.Datetime))
        ):
            wanted = "times are whole numbers, dates, or dates with a time of day"
        else:
            continue
        raise RecpeftError(f"{table.path}: the column {table.own.get(column, column)} holds {dtype}, but {wanted}.")


def _all_whole(key: str, *tables: Table | None) -> bool:
    """Whether every id is a whole number written as one writes it, so that 007 stays text."""
    for table in tables:
        if table is None:
            continue
        dtype = table.schema[key]
        if dtype.is_signed_integer():
            continue
        ids = pl.col(key).cast(pl.String)
        with table.reading():
            # 64 bits without sign are more than Int64 holds.
            whole = pl.col(key).cast(pl.Int64, strict=False).cast(pl.String).eq_missing(ids).all()
            if not table.frame.select(whole).collect(engine="streaming").item():
                return False
    return True


def _id(key: str, numeric: bool) -> pl.Expr:
    return pl.col(key).cast(pl.Int64, strict=False) if numeric else pl.col(key).cast(pl.String)


def _typed_interactions(
    table: Table, numeric: dict[str, bool], unit: TimeUnit, too_late: str, rating_range: tuple[float, float] | None
) -> pl.DataFrame:
    """row, user, item (as in the file), rating Float32, timestamp Int64 seconds."""
    schema, frame = table.schema, table.frame
    rating = _number("rating", schema)
    time = _seconds("timestamp", table, unit)
    bad = {
        "no_user": pl.col("user").is_null(),
        "no_item": pl.col("item").is_null(),
        "user_not_whole": _id("user", numeric["user"]).is_null() & pl.col("user").is_not_null(),
        "item_not_whole": _id("item", numeric["item"]).is_null() & pl.col("item").is_not_null(),
        "no_number": rating.is_null() & _given("rating", schema),
        "not_finite": ~rating.cast(pl.Float32).is_finite(),
        "no_time": time.is_null() & _given("timestamp", schema),
        "not_whole": time != time.floor(),
        "negative": time < 0,
        "too_late": time > LATEST_SECONDS,
    }
    if rating_range:
        bad["out_of_range"] = rating.is_finite() & ~rating.is_between(*rating_range)
        bad["no_rating"] = ~_given("rating", schema)
        bad["untimed"] = ~_given("timestamp", schema)
    code = pl.lit(0, pl.UInt16)
    for bit, condition in enumerate(bad.values()):
        code += condition.fill_null(False).cast(pl.UInt16) * (1 << bit)
    typed = frame.select(
        "row",
        user=_id("user", numeric["user"]),
        item=_id("item", numeric["item"]),
        rating=rating.cast(pl.Float32),
        timestamp=time.cast(pl.Int64, strict=False),
        bad=code,
    )
    with table.reading():
        rows = typed.collect(engine="streaming")
    found = rows.filter(pl.col("bad") > 0).select("row", "bad")
    if not found.is_empty():
        _refuse_rows(table, found.sort("row"), list(bad), too_late, rating_range or (0, 0))
    return rows.drop("bad")


def _refuse_rows(
    table: Table, found: pl.DataFrame, kinds: list[str], too_late: str, rating_range: tuple[float, float]
) -> None:
    rating, time = (table.own.get(column, column).replace("{", "{{").replace("}", "}}") for column in _OPTIONAL)
    texts = {
        "no_user": "no user id; give one or remove the row",
        "no_item": "no item id; give one or remove the row",
        "user_not_whole": "user is {user!r}; it must be a whole number",
        "item_not_whole": "item is {item!r}; it must be a whole number",
        "no_number": f"{rating} is {{rating!r}}; it must be a number",
        "not_finite": f"{rating} is {{rating}}; it must be finite, and below 3.4e38",
        "no_time": f"{time} is {{timestamp!r}}; it must be a whole number of seconds since 1970, or a date such as "
        "2018-01-31, as in the rows before",
        "not_whole": f"{time} is {{timestamp}}; it must be whole seconds",
        "negative": f"{time} is {{timestamp}}; times are counted from 1970",
        "too_late": f"{time} is {{timestamp}}, which is {too_late}",
        "out_of_range": f"{rating} is {{rating}}; ratings are {rating_range[0]:g} to {rating_range[1]:g}",
        "no_rating": "no rating; give one or remove the row",
        "untimed": "no timestamp; give one or remove the row",
    }
    problems = table.found()
    # Bits overlap where a row has several problems, so shown rows are counted per problem.
    first = table.frame.filter(pl.col("row").is_in(found["row"].head(SHOWN).implode())).collect()
    values = {row["row"]: row for row in first.to_dicts()}
    for bit, kind in enumerate(kinds):
        rows = found.filter((pl.col("bad").cast(pl.Int64) // (1 << bit)) % 2 == 1)["row"]
        shown = [(row, texts[kind].format_map(values[row])) for row in rows.head(SHOWN).to_list() if row in values]
        problems.note(rows.len(), shown)
    problems.check()


_OPTIONAL = ("rating", "timestamp")


def _given(column: str, schema: pl.Schema) -> pl.Expr:
    return pl.col(column).is_not_null() if column in schema else pl.lit(False)


def _number(column: str, schema: pl.Schema) -> pl.Expr:
    if column not in schema:
        return pl.lit(None, pl.Float64)
    return pl.col(column).cast(pl.Float64, strict=False)


def _seconds(column: str, table: Table, unit: TimeUnit) -> pl.Expr:
    """Float64 seconds; parts of a second are cut off, except where a number should have been in whole seconds."""
    schema = table.schema
    if column not in schema:
        return pl.lit(None, pl.Float64)
    dtype, time = schema[column], pl.col(column)
    if isinstance(dtype, pl.Date | pl.Datetime):
        return time.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Float64)
    if isinstance(dtype, pl.String) and _holds_dates(column, table):
        parsed = time.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        return parsed.dt.epoch("s").cast(pl.Float64)
    number = time.cast(pl.Float64, strict=False)
    if unit == "s":
        return number
    # Nanoseconds since 1970 have more digits than a Float64.
    whole = time.cast(pl.Int64, strict=False) // PER_SECOND[unit]
    return pl.coalesce(whole.cast(pl.Float64), (number / PER_SECOND[unit]).floor())


def _holds_dates(column: str, table: Table) -> bool:
    with table.reading():
        first = table.frame.select(column).drop_nulls().head(1).collect()
    return not first.is_empty() and first[column].cast(pl.Float64, strict=False).is_null().all()


def _entities(table: Table, key: str, numeric: bool, config: SourceConfig, dropped: dict[str, int]) -> pl.DataFrame:
    """``key`` (dense), ``raw_id`` and the file's columns, sorted by id; ``id`` as the interactions have it."""
    rows = table.collect().with_columns(id=_id(key, numeric))
    problems = table.found()
    problems.rows(rows, pl.col(key).is_null(), f"no {key} id", "give one or remove the row")
    not_whole = pl.col("id").is_null() & pl.col(key).is_not_null()
    problems.rows(rows, not_whole, f"{key} is {{{key}!r}}", "it must be a whole number")
    twice = pl.col("id").is_not_null() & ~pl.col("id").is_first_distinct()
    problems.rows(rows, twice, f"{key} {{id}} is there already", "remove one of the rows")
    if key == "item" and "title" in rows.columns:
        empty = pl.col("title").fill_null("").str.strip_chars() == ""
        if config.empty_text == "drop":
            dropped["items_without_title"] = rows.filter(empty).height
            rows = rows.filter(~empty)
        else:
            remedy = "give it one, remove the item, or set data.empty_text: drop"
            problems.rows(rows, empty, "item {id} has no title", remedy)
    problems.check()
    return _numbered(rows.drop("row", key).sort("id"), key)


def _numbered(table: pl.DataFrame, key: str) -> pl.DataFrame:
    """``table``, sorted by its ids (the first column or ``id``), with the dense id and ``raw_id`` in front."""
    ids = pl.col("id" if "id" in table.columns else key)
    return table.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias(key),
        ids.cast(pl.String).alias("raw_id"),
        ids.alias("id"),
        pl.exclude("id", "raw_id", key),
    )


def _with_dense(
    interactions: Table,
    rows: pl.DataFrame,
    table: pl.DataFrame,
    key: str,
    config: SourceConfig,
    dropped: dict[str, int],
) -> pl.DataFrame:
    dense = rows[key].replace_strict(table["id"], table[key], default=None, return_dtype=pl.Int32)
    unknown = dense.is_null()
    if unknown.any():
        if config.unknown_ids == "error":
            problems = interactions.found()
            what = f"{key} {{{key}}} is in no row of the {key} file"
            remedy = f"add the {key} to its file, remove the row, or set data.unknown_ids: drop"
            problems.rows(rows.filter(unknown), pl.lit(True), what, remedy)
            problems.check()
        dropped[f"interactions_of_unknown_{key}s"] = int(unknown.sum())
    rows = rows.with_columns(dense.alias(key))
    return rows.filter(~unknown) if unknown.any() else rows


def _without_duplicates(
    interactions: Table,
    rows: pl.DataFrame,
    frames: dict[str, pl.DataFrame],
    config: SourceConfig,
    dropped: dict[str, int],
) -> pl.DataFrame:
    if config.duplicates == "keep":
        return rows
    pair = pl.col("user").cast(pl.Int64) * frames["item"].height + pl.col("item")
    if rows.select(pair.n_unique()).item() == rows.height:
        return rows
    if config.duplicates == "error":
        again = rows.sort("row").filter(~pair.is_first_distinct())
        for key, table in frames.items():
            again = again.with_columns(table["raw_id"].gather(again[key]).alias(key))
        problems = interactions.found()
        remedy = "keep one row for a user and an item, or set data.duplicates: first, last or keep"
        problems.rows(again, pl.lit(True), "user {user} and item {item} are there already", remedy)
        problems.check()
    # Times decide, rows of a file where times are equal or missing.
    ordered = rows.sort("timestamp", "row", nulls_last=False)
    kept = ordered.filter(pair.is_first_distinct() if config.duplicates == "first" else pair.is_last_distinct())
    dropped["duplicates"] = rows.height - kept.height
    return kept
