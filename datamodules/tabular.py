"""Tables of your own: CSV, TSV, Parquet, JSONL or JSON (each also as .gz), or folders of such parts, as Spark writes
them.

One table has the interactions; users and items have theirs, or their columns stand in the interactions' rows.
Every column of the users and items that is not named here stays as it is, under its own name, for prompt templates
and groups. In CSV and TSV, a column in which every value is a number becomes numbers; text such as 007 stays text.
Columns of objects (in JSON and Parquet) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from datamodules._source import SourceConfig
from datamodules._triples import TriplesConfig
from recpeft.config import Config as BaseConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset
    from datamodules._tables import Problems, Table


_HEADER = "name its columns in data.header.{}, in the file's order"


class Columns(BaseConfig):
    """Names of the interactions' columns in the file."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    """A number; null where there is none."""
    timestamp: str | None = None
    """Numbers in ``time_unit``, or dates; null where there is none."""


class Headers(BaseConfig):
    """Names of all columns of a file, in its order, for files whose first row is data."""

    interactions: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    items: tuple[str, ...] | None = None
    triples: tuple[str, ...] | None = None


Kind = Literal["interactions", "users", "items", "triples"]


class Format(BaseConfig):
    """Format of a file that differs from the others."""

    separator: str | None = None
    """Separator of cells; null is data.separator."""
    quotes: bool | None = None
    """True if ``"`` encloses cells; null is data.quotes."""


class Triples(TriplesConfig):
    """A table of triples whose heads (or tails) are items' ids."""

    file: str
    head: str = "head"
    """Columns of the file."""
    relation: str = "relation"
    tail: str = "tail"


class Config(SourceConfig):
    """Files below ``path``, and the roles of their columns."""

    ADDED: ClassVar[Mapping[str, Any]] = {"formats": {}, "layout": "rows", "list_columns": []}

    interactions: str | tuple[str, ...]
    """File or folder of parts, or several with the same columns."""
    layout: Literal["rows", "lists", "sequences", "adjacency"] = "rows"
    """Layout of interactions: one per row; a list of items in a cell, in order (``[3437, 642]``, in CSV, Parquet and
    JSON), with ratings, timestamps and item_columns as lists of equal length or single values; or lines
    ``user item item …`` without a header, in order (sequences) or unordered (adjacency). If there is only an order, a
    user's items get the times 0, 1, 2, … seconds, which are never compared between users."""
    users: str | None = None
    """File of the users' attributes; null where there is none."""
    items: str | None = None
    """File of the items' text; null where there is none."""
    columns: Columns = Columns()
    user_id: str = "user_id"
    """Column of ``users`` with the id."""
    item_id: str = "item_id"
    """Column of ``items`` with the id."""
    user_columns: tuple[str, ...] = ()
    """Columns of the interactions that say something of the user, where ``users`` is null."""
    item_columns: tuple[str, ...] = ()
    """Columns of the interactions that say something of the item, where ``items`` is null."""
    title: str | None = None
    """The items' column that becomes ``title``."""
    categories: str | None = None
    """The items' column that becomes ``categories``, a list of text; a list is taken as it is."""
    category_separator: str | None = None
    """Separator of ``categories`` if it is text: ``|``. Null treats the text as one category."""
    list_columns: tuple[str, ...] = ()
    """Further columns of CSV and TSV whose cells are lists, such as ``['Crime', 'Drama']``."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of numbers in the timestamp column since 1970; times are kept to the microsecond."""
    separator: str | None = None
    """Separator of the cells in a row, also a long one such as ``::``; null depends on the suffix, .csv or .tsv, and is
    white space for lines of ids."""
    header: Headers = Headers()
    """Column names of files without a header."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    quotes: bool = True
    """True if ``"`` encloses cells of CSV and TSV; false treats it like any other character."""
    formats: dict[Kind, Format] = Field(default_factory=dict)
    """Formats of files that differ from the others: ``{items: {separator: "|", quotes: false}}``."""
    triples: Triples | None = None
    """Facts of the items from a knowledge graph, as the column ``facts``; null is off."""

    @model_validator(mode="after")
    def _columns_have_a_table(self) -> Config:
        for key in ("user", "item"):
            if getattr(self, f"{key}s") is not None and getattr(self, f"{key}_columns"):
                raise ValueError(
                    f"{key}_columns are columns of the interactions, but the {key}s have the file "
                    f"{getattr(self, f'{key}s')}; set one of the two"
                )
        for option in ("title", "categories", "triples"):
            if getattr(self, option) is not None and self.items is None and not self.item_columns:
                raise ValueError(f"{option} needs text of the items; set items to their file, or item_columns")
        return self

    @model_validator(mode="after")
    def _layout_has_what_is_asked_for(self) -> Config:
        columns = self.columns
        if self.layout in ("sequences", "adjacency"):
            found = {
                "columns.rating": columns.rating,
                "columns.timestamp": columns.timestamp,
                "header.interactions": self.header.interactions,
                "user_columns": self.user_columns,
                "item_columns": self.item_columns,
            }
            for key, value in found.items():
                if value:
                    raise ValueError(f"{key} is set, but layout {self.layout} has lines of ids alone; leave it out")
        if self.layout in ("lists", "sequences") and columns.timestamp is None:
            moments = [name for each in self.filters for name in ("since", "until") if getattr(each, name, None)]
            moments += ["split"] if self.split.kind == "global_temporal" else []
            if moments:
                raise ValueError(
                    f"{moments[0]} needs times, but layout {self.layout} without columns.timestamp has an order for "
                    "each user alone; leave it out, or use split: per_user_temporal or leave_one_out"
                )
        return self


