"""Users' train items, to which calibration, unexpectedness, serendipity and popularity lift compare lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class History:
    """Each user's train items in compressed rows: user u's are ``item[offsets[u] : offsets[u + 1]]``.

    Metrics that need only a mean over the history (of categories, embeddings, popularity) take the result of
    :meth:`mean`, computed once for all users.
    """

    offsets: Tensor
    """(num_users + 1,) int64, ascending from 0."""
    item: Tensor
    """(N,) int64, ascending and distinct within a user."""
    num_items: int
    """Size of the catalogue."""

    @classmethod
    def of(cls, user: Tensor, item: Tensor, num_users: int, num_items: int) -> History:
        """Build from the train interactions, (N,) each, in any order; a repeated pair counts once.

        Raises:
            ValueError: an id is out of range.
        """
        for name, ids, size in [("users", user, num_users), ("items", item, num_items)]:
            if ((ids < 0) | (ids >= size)).any():
                raise ValueError(f"train {name} must be at least 0 and below {size}; some are not.")
        pairs = torch.unique(user * num_items + item)
        offsets = user.new_zeros(num_users + 1)
        offsets[1:] = torch.bincount(pairs // num_items, minlength=num_users).cumsum(0)
        return cls(offsets, pairs % num_items, num_items)

    @property
    def user(self) -> Tensor:
        """Return (N,) int64: the user of each entry of ``item``."""
        lengths = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    @property
    def train_counts(self) -> Tensor:
        """Return (I,) int64: number of train users of each item."""
        return torch.bincount(self.item, minlength=self.num_items)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over each user's items of ``values`` (I,) or (I, D): (num_users,) or (num_users, D) float64.

        NaN for users without history.
        """
        table = values.double().reshape(len(values), -1)
        means = functional.embedding_bag(self.item, table, self.offsets, mode="mean", include_last_offset=True)
        means = means.masked_fill((self.offsets.diff() == 0)[:, None], torch.nan)
        return means.reshape(len(self.offsets) - 1, *values.shape[1:])

    def others(self, users: Tensor) -> Tensor:
        """Return (U, I) bool: the items that each of ``users`` (U,) does not have in train."""
        row = torch.full((len(self.offsets) - 1,), -1, device=users.device)
        row[users] = torch.arange(len(users), device=users.device)
        row = row[self.user]
        result = torch.ones(len(users), self.num_items, dtype=torch.bool, device=users.device)
        result[row[row >= 0], self.item[row >= 0]] = False
        return result
