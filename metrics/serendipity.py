"""Serendipity: whether lists hold what the user would not have expected, and whether that was right.

Functions of lists with ``item`` and ``hit`` (U, K), returning (U,) float64, higher is better. What was expected
comes from train: the most popular items that could be listed, or the user's history. All are defined for users
without relevant items (0 found) unless they say otherwise; an empty list is NaN. Ties in the lists were decided by
:func:`metrics.rank`'s draw, ties in popularity by lowest id. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metrics._info import Derived, MetricInfo, same
from metrics._weights import at_items, inverse_length, ranks, unless_empty
from metrics.novelty import by_popularity

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._history import History
    from metrics._lists import RankedLists


def expected(lists: RankedLists, k: int, train_counts: Tensor) -> Tensor:
    """Return (U, K) bool: True if a listed item is one of the k most popular items that could be listed.

    These are the lists of Murakami et al. 2008's primitive recommender PM, which is masked as the judged lists are:
    it leaves out what the user has seen where they do, and is bound to the same candidates. Ties in popularity are
    ordered by lowest id.

    Raises:
        ValueError: the lists do not say what could be listed.
    """
    import torch

    allowed = lists.listable()
    order = by_popularity(train_counts)
    masked = int((~allowed).sum(1).amax()) if len(allowed) else 0
    order = order[: k + masked]  # k of these can be listed, whoever the user is
    popular = torch.zeros_like(allowed)
    popular[:, order] = allowed[:, order] & (allowed[:, order].cumsum(1, dtype=torch.int32) <= k)
    return popular.gather(1, lists.item.clamp(min=0)) & lists.listed


def unexpectedness(lists: RankedLists, k: int, train_counts: Tensor) -> Tensor:
    """Share of the list that the most popular items do not explain: 1 - |L & PM_k| / k.

    Murakami et al. 2008; PM_k are the k most popular items that could be listed (:func:`expected`): where lists leave
    out what the user has seen, so does PM_k. Over k, for short lists too, so their missing places count as unexpected.
    Relevance plays no part.

    Args:
        lists: item (U, K), -1 is padding; allowed (U, I).
        train_counts: (I,) int64, number of train users of each item.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K, or the lists do not say what could be listed.
    """
    top = lists.top(k)
    return unless_empty(top, 1 - expected(top, k, train_counts).sum(1).double() / k)


def serendipity(lists: RankedLists, k: int, train_counts: Tensor, without_relevant: float = math.nan) -> Tensor:
    """Share of the places with a relevant item that was not to be expected: |(L minus PM_k) & R| / k.

    Murakami et al. 2008, Ge et al. 2010; PM_k as in :func:`unexpectedness`. Over k, for short lists too.

    Args:
        lists: item and hit (U, K); allowed (U, I).
        train_counts: (I,) int64, number of train users of each item.
        without_relevant: value of users without relevant items.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN without relevant items, 0 for an empty list.
    Raises:
        ValueError: ``k`` exceeds K, or the lists do not say what could be listed.
    """
    top = lists.top(k)
    found = (top.hit & ~expected(top, k, train_counts)).sum(1).double() / k
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
    import torch

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
    import torch

    top = lists.top(k)
    vectors = at_items(top, embeddings)
    likeness = torch.einsum("ukd,ud->uk", vectors, mean_embedding[top.user]) * inverse_length(vectors)
    return ((1 - likeness) * top.hit).sum(1) / top.listed.sum(1)


def mean_unit_embedding(history: History, embeddings: Tensor) -> Tensor:
    """Return (num_users, D) float64: mean of the unit-length embeddings (I, D) of each user's train items, or NaN."""
    vectors = embeddings.double()
    return history.mean(vectors * inverse_length(vectors)[:, None])


METRICS = (
    MetricInfo("unexpectedness", unexpectedness, "+", "listed", inputs=same("train_counts"), also_needs=("history",)),
    MetricInfo("serendipity", serendipity, "+", "relevant", inputs=same("train_counts"), also_needs=("history",)),
    MetricInfo("serendipity_rank", serendipity_rank, "+", "listed", inputs=same("train_counts")),
    MetricInfo(
        "serendipity_cosine",
        serendipity_cosine,
        "+",
        "listed",
        inputs=same("embeddings") | {"mean_embedding": Derived(mean_unit_embedding, same("history", "embeddings"))},
    ),
)
