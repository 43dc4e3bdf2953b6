"""Items that a user's list may hold, and users' known interactions, as sparse rows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array
from torch import Tensor

from datamodules._sampled import unavailable
from datamodules._sparse import interaction_matrix, pairs
from experiments.cell.data import Prepared
from metrics._listing import Allowed


@lru_cache(maxsize=2)
def known_matrix(prepared: Prepared, at_test: bool) -> csr_array:
    """Return (U, I) float32: 1 if a user's interaction with an item is known when validation, or test, begins."""
    dataset = prepared.dataset
    return interaction_matrix(dataset.num_users, dataset.num_items, prepared.split.known(at_test=at_test))


@lru_cache(maxsize=2)
def liked_matrix(prepared: Prepared, at_test: bool) -> csr_array:
    """Return (U, I) float32: 1 if it is known that a user likes an item when validation, or test, begins."""
    split, dataset = prepared.split, prepared.dataset
    if split.liked_from is None:
        return known_matrix(prepared, at_test)
    return interaction_matrix(dataset.num_users, dataset.num_items, split.liked(split.known(at_test=at_test)))


class AllowedItems:
    """Items that users' lists may hold: items of the user's own domain if there are several, only the user's
    candidates if there are any, and no items that the user has met if those are masked.

    Args:
        mask_seen: leave out the interactions known when validation, or test, begins.
        candidates: (user, item) pairs; None is the whole catalogue.
    """

    def __init__(
        self, prepared: Prepared, mask_seen: bool, at_test: bool, candidates: pl.DataFrame | None = None
    ) -> None:
        self._dataset = prepared.dataset
        self._seen = known_matrix(prepared, at_test) if mask_seen else None
        sizes = self._dataset.num_users, self._dataset.num_items
        self._candidates = None if candidates is None else interaction_matrix(*sizes, candidates)

    def of(self, users: Tensor) -> Allowed:
        """Return the items allowed for ``users`` (n,)."""
        rows = users.numpy()
        seen, candidates = (None if part is None else pairs(part[rows]) for part in (self._seen, self._candidates))
        outside = unavailable(self._dataset, rows.astype(np.int64))
        elsewhere = None if outside is None else torch.from_numpy(outside)
        return Allowed.of((len(rows), self._dataset.num_items), seen, elsewhere, candidates)
