"""Users' histories as flat arrays: each user's interactions in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from datamodules._ragged import offsets_of, ranges


@dataclass(frozen=True)
class Histories:
    """Histories of U users: user u's are the rows ``offsets[u]`` to ``offsets[u + 1]``, oldest first."""

    offsets: np.ndarray
    """(U + 1,) int64."""
    item: np.ndarray
    """(N,) int64."""
    rating: np.ndarray
    """(N,) float32, NaN where there is none."""
    timestamp: np.ndarray
    """(N,) seconds, -1 where there is none."""

    @classmethod
    def of(cls, interactions: pl.DataFrame, num_users: int) -> Histories:
        """Group ``interactions`` by user; each user's keep the frame's order."""
        rows = interactions.sort("user", maintain_order=True)
        lengths = np.bincount(rows["user"].to_numpy(), minlength=num_users)
        return cls(
            offsets_of(lengths),
            rows["item"].to_numpy().astype(np.int64),
            rows["rating"].fill_null(float("nan")).to_numpy(),
            rows["timestamp"].fill_null(-1).to_numpy(),
        )

    @classmethod
    def of_items(cls, histories: Sequence[Sequence[int]]) -> Histories:
        """Build from lists of items, without ratings and times."""
        item = np.concatenate([np.empty(0, np.int64), *(np.asarray(row, np.int64) for row in histories)])
        offsets = offsets_of(np.asarray([len(row) for row in histories], np.int64))
        return cls(offsets, item, np.full(len(item), np.nan, np.float32), np.full(len(item), -1, np.int64))

    def and_of(self, others: Histories) -> Histories:
        """Return these users' histories with those of ``others`` appended."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + others.offsets[1:]])
        columns = ("item", "rating", "timestamp")
        return Histories(offsets, *(np.concatenate([getattr(self, name), getattr(others, name)]) for name in columns))

    def rows(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each interaction of ``users`` (n,), its index in ``users`` and in these arrays, (R,) each."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        return np.repeat(np.arange(len(users)), lengths), ranges(self.offsets[users], lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def items(self, user: int | np.integer) -> np.ndarray:
        """Return the user's items (n,), oldest first."""
        return self.item[self.offsets[user] : self.offsets[user + 1]]
