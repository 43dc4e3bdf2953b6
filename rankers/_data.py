"""The train part as rankers read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from datamodules._dataset import RecDataset
from datamodules._sparse import binary
from datamodules._splits import Split


@dataclass(frozen=True)
class TrainData:
    """N train interactions by user, each user's oldest first."""

    user: np.ndarray
    """(N,) int64 dense ids."""
    item: np.ndarray
    """(N,) int64 dense ids."""
    rating: np.ndarray
    """(N,) float32, NaN where there is none."""
    timestamp: np.ndarray
    """(N,) int64 seconds, -1 where there is none."""
    liked: np.ndarray
    """(N,) bool: False where the rating is below ``data.liked_from``."""
    num_users: int
    """Users of the whole data set; some may have no train interaction."""
    num_items: int
    """Size of the catalogue; some items may have no train interaction."""

    @classmethod
    def of(cls, dataset: RecDataset, split: Split) -> TrainData:
        """Take the train part of ``split``."""
        train, lowest = split.train, -np.inf if split.liked_from is None else split.liked_from
        rating = train["rating"].fill_null(float("nan")).to_numpy()
        return cls(
            train["user"].to_numpy().astype(np.int64),
            train["item"].to_numpy().astype(np.int64),
            rating,
            train["timestamp"].fill_null(-1).to_numpy(),
            ~(rating < lowest),  # a missing rating is no dislike
            dataset.num_users,
            dataset.num_items,
        )

    @cached_property
    def matrix(self) -> csr_array:
        """(U, I) float32: 1 where the user liked the item, each pair once. Shared: not to be changed."""
        return binary(self.user[self.liked], self.item[self.liked], (self.num_users, self.num_items))