def load(config: Config) -> RecDataset:
    """Read the tables below ``config.path``.

    Raises:
        RecpeftError: a file, a column or a row that cannot be right; names them.
    """
    from datamodules._build import build
    from datamodules._triples import optional_columns, with_facts

    if config.path is None:
        raise RecpeftError("data.path is not set; set it to the folder of your tables.")
    rows, names = _interactions(config)
    users = _entities(config, rows, "user")
    items = _entities(config, rows, "item")
    there = {name for table in (rows, users, items) if table is not None for name in table.columns}
    if unknown := [name for name in config.list_columns if name not in there]:
        raise RecpeftError(
            f"data.list_columns names {', '.join(unknown)}, which no file has; there are {', '.join(sorted(there))}."
        )
    if items is not None:
        items = _with_text(items, config)
        if config.triples is not None:
            items = with_facts(items, _triples(config, config.triples), config.triples, names=_entity_names(config))
    name = config.path.expanduser().resolve().name
    data = build(name, config, rows.select(**names), users, items, time_unit=config.time_unit)
    return replace(data, optional=optional_columns(), clock=names.get("timestamp") == config.columns.timestamp)


def _interactions(config: Config) -> tuple[Table, dict[str, str]]:
    """Return the interactions, one per row, and the names of their user, item, rating and timestamp columns."""
    from datamodules._layouts import PLACE, one_to_a_row, scan_lines, with_lists

    names: dict[str, str] = config.columns.model_dump(exclude_none=True)
    user, item = names["user"], names["item"]
    if config.layout in ("sequences", "adjacency"):
        rows = scan_lines(
            _paths(config, config.interactions), user, item, _separator(config, "interactions"), config.encoding
        )
    else:
        rows = _scan(config, config.interactions, "interactions")
        rows.require(
            [*names.values(), *config.user_columns, *config.item_columns],
            "set data.columns to yours",
            _HEADER.format("interactions"),
        )
    if config.layout == "rows":
        _refuse_lists(rows, item, "data.layout: lists")
        return rows, names
    others = [*(names[key] for key in ("rating", "timestamp") if key in names), *config.item_columns]
    if config.layout == "lists":
        rows = with_lists(rows, [item, *(name for name in others if _holds_lists(rows, name))])
    timed = config.layout == "adjacency" or "timestamp" in names
    rows = one_to_a_row(rows, item, others, place=None if timed else user)
    return rows, names if timed else {**names, "timestamp": PLACE}


def _holds_lists(rows: Table, column: str) -> bool:
    import polars as pl

    if rows.schema[column] != pl.String:
        return False
    with rows.reading():
        first = rows.frame.select(column).drop_nulls().head(1).collect()
    return not first.is_empty() and first.item().startswith("[")


