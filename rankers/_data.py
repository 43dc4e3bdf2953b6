"""The train part in the form that rankers read."""

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
    """N train interactions, sorted by user, oldest first for each user."""

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
    """Number of users in the whole data set; some may have no train interaction."""
    num_items: int
    """Size of the catalogue; some items may have no train interaction."""

    @classmethod
    def of(cls, dataset: RecDataset, split: Split) -> TrainData:
        """Build from the train part of ``split``."""
        train, lowest = split.train, -np.inf if split.liked_from is None else split.liked_from
        rating = train["rating"].fill_null(float("nan")).to_numpy()
        return cls(
            train["user"].to_numpy().astype(np.int64),
            train["item"].to_numpy().astype(np.int64),
            rating,
            train["timestamp"].fill_null(-1).to_numpy(),
            ~(rating < lowest),  # a missing rating does not count as a dislike
            dataset.num_users,
            dataset.num_items,
        )

    @cached_property
    def matrix(self) -> csr_array:
        """Return (U, I) float32: 1 where the user liked the item. It is cached and shared; do not modify it."""
        return binary(self.user[self.liked], self.item[self.liked], (self.num_users, self.num_items))
