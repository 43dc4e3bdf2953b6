"""Knowledge-graph triples as text: each item's facts, such as ``directed by: Christopher Nolan; genre: crime``.

A triple is (head, relation, tail), where head and tail are entities; a link maps an item to its entity. An item's facts
are the triples of which it is the head, and, as ``… of``, those of which it is the tail, grouped by relation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from recpeft.config import Config
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._tables import Table


class TriplesConfig(Config):
    """Options for the triples that become an item's ``facts``."""

    relations: tuple[str, ...] | None = None
    """Relations to use, in this order, named as in the file or in the text: ``[directed by, genre]``. Null is all,
    in alphabetical order."""
    max_facts: PositiveInt = 5
    """Maximum number of triples per item; small, as each costs tokens in every history with the item."""
    entity_names: str | None = None
    """File without a header, with an entity's id, a tab and its name in each row."""
    unnamed: Literal["drop", "keep"] = "drop"
    """Rule for entities without a name: drop them, or show their id. Freebase's ids, such as m.0abc, tell a reader
    nothing."""


def with_facts(
    items: Table,
    triples: Table,
    config: TriplesConfig,
    *,
    links: Table | None = None,
    names: Table | None = None,
    unknown_ids: Literal["error", "drop"] = "error",
) -> Table:
    """Return ``items`` with the column ``facts``: text, or null for an item without facts.

    An entity's name is the title of the item it is linked to, else that in ``names``.

    Args:
        items: ``item`` and optionally ``title``.
        triples: ``head``, ``relation``, ``tail``.
        links: ``item`` and ``entity``; None if entities are the items' own ids.
        names: ``entity`` and ``name``.
        unknown_ids: rule for links to unknown items.
    Raises:
        RecpeftError: an empty cell, a link to an unknown item, a relation that no triple has.
    """
    import polars as pl

    catalogue = items.collect().with_columns(id=pl.col("item").cast(pl.String))
    if "facts" in catalogue.columns:
        raise RecpeftError(f"{items.path} has a column facts, which is kept for the triples; rename it.")
    known = catalogue.filter(pl.col("id").is_not_null()).unique("id", keep="first", maintain_order=True)
    linked = _linked(known, links, unknown_ids)
    _refuse_empty_cells(triples, ("head", "relation", "tail"))
    found = _touching(triples, linked)
    labels = _labels(triples, found["relation"].unique().sort().to_list(), config.relations)
    text = _joined(_named(found, known, linked, names, config), labels, config.max_facts)
    catalogue = catalogue.join(text, on="id", how="left", maintain_order="left").drop("id")
    return replace(items, frame=catalogue.lazy())


def optional_columns() -> dict[str, pl.Expr]:
    """Return the item columns that templates read if the source has no categories or no triples."""
    import polars as pl

    return {"categories": pl.lit([], pl.List(pl.String)), "facts": pl.lit(None, pl.String)}


def readable(relation: str) -> str:
    """Return ``film.film.directed_by``, or a URI that ends in it, as ``directed by``."""
    last = re.split(r"[./#]", relation.strip().strip("<>").rstrip("./#"))[-1]
    return " ".join(last.replace("_", " ").split()) or relation


def _linked(known: pl.DataFrame, links: Table | None, unknown_ids: str) -> pl.DataFrame:
    """Return id (of the item) and entity, one row per link."""
    import polars as pl

    if links is None:
        return known.select("id", entity="id")
    _refuse_empty_cells(links, ("item", "entity"))
    rows = links.collect().select("row", id=pl.col("item").cast(pl.String), entity=pl.col("entity").cast(pl.String))
    is_known = pl.col("id").is_in(known["id"].implode())
    if unknown_ids == "error":
        problems = links.found()
        remedy = "remove the row, or set data.unknown_ids: drop"
        problems.rows(rows, ~is_known, "item {id} is in no row of the item file", remedy)
        problems.check()
    return rows.filter(is_known).select("id", "entity").unique(maintain_order=True)


def _refuse_empty_cells(table: Table, columns: Sequence[str]) -> None:
    import polars as pl

    with table.reading():
        missing = pl.any_horizontal(pl.col(columns).is_null())
        empty = table.frame.filter(missing).select("row", *columns).collect(engine="streaming")
    problems = table.found()
    for column in columns:
        own = table.own.get(column, column)
        problems.rows(empty, pl.col(column).is_null(), f"no {own}", "fill the cell or remove the row")
    problems.check()


