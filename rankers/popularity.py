"""Popularity: the items with most train users, the same for everyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankers._base import RankerConfig, TrainingOptions

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array
    from torch import Tensor

    from rankers._data import TrainData


class Config(RankerConfig):
    """Config without fields of its own."""


@dataclass(frozen=True)
class Popularity:
    """Ranker that scores each item by its number of train users, whatever the history."""

    train_users: Tensor
    """(I,) float32."""
    details: dict[str, float] = field(default_factory=dict)

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        return self.train_users.repeat(len(users), 1)

    def tensors(self) -> dict[str, Tensor]:
        return {"train_users": self.train_users}


def fit(data: TrainData, config: Config, options: TrainingOptions) -> Popularity:
    """Count the train users of each item."""
    import torch

    return Popularity(torch.from_numpy(data.matrix.sum(axis=0)))


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Popularity:
    """Return the ranker that ``tensors`` were taken from."""
    return Popularity(tensors["train_users"], details)
