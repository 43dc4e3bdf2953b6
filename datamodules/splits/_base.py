"""What all splits' configs share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Self

from pydantic import PositiveFloat, PositiveInt, field_validator

from recpeft.config import Config, Seed

TRAIN, VALIDATION, TEST, HISTORY, LEFT_OUT = 0, 1, 2, 3, -1
"""What a split's ``parts`` gives each row."""


class SplitConfig(Config):
    """Base of each split's ``Config``."""

    NEEDS_TIMES: ClassVar[bool] = True
    """Whether every interaction must have a time."""
    NEEDS_CLOCK: ClassVar[bool] = False
    """Whether times are compared between users."""

    kind: str
    """File name of the split in ``datamodules/splits/``, or a dotted module name."""
    seed: Seed = 0
    """Seed of the hash that orders equal times and makes all draws."""
    few_shot: PositiveInt | None = None
    """Learn from this many train interactions alone, a draw; the others stay in histories. Null is off."""
    few_shot_seed: Seed = 0
    """Seed of that draw alone: others leave validation and test as they are."""

    @property
    def remark(self) -> str | None:
        """What a reader of the results must know of how the parts were made, if anything."""
        return None

    def below(self, folder: Path | None) -> Self:
        """Return the config with its files sought in ``folder`` (data.path); the same where it names none."""
        return self


Ratios = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class RatioConfig(SplitConfig):
    """A split by shares."""

    ratios: Ratios = (0.8, 0.1, 0.1)
    """Shares of train, validation and test; their sum is 1."""

    @field_validator("ratios")
    @classmethod
    def _sum_to_one(cls, value: Ratios) -> Ratios:
        if not math.isclose(sum(value), 1):
            raise ValueError(f"{list(value)} sum to {sum(value):g}; give shares whose sum is 1")
        return value
