"""Base classes of all splits' configs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Self

from pydantic import PositiveFloat, PositiveInt, field_validator

from recpeft.config import Config, Seed

TRAIN, VALIDATION, TEST, HISTORY, LEFT_OUT = 0, 1, 2, 3, -1
"""Values of a split's ``parts``, one for each row."""


class SplitConfig(Config):
    """Base of each split's ``Config``."""

    NEEDS_TIMES: ClassVar[bool] = True
    """True if every interaction must have a time."""
    NEEDS_CLOCK: ClassVar[bool] = False
    """True if times are compared between users."""

    kind: str
    """File name of the split in ``datamodules/splits/``, or a dotted module name."""
    seed: Seed = 0
    """Seed of the hash that orders equal times and makes all draws."""
    few_shot: PositiveInt | None = None
    """Number of randomly drawn train interactions to learn; the others become history. Null is off."""
    few_shot_seed: Seed = 0
    """Seed of the few-shot draw; it does not change validation and test."""

    @property
    def remark(self) -> str | None:
        """Note about the parts that readers of the results need; None without one."""
        return None

    def below(self, folder: Path | None) -> Self:
        """Return the config with its files looked up in ``folder`` (data.path); unchanged if it names no files."""
        return self


Ratios = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class RatioConfig(SplitConfig):
    """Base of splits by shares."""

    ratios: Ratios = (0.8, 0.1, 0.1)
    """Shares of train, validation and test; their sum is 1."""

    @field_validator("ratios")
    @classmethod
    def _sum_to_one(cls, value: Ratios) -> Ratios:
        if not math.isclose(sum(value), 1):
            raise ValueError(f"{list(value)} sum to {sum(value):g}; give shares whose sum is 1")
        return value
