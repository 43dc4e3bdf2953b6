"""Accuracy: whether the held-out items are listed, and how high.

All functions take lists with ``hit`` (U, K) and ``num_relevant`` (U,) and return (U,) float64 in [0, 1],
higher is better. Users without relevant items are NaN and left out of means. A short list counts as if its
missing places were misses; an empty list scores 0. Ties were decided by :func:`metrics.rank`'s draw. All
raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metrics._lists import RankedLists


def ndcg(lists: RankedLists, k: int) -> Tensor:
    """Normalised discounted cumulative gain at ``k``, one value per user.

    sum_{r<=k} hit_r / log2(r+1), over the same sum for the ideal list, which has hits at the first
    min(k, num_relevant) ranks. Järvelin & Kekäläinen 2002, binary gain, log2(rank + 1) discount.
    Users without relevant items are NaN; a short list's missing places are misses, the ideal is not
    shortened.

    Args:
        lists: hit (U, K), best first; num_relevant (U,).
    Returns:
        (U,) float64 in [0, 1], higher is better.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    top = lists.top(k)
    discount = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=top.hit.device).log2()
    ideal = discount.cumsum(0)[top.num_relevant.clamp(1, k) - 1]
    return _with_relevant(top, (top.hit * discount).sum(1) / ideal)


def recall(lists: RankedLists, k: int) -> Tensor:
    """Share of the user's relevant items that are listed: hits / num_relevant.

    Not capped: with more than ``k`` relevant items even the ideal list stays below 1.
    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, _hits(top) / top.num_relevant)


def precision(lists: RankedLists, k: int) -> Tensor:
    """Share of the ``k`` places that hold a relevant item: hits / k, for short lists too.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, _hits(top) / k)


def hit_rate(lists: RankedLists, k: int) -> Tensor:
    """1 where at least one relevant item is listed, else 0.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, top.hit.any(1).double())


def mrr(lists: RankedLists, k: int) -> Tensor:
    """Reciprocal rank of the first hit (Voorhees 1999), 0 where there is none within ``k``.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, (top.hit / _ranks(top)).amax(1))


def average_precision(lists: RankedLists, k: int) -> Tensor:
    """Average precision, the per-user value of MAP: sum_r precision@r hit_r / min(k, num_relevant).

    Normalised as in RecBole, RePlay and WarpRec, so that the ideal list scores 1; TREC and ranx divide by
    num_relevant. NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    precision_at = top.hit.cumsum(1) / _ranks(top)
    return _with_relevant(top, (precision_at * top.hit).sum(1) / top.num_relevant.clamp(max=k))


def f1(lists: RankedLists, k: int) -> Tensor:
    """Harmonic mean of the user's precision and recall, 2 hits / (k + num_relevant); 0 without a hit.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, 2 * _hits(top) / (k + top.num_relevant))


def _hits(top: RankedLists) -> Tensor:
    return top.hit.sum(1).double()


def _ranks(top: RankedLists) -> Tensor:
    return torch.arange(1, top.hit.shape[1] + 1, dtype=torch.float64, device=top.hit.device)


def _with_relevant(lists: RankedLists, values: Tensor) -> Tensor:
    return values.masked_fill(lists.num_relevant == 0, torch.nan)
