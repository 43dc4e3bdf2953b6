"""Amazon Reviews of 2014, 2018 and 2023: product reviews by shop category.

McAuley et al. 2015, "Image-based Recommendations on Styles and Substitutes" (2014); Ni et al. 2019, "Justifying
Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects" (2018); Hou et al. 2024, "Bridging
Language and Items for Retrieval and Recommendation" (2023). A category is a file of reviews and one of metadata,
a JSON object to a line, packed with gzip or not. 2023's ``user_id,parent_asin,rating,timestamp`` CSVs are read too.

The versions differ, and are harmonised like this:

* An item is an ``asin``; in 2023 a ``parent_asin``, under which the colours and sizes of a product are one item.
  A user may have reviewed it more than once then: see ``duplicates``.
* 2014 and 2018 have times in seconds, 2023 in milliseconds.
* 2014's metadata has lines that are no JSON but Python's way of writing a dictionary; both are read.
* ``brand`` is 2023's ``store``. ``categories`` is 2018's ``category``; nested lists are flattened.
* Some titles of 2018 are the page's JavaScript; they count as missing, as its authors advise.
* Titles and the other texts have HTML entities resolved, runs of white space are one space, and tags are taken
  out of categories and descriptions.
* A ``price`` that is no single amount ("$5.99 - $9.99") is null.
* Metadata cover the whole shop; only items with a review are kept. Of an item that is there twice (2018), the
  first row is kept and the others are counted in ``dropped``.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules._source import SourceConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from datamodules._dataset import RecDataset
    from datamodules._tables import Table


class Config(SourceConfig):
    """Amazon Reviews by the McAuley Lab; downloaded by hand, so ``path`` is needed."""

    version: Literal["2014", "2018", "2023"]
    """Collection that the files are from."""
    reviews: str
    """File of the reviews, below ``path``: ``Video_Games.jsonl.gz``."""
    metadata: str
    """File of the items, below ``path``: ``meta_Video_Games.jsonl.gz``."""


@dataclass(frozen=True)
class _Version:
    """Home and key names of a version; the defaults are 2014's."""

    home: str
    user: str = "reviewerID"
    item: str = "asin"
    rating: str = "overall"
    time: str = "unixReviewTime"
    unit: Literal["s", "ms"] = "s"
    brand: str = "brand"
    categories: str = "categories"


VERSIONS = {
    "2014": _Version("https://jmcauley.ucsd.edu/data/amazon/"),
    "2018": _Version("https://nijianmo.github.io/amazon/", categories="category"),
    "2023": _Version(
        "https://amazon-reviews-2023.github.io/",
        user="user_id",
        item="parent_asin",
        rating="rating",
        time="timestamp",
        unit="ms",
        brand="store",
    ),
}

RATING_RANGE = (0, 5)
"""Stars are 1 to 5. A 0 is none given and let through: ``filters: [{min_rating: 1}]`` leaves it out."""

AMAZON_OPENS = 757_382_400
"""1994-01-01. Where every time is before it, seconds were taken for milliseconds."""


def load(config: Config) -> RecDataset:
    """Read ``config.reviews`` and ``config.metadata`` in ``config.path``.

    Raises:
        RecpeftError: files are missing, or have rows that cannot be right; names the file and the rows.
    """
    from datamodules._build import build

    version = VERSIONS[config.version]
    reviews_path, metadata_path = _paths(config)
    reviews, reviewed = _reviews(reviews_path, config)
    items, repeated = _items(metadata_path, config, reviewed)
    dataset = build(
        f"amazon-{config.version}-{reviews_path.name.split('.')[0]}",
        config,
        reviews,
        items=items,
        time_unit=version.unit,
        rating_range=RATING_RANGE,
        whole_ids=False,
    )
    latest = dataset.interactions["timestamp"].max()
    assert isinstance(latest, int | float)
    if latest < AMAZON_OPENS:
        raise RecpeftError(
            f"{reviews_path}: the latest {version.time} is {int(latest)} s since 1970, which is before 1994; "
            f"{config.version} has its times in {'milliseconds' if version.unit == 'ms' else 'seconds'}, so check "
            "data.version."
        )
    return replace(dataset, dropped={**dataset.dropped, "repeated_metadata": repeated}) if repeated else dataset


def _paths(config: Config) -> tuple[Path, Path]:
    """Return the paths of the two files, after a check that they exist."""
    names = (config.reviews, config.metadata)
    remedy = f"download both from {VERSIONS[config.version].home} and set data.path to their folder"
    if config.path is None:
        raise RecpeftError(f"data.path is missing, which is where {' and '.join(names)} are; {remedy}.")
    folder = config.path.expanduser()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RecpeftError(f"{folder} lacks {', '.join(missing)}; {remedy}.")
    return folder / names[0], folder / names[1]