def _refuse_lists(table: Table, column: str, remedy: str) -> None:
    """Raise if every cell of ``column`` is a list, which would be read as one id or one category."""
    import polars as pl

    lists = isinstance(table.schema[column], pl.List)
    if not lists and _holds_lists(table, column):
        cell = pl.col(column).str
        lists = table.summary(lists=(cell.starts_with("[") & cell.ends_with("]")).all())["lists"]
    if lists:
        raise RecpeftError(f"{table.path}: the column {column} holds lists; set {remedy}.")


def _paths(config: Config, files: str | tuple[str, ...]) -> list[Path]:
    assert config.path is not None
    folder = config.path.expanduser()
    return [folder / file for file in ([files] if isinstance(files, str) else files)]


def _separator(config: Config, kind: Kind) -> str | None:
    own = config.formats.get(kind, Format()).separator
    return config.separator if own is None else own


def _scan(config: Config, files: str | tuple[str, ...], kind: Kind) -> Table:
    from datamodules._layouts import with_lists
    from datamodules._tables import scan

    paths = _paths(config, files)
    quotes = config.formats.get(kind, Format()).quotes
    found = scan(
        paths[0] if len(paths) == 1 else paths,
        separator=_separator(config, kind),
        columns=getattr(config.header, kind),
        encoding=config.encoding,
        quotes=config.quotes if quotes is None else quotes,
    )
    return with_lists(found, [name for name in config.list_columns if name in found.columns])


# --- users and items ---


def _entities(config: Config, rows: Table, key: Literal["user", "item"]) -> Table | None:
    """Return the table of users or items, with the id as ``key``; None if there are no attributes of them."""
    file = config.users if key == "user" else config.items
    columns = config.user_columns if key == "user" else config.item_columns
    if file is not None:
        own = config.user_id if key == "user" else config.item_id
        kind: Kind = "users" if key == "user" else "items"
        table = _scan(config, file, kind)
        table.require([own], f"set data.{key}_id to the column of the {key}'s id", _HEADER.format(kind))
        _refuse_reserved(table, [name for name in table.columns if name != own], key)
        table = _without_objects(table)
        table = table.select(**{key: own}, **{name: name for name in table.columns if name != own})
    elif columns:
        _refuse_reserved(rows, columns, key)
        table = _gathered(_without_objects(rows), config.columns.model_dump()[key], columns, key)
    else:
        return None
    kept = [key, *([config.title, config.categories] if key == "item" else [])]
    return table if table.typed else _with_numbers(table, [name for name in table.columns if name not in kept])


def _refuse_reserved(table: Table, columns: tuple[str, ...] | list[str], key: str) -> None:
    taken = [name for name in columns if name in (key, "id", "raw_id", "row")]
    if taken:
        raise RecpeftError(
            f"{table.path}: {', '.join(taken)} cannot be the name of an attribute of the {key}s; rename it."
        )


def _without_objects(table: Table) -> Table:
    import polars as pl

    def plain(dtype: pl.DataType) -> bool:
        if isinstance(dtype, pl.List):
            return not isinstance(dtype.inner, pl.Struct | pl.List | pl.Array | pl.Binary)
        return not isinstance(dtype, pl.Struct | pl.Array | pl.Binary | pl.Object)

    kept = [name for name, dtype in table.schema.items() if plain(dtype)]
    return replace(table, frame=table.frame.select(kept))


def _gathered(rows: Table, own: str, columns: tuple[str, ...], key: str) -> Table:
    """Return a row for each id of the column ``own``, with each column's first value among its interactions.

    Raises:
        RecpeftError: rows of an id have different values.
    """
    import polars as pl

    rows.require([own, *columns], f"give columns that are no objects in data.{key}_columns")
    # Values repeat in many rows, so only distinct ones are loaded into memory.
    sayings = rows.frame.filter(pl.col(own).is_not_null()).group_by(pl.col(own).alias(key), *columns)
    with rows.reading():
        said = sayings.agg(pl.min("row"), count=pl.len()).collect(engine="streaming").sort("row")
    first = pl.col(columns).drop_nulls().first().over(key).name.prefix("first ")
    said = said.with_columns(first)
    problems = rows.found()
    for column in columns:
        _note_conflicts(problems, said, column, key)
    problems.check()
    frame = said.select("row", key, *(pl.col(f"first {name}").alias(name) for name in columns))
    return replace(rows, frame=frame.unique(key, keep="first", maintain_order=True).lazy(), problems=problems)


