"""Two moments divide all interactions: nothing learnt is younger than anything tested.

The one split that supports claims about the future. A second is never divided: the rows at a cut belong to the
later part. Users without a train row are left out of validation and test, since nothing is known of them; items
that are new in test stay, as they have text.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from pydantic import model_validator

from datamodules._dates import seconds
from datamodules.splits._base import LEFT_OUT, TEST, TRAIN, VALIDATION, RatioConfig

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    """Cuts at shares of all rows, or at two dates."""

    kind: str = "global_temporal"
    validation_from: date | None = None
    """First day (UTC) of validation; given with ``test_from``, in place of ``ratios``."""
    test_from: date | None = None
    """First day (UTC) of test."""

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

    first, second = _cuts(rows["timestamp"], config)
    time = pl.col("timestamp")
    cut = rows.select(
        "user", part=pl.when(time < first).then(TRAIN).when(time < second).then(VALIDATION).otherwise(TEST)
    )
    known = (pl.col("part") == TRAIN).any().over("user")
    return cut.select(part=pl.when(known).then("part").otherwise(LEFT_OUT))["part"]


def _cuts(times: pl.Series, config: Config) -> tuple[int, int]:
    if config.validation_from and config.test_from:
        return seconds(config.validation_from), seconds(config.test_from)
    ordered = times.sort()
    train, validation, _ = config.ratios
    first, second = (
        ordered[min(int(share * ordered.len() + 1e-9), ordered.len() - 1)] for share in (train, train + validation)
    )
    return first, second
