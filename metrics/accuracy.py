"""Accuracy: whether the held-out items are listed, and how high.

All functions take lists with ``hit`` (U, K) and ``num_relevant`` (U,) and return (U,) float64 in [0, 1],
higher is better. Users without relevant items are NaN and left out of means; ``without_relevant=0`` (as
torchmetrics) or ``1`` counts them. A short list counts as if its missing places were misses; an empty list
scores 0. Ties were decided by :func:`metrics.rank`'s draw. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from metrics._info import MetricInfo
from metrics._weights import log_discount, ranks

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def ndcg(
    lists: RankedLists,
    k: int,
    gain: Literal["binary", "linear", "exp2"] = "binary",
    ideal: Literal["relevant", "k"] = "relevant",
    without_relevant: float = math.nan,
) -> Tensor:
    """Normalised discounted cumulative gain at ``k``, one value per user.

    sum_{r<=k} gain_r / log2(r+1), over the same sum for the ideal list, which holds the relevant items by
    falling gain at its first min(k, num_relevant) ranks. Järvelin & Kekäläinen 2002 with the log2(rank + 1)
    discount of Burges et al. 2005. Users without relevant items are NaN; a short list's missing places are
    misses, the ideal is not shortened.

    Args:
        lists: hit (U, K), best first; num_relevant (U,); with ``linear`` and ``exp2`` graded, see
            :meth:`RankedLists.graded`.
        gain: 1 for a hit, its grade, or 2^grade - 1.
        ideal: ``k`` takes an ideal with hits at all k ranks, as RecTools.
        without_relevant: value of users without relevant items.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN where all grades are 0.
    Raises:
        ValueError: ``k`` exceeds K, the lists have no grades, or an ideal over k is asked of graded lists.
    """
    import torch

    top = lists.top(k)
    discount = log_discount(k, top.hit.device)
    if gain == "binary":
        depth = top.num_relevant.clamp(1, k) if ideal == "relevant" else torch.full_like(top.num_relevant, k)
        return _with_relevant(top, (top.hit * discount).sum(1) / discount.cumsum(0)[depth - 1], without_relevant)
    if ideal == "k":
        raise ValueError("an ideal over k is defined for gain 'binary' only; use ideal='relevant'.")
    if top.grade is None or top.relevant is None:
        raise ValueError(f"gain {gain!r} needs grades; give them by RankedLists.graded().")
    gains = top.grade if gain == "linear" else top.grade.exp2() - 1
    row = top.relevant[0]
    falling = gains.argsort(descending=True, stable=True)
    falling = falling[row[falling].argsort(stable=True)]
    places = top.places  # the same after sorting within the rows
    inside = places < k
    best = gains[falling][inside] * discount[places[inside]]
    ideal_sum = torch.bincount(row[inside], weights=best, minlength=len(top.user))
    return _with_relevant(top, (top.at_hits(gains) * discount).sum(1) / ideal_sum, without_relevant)


def recall(lists: RankedLists, k: int, capped: bool = False, without_relevant: float = math.nan) -> Tensor:
    """Share of the user's relevant items that are listed: hits / num_relevant.

    With more than ``k`` relevant items even the ideal list stays below 1, unless ``capped``: then over
    min(k, num_relevant), which is LensKit's recall. NaN without relevant items; shapes and failures as in
    :func:`ndcg`.
    """
    top = lists.top(k)
    possible = top.num_relevant.clamp(max=k) if capped else top.num_relevant
    return _with_relevant(top, _hits(top) / possible, without_relevant)


def precision(
    lists: RankedLists, k: int, over: Literal["k", "length"] = "k", without_relevant: float = math.nan
) -> Tensor:
    """Share of the ``k`` places that hold a relevant item: hits / k, for short lists too.

    ``over="length"`` divides by the number of listed items instead (LensKit, which skips empty lists; here
    they score 0). NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    places = top.listed.sum(1).clamp(min=1) if over == "length" else k
    return _with_relevant(top, _hits(top) / places, without_relevant)


def hit_rate(lists: RankedLists, k: int, without_relevant: float = math.nan) -> Tensor:
    """1 where at least one relevant item is listed, else 0.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, top.hit.any(1).double(), without_relevant)


def mrr(lists: RankedLists, k: int, without_relevant: float = math.nan) -> Tensor:
    """Reciprocal rank of the first hit (Voorhees 1999), 0 where there is none within ``k``.

    Over lists of the whole catalogue with ``k`` its size, MRR over the full ranking. NaN without relevant
    items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, (top.hit / ranks(k, top.hit.device)).amax(1), without_relevant)


