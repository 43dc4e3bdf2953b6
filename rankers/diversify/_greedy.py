"""Greedy construction of lists, one place at a time for all users at once, which the methods share."""

from __future__ import annotations

import torch
from torch import Tensor

_TIE = 1e-12
"""Largest difference of two tied values: the same sum in another order may differ in its last bits, and a user's list
must not depend on the batch. Values are of the order of 1 in float64, whose rounding is 1e-16."""


class Greedy:
    """State of the greedy construction: each user's placed and remaining items."""

    def __init__(self, item: Tensor, score: Tensor, k: int, depth: int) -> None:
        """
        Args:
            item: (U, N) int64, best first, -1 is padding at the end.
            score: (U, N), descending; ignored on padding.
            k: length of the new lists.
            depth: number of items of a list that take part, D = min(depth, N).
        Raises:
            ValueError: see the package's docstring.
        """
        _check(item, score, k)
        self._behind = item[:, depth:k]
        self.item = item[:, :depth]
        """(U, D) int64."""
        self.listed = self.item >= 0
        """(U, D) bool."""
        self.relevance = _scaled(score[:, :depth], self.listed)
        """(U, D) float64 in [0, 1]; 0 on padding."""
        self.places = range(min(k, self.item.shape[1]))
        """Places to fill, from 0, with one ``take`` each."""
        self.rows = torch.arange(len(item), device=item.device)
        """(U,) int64."""
        self._left = self.listed.clone()
        self._taken: list[Tensor] = []

    def take(self, value: Tensor) -> Tensor:
        """Put each user's remaining item of highest ``value`` (U, D) at the next place; ties go to the first.

        Returns:
            (U,) int64, its column in ``item``; 0 for a user with no item left, whose place is padding.
        """
        value = value.masked_fill(~self._left, -torch.inf)
        best = value.amax(1, keepdim=True)
        column = (self._left & (value >= best - _TIE)).byte().argmax(1)  # ties go to the first
        there = self._left[self.rows, column]
        self._taken.append(self.item[self.rows, column].masked_fill(~there, -1))
        self._left[self.rows, column] = False
        return column

    def lists(self) -> Tensor:
        """Return (U, min(k, N)) int64: the items taken, then the items after ``depth``."""
        return torch.cat([torch.stack(self._taken, 1), self._behind], 1)


def _check(item: Tensor, score: Tensor, k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1.")
    if item.shape != score.shape:
        raise ValueError(f"items are {tuple(item.shape)} but scores {tuple(score.shape)}; give a score for each item.")
    if item.shape[1] == 0:
        raise ValueError("the lists have no places; give at least one, -1 where it holds no item.")
    listed = item >= 0
    if (listed[:, 1:] & ~listed[:, :-1]).any():
        raise ValueError("some lists have padding before an item; move it to their end.")
    if not score.masked_fill(~listed, 0).isfinite().all():
        raise ValueError("some listed scores are NaN or infinite and cannot be scaled; list items with a score alone.")
    # Scores in id order instead of list order would otherwise reorder lists silently.
    if ((score[:, 1:] > score[:, :-1]) & listed[:, 1:]).any():
        raise ValueError("the scores of some lists do not descend; sort each list by score, best first.")


def _scaled(score: Tensor, listed: Tensor) -> Tensor:
    """Return (s - min) / (max - min) over each user's listed items, (U, D) float64; 1 if all equal, 0 on padding."""
    score = score.double()
    low = score.masked_fill(~listed, torch.inf).amin(1, keepdim=True)
    high = score.masked_fill(~listed, -torch.inf).amax(1, keepdim=True)
    # Equal scores are all the best; an empty list has low > high and nothing listed.
    scaled = torch.where(high > low, (score - low) / (high - low), 1.0)
    return scaled.masked_fill(~listed, 0)
