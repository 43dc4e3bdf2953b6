"""Serendipity: whether lists hold what the user would not have expected, and whether that was right.

Functions of lists with ``item`` and ``hit`` (U, K), returning (U,) float64, higher is better. What was expected
comes from train: the most popular items, or the user's history. All are defined for users without relevant
items (0 found) unless they say otherwise; an empty list is NaN. Ties in the lists were decided by
:func:`metrics.rank`'s draw, ties in popularity by lowest id. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics._history import History
from metrics._lists import RankedLists
from metrics._weights import at_items, inverse_length, ranks, unless_empty
from metrics.novelty import by_popularity


@dataclass(frozen=True)
class Expected:
    """The primitive recommender PM of Murakami et al. 2008: to each user the most popular items they have not seen."""

    offsets: Tensor
    """(num_users + 1,) int64, where each user's keys begin."""
    keys: Tensor
    """(N,) int64, ascending: user * I + place in the popularity order of each train item."""
    place: Tensor
    """(I,) int64: place of each item in the popularity order, from 0."""

    @classmethod
    def of(cls, history: History, train_counts: Tensor) -> Expected:
        """Popularity is ``train_counts`` (I,), ties by lowest id."""
        place = torch.empty_like(train_counts)
        place[by_popularity(train_counts)] = torch.arange(len(place), device=place.device)
        keys = (history.user * len(place) + place[history.item]).sort().values
        return cls(history.offsets, keys, place)

    def holds(self, users: Tensor, item: Tensor, k: int) -> Tensor:
        """(U, K) bool: whether each of ``item`` (U, K) is among the user's k most popular unseen items."""
        place = self.place[item.clamp(min=0)]
        wanted = (users[:, None] * len(self.place) + place).contiguous()
        found = torch.searchsorted(self.keys, wanted)
        seen = self.keys[found.clamp(max=len(self.keys) - 1)] == wanted if len(self.keys) else torch.zeros_like(found)
        # Unseen items before this one: its place, less the seen ones before it.
        before = place - (found - self.offsets[users][:, None])
        return (before < k) & ~seen.bool() & (item >= 0)


def unexpectedness(lists: RankedLists, k: int, expected: Expected) -> Tensor:
    """Share of the list that the most popular unseen items do not explain: 1 - |L & PM_k| / k.

    Murakami et al. 2008; PM_k are the k most popular items the user has not seen. Over k, for short lists too,
    so their missing places count as unexpected. Relevance plays no part.

    Args:
        lists: user (U,), item (U, K), -1 is padding.
        expected: of the histories of all users.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    top = lists.top(k)
    return unless_empty(top, 1 - expected.holds(top.user, top.item, k).sum(1).double() / k)


def serendipity(lists: RankedLists, k: int, expected: Expected, without_relevant: float = math.nan) -> Tensor:
    """Share of the places with a relevant item that was not to be expected: |(L minus PM_k) & R| / k.

    Murakami et al. 2008, Ge et al. 2010; PM_k as in :func:`unexpectedness`. Over k, for short lists too.

    Args:
        lists: user (U,), item and hit (U, K).
        expected: of the histories of all users.
        without_relevant: value of users without relevant items.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN without relevant items, 0 for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    top = lists.top(k)
    found = (top.hit & ~expected.holds(top.user, top.item, k)).sum(1).double() / k
    return found.masked_fill(top.num_relevant == 0, without_relevant)


def serendipity_rank(lists: RankedLists, k: int, train_counts: Tensor) -> Tensor:
    """Mean over the list of rel_r max(p(r) - p_any(i), 0): found items count by how far they stand above their
    popularity.

    p(r) = (I + 1 - r) / I and p_any(i) = (I + 1 - d_i) / I, d_i the dense popularity rank (1 for the most
    popular, equal counts share a rank), p_any = 0 for items without train users. RecTools' Serendipity. Short
    lists are averaged over what they hold.

    Args:
        lists: item and hit (U, K).
        train_counts: (I,) int64, number of train users of each item.
    Returns:
        (U,) float64 in [0, 1], higher is better; 0 without relevant items, NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    top = lists.top(k)
    num_items = len(train_counts)
    levels, level = train_counts.unique(return_inverse=True)  # ascending
    dense_rank = len(levels) - level
    by_any = torch.where(train_counts > 0, (num_items + 1 - dense_rank).double() / num_items, 0)
    by_rank = (num_items + 1 - ranks(k, top.item.device)) / num_items
    above = (by_rank - at_items(top, by_any)).clamp(min=0) * top.hit
    return above.sum(1) / top.listed.sum(1)  # 0 / 0 is NaN


def serendipity_cosine(lists: RankedLists, k: int, embeddings: Tensor, mean_embedding: Tensor) -> Tensor:
    """Mean over the list of rel_i (1 - mean_{j in history} cos(e_i, e_j)): found items count by their content's
    distance from the history.

    After Zhang et al. 2012's unserendipity. The mean cosine is the dot product with the mean of the history's
    unit vectors, so no pair is visited. Short lists are averaged over what they hold.

    Args:
        lists: user (U,), item and hit (U, K).
        embeddings: (I, D), of one fixed source for all models compared; any scale.
        mean_embedding: (num_users, D) float64, :func:`mean_unit_embedding`.
    Returns:
        (U,) float64 in [0, 2], higher is better; 0 without relevant items, NaN for an empty list and for users
        without history.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    top = lists.top(k)
    vectors = at_items(top, embeddings)
    likeness = torch.einsum("ukd,ud->uk", vectors, mean_embedding[top.user]) * inverse_length(vectors)
    return ((1 - likeness) * top.hit).sum(1) / top.listed.sum(1)


def mean_unit_embedding(history: History, embeddings: Tensor) -> Tensor:
    """(num_users, D) float64: mean of each user's train items' embeddings (I, D), scaled to length 1; NaN without."""
    vectors = embeddings.double()
    return history.mean(vectors * inverse_length(vectors)[:, None])
