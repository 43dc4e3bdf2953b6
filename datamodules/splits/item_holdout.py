"""Held-out items: some items are for validation, others for test, and no interaction with either is learnt.

A model can score them only by their text. Users without a train row are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.splits._base import LEFT_OUT, TRAIN, RatioConfig

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """``ratios`` are shares of items. Rows are divided by item, regardless of time."""

    kind: str = "item_holdout"
    NEEDS_TIMES = False


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._hashing import shares

    of_item = shares(dataset.items["raw_id"], config.ratios, config.seed)
    part = pl.col("item").replace_strict(dataset.items["item"], of_item, return_dtype=pl.Int64)
    cut = rows.select("user", part=part)
    known = (pl.col("part") == TRAIN).any().over("user")
    return cut.select(part=pl.when(known).then("part").otherwise(LEFT_OUT))["part"]
