"""Filters of interactions, applied in the order written and recorded step by step.

A filter runs before the split and uses all interactions: it defines the data set that is studied and is not a
statistic that a model learns from. Statistics that a model learns from, such as popularity, use train alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from pydantic import FiniteFloat, PositiveInt, model_serializer, model_validator

from datamodules._dates import seconds
from recpeft.config import Config
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from datamodules._dataset import RecDataset


class Filter(Config):
    """One filter step, a mapping with one key: ``{min_rating: 4}``."""

    min_rating: FiniteFloat | None = None
    """Keep interactions rated at least this."""
    since: date | None = None
    """Keep interactions of this day (UTC) and later: ``2018-01-31``."""
    until: date | None = None
    """Keep interactions of this day (UTC) and earlier."""
    k_core: PositiveInt | None = None
    """Keep users and items with at least k interactions each, repeated until nothing changes."""
    min_user_interactions: PositiveInt | None = None
    """Keep users with at least this many interactions; one pass."""
    min_item_interactions: PositiveInt | None = None
    """Keep items with at least this many interactions; one pass."""

    @model_validator(mode="after")
    def _has_one_key(self) -> Filter:
        written = sorted(self.model_fields_set)
        if len(written) != 1 or getattr(self, written[0]) is None:
            raise ValueError(
                f"a filter has exactly one key with a value, got {', '.join(written) or 'none'}; write one "
                f"list entry for each of {', '.join(Filter.model_fields)}, "
                "such as [{min_rating: 4}, {k_core: 5}]"
            )
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {self.name: self.value.isoformat() if isinstance(self.value, date) else self.value}

    @property
    def name(self) -> str:
        (name,) = self.model_fields_set
        return name

    @property
    def value(self) -> Any:
        """Value of the filter: a number, or a date for ``since`` and ``until``."""
        return getattr(self, self.name)


def apply(dataset: RecDataset, filters: Sequence[Filter]) -> tuple[RecDataset, list[dict[str, Any]]]:
    """Return ``dataset`` after ``filters``, and one record per step, in order, with counts before and after.

    After a filter, users and items without interactions are dropped and the dense ids renumbered in the
    same order. Without filters the data set is returned unchanged, including items without interactions.

    Raises:
        RecpeftError: a filter leaves nothing, or needs ratings that are missing.
    """
    steps: list[dict[str, Any]] = []
    for step in filters:
        before = _counts(dataset)
        filtered = _compact(dataset, dataset.interactions.filter(_keep(dataset, step)))
        after = _counts(filtered)
        if not after["interactions"]:
            raise RecpeftError(
                f"filter {{{step.name}: {step.value}}} leaves none of the {before['interactions']} "
                f"interactions of {before['users']} users and {before['items']} items; "
                f"{'change' if isinstance(step.value, date) else 'lower'} {step.name} in data.filters."
            )
        steps.append({"filter": step.model_dump(mode="json"), "before": before, "after": after})
        dataset = filtered
    return dataset, steps


def _keep(dataset: RecDataset, step: Filter) -> pl.Series:
    """Return a boolean for each row of the interactions."""
    import numpy as np
    import polars as pl

    rows = dataset.interactions
    if step.name == "min_rating":
        missing = rows["rating"].null_count()
        if missing:
            raise RecpeftError(
                f"filter min_rating needs a rating for every interaction, but {missing} of {rows.height} "
                "have none; remove min_rating from data.filters."
            )
        return rows["rating"] >= step.value
    if step.name in ("since", "until"):
        untimed = rows["timestamp"].null_count()
        if untimed:
            raise RecpeftError(
                f"filter {step.name} needs the time of every interaction, but {untimed} of {rows.height} have "
                f"none; remove {step.name} from data.filters."
            )
        start = seconds(step.value)
        # ``until`` includes the whole day.
        return rows["timestamp"] >= start if step.name == "since" else rows["timestamp"] < start + 86_400
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    min_user = step.value if step.name in ("k_core", "min_user_interactions") else 0
    min_item = step.value if step.name in ("k_core", "min_item_interactions") else 0
    kept = np.ones(rows.height, dtype=bool)
    while True:
        # Degrees only fall, so a dropped row never returns.
        enough = (_degree(user, kept) >= min_user) & (_degree(item, kept) >= min_item)
        if (enough == kept).all():
            return pl.Series(kept)
        kept = enough


def _degree(ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return, for each row, the number of kept rows with its id."""
    import numpy as np

    counts = np.bincount(ids[kept], minlength=int(ids.max(initial=-1)) + 1)
    return counts[ids]


def _compact(dataset: RecDataset, interactions: pl.DataFrame) -> RecDataset:
    """Return the data set of ``interactions``; ids keep their order, so they stay ranks of the raw ids."""
    import polars as pl

    from datamodules._dataset import whole_seconds

    tables = {}
    for key, table in (("user", dataset.users), ("item", dataset.items)):
        left = table.filter(pl.col(key).is_in(interactions[key].unique().implode()))
        new = left.select(key, pl.int_range(pl.len(), dtype=pl.Int32).alias("new"))
        interactions = interactions.with_columns(
            pl.col(key).replace_strict(new[key], new["new"], return_dtype=pl.Int32)
        )
        tables[key] = left.with_columns(new["new"].alias(key))
    interactions = whole_seconds(interactions)  # the remaining times may have no fractions
    return replace(dataset, interactions=interactions, users=tables["user"], items=tables["item"])


def _counts(dataset: RecDataset) -> dict[str, int]:
    return {
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": dataset.interactions.height,
    }