def average_precision(
    lists: RankedLists,
    k: int,
    over: Literal["possible", "relevant", "hits"] = "possible",
    without_relevant: float = math.nan,
) -> Tensor:
    """Average precision, the per-user value of MAP: sum_r precision@r hit_r / min(k, num_relevant).

    Normalised as in RecBole, RePlay and WarpRec, so that the ideal list scores 1. ``over="relevant"`` divides
    by num_relevant (TREC, ranx, RecTools), ``"hits"`` by the hits within k (torchmetrics; 0 without a hit).
    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    precision_at = top.hit.cumsum(1) / ranks(k, top.hit.device)
    divisor = {
        "possible": top.num_relevant.clamp(max=k),
        "relevant": top.num_relevant,
        "hits": top.hit.sum(1).clamp(min=1),
    }[over]
    return _with_relevant(top, (precision_at * top.hit).sum(1) / divisor, without_relevant)


def f1(lists: RankedLists, k: int, without_relevant: float = math.nan) -> Tensor:
    """Harmonic mean of the user's precision and recall, 2 hits / (k + num_relevant); 0 without a hit.

    NaN without relevant items; shapes and failures as in :func:`ndcg`.
    """
    top = lists.top(k)
    return _with_relevant(top, 2 * _hits(top) / (k + top.num_relevant), without_relevant)


def ctr(lists: RankedLists, k: int, shown: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Click-through rate of the listed items that were shown: clicks / impressions among the first ``k``.

    Only of logged impressions: without them an item that was not clicked may never have been seen. Clicks are
    what is relevant in the lists. Items that were not shown say nothing and are passed over.

    Args:
        lists: hit (U, K), clicks.
        shown: row of the lists and item id of each impression, int64, in any order; clicks are among them. None takes
            those that the lists say.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN where none of the listed items was shown, relevant items or
        not, and so for an empty list.
    Raises:
        ValueError: ``k`` exceeds K, no impressions are given, or a listed click was not shown.
    """
    import torch

    top = lists.top(k)
    shown = lists.shown if shown is None else shown
    if shown is None or not len(shown[0]):
        raise ValueError("ctr needs logged impressions and there are none; leave it out.")
    row, item = shown
    base = int(max(item.amax(), top.item.amax())) + 1
    keys = torch.arange(len(top.user), device=row.device)[:, None] * base + top.item
    impression = torch.isin(keys, row * base + item) & top.listed
    if (top.hit & ~impression).any():
        raise ValueError("some clicked items were not shown; give all impressions.")
    return _hits(top) / impression.sum(1)  # 0 / 0 is NaN


def _hits(top: RankedLists) -> Tensor:
    return top.hit.sum(1).double()


def _with_relevant(lists: RankedLists, values: Tensor, without_relevant: float) -> Tensor:
    return values.masked_fill(lists.num_relevant == 0, without_relevant)


METRICS = (
    MetricInfo("ndcg", ndcg, "+", "relevant", item_slices=True),
    MetricInfo("recall", recall, "+", "relevant", item_slices=True),
    MetricInfo("precision", precision, "+", "relevant"),
    MetricInfo("hit_rate", hit_rate, "+", "relevant"),
    MetricInfo("mrr", mrr, "+", "relevant"),
    MetricInfo("map", average_precision, "+", "relevant"),
    MetricInfo("f1", f1, "+", "relevant"),
    MetricInfo("ndcg_linear", ndcg, "+", "relevant", options={"gain": "linear"}, also_needs=("grades",)),
    MetricInfo("ndcg_exp2", ndcg, "+", "relevant", options={"gain": "exp2"}, also_needs=("grades",)),
    MetricInfo("ndcg_empty_as_zero", ndcg, "+", "all", options={"without_relevant": 0.0}),
    MetricInfo("recall_capped", recall, "+", "relevant", options={"capped": True}),
    MetricInfo("map_trec", average_precision, "+", "relevant", options={"over": "relevant"}),
    MetricInfo("ctr", ctr, "+", "listed", also_needs=("impressions",)),
)
