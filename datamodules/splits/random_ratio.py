"""Random split: each interaction's part is drawn, regardless of its time; for data without times.

If there are times, it leaks the future, and the audit reports how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from datamodules.splits._base import LEFT_OUT, TRAIN, RatioConfig
from datamodules.splits.per_user_temporal import last_rows

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """``ratios`` are shares of interactions. Users without a train row are left out."""

    ADDED: ClassVar[Mapping[str, Any]] = {"by_user": False}

    kind: str = "random_ratio"
    by_user: bool = False
    """Divide each user's rows by the shares, with the numbers for validation and test rounded down, as RecBole's ``RS``
    with ``group_by: user``; otherwise each row's part is drawn independently."""
    NEEDS_TIMES = False


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._hashing import share_of, splitmix64

    # The tie hash is mixed with a constant, or the draw would follow the order of equal times.
    draw = rows["tie"].to_numpy() ^ 0x5BD1E995
    if config.by_user:
        drawn = rows.select("user", draw=pl.Series(splitmix64(draw))).with_row_index("row").sort("user", "draw", "row")
        # 1e-9: 0.29 * 100 is 28.999… in binary
        numbers = ((pl.len().over("user") * ratio + 1e-9).floor().cast(pl.Int64) for ratio in config.ratios[1:])
        return drawn.with_columns(part=last_rows(drawn, *numbers)).sort("row")["part"]
    cut = rows.select("user", part=share_of(draw, config.ratios))
    known = (pl.col("part") == TRAIN).any().over("user")
    return cut.select(part=pl.when(known).then("part").otherwise(LEFT_OUT))["part"]
