"""MovieLens by GroupLens: 100K, 1M, 20M, 25M, 32M and latest-small.

Harper & Konstan 2015, "The MovieLens Datasets: History and Context". 100K and 1M know their users' age group,
gender, occupation and post code; the others know nothing of them, but users have tagged their films.

100K is read in GroupLens's own layout or as RecBole's atomic files. They differ, and are brought together so that
both give the same data set:

* The official title holds the year, ``Toy Story (1995)``; RecBole has a column for it. Here: a title without
  the year, and ``year``.
* Item 267 has no film: the official title is ``unknown`` without year; RecBole misspells title and year
  ``unkonwn``. Here: title ``unknown``, year null.
* Item 1412 is officially ``Land Before Time III: … (1995) (V)``, V for video; RecBole took ``V`` for the year
  and left ``(1995)`` in the title. Here: the title without either, year 1995.
* The genre ``unknown`` (items 267 and 1373) is no genre: the list of categories is empty.
* The official files are Latin-1, but many copies were saved as UTF-8; text that is valid UTF-8 is read so.

In all versions:

* Categories are in alphabetical order; ``(no genres listed)`` is an empty list.
* Films that stand under two ids (18 in 100K, such as "Chasing Amy", 246 and 268) stay two items, and trailing
  articles ("Shawshank Redemption, The") stay where they are, as the files have them.
* A title whose brackets hold anything but one year, such as ``(2006–2007)``, stays whole; its year is null.
* White space is trimmed and runs of it are one space.
* 1M gives an age as the first year of its group, so there is ``age_group`` but no ``age``; its occupations are
  words, as its README has them, of which "other" is also "not specified".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from datamodules._fetch import LAYOUTS, cache_folder, layout
from datamodules._source import SourceConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset
    from datamodules._tables import Table

GENRES = (  # noqa: SIM905 (a list literal would be 19 lines)
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
"""Genres, in the order of u.item's 19 flags."""

AGE_GROUPS = ["<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"]
AGE_GROUP_STARTS = [18, 25, 35, 45, 50, 56]  # of all but the first
"""MovieLens-1M's bins; its code of an age is the bin's start, and 1 for the first."""

OCCUPATIONS = [
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
]
"""MovieLens-1M's occupations, by code."""

FILES_1M = ("ratings.dat", "movies.dat", "users.dat")
FILES_CSV = ("ratings.csv", "movies.csv")
URL = "https://files.grouplens.org/datasets/movielens/{version}.zip"

MAX_TAGS = 10
"""Maximum number of tags per item."""


class Config(SourceConfig):
    """MovieLens by GroupLens."""

    version: Literal["ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m", "ml-latest-small"] = "ml-100k"
    """ml-100k can be fetched; the others are downloaded by hand and need ``path``."""
    tags: bool = False
    """Add ``tags`` to items: the 10 that users gave them most often, from tags.csv (20M and later)."""

    @model_validator(mode="after")
    def _version_has_tags(self) -> Config:
        if self.tags and self.version in ("ml-100k", "ml-1m"):
            raise ValueError(f"tags is true, but {self.version} has none; set tags: false or take a later version")
        return self


def load(config: Config) -> RecDataset:
    """Read ``config.path``, or for ml-100k the cache that ``recpeft data fetch`` fills.

    Raises:
        RecpeftError: files are missing, or have rows that cannot be right; names the file and the rows.
    """
    import polars as pl

    if config.version == "ml-100k":
        data = _load_100k(config.path.expanduser() if config.path else cache_folder(config.version), config)
    elif config.version == "ml-1m":
        data = _load_1m(_folder(config, FILES_1M), config)
    else:
        data = _load_csv(_folder(config, (*FILES_CSV, "tags.csv") if config.tags else FILES_CSV), config)
    return replace(data, optional={"tags": pl.lit([], pl.List(pl.String))})


def _folder(config: Config, files: tuple[str, ...]) -> Path:
    """Return ``config.path``, after a check that it has all of ``files``."""
    remedy = f"download {URL.format(version=config.version)} and set data.path to the folder with {', '.join(files)}"
    if config.path is None:
        raise RecpeftError(f"data.path is missing, which {config.version} needs; {remedy}.")
    folder = config.path.expanduser()
    if not folder.is_dir():
        raise RecpeftError(f"no {config.version} files: {folder} is not a folder; {remedy}.")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        otherwise = ", or set data.tags: false" if missing == ["tags.csv"] else ""
        raise RecpeftError(f"{folder} lacks {', '.join(missing)} of the {config.version} files; {remedy}{otherwise}.")
    return folder


_INTERACTION = ["user_id", "item_id", "rating", "timestamp"]

# --- 100K ---