def _touching(triples: Table, linked: pl.DataFrame) -> pl.DataFrame:
    """Return id, relation, other (the entity at the other end) and backward, for triples with an item at an end.

    Only these are loaded into memory: a graph is many times larger than its triples about items.
    """
    import polars as pl

    frame = triples.frame.select(pl.col("head", "relation", "tail").cast(pl.String))
    ends = []
    for item_end, other_end, backward in (("head", "tail", False), ("tail", "head", True)):
        end = frame.join(linked.lazy(), left_on=item_end, right_on="entity")
        ends.append(end.select("id", "relation", pl.col(other_end).alias("other"), pl.lit(backward).alias("backward")))
    with triples.reading():
        return pl.concat(ends).unique().collect(engine="streaming")


def _labels(triples: Table, relations: list[str], wanted: tuple[str, ...] | None) -> pl.DataFrame:
    """Return relation, label and place (in the order of the facts) of each relation to use."""
    import polars as pl

    labels = {relation: readable(relation) for relation in relations}
    schema = {"relation": pl.String, "label": pl.String, "place": pl.Int64}
    if wanted is None:
        alphabet = sorted(set(labels.values()))
        rows = [(name, label, alphabet.index(label)) for name, label in labels.items()]
        return pl.DataFrame(rows, schema, orient="row")
    missing = [name for name in wanted if name not in labels and name not in labels.values()]
    if missing:
        choices = sorted(set(labels.values()))
        shown = ", ".join(choices[:20]) + (f" and {len(choices) - 20} more" if len(choices) > 20 else "")
        raise RecpeftError(
            f"{triples.path} says {', '.join(missing)} of no item; set data.triples.relations to some of: {shown}."
        )
    rows = []
    for name, label in labels.items():
        places = [place for place, told in enumerate(wanted) if told in (name, label)]
        rows += [(name, label, place) for place in places[:1]]
    return pl.DataFrame(rows, schema, orient="row")


def _named(
    found: pl.DataFrame, known: pl.DataFrame, linked: pl.DataFrame, names: Table | None, config: TriplesConfig
) -> pl.DataFrame:
    """Return ``found`` with ``name``, the name of the other end."""
    import polars as pl

    schema = {"entity": pl.String, "name": pl.String}
    known_names = [pl.DataFrame(schema=schema)]
    if "title" in known.columns:
        titles = known.select("id", name=pl.col("title").cast(pl.String))
        known_names.append(linked.join(titles, on="id", maintain_order="left").select("entity", "name"))
    if names is not None:
        known_names.append(names.collect().select(pl.col("entity", "name").cast(pl.String)))
    table = pl.concat(known_names).filter(pl.col("name").str.strip_chars() != "")
    table = table.unique("entity", keep="first", maintain_order=True)
    found = found.join(table, left_on="other", right_on="entity", how="left")
    if config.unnamed == "keep":
        return found.with_columns(pl.coalesce("name", "other").alias("name"))
    return found.filter(pl.col("name").is_not_null())


def _joined(found: pl.DataFrame, labels: pl.DataFrame, max_facts: int) -> pl.DataFrame:
    """Return id and facts, a row for each item with facts."""
    import polars as pl

    facts = found.join(labels, on="relation").select(
        "id",
        "place",
        "backward",
        label=pl.when("backward").then(pl.col("label") + " of").otherwise("label"),
        name=pl.col("name").str.replace_all(r"\s+", " ").str.strip_chars(),
    )
    facts = facts.unique().sort("id", "place", "backward", "label", "name")
    facts = facts.filter(pl.int_range(pl.len()).over("id") < max_facts)
    by_relation = facts.group_by("id", "label", maintain_order=True).agg(pl.col("name").str.join(", "))
    text = by_relation.with_columns(facts=pl.col("label") + ": " + pl.col("name"))
    return text.group_by("id", maintain_order=True).agg(pl.col("facts").str.join("; "))


def read_names(folder: Path, config: TriplesConfig, encoding: Literal["utf-8", "latin-1"] = "utf-8") -> Table | None:
    """Read the file of entities' names below ``folder``: ``entity`` and ``name``; None if none is set.

    Raises:
        RecpeftError: it is missing, or does not have two columns.
    """
    from datamodules._tables import scan

    if config.entity_names is None:
        return None
    path = folder / config.entity_names
    return scan(path, separator="\t", columns=("entity", "name"), encoding=encoding, quotes=False)
