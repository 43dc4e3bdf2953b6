"""Several sources as one data set, its ``domains``: for joint training, and for training on one and testing on another.

Users and items of a domain are its own, whatever their ids: nobody is matched across domains. Each user ranks the
items of their own domain. ``split: {kind: cross_domain, test_domain: books}`` trains on the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from datamodules._source import SourceConfig
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(SourceConfig):
    """Sources by domain name; a source's filters see only that source."""

    domains: dict[str, SerializeAsAny[SourceConfig]] = Field(min_length=2)
    """Sources by domain, ``{films: {source: movielens, …}, books: {source: tabular, …}}``, each with its own filters;
    one split, written beside ``domains``, covers all."""

    @field_validator("domains", mode="before")
    @classmethod
    def _domains_are_plugins(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            str(name): build_plugin("datamodules", "source", part, f"data.domains.{name}")
            for name, part in value.items()
        }

    @model_validator(mode="after")
    def _the_split_is_of_all(self) -> Config:
        default = SourceConfig.model_validate({"source": "joint"}).split
        for name, domain in self.domains.items():
            if domain.split != default:
                raise ValueError(f"domains.{name} has a split of its own; write it beside domains, for all of them")
        return self


def load(config: Config) -> RecDataset:
    """Load all domains. Ids are the domain and the source's own, ``films:42``; users and items have ``domain``.

    Columns that a domain does not have are null in its rows; one that has different types becomes text, except for
    ``categories``, of which text becomes a list with one.

    Raises:
        RecpeftError: as a source, with the domain's name.
    """
    import polars as pl

    from datamodules._dataset import RecDataset, whole_seconds
    from datamodules._filters import apply
    from recpeft import plugins

    interactions: list[pl.DataFrame] = []
    users: list[pl.DataFrame] = []
    items: list[pl.DataFrame] = []
    num_users = num_items = 0
    dropped: dict[str, int] = {}
    optional: dict[str, pl.Expr] = {}
    clock = True
    for name in sorted(config.domains):
        domain = config.domains[name]
        try:
            dataset, _ = apply(plugins.load("datamodules", domain.source).load(domain), domain.filters)
        except RecpeftError as error:
            raise RecpeftError(f"data.domains.{name}: {error}") from error
        interactions.append(
            dataset.interactions.with_columns(pl.col("user") + num_users, pl.col("item") + num_items).select(
                "user", "item", pl.col("rating").cast(pl.Float32), pl.col("timestamp").cast(pl.Float64)
            )
        )
        for tables, key, table, first in (
            (users, "user", dataset.users, num_users),
            (items, "item", dataset.items, num_items),
        ):
            own = pl.concat_str(pl.lit(f"{name}:"), "raw_id")
            tables.append(table.with_columns(pl.col(key) + first, raw_id=own, domain=pl.lit(name)))
        num_users += dataset.num_users
        num_items += dataset.num_items
        optional |= dataset.optional
        clock &= dataset.clock
        dropped |= {f"{name}.{what}": count for what, count in dataset.dropped.items()}
    return RecDataset(
        "+".join(sorted(config.domains)),
        whole_seconds(pl.concat(interactions).cast({"user": pl.Int32, "item": pl.Int32})),
        _stacked(users).cast({"user": pl.Int32}),
        _stacked(items).cast({"item": pl.Int32}),
        dropped,
        optional,
        clock,
    )


def _stacked(tables: list[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    types: dict[str, set[Any]] = {}
    for table in tables:
        for column, dtype in table.schema.items():
            types.setdefault(column, set()).add(dtype)
    mixed = {column for column, found in types.items() if len(found) > 1}
    if "categories" in mixed:
        mixed.remove("categories")
        tables = [_with_category_lists(table) if "categories" in table.columns else table for table in tables]
    text = [
        table.with_columns(
            pl.col(column).cast(pl.List(pl.String)).list.join(", ")
            if isinstance(table.schema[column], pl.List)
            else pl.col(column).cast(pl.String)
            for column in mixed & set(table.columns)
            if column not in ("user", "item")
        )
        for table in tables
    ]
    return pl.concat(text, how="diagonal")


def _with_category_lists(table: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    if isinstance(table.schema["categories"], pl.List):
        return table.with_columns(pl.col("categories").cast(pl.List(pl.String)))
    text = pl.col("categories").cast(pl.String)
    return table.with_columns(categories=pl.when(text.is_not_null()).then(pl.concat_list(text)))