# --- reviews ---


def _reviews(path: Path, config: Config) -> tuple[Table, set[str]]:
    """Return the interactions, not yet read, and the ids of their items."""
    import polars as pl

    from datamodules._tables import scan, scan_objects

    version = VERSIONS[config.version]
    names = {"user": version.user, "item": version.item, "rating": version.rating, "timestamp": version.time}
    remedy = f"check data.reviews, and data.version, which is {config.version}"
    if path.name.removesuffix(".gz").endswith(".csv"):
        table = scan(path)
        table.require(list(names.values()), remedy)
    else:
        table = scan_objects(path, list(names.values()))
    table = table.select(**names)
    found = table.summary(
        rows=pl.len(),
        reviewed=pl.col("item").drop_nulls().unique().implode(),
        **{f"num_{name}": pl.col(name).count() for name in names},
    )
    # One object without a key is a bad row; all of them are another version's file.
    absent = [key for name, key in names.items() if not found[f"num_{name}"]]
    if absent and found["rows"]:
        raise RecpeftError(f"{path} has no {', '.join(absent)} in any row; {remedy}.")
    return table, set(found["reviewed"])


# --- metadata ---


def _items(path: Path, config: Config, reviewed: set[str]) -> tuple[Table, int]:
    """Return the reviewed items, and the number of rows dropped because they repeat an item."""
    import polars as pl

    from datamodules._tables import Problems, Table, json_lines

    version = VERSIONS[config.version]
    problems = Problems(path)
    columns: dict[str, pl.DataType] = {
        "row": pl.UInt32(),
        "item": pl.String(),
        "title": pl.String(),
        "brand": pl.String(),
        "categories": pl.List(pl.String()),
        "description": pl.String(),
        "price": pl.Float64(),
    }
    records = []
    seen: set[str] = set()
    repeated = 0
    kind = "JSON or Python" if config.version == "2014" else "JSON"
    for row, value in json_lines(path, _json_or_literal if config.version == "2014" else json.loads):
        item = value.get(version.item) if value is not None else None
        if value is None:
            problems.note(1, [(row, f"no {kind} object in UTF-8; mend the row, or fetch the file again")])
        elif not isinstance(item, str) or not item.strip():
            text = f"{version.item} is {item!r}; give the item's id, or check data.version, which is {config.version}"
            problems.note(1, [(row, text)])
        elif (item := item.strip()) in seen:
            repeated += 1
        elif item in reviewed:
            seen.add(item)
            try:
                records.append((row, item, *_texts(value, config.version), _price(value.get("price"))))
            except TypeError as error:
                problems.note(1, [(row, f"{error}; it must be text")])
    frame = pl.DataFrame(records, schema=columns, orient="row")
    return Table(path, frame.lazy(), problems), repeated


def _json_or_literal(line: bytes) -> object:
    """Parse a row of 2014's metadata: JSON, or a dictionary in Python's notation."""
    try:
        return json.loads(line)
    except ValueError:
        try:
            # Reads constants alone; nothing of the file is run.
            return ast.literal_eval(line.decode().strip())
        except (SyntaxError, MemoryError) as error:
            raise ValueError("neither JSON nor a dictionary") from error


def _texts(value: dict[str, object], version: str) -> tuple[str | None, str | None, list[str], str | None]:
    """Return title, brand, categories and description.

    Raises:
        TypeError: one of them is not text.
    """
    title = " ".join(_parts("title", value.get("title")))
    if version == "2018" and _JAVASCRIPT in title:
        title = ""
    brand = " ".join(_parts(VERSIONS[version].brand, value.get(VERSIONS[version].brand)))
    categories = _parts(VERSIONS[version].categories, value.get(VERSIONS[version].categories))
    description = " ".join(filter(None, map(_untagged, _parts("description", value.get("description")))))
    distinct = list(dict.fromkeys(filter(None, map(_untagged, categories))))
    return title or None, brand or None, distinct, description or None


_JAVASCRIPT = "getTime"
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_AMOUNT = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")


def _parts(key: str, value: object) -> Iterator[str]:
    """Yield each text in ``value``, a text or a nested list of texts."""
    if value is None or value != value:  # a NaN, as pandas writes what is missing
        return
    if isinstance(value, str):
        yield " ".join(html.unescape(value).split())
    elif isinstance(value, list):
        for part in value:
            yield from _parts(key, part)
    else:
        raise TypeError(f"{key} is {str(value)[:40]!r}")


def _untagged(text: str) -> str:
    return " ".join(_TAG.sub(" ", text).split())


def _price(value: object) -> float | None:
    """Return dollars; None if ``value`` is not a single amount."""
    amount = _AMOUNT.fullmatch(str(value).strip())
    return float(amount[1].replace(",", "")) if amount else None
