"""Shared parts of rankers that learn user and item factors from pairs of a liked and another item."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_REDRAWS = 20
"""Maximum number of redraws of negatives that the user likes; for a user who likes half of the catalogue, one liked
negative in a million remains."""


@dataclass(frozen=True)
class Factors:
    """Ranker that scores by inner products of user and item factors; people without train items are folded in."""

    user: Tensor
    """(U, D) float32."""
    item: Tensor
    """(I, D) float32."""
    folded: Tensor
    """(I, D) float32: contribution of each history item to the factors of a person without learnt factors."""
    trained: Tensor
    """(U,) bool: users with train items."""
    details: dict[str, float] = field(default_factory=dict)

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        lengths = np.maximum(history.sum(axis=1), 1)
        found = torch.from_numpy(history @ self.folded.numpy() / np.sqrt(lengths)[:, None])  # (B, D)
        own = torch.from_numpy(users)
        known = (own >= 0) & self.trained[own.clamp(min=0)]
        found[known] = self.user[own[known]]
        return found @ self.item.T

    def tensors(self) -> dict[str, Tensor]:
        return {"user": self.user, "item": self.item, "folded": self.folded, "trained": self.trained}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Factors:
        """Return the ranker that ``tensors`` were taken from."""
        return cls(tensors["user"], tensors["item"], tensors["folded"], tensors["trained"], details)


class Triples:
    """Sampler of (user, liked item, other item), with every train pair once per epoch in a new order.

    Args:
        matrix: (U, I), 1 where the user likes the item in train.
    """

    def __init__(self, matrix: csr_array, batch_size: int, seed: int) -> None:
        self._num_items = matrix.shape[1]
        row, item = matrix.nonzero()
        self._user, self._item = torch.from_numpy(row).long(), torch.from_numpy(item).long()
        self._keys = self._user * self._num_items + self._item  # ascending
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (B,) int64 users, liked items, and items drawn uniformly from those that the user does not like."""
        order = torch.randperm(len(self._user), generator=self._generator)
        for batch in order.split(self._batch_size):
            user = self._user[batch]
            yield user, self._item[batch], self._others(user)

    def _others(self, user: Tensor) -> Tensor:
        other = torch.randint(self._num_items, user.shape, generator=self._generator)
        for _ in range(_REDRAWS):
            keys = user * self._num_items + other
            place = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
            liked = (self._keys[place] == keys).nonzero().squeeze(1)
            if not len(liked):
                break
            other[liked] = torch.randint(self._num_items, liked.shape, generator=self._generator)
        return other


def bpr_loss(user: Tensor, liked: Tensor, other: Tensor) -> Tensor:
    """Return the mean of -log σ(u·i - u·j) over triples of factors (B, D); Rendle et al. 2009."""
    return functional.softplus((user * (other - liked)).sum(1)).mean()


def xavier(rows: int, factors: int, generator: torch.Generator) -> Tensor:
    """Draw (rows, factors) normal values of variance 2 / (rows + factors), RecBole's start; Glorot & Bengio 2010."""
    return torch.randn(rows, factors, generator=generator) * (2 / (rows + factors)) ** 0.5


class Graph:
    """Normalised user-item graph of likes, with weight 1 / sqrt(items of u · users of i) at each pair (u, i).

    Args:
        matrix: (U, I), 1 where the user likes the item in train.
    """

    def __init__(self, matrix: csr_array, device: str) -> None:
        of_user, of_item = (np.maximum(matrix.sum(axis=axis), 1) ** -0.5 for axis in (1, 0))
        pairs = matrix.tocoo()
        scaled = pairs.copy()
        scaled.data = (of_user[pairs.coords[0]] * of_item[pairs.coords[1]]).astype(np.float32)
        self._to_users, self._to_items = (_tensor(part.tocsr(), device) for part in (scaled, scaled.T))
        self.of_item = torch.from_numpy(of_item).float().to(device)
        """(I,) float32: 1 / sqrt(users of the item)."""

    def layers(self, user: Tensor, item: Tensor, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of users (U, D) and items (I, D) at layer 0, as given, and ``number`` further layers."""
        users, items = [user], [item]
        for _ in range(number):
            below = users[-1], items[-1]
            users.append(_product(self._to_users, self._to_items, below[1]))
            items.append(_product(self._to_items, self._to_users, below[0]))
        return users, items


def _tensor(matrix: csr_array, device: str) -> Tensor:
    offsets, column, value = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")  # only products are needed
        return torch.sparse_csr_tensor(offsets, column, value, matrix.shape, device=device, check_invariants=True)


class _Product(torch.autograd.Function):
    """Sparse times dense product whose gradient uses the given transpose; torch would compute it each time."""

    @staticmethod
    def forward(context: Any, matrix: Tensor, transpose: Tensor, dense: Tensor) -> Tensor:
        context.transpose = transpose
        return matrix @ dense

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, context.transpose @ gradient


def _product(matrix: Tensor, transpose: Tensor, dense: Tensor) -> Tensor:
    found: Tensor = _Product.apply(matrix, transpose, dense)
    return found
