"""Groups of users and items: by a column, by users' activity or by items' popularity in train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import FiniteFloat, field_validator

from recpeft.config import Config
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from datamodules._dataset import RecDataset

MOST_GROUPS = 50
"""Maximum number of distinct values of a group column; with more, each group would be a handful of users."""

ACTIVITY = ["cold", "warm", "heavy"]
POPULARITY = ["head", "mid", "tail"]
BUILT_IN = {"user": ("activity",), "item": ("popularity", "familiarity")}


class GroupConfig(Config):
    """Groups by a column of the user or item table, or built-in groups; a name alone means ``{column: name}``.

    Built-in groups of users are ``activity``: cold (fewer than ``cold_below`` train interactions), heavy (the most
    active others, at most a fifth) and warm. Built-in groups of items are ``popularity``: head (the most popular items,
    which together have 20 % of the train interactions), tail (the least popular, with 20 %) and mid, after
    Abdollahpouri et al. 2019; and ``familiarity``: cold (fewer than ``cold_below`` train interactions) and warm.
    """

    column: str
    bins: tuple[FiniteFloat, ...] | None = None
    """Ascending bin edges of a number: [18, 25] gives <18, 18-25 (without 25) and >=25. Null uses the values."""

    @field_validator("bins")
    @classmethod
    def _ascend(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or list(value) != sorted(set(value))):
            raise ValueError(f"{list(value)} do not ascend; write each cut once, the lowest first")
        return value


def membership(
    table: pl.DataFrame, kind: str, group: GroupConfig, train_counts: np.ndarray, cold_below: int
) -> tuple[np.ndarray, list[str]]:
    """Return the groups of each row of the user or item table.

    Args:
        kind: ``user`` or ``item``.
        train_counts: (n,) number of train interactions of each row.
    Returns:
        (n, G) bool, and the groups' names; a row without a value is in no group, a row with a list may be in several.
    Raises:
        RecpeftError: the column does not exist, or its values cannot form groups.
    """
    import numpy as np

    where = "evaluation.groups" if kind == "user" else "evaluation.item_groups"
    if group.column in BUILT_IN[kind] and group.column not in table.columns:
        if group.bins is not None:
            raise RecpeftError(
                f"{where}: {group.column} is no column with numbers, so bins do not apply; leave them out."
            )
        if group.column == "popularity":
            index, names = _popularity(train_counts), POPULARITY
        elif group.column == "activity":
            index, names = _activity(train_counts, cold_below), ACTIVITY
        else:
            index, names = (train_counts >= cold_below).astype(np.int64), ["cold", "warm"]
        return index[:, None] == np.arange(len(names)), names
    columns = [name for name in table.columns if name not in (kind, "raw_id")]
    if group.column not in columns:
        raise RecpeftError(
            f"{where} names {group.column!r}, which is no attribute of the {kind}s; "
            f"choose from {', '.join([*columns, *BUILT_IN[kind]])}."
        )
    values = _as_lists(table[group.column], group, where)
    names = _ordered(values, table[group.column], group)
    if not names:
        raise RecpeftError(f"{where}: {group.column} has a value for no {kind}, so it makes no groups; leave it out.")
    if len(names) > MOST_GROUPS:
        raise RecpeftError(
            f"{where}: {group.column} has {len(names)} different values, and at most {MOST_GROUPS} can be groups; "
            f"give bins, such as {{column: {group.column}, bins: [18, 25, 35]}}, or another column."
        )
    place = {name: index for index, name in enumerate(names)}
    found = np.zeros((table.height, len(names)), bool)
    for row, row_values in enumerate(values):
        for value in row_values or ():
            found[row, place[value]] = True
    return found, names


def train_counts(train: pl.DataFrame, key: str, size: int) -> np.ndarray:
    """Return the number of train interactions of each user or item, (n,)."""
    import numpy as np

    return np.bincount(train[key].to_numpy(), minlength=size)


def user_index(dataset: RecDataset, group: GroupConfig, counts: np.ndarray, cold_below: int) -> np.ndarray:
    """Return the group of each user, (U,), -1 for none.

    Raises:
        RecpeftError: as ``membership``, or a user is in several groups.
    """
    import numpy as np

    found, _ = membership(dataset.users, "user", group, counts, cold_below)
    if (found.sum(axis=1) > 1).any():
        raise RecpeftError(f"{group.column} has several values for one user; choose a column with one.")
    return np.where(found.any(axis=1), found.argmax(axis=1), -1)


def _as_lists(column: pl.Series, group: GroupConfig, where: str) -> list[list[str] | None]:
    """Return each row's values as text."""
    import numpy as np
    import polars as pl

    if group.bins is not None:
        if not column.dtype.is_numeric():
            raise RecpeftError(f"{where}: {group.column} is no number, so bins do not apply; leave them out.")
        names = _bin_names(group.bins)
        number = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        place = np.searchsorted(group.bins, number, side="right")
        return [None if nan else [names[p]] for p, nan in zip(place, np.isnan(number), strict=True)]
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String)).list.drop_nulls().to_list()
    return [None if value is None else [value] for value in column.cast(pl.String).to_list()]


def _bin_names(bins: Sequence[float]) -> list[str]:
    middle = [f"{low:.12g}-{high:.12g}" for low, high in itertools.pairwise(bins)]
    return [f"<{bins[0]:.12g}", *middle, f">={bins[-1]:.12g}"]


def _ordered(values: list[list[str] | None], column: pl.Series, group: GroupConfig) -> list[str]:
    """Return the groups' names, sorted by bin, by number, or alphabetically."""
    found = {value for row in values for value in row or ()}
    if group.bins is not None:
        return _bin_names(group.bins)
    return sorted(found, key=float) if column.dtype.is_numeric() else sorted(found)


def _activity(counts: np.ndarray, cold_below: int) -> np.ndarray:
    import numpy as np

    known = counts[counts >= cold_below]
    # Heavy users are above the quantile, not at it: if all have the same count, all are warm.
    most = np.quantile(known, 0.8, method="lower") if len(known) else 0
    return np.where(counts < cold_below, 0, np.where(counts > most, 2, 1))


def _popularity(counts: np.ndarray) -> np.ndarray:
    import numpy as np

    order = np.lexsort((np.arange(len(counts)), -counts))
    share = np.cumsum(counts[order]) / max(counts.sum(), 1)
    before = np.concatenate([[0.0], share[:-1]])
    # An item is head if the items before it have less than 20 % of interactions, tail if they have 80 % or more.
    part = np.where(before < 0.2, 0, np.where(before >= 0.8, 2, 1))
    index = np.empty(len(counts), np.int64)
    index[order] = part
    return index
