"""Each user's last interaction is test, the one before it validation; users with fewer than three are all train.

This is the usual split of sequential recommendation. A test row may be years older than another user's train rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.splits._base import SplitConfig
from datamodules.splits.per_user_temporal import last_rows

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(SplitConfig):
    """Config without fields of its own."""

    kind: str = "leave_one_out"


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    return last_rows(rows, pl.lit(1), pl.lit(1))
