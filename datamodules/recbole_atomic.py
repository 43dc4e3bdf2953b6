"""A data set as RecBole's atomic files: ``name.inter`` and, as there are, ``.item``, ``.user``, ``.kg`` and ``.link``.

Zhao et al. 2021, "RecBole: Towards a Unified, Comprehensive and Efficient Framework for Recommendation Algorithms".
Each file is tab-separated UTF-8 whose header gives each field a type, ``movie_title:token_seq``: token is text, float a
number, and token_seq and float_seq are such with a space between them. Without ``.item`` nothing is known of the items,
and a prompt has ``{{ raw_id }}`` alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules._source import SourceConfig
from datamodules._triples import TriplesConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from datamodules._dataset import RecDataset
    from datamodules._tables import Table

TYPES = ("token", "token_seq", "float", "float_seq")


class Config(SourceConfig):
    """Folder of the files, and the roles of their fields."""

    dataset: str | None = None
    """The files' name before the suffix; null is the only one of the folder. Where ``name.inter`` is absent, its
    benchmark parts (``name.train.inter``, …) are read together; data.split divides them anew."""
    user: str = "user_id"
    """Field of the user's id; RecBole's USER_ID_FIELD."""
    item: str = "item_id"
    """Field of the item's id; RecBole's ITEM_ID_FIELD."""
    rating: str | None = "rating"
    """Field of the rating, or of another number such as ``label``; null for none. RecBole's RATING_FIELD."""
    timestamp: str | None = "timestamp"
    """Field of the time; null for none. RecBole's TIME_FIELD."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of times since 1970; times are kept to the microsecond."""
    title: str | None = None
    """Field of ``.item`` that becomes ``title``; required if there is an ``.item`` file."""
    categories: str | None = None
    """Field of ``.item`` that becomes ``categories``, a list."""
    category_separator: str = " "
    """Separator of ``categories``; a space is token_seq's."""
    quotes: bool = False
    """True if ``"`` encloses cells, as in files that pandas wrote; RecBole's own have no quotes."""
    triples: TriplesConfig | None = None
    """Facts of the items from ``.kg`` and ``.link``, as the column ``facts``; null is off."""


def load(config: Config) -> RecDataset:
    """Read the files in ``config.path``.

    Raises:
        RecpeftError: a file, a field or a row that cannot be right; names them.
    """
    from datamodules._build import build
    from datamodules._triples import optional_columns

    if config.path is None:
        raise RecpeftError("data.path is not set; set it to the folder of the .inter file.")
    folder = config.path.expanduser()
    name, parts = _interaction_files(folder, config.dataset)
    inter = _scan(parts, config)
    fields = {"user": config.user, "item": config.item, "rating": config.rating, "timestamp": config.timestamp}
    wanted = {column: field for column, field in fields.items() if field is not None}
    remedy = "set data.user, data.item, data.rating and data.timestamp to fields, the last two to null for none"
    inter.require(list(wanted.values()), remedy)
    users = items = None
    if (path := folder / f"{name}.user").exists():
        users = _attributes(_scan([path], config), "user", config.user)
    if (path := folder / f"{name}.item").exists():
        items = _items(_scan([path], config), config)
        if config.triples is not None:
            items = _with_facts(items, folder, name, config, config.triples)
    elif config.title is not None or config.categories is not None or config.triples is not None:
        raise RecpeftError(f"there is no {path}, so data.title, data.categories and data.triples must be null.")
    data = build(name, config, inter.select(**wanted), users, items, time_unit=config.time_unit)
    return replace(data, optional=optional_columns())


def _interaction_files(folder: Path, name: str | None) -> tuple[str, list[Path]]:
    """Return the data set's name and its ``.inter`` file or files."""
    stems = sorted(path.name.removesuffix(".inter") for path in folder.glob("*.inter"))
    if not stems:
        raise RecpeftError(f"{folder} has no .inter file; set data.path to a folder of RecBole's atomic files.")
    if name is None:
        # The parts of one data set are its name, a dot and the part's.
        whole = [stem for stem in stems if all(other == stem or other.startswith(f"{stem}.") for other in stems)]
        found = whole or sorted({stem.rpartition(".")[0] or stem for stem in stems})
        if len(found) > 1:
            raise RecpeftError(f"{folder} has several data sets: {', '.join(stems)}; set data.dataset to one's name.")
        (name,) = found
    if name in stems:
        return name, [folder / f"{name}.inter"]
    parts = [stem for stem in stems if stem.startswith(f"{name}.")]
    if not parts:
        raise RecpeftError(f"{folder} has no {name}.inter; set data.dataset to one of {', '.join(stems)}.")
    return name, [folder / f"{part}.inter" for part in parts]


