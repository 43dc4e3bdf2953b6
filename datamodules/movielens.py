"""MovieLens-100K, in GroupLens's own layout or as RecBole's atomic files; both give the same data set.

Harper & Konstan 2015, "The MovieLens Datasets: History and Context". 100,000 ratings by 943 users of 1,682
films, with the users' age, gender, occupation and post code.

The layouts differ, and are brought together like this:

* The official title holds the year, ``Toy Story (1995)``; RecBole has a column for it. Here: a title without
  the year, and ``year``.
* Item 267 has no film: the official title is ``unknown`` without year; RecBole misspells title and year
  ``unkonwn``. Here: title ``unknown``, year null.
* Item 1412 is officially ``Land Before Time III: … (1995) (V)``, V for video; RecBole took ``V`` for the year
  and left ``(1995)`` in the title. Here: the title without either, year 1995.
* The genre ``unknown`` (items 267 and 1373) is no genre: the list of categories is empty. Categories are in
  alphabetical order.
* Films that stand under two ids (18 of them, such as "Chasing Amy", 246 and 268) stay two items, and trailing
  articles ("Shawshank Redemption, The") stay where they are, as both layouts have them.
* White space is trimmed and runs of it are one space.
* The official files are Latin-1, but many copies were saved as UTF-8; text that is valid UTF-8 is read so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules._fetch import LAYOUTS, cache_folder, layout, read_file
from datamodules._source import SourceConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset

GENRES = (  # noqa: SIM905 (a list literal would be 19 lines)
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
"""In the order of u.item's 19 flags."""

AGE_GROUPS = ["<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
AGE_GROUP_STARTS = [18, 25, 35, 45, 50, 56]  # of all but the first
"""MovieLens-1M's bins."""


class Config(SourceConfig):
    """MovieLens by GroupLens."""

    version: Literal["ml-100k"] = "ml-100k"
    """ml-100k: 100,000 ratings of 1997 and 1998."""


def load(config: Config) -> RecDataset:
    """Read ``config.path``, or the cache that ``recpeft data fetch`` fills.

    Raises:
        RecpeftError: files are missing, or one has a row that cannot be right; names the file and the row.
    """
    folder = config.path.expanduser() if config.path else cache_folder(config.version)
    return read(folder, config.version)


def read(folder: Path, name: str = "ml-100k") -> RecDataset:
    """The data set in ``folder``, in whichever layout it has."""
    import polars as pl

    from datamodules._dataset import RecDataset

    kind = layout(folder)
    data, item, user = (folder / file for file in LAYOUTS[kind])
    interaction_columns = ["user_id", "item_id", "rating", "timestamp"]
    user_columns = ["user_id", "age", "gender", "occupation", "zip_code"]
    if kind == "official":
        rows = _table(data, interaction_columns, "\t")
        users = _table(user, user_columns, "|")
        items = _official_items(item)
    else:
        rows = _atomic(data, interaction_columns)
        users = _atomic(user, user_columns)
        items = _atomic_items(item)
    items = _dense(item, items, "item")
    users = _dense(user, _with_age_group(user, users), "user")
    untitled = pl.col("title") == ""
    _refuse(item, items, untitled, "item {item_id} has no title", "give it one or remove the item")
    return RecDataset(
        name=name,
        interactions=_interactions(data, rows, users, items),
        users=users.select("user", "raw_id", "age", "age_group", "gender", "occupation", "zip_code"),
        items=items.select("item", "raw_id", "title", "year", "categories"),
    )


# --- items, users, interactions ---

_TITLE_AND_YEAR = r"^(.*?)\s*\((\d{4})\)(?: \((?:V|TV)\))?$"
_NO_YEAR = ["", "unknown", "unkonwn"]  # the last is RecBole's spelling


def _official_items(path: Path) -> pl.DataFrame:
    """row, item_id, title, year, categories of u.item."""
    import polars as pl

    table = _table(path, ["item_id", "movie_title", "date", "video_date", "url", *GENRES], "|")
    flags = pl.concat_list(GENRES)
    not_flags = flags.list.eval(~pl.element().is_in(["0", "1"])).list.any()
    _refuse(path, table, not_flags, "item {item_id} has a genre flag that is neither 0 nor 1")
    genres = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES)
    year = pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 2).cast(pl.Int32)
    return table.select(
        "row",
        "item_id",
        title=pl.coalesce(pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 1), "movie_title"),
        year=year,
        categories=_without_unknown(genres.list.drop_nulls()),
    )


def _atomic_items(path: Path) -> pl.DataFrame:
    """row, item_id, title, year, categories of ml-100k.item."""
    import polars as pl

    table = _atomic(path, ["item_id", "movie_title", "release_year", "class"])
    year = pl.col("release_year").str.extract(r"^(\d{4})$").cast(pl.Int32)
    # Only where the column has no year is one looked for in the title.
    year_in_title = pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 2).cast(pl.Int32)
    title_before_it = pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 1)
    title = pl.when(year.is_null()).then(pl.coalesce(title_before_it, "movie_title")).otherwise("movie_title")
    no_year = pl.coalesce(year, year_in_title).is_null() & ~pl.col("release_year").is_in(_NO_YEAR)
    _refuse(path, table, no_year, "release_year is {release_year!r}", "write four digits, or unknown")
    genres = pl.col("class").str.split(" ").list.filter(pl.element() != "")
    strange = genres.list.eval(~pl.element().is_in(GENRES)).list.any()
    _refuse(path, table, strange, "class is {class!r}", f"the genres are {', '.join(GENRES)}")
    return table.select(
        "row",
        "item_id",
        title=title.replace("unkonwn", "unknown"),
        year=pl.coalesce(year, year_in_title),
        categories=_without_unknown(genres),
    )


