"""Build a data set from tables: check them and assign dense ids.

All problems of a file are reported at once: the first ten rows, and the number of further ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import polars as pl

from datamodules._dataset import RecDataset, whole_seconds
from datamodules._tables import SHOWN, Problems, Table
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from datamodules._source import SourceConfig

LATEST_SECONDS = 100_000_000_000
"""Largest plausible time in seconds (the year 5138)."""

TimeUnit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


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
    """Build the data set of these tables: check them and assign dense ids.

    Ids are whole numbers if all ids of a key are written so, else text; dense ids are their ranks.
    A missing table is replaced by the distinct ids of the interactions.

    Args:
        config: rules for duplicates, unknown ids and empty texts.
        interactions: ``user``, ``item`` and optionally ``rating`` and ``timestamp`` (numbers, or dates in text or in
            Parquet's types, which are read as UTC).
        users: ``user`` and attributes.
        items: ``item``, ``title``, ``categories`` and further text.
        rating_range: smallest and largest rating; if given, every interaction must have a rating and a time.
        whole_ids: True if ids are whole numbers, False if they are text; None infers it.
    Raises:
        RecpeftError: lists all of a file's problems.
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
    problems = interactions.found()
    rows = _typed_interactions(interactions, problems, numeric, time_unit, too_late, rating_range)
    dropped: dict[str, int] = {}
    frames = {}
    for key, table in tables.items():
        if table is None:
            ids = rows.select(pl.col(key).unique().sort())
            frames[key] = _numbered(ids, key)
        else:
            frames[key] = _entities(table, key, numeric[key], config, dropped)
        rows = _with_dense(problems, rows, frames[key], key, config, dropped)
    rows = _without_duplicates(problems, rows, frames, config, dropped)
    problems.check()
    if rows.is_empty():
        raise RecpeftError(f"{interactions.path} holds no interactions; give data that has some.")
    rows = whole_seconds(rows.select("user", "item", "rating", "timestamp")).sort("user", "item")
    return RecDataset(name, rows, frames["user"].drop("id"), frames["item"].drop("id"), dropped)


def _refuse_types(table: Table, key: str, interactions: bool) -> None:
    """Raise if an id column, or the rating or time column of ``interactions``, has an unsuitable type."""
    text = (pl.String, pl.Categorical, pl.Enum, pl.Null)
    for column, dtype in table.schema.items():
        # 1.0 as text would not match the id 1 of another file; pandas turns whole numbers with a gap into floats.
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
    """Return whether every id is a whole number in canonical form, so that 007 stays text."""
    for table in tables:
        if table is None:
            continue
        dtype = table.schema[key]
        if dtype.is_signed_integer():
            continue
        ids = pl.col(key).cast(pl.String)
        with table.reading():
            # Unsigned 64-bit values can exceed Int64.
            whole = pl.col(key).cast(pl.Int64, strict=False).cast(pl.String).eq_missing(ids).all()
            if not table.frame.select(whole).collect(engine="streaming").item():
                return False
    return True


def _id(key: str, numeric: bool) -> pl.Expr:
    return pl.col(key).cast(pl.Int64, strict=False) if numeric else pl.col(key).cast(pl.String)


_NO_NUL = "leave out the zero byte (NUL), at which other programs cut text off"


def _has_nul(key: str) -> pl.Expr:
    return pl.col(key).cast(pl.String).str.contains("\0", literal=True)


def _typed_interactions(
    table: Table,
    problems: Problems,
    numeric: dict[str, bool],
    unit: TimeUnit,
    too_late: str,
    rating_range: tuple[float, float] | None,
) -> pl.DataFrame:
    """Return the rows without a problem: row, user, item (as in the file), rating Float32, timestamp Float64 (s)."""
    schema, frame = table.schema, table.frame
    rating = _number("rating", schema)
    time = _seconds("timestamp", table, unit)
    bad = {
        "no_user": pl.col("user").is_null(),
        "no_item": pl.col("item").is_null(),
        "user_not_whole": _id("user", numeric["user"]).is_null() & pl.col("user").is_not_null(),
        "item_not_whole": _id("item", numeric["item"]).is_null() & pl.col("item").is_not_null(),
        "user_nul": _has_nul("user"),
        "item_nul": _has_nul("item"),
        "no_number": rating.is_null() & _given("rating", schema),
        "not_finite": ~rating.cast(pl.Float32).is_finite(),
        "no_time": time.is_null() & _given("timestamp", schema),
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
        timestamp=time,
        bad=code,
    )
    with table.reading():
        rows = typed.collect(engine="streaming")
    found = rows.filter(pl.col("bad") > 0).select("row", "bad")
    if not found.is_empty():
        _note_rows(table, problems, found.sort("row"), code, list(bad), too_late, rating_range or (0, 0))
    return rows.filter(pl.col("bad") == 0).drop("bad")


def _note_rows(
    table: Table,
    problems: Problems,
    found: pl.DataFrame,
    code: pl.Expr,
    kinds: list[str],
    too_late: str,
    rating_range: tuple[float, float],
) -> None:
    rating, time = (table.own.get(column, column).replace("{", "{{").replace("}", "}}") for column in _OPTIONAL)
    texts = {
        "no_user": "no user id; give one or remove the row",
        "no_item": "no item id; give one or remove the row",
        "user_not_whole": "user is {user!r}; it must be a whole number",
        "item_not_whole": "item is {item!r}; it must be a whole number",
        "user_nul": f"user is {{user!r}}; {_NO_NUL}",
        "item_nul": f"item is {{item!r}}; {_NO_NUL}",
        "no_number": f"{rating} is {{rating!r}}; it must be a number",
        "not_finite": f"{rating} is {{rating}}; it must be finite, and below 3.4e38",
        "no_time": f"{time} is {{timestamp!r}}; it must be a number of seconds since 1970, or a date such as "
        "2018-01-31, as in the rows before",
        "negative": f"{time} is {{timestamp}}; times are counted from 1970",
        "too_late": f"{time} is {{timestamp}}, which is {too_late}",
        "out_of_range": f"{rating} is {{rating}}; ratings are {rating_range[0]:g} to {rating_range[1]:g}",
        "no_rating": "no rating; give one or remove the row",
        "untimed": "no timestamp; give one or remove the row",
    }
    # A row with several problems sets several bits, so shown rows are counted per problem.
    # A row of lists has several interactions.
    first = table.frame.filter(pl.col("row").is_in(found["row"].head(SHOWN).implode()), code > 0).collect()
    values = {row["row"]: row for row in first.to_dicts()}
    for bit, kind in enumerate(kinds):
        rows = found.filter((pl.col("bad").cast(pl.Int64) // (1 << bit)) % 2 == 1)["row"]
        shown = [(row, texts[kind].format_map(values[row])) for row in rows.head(SHOWN).to_list() if row in values]
        problems.note(rows.len(), shown)


_OPTIONAL = ("rating", "timestamp")


def _given(column: str, schema: pl.Schema) -> pl.Expr:
    return pl.col(column).is_not_null() if column in schema else pl.lit(False)


def _number(column: str, schema: pl.Schema) -> pl.Expr:
    if column not in schema:
        return pl.lit(None, pl.Float64)
    return pl.col(column).cast(pl.Float64, strict=False)


def _seconds(column: str, table: Table, unit: TimeUnit) -> pl.Expr:
    """Return Float64 seconds with fractions, exact for whole seconds, else to a microsecond."""
    schema = table.schema
    if column not in schema:
        return pl.lit(None, pl.Float64)
    dtype, time = schema[column], pl.col(column)
    if isinstance(dtype, pl.Date | pl.Datetime):
        return time.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    if isinstance(dtype, pl.String) and _holds_dates(column, table):
        parsed = time.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        return parsed.dt.epoch("us") / 1e6
    number = time.cast(pl.Float64, strict=False)
    if unit == "s":
        return number
    # Nanoseconds since 1970 have more digits than a Float64.
    per_microsecond = max(PER_SECOND[unit] // 1_000_000, 1)  # seconds in Float64 cannot resolve nanoseconds
    count, a_second = time.cast(pl.Int64, strict=False) // per_microsecond, PER_SECOND[unit] // per_microsecond
    exact = (count // a_second).cast(pl.Float64) + (count % a_second) / a_second
    is_whole = number == number.floor()
    return pl.coalesce(pl.when(is_whole).then(exact), number / PER_SECOND[unit])


def _holds_dates(column: str, table: Table) -> bool:
    with table.reading():
        first = table.frame.select(column).drop_nulls().head(1).collect()
    return not first.is_empty() and first[column].cast(pl.Float64, strict=False).is_null().all()


def _entities(table: Table, key: str, numeric: bool, config: SourceConfig, dropped: dict[str, int]) -> pl.DataFrame:
    """Return ``key`` (dense), ``raw_id``, ``id`` (as in the interactions) and the file's columns, sorted by id."""
    rows = table.collect().with_columns(id=_id(key, numeric))
    problems = table.found()
    problems.rows(rows, pl.col(key).is_null(), f"no {key} id", "give one or remove the row")
    not_whole = pl.col("id").is_null() & pl.col(key).is_not_null()
    problems.rows(rows, not_whole, f"{key} is {{{key}!r}}", "it must be a whole number")
    problems.rows(rows, _has_nul(key), f"{key} is {{{key}!r}}", _NO_NUL)
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
    """Prepend the dense id, ``raw_id`` and ``id`` to ``table``, which is sorted by its ids (``id``, else ``key``)."""
    ids = pl.col("id" if "id" in table.columns else key)
    return table.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias(key),
        ids.cast(pl.String).alias("raw_id"),
        ids.alias("id"),
        pl.exclude("id", "raw_id", key),
    )


def _with_dense(
    problems: Problems,
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
            what = f"{key} {{{key}}} is in no row of the {key} file"
            remedy = f"add the {key} to its file, remove the row, or set data.unknown_ids: drop"
            problems.rows(rows.filter(unknown), pl.lit(True), what, remedy)
        else:
            dropped[f"interactions_of_unknown_{key}s"] = int(unknown.sum())
    rows = rows.with_columns(dense.alias(key))
    return rows.filter(~unknown) if unknown.any() else rows


def _without_duplicates(
    problems: Problems,
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
        remedy = "keep one row for a user and an item, or set data.duplicates: first, last or keep"
        problems.rows(again, pl.lit(True), "user {user} and item {item} are there already", remedy)
        return rows
    # Sorted by time, then by row of the file if times are equal or missing.
    ordered = rows.sort("timestamp", "row", nulls_last=False)
    kept = ordered.filter(pair.is_first_distinct() if config.duplicates == "first" else pair.is_last_distinct())
    dropped["duplicates"] = rows.height - kept.height
    return kept