def _scan(paths: list[Path], config: Config) -> Table:
    """Read the rows under the fields' names, all as text."""
    from datamodules._tables import scan

    table = scan(paths[0] if len(paths) == 1 else paths, separator="\t", quotes=config.quotes)
    odd = [column for column in table.columns if column.rpartition(":")[2] not in TYPES or column.startswith(":")]
    if odd:
        raise RecpeftError(
            f"{table.path}, row 1: {', '.join(odd)} must be a field's name, a colon and one of {', '.join(TYPES)}, "
            "such as user_id:token."
        )
    names = {column: column.rpartition(":")[0] for column in table.columns}
    return replace(table, frame=table.frame.rename(names), own={name: column for column, name in names.items()})


def _attributes(table: Table, key: str, field: str) -> Table:
    """Return a table of users or items with the id as ``key`` and fields by their types; token_seq stays text."""
    import polars as pl

    from datamodules._tables import Problems

    table.require([field], f"set data.{key} to the field of the id")
    taken = [name for name in table.columns if name != field and name in (key, "id", "raw_id", "row")]
    if taken:
        raise RecpeftError(f"{table.path}: {', '.join(taken)} cannot be the name of an attribute; rename the field.")
    types = {name: table.own[name].rpartition(":")[2] for name in table.columns}
    frame = table.collect()
    problems = Problems(table.path)
    numbers = {}
    for name, kind in types.items():
        if kind not in ("float", "float_seq") or name == field:
            continue
        if kind == "float_seq":
            number = pl.col(name).str.split(" ").cast(pl.List(pl.Float64), strict=False)
            none = number.list.eval(pl.element().is_null()).list.any()
        else:
            number = pl.col(name).cast(pl.Float64, strict=False)
            none = number.is_null() & pl.col(name).is_not_null()
        cells = frame.select("row", cell=pl.col(name), bad=none)
        field_name = name.replace("{", "{{").replace("}", "}}")
        problems.rows(cells, pl.col("bad"), f"{field_name} is {{cell!r}}", f"write numbers, as its type is {kind}")
        numbers[name] = number
    frame = frame.with_columns(**numbers).rename({field: key})
    return replace(table, frame=frame.lazy(), problems=problems, own={key: field})


def _items(table: Table, config: Config) -> Table:
    """Return the items with ``title`` and ``categories``."""
    import polars as pl

    from datamodules._tables import without_empty

    text = [name for name in table.columns if name != config.item and "token" in table.own[name].rpartition(":")[2]]
    if config.title is None:
        raise RecpeftError(
            f"data.title is not set; set it to the field of {table.path} that is the items' title, one of "
            f"{', '.join(text)}."
        )
    for key, field in (("title", config.title), ("categories", config.categories)):
        if field is not None and field not in text:
            raise RecpeftError(
                f"data.{key} is {field}, but the fields of {table.path} that are text are {', '.join(text)}; set it "
                "to one of these."
            )
        if field not in (None, key) and key in table.columns:
            raise RecpeftError(
                f"{table.path} has a field {key}, but data.{key} is {field}; set data.{key}: {key}, or rename it."
            )
    items = _attributes(table, "item", config.item)
    frame = items.frame
    if config.categories is not None:
        entries = pl.col(config.categories).str.split(config.category_separator)
        frame = frame.with_columns(without_empty(entries).alias("categories"))
    frame = frame.with_columns(pl.col(config.title).alias("title"))
    gone = {field for field in (config.title, config.categories) if field is not None}
    return replace(items, frame=frame.drop(gone - {"title", "categories"}))


def _with_facts(items: Table, folder: Path, name: str, config: Config, triples: TriplesConfig) -> Table:
    from datamodules._triples import read_names, with_facts

    kg = _scan([folder / f"{name}.kg"], config)
    kg.require(["head_id", "relation_id", "tail_id"], "write RecBole's header")
    link = _scan([folder / f"{name}.link"], config)
    link.require([config.item, "entity_id"], "write RecBole's header")
    return with_facts(
        items,
        kg.select(head="head_id", relation="relation_id", tail="tail_id"),
        triples,
        links=link.select(item=config.item, entity="entity_id"),
        names=read_names(folder, triples),
        unknown_ids=config.unknown_ids,
    )
