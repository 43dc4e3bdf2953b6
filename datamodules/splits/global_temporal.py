"""Global temporal split: two moments divide all interactions, so no train row is later than a test row.

This is the only split that supports claims about the future. A moment is never divided: the rows at a cut belong to the
later part. Users without earlier rows are left out of validation and test; items that are new in test stay, as they
have text.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt, model_validator

from datamodules._dates import seconds
from datamodules.splits._base import HISTORY, LEFT_OUT, TEST, TRAIN, VALIDATION, RatioConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """Cuts at shares of the rows, or at two dates."""

    NEEDS_CLOCK = True

    kind: str = "global_temporal"
    validation_from: date | None = None
    """First day (UTC) of validation; given together with ``test_from``, instead of ``ratios``."""
    test_from: date | None = None
    """First day (UTC) of test."""
    latest: PositiveInt | None = None
    """Number of latest rows to divide (with those of the same moment); older rows are history, shown but never
    learnt. Null divides all."""
    min_history: NonNegativeInt = 0
    """Minimum number of earlier rows of the user; a row with fewer is history too, so that every target has at least
    that many rows to show."""

    @model_validator(mode="after")
    def _dates_come_together(self) -> Config:
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from are given together or not at all")
        if self.test_from and self.ratios != RatioConfig.model_fields["ratios"].default:
            raise ValueError("ratios and dates are two ways to cut; give one")
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError(f"validation_from is {self.validation_from}; it must be before test_from {self.test_from}")
        return self


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    time = pl.col("timestamp")
    told = pl.int_range(pl.len()).over("user") >= config.min_history
    rows = rows.select("user", "timestamp", cut=told)
    times = rows.filter("cut")["timestamp"].sort()
    if times.is_empty():
        raise RecpeftError(
            f"data.split.min_history is {config.min_history}, and no user of {dataset.name} has more rows; lower it."
        )
    start = times[max(times.len() - (config.latest or times.len()), 0)]
    first, second = _cuts(times.filter(times >= start), config)
    part = pl.when(time < first).then(TRAIN).when(time < second).then(VALIDATION).otherwise(TEST)
    rows = rows.select("user", part=pl.when(pl.col("cut") & (time >= start)).then(part).otherwise(HISTORY))
    known = pl.col("part").is_in([TRAIN, HISTORY]).any().over("user")
    return rows.select(part=pl.when(known).then("part").otherwise(LEFT_OUT))["part"]


def _cuts(times: pl.Series, config: Config) -> tuple[float, float]:
    """Return the first moments of validation and of test, in seconds, from sorted times."""
    if config.validation_from and config.test_from:
        return seconds(config.validation_from), seconds(config.test_from)
    train, validation, _ = config.ratios
    first, second = (
        times[min(int(share * times.len() + 1e-9), times.len() - 1)] for share in (train, train + validation)
    )
    return first, second