def _load_100k(folder: Path, config: Config) -> RecDataset:
    from datamodules._build import build

    kind = layout(folder)
    data, item, user = (folder / file for file in LAYOUTS[kind])
    user_columns = ["user_id", "age", "gender", "occupation", "zip_code"]
    if kind == "official":
        rows = _delimited(data, _INTERACTION, "\t")
        users = _delimited(user, user_columns, "|")
        items = _official_films(item)
    else:
        rows = _atomic(data, _INTERACTION)
        users = _atomic(user, user_columns)
        items = _atomic_films(item)
    name = config.version
    return build(name, config, _interactions(rows), _users_100k(users), items, rating_range=(1, 5), whole_ids=True)


def _users_100k(table: Table) -> Table:
    import polars as pl

    age = pl.col("age").cast(pl.Int32, strict=False)
    group = pl.lit(AGE_GROUPS[0])
    for start, label in zip(AGE_GROUP_STARTS, AGE_GROUPS[1:], strict=True):
        group = pl.when(age >= start).then(pl.lit(label)).otherwise(group)
    checks = [
        (age.is_null(), "age is {age!r}", "it must be a whole number"),
        (_is_not("gender", ["F", "M"]), "gender is {gender!r}", "write F or M"),
        (pl.col("occupation").is_null(), "user {user_id} has no occupation", "write other or none"),
    ]
    return _checked(
        table,
        checks,
        user="user_id",
        age=age,
        age_group=group,
        gender="gender",
        occupation="occupation",
        zip_code="zip_code",
    )


def _official_films(path: Path) -> Table:
    """Read films from u.item, which has a flag for each genre."""
    import polars as pl

    table = _delimited(path, ["item_id", "movie_title", "date", "video_date", "url", *GENRES], "|")
    not_flags = pl.any_horizontal(_is_not(genre, ["0", "1"]) for genre in GENRES)
    checks = [(not_flags, "item {item_id} has a genre flag that is neither 0 nor 1", "mend the row")]
    genres = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES)
    return _films(table, genres.list.drop_nulls(), checks)


_NO_YEAR = ["", "unknown", "unkonwn"]  # the last is RecBole's spelling


def _atomic_films(path: Path) -> Table:
    """Read films from ml-100k.item, which has a column for the year."""
    import polars as pl

    table = _atomic(path, ["item_id", "movie_title", "release_year", "class"])
    year = pl.col("release_year").str.extract(r"^([0-9]{4})$").cast(pl.Int32)
    # Only where the column has no year is one looked for in the title.
    year_in_title = pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 2).cast(pl.Int32)
    title_before_it = pl.col("movie_title").str.extract(_TITLE_AND_YEAR, 1)
    title = pl.when(year.is_null()).then(pl.coalesce(title_before_it, "movie_title")).otherwise("movie_title")
    no_year = pl.coalesce(year, year_in_title).is_null() & _is_not("release_year", _NO_YEAR)
    genres = pl.col("class").fill_null("").str.split(" ").list.filter(pl.element() != "")
    strange = genres.list.eval(~pl.element().is_in(GENRES)).list.any()
    checks = [
        (no_year, "release_year is {release_year!r}", "write four digits, or unknown"),
        (strange, "class is {class!r}", f"the genres are {', '.join(GENRES)}"),
    ]
    return _checked(
        table,
        checks,
        item="item_id",
        title=title.replace("unkonwn", "unknown"),
        year=pl.coalesce(year, year_in_title),
        categories=_categories(genres).list.sort(),  # flags have no order
    )


# --- 1M ---


def _load_1m(folder: Path, config: Config) -> RecDataset:
    from datamodules._build import build

    data, item, user = (folder / file for file in FILES_1M)
    rows = _delimited(data, _INTERACTION, "::")
    users = _users_1m(_delimited(user, ["user_id", "gender", "age", "occupation", "zip_code"], "::"))
    items = _listed_films(_delimited(item, ["item_id", "movie_title", "genres"], "::"))
    name = config.version
    return build(name, config, _interactions(rows), users, items, rating_range=(1, 5), whole_ids=True)


def _users_1m(table: Table) -> Table:
    import polars as pl

    starts = [str(start) for start in (1, *AGE_GROUP_STARTS)]
    codes = [str(code) for code in range(len(OCCUPATIONS))]
    checks = [
        (_is_not("age", starts), "age is {age!r}", f"1M's ages are {', '.join(starts)}"),
        (_is_not("gender", ["F", "M"]), "gender is {gender!r}", "write F or M"),
        (_is_not("occupation", codes), "occupation is {occupation!r}", "1M's occupations are 0 to 20"),
    ]
    return _checked(
        table,
        checks,
        user="user_id",
        age_group=pl.col("age").replace_strict(starts, AGE_GROUPS, default=None),
        gender="gender",
        occupation=pl.col("occupation").replace_strict(codes, OCCUPATIONS, default=None),
        zip_code="zip_code",
    )


# --- 20M and later ---