def _note_conflicts(problems: Problems, said: pl.DataFrame, column: str, key: str) -> None:
    import polars as pl

    from datamodules._tables import SHOWN

    found = said.filter(pl.col(column).is_not_null() & pl.col(column).ne_missing(pl.col(f"first {column}")))
    shown = [
        (
            row["row"],
            f"{key} {row[key]} has the {column} {row[column]!r}, but {row[f'first {column}']!r} in a row before; "
            "give it one",
        )
        for row in found.head(SHOWN).to_dicts()
    ]
    problems.note(int(found["count"].sum()), shown)


_WHOLE = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"


def _with_numbers(table: Table, columns: list[str]) -> Table:
    """Convert text columns in which every value is a number to Int64 or Float64."""
    import polars as pl

    texts = [name for name in columns if table.schema[name] == pl.String]
    if not texts:
        return table
    wholes = [pl.col(name).str.contains(_WHOLE).all().alias(f"whole {name}") for name in texts]
    numbers = [pl.col(name).str.contains(_NUMBER).all().alias(f"number {name}") for name in texts]
    some = [pl.col(name).is_not_null().any().alias(f"some {name}") for name in texts]
    with table.reading():
        seen = table.frame.select(*wholes, *numbers, *some).collect(engine="streaming").row(0, named=True)
    casts = []
    for name in texts:
        if seen[f"some {name}"] and seen[f"number {name}"]:
            casts.append(pl.col(name).cast(pl.Int64 if seen[f"whole {name}"] else pl.Float64))
    return replace(table, frame=table.frame.with_columns(casts))


def _with_text(items: Table, config: Config) -> Table:
    """Return ``items`` with ``title`` and ``categories`` under these names."""
    import polars as pl

    frame, columns = items.frame, items.columns
    for name, own in (("title", config.title), ("categories", config.categories)):
        if own is None:
            continue
        items.require([own], f"set data.{name} to one of them, or to null")
        if own != name and name in columns:
            raise RecpeftError(
                f"{items.path}: data.{name} is {own}, but there is a column {name} too; rename it, or set "
                f"data.{name}: {name}."
            )
        if name == "title":
            if items.schema[own].is_nested():
                raise RecpeftError(f"{items.path}: data.title is {own}, which holds lists; name a column of text.")
            text = pl.col(own).cast(pl.String)
        else:
            if items.schema[own] == pl.String:
                _refuse_lists(items, own, f"data.list_columns: [{own}]")
            text = _split(pl.col(own), items.schema[own], config.category_separator)
        frame = frame.with_columns(text.alias(name))
        frame = frame.drop(own) if own != name else frame
    return replace(items, frame=frame)


def _split(column: pl.Expr, dtype: pl.DataType, separator: str | None) -> pl.Expr:
    """Return ``column`` as a list of text without empty entries; null becomes an empty list."""
    import polars as pl

    from datamodules._tables import without_empty

    if isinstance(dtype, pl.List):
        entries = column.cast(pl.List(pl.String))
    elif separator is None:
        entries = pl.concat_list(column.cast(pl.String))
    else:
        entries = column.cast(pl.String).str.split(separator)
    return without_empty(entries)


# --- triples ---


def _triples(config: Config, triples: Triples) -> Table:
    table = _scan(config, triples.file, "triples")
    own = {"head": triples.head, "relation": triples.relation, "tail": triples.tail}
    table.require(list(own.values()), "set head, relation and tail of data.triples to yours", _HEADER.format("triples"))
    return table.select(**own)


def _entity_names(config: Config) -> Table | None:
    from datamodules._triples import read_names

    assert config.path is not None
    assert config.triples is not None
    return read_names(config.path.expanduser(), config.triples, config.encoding)
