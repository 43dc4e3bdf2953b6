"""Popularity: the items with most train users, the same for everyone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankers._base import RankerConfig, Validate

if TYPE_CHECKING:
    from torch import Tensor


class Config(RankerConfig):
    """Nothing to choose."""


@dataclass(frozen=True)
class Popularity:
    """Scores each item by its number of train users, whatever the history."""

    train_users: Tensor
    """(I,) float32."""
    details: dict[str, float] = field(default_factory=dict)

    def score(self, history: Tensor) -> Tensor:
        return self.train_users.repeat(len(history), 1)


def fit(train: Tensor, config: Config, validate: Validate) -> Popularity:
    """Count the train users of each item: ``train`` (U, I) to (I,)."""
    return Popularity(train.sum(0))
