"""Held-out users: some users are for validation, others for test, and all are absent from training.

Their earlier interactions are shown in their prompts, their last ones are the targets (strong generalisation,
Marlin 2004). Rankers without user parameters (EASE, popularity) can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from datamodules.splits._base import HISTORY, TEST, TRAIN, VALIDATION, RatioConfig

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """``ratios`` are shares of users."""

    kind: str = "user_holdout"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a held-out user's last interactions that are targets, at least one; at least one is always shown."""


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._hashing import shares

    of_user = shares(dataset.users["raw_id"], config.ratios, config.seed)
    count = pl.len().over("user")
    from_end = count - 1 - pl.int_range(pl.len()).over("user")
    targets = (count * config.held_out + 1e-9).floor().cast(pl.Int64).clip(lower_bound=1)
    part = pl.col("user").replace_strict(dataset.users["user"], of_user, return_dtype=pl.Int64)
    hidden = (from_end < targets) & (count > 1)
    return rows.select(
        part=pl.when(part == TRAIN)
        .then(TRAIN)
        .when(~hidden)
        .then(HISTORY)
        .when(part == VALIDATION)
        .then(VALIDATION)
        .otherwise(TEST)
    )["part"]
