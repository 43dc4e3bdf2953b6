"""Each interaction falls into a part by a draw, whatever its time: for data without times.

Where there are times it lets the future in, and the audit says how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.splits._base import LEFT_OUT, TRAIN, RatioConfig

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """Users without a train row are left out."""

    kind: str = "random_ratio"
    NEEDS_TIMES = False


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._hashing import share_of

    # The tie hash again, or the draw would be the order of equal times.
    cut = rows.select("user", part=share_of(rows["tie"].to_numpy() ^ 0x5BD1E995, config.ratios))
    known = (pl.col("part") == TRAIN).any().over("user")
    return cut.select(part=pl.when(known).then("part").otherwise(LEFT_OUT))["part"]