def _load_csv(folder: Path, config: Config) -> RecDataset:
    from datamodules._build import build
    from datamodules._tables import scan

    remedy = f"take the file as it is in {URL.format(version=config.version)}"
    ratings, movies = (scan(folder / file) for file in FILES_CSV)
    ratings.require(["userId", "movieId", "rating", "timestamp"], remedy)
    movies.require(["movieId", "title", "genres"], remedy)
    rows = ratings.select(user_id="userId", item_id="movieId", rating="rating", timestamp="timestamp")
    items = _listed_films(movies.select(item_id="movieId", movie_title=_folded("title"), genres="genres"))
    if config.tags:
        tags = scan(folder / "tags.csv")
        tags.require(["movieId", "tag"], remedy)
        items = _with_tags(items, tags)
    return build(config.version, config, _interactions(rows), items=items, rating_range=(0.5, 5), whole_ids=True)


def _with_tags(items: Table, tags: Table) -> Table:
    """Return ``items`` with ``tags``, the most frequent first, ties in alphabetical order."""
    import polars as pl

    frequent = (
        tags.select(item="movieId", tag=_folded("tag").str.to_lowercase())
        .collect()
        .filter(pl.col("tag") != "")
        .group_by("item", "tag")
        .len()
        .sort("len", "tag", descending=[True, False])
        .group_by("item", maintain_order=True)
        .agg(tags=pl.col("tag").head(MAX_TAGS))
    )
    joined = items.frame.join(frequent.lazy(), on="item", how="left", maintain_order="left")
    none = pl.lit([], dtype=pl.List(pl.String))
    return replace(items, frame=joined.with_columns(pl.col("tags").fill_null(none)))


# --- what versions share ---

_TITLE_AND_YEAR = r"^(.*?)\s*\(([0-9]{4})\)(?: \((?:V|TV)\))?$"

if TYPE_CHECKING:
    Check = tuple[pl.Expr, str, str]
    """Condition for bad rows, message for one of them, and the remedy."""


def _interactions(table: Table) -> Table:
    return table.select(user="user_id", item="item_id", rating="rating", timestamp="timestamp")


def _listed_films(table: Table) -> Table:
    """Return films from a table with genres in one cell, ``Drama|Western``."""
    import polars as pl

    genres = pl.col("genres").replace("(no genres listed)", "").str.split("|").list.filter(pl.element() != "")
    # A row that was cut off has no cell for them.
    checks = [(pl.col("genres").is_null(), "item {item_id} has no genres", "write (no genres listed)")]
    return _films(table, genres, checks)


def _films(table: Table, genres: pl.Expr, checks: list[Check]) -> Table:
    """Return films from a table whose ``movie_title`` holds the year."""
    import polars as pl

    title = pl.col("movie_title")
    return _checked(
        table,
        checks,
        item="item_id",
        title=pl.coalesce(title.str.extract(_TITLE_AND_YEAR, 1), title),
        year=title.str.extract(_TITLE_AND_YEAR, 2).cast(pl.Int32),
        categories=_categories(genres),
    )


def _categories(genres: pl.Expr) -> pl.Expr:
    import polars as pl

    return genres.list.filter(pl.element() != "unknown")


def _folded(column: str) -> pl.Expr:
    """Return text with white space trimmed and runs of it collapsed to one space."""
    import polars as pl

    return pl.col(column).str.replace_all(r"\s+", " ").str.strip_chars()


def _is_not(column: str, allowed: list[str]) -> pl.Expr:
    import polars as pl

    return ~pl.col(column).fill_null("").is_in(allowed)


def _checked(table: Table, checks: list[Check], **columns: pl.Expr | str) -> Table:
    """Return ``columns`` of ``table``, with the problems that the checks find."""
    from datamodules._tables import Problems

    frame = table.collect()
    if frame.is_empty():
        raise RecpeftError(f"{table.path} holds no rows; fetch the data again or mend the file.")
    problems = Problems(table.path)
    for bad, found, remedy in checks:
        problems.rows(frame, bad, found, remedy)
    return replace(table, frame=frame.lazy(), problems=problems).select(**columns)


# --- files without a header, and RecBole's ---


def _delimited(path: Path, columns: list[str], separator: str) -> Table:
    """Read ``columns`` of one of GroupLens's older files."""
    from datamodules._tables import scan

    # Their titles hold quotes without a pair.
    table = scan(path, separator=separator, columns=columns, encoding="latin-1", quotes=False)
    return table.select(**{name: _folded(name) for name in columns})


def _atomic(path: Path, columns: list[str]) -> Table:
    """Read ``columns`` of one of RecBole's files; its header has ``name:type``, and other columns are dropped."""
    from datamodules._tables import scan

    table = scan(path, separator="\t", quotes=False)
    names = {name.split(":")[0]: name for name in table.columns}
    missing = [column for column in columns if column not in names]
    if missing:
        raise RecpeftError(
            f"{path}, row 1: the header lacks {', '.join(missing)}, it has {', '.join(names)}; "
            "write RecBole's header, such as user_id:token."
        )
    return table.select(**{column: _folded(names[column]) for column in columns})