def _without_unknown(genres: pl.Expr) -> pl.Expr:
    import polars as pl

    return genres.list.filter(pl.element() != "unknown").list.sort()


def _with_age_group(path: Path, users: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    users = _numbers(path, users, "age", pl.Int32)
    _refuse(path, users, ~pl.col("gender").is_in(["F", "M"]), "gender is {gender!r}", "write F or M")
    jobless = pl.col("occupation") == ""
    _refuse(path, users, jobless, "user {user_id} has no occupation", "write other or none")
    group = pl.Series(AGE_GROUP_STARTS).search_sorted(users["age"], side="right")
    return users.with_columns(age_group=pl.Series(AGE_GROUPS).gather(group))


def _dense(path: Path, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """``table`` sorted by its numeric id, with ``key`` (the id's rank) and ``raw_id``."""
    import polars as pl

    table = _numbers(path, table, f"{key}_id", pl.Int64)
    twice = ~pl.col(f"{key}_id").is_first_distinct()
    _refuse(path, table, twice, f"{key} {{{key}_id}} is there already", "remove one of the rows")
    return table.sort(f"{key}_id").with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).alias(key), raw_id=pl.col(f"{key}_id").cast(pl.String)
    )


def _interactions(path: Path, rows: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    for column in ("user_id", "item_id", "timestamp"):
        rows = _numbers(path, rows, column, pl.Int64)
    rows = _numbers(path, rows, "rating", pl.Float32)
    _refuse(path, rows, ~pl.col("rating").is_between(1, 5), "rating is {rating}", "ratings are 1 to 5")
    _refuse(path, rows, pl.col("timestamp") < 0, "timestamp is {timestamp}", "times are seconds since 1970")
    for key, table in (("user", users), ("item", items)):
        rows = rows.join(table.select(f"{key}_id", key), on=f"{key}_id", how="left", maintain_order="left")
        found = f"{key} {{{key}_id}} is in no row of the {key} file"
        _refuse(path, rows, pl.col(key).is_null(), found, f"add the {key} to its file or remove the row")
    twice = ~pl.struct("user", "item").is_first_distinct()
    again = "user {user_id} and item {item_id} are there already"
    _refuse(path, rows, twice, again, "keep one row for a user and an item")
    return rows.select("user", "item", "rating", "timestamp").sort("user", "item")


# --- tables of text ---


def _table(path: Path, columns: list[str], separator: str, skip: int = 0, encoding: str = "latin-1") -> pl.DataFrame:
    """``columns`` as text, trimmed, and ``row``, the line number in the file counted from 1.

    Split by hand, since titles hold unpaired quotes and a CSV reader pads rows that are too short.
    """
    import polars as pl

    lines = _lines(path, encoding)[skip:]
    if not lines:
        raise RecpeftError(f"{path} holds no rows; fetch the data again or mend the file.")
    table = pl.DataFrame({"row": range(skip + 1, skip + 1 + len(lines)), "line": lines})
    table = table.with_columns(cells=pl.col("line").str.split(separator))
    table = table.with_columns(width=pl.col("cells").list.len())
    wanted = f"a row has {len(columns)}: {', '.join(columns)}"
    _refuse(path, table, pl.col("width") != len(columns), "the number of columns is {width}", wanted)
    cells = {name: pl.col("cells").list.get(index) for index, name in enumerate(columns)}
    return table.select(
        "row", **{name: cell.str.replace_all(r"\s+", " ").str.strip_chars() for name, cell in cells.items()}
    )


def _atomic(path: Path, columns: list[str]) -> pl.DataFrame:
    """``columns`` of one of RecBole's files; its header has ``name:type``, further columns are left out."""
    lines = _lines(path, "utf-8")
    header = [column.split(":")[0] for column in lines[0].split("\t")] if lines else []
    missing = [column for column in columns if column not in header]
    if lines and missing:
        raise RecpeftError(
            f"{path}, row 1: the header lacks {', '.join(missing)}, it has {', '.join(header)}; "
            "write RecBole's header, such as user_id:token."
        )
    return _table(path, header, "\t", skip=1, encoding="utf-8").select("row", *columns)


def _lines(path: Path, encoding: str) -> list[str]:
    """The lines of a file that is UTF-8, or else ``encoding``; blank lines at its end are left out."""
    data = read_file(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            row = data.count(b"\n", 0, error.start) + 1
            raise RecpeftError(f"{path}, row {row}: the text is not UTF-8; save the file as UTF-8.") from None
        text = data.decode(encoding)
    text = text.replace("\r\n", "\n").rstrip("\n")
    return text.split("\n") if text else []


def _numbers(path: Path, table: pl.DataFrame, column: str, dtype: type[pl.DataType]) -> pl.DataFrame:
    """``table`` with ``column`` as numbers of ``dtype``."""
    import polars as pl

    number = pl.col(column).cast(dtype, strict=False)
    what = "a number" if dtype.is_float() else "a whole number"
    _refuse(path, table, number.is_null(), f"{column} is {{{column}!r}}", f"it must be {what}")
    return table.with_columns(number)


def _refuse(path: Path, table: pl.DataFrame, bad: pl.Expr, found: str, remedy: str = "mend the row") -> None:
    """Raise where rows are ``bad``; ``found`` is filled with the values of the first of them."""
    rows = table.filter(bad)
    if rows.is_empty():
        return
    first = rows.sort("row").row(0, named=True)
    count = "" if rows.height == 1 else f" (the first of {rows.height} such rows)"
    raise RecpeftError(f"{path}, row {first['row']}: {found.format_map(first)}{count}; {remedy}.")
