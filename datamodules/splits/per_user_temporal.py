"""Each user's last interactions are test, those before them validation.

A model is not trained on a user's own future, but on other users' later rows: it has seen which items became popular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.splits._base import TEST, TRAIN, VALIDATION, RatioConfig

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """A user's n rows give ``max(1, floor(ratio * n))`` to validation and to test; all go to train if nothing would be
    left for it (n < 3)."""

    kind: str = "per_user_temporal"


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    count = pl.len().over("user")
    # 1e-9: 0.29 * 100 is 28.999… in binary
    validation, test = (
        (count * ratio + 1e-9).floor().cast(pl.Int64).clip(lower_bound=1) for ratio in config.ratios[1:]
    )
    return last_rows(rows, validation, test)


def last_rows(rows: pl.DataFrame, validation: pl.Expr, test: pl.Expr) -> pl.Series:
    """Assign each user's last ``test`` rows to test and the ``validation`` rows before them to validation."""
    import polars as pl

    count = pl.len().over("user")
    from_end = count - 1 - pl.int_range(pl.len()).over("user")
    part = (
        pl.when(validation + test >= count)
        .then(TRAIN)
        .when(from_end < test)
        .then(TEST)
        .when(from_end < validation + test)
        .then(VALIDATION)
        .otherwise(TRAIN)
    )
    return rows.select(part=part)["part"]
