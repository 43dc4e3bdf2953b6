"""Novelty: how little known the listed items are, by their number of train users.

Means over the listed items only, so a short list is judged by what it holds; an empty list is NaN.
Relevance plays no part, and ties were decided by :func:`metrics.rank`'s draw.
"""

from __future__ import annotations

from torch import Tensor

from metrics._lists import RankedLists


def novelty(lists: RankedLists, k: int, train_counts: Tensor, num_train_users: int) -> Tensor:
    """Mean self-information of the listed items (MIUF), one value per user.

    mean_i -log2(max(1, c_i) / N) with c_i of the N train users; Zhou et al. 2010, Castells et al. 2011.
    An item no train user knows counts as known to one.

    Args:
        lists: item (U, K), -1 is padding.
        train_counts: (I,) int64, number of train users of each item.
        num_train_users: N.
    Returns:
        (U,) float64 in bits, at least 0, higher is more novel; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    information = -(train_counts.clamp(min=1).double() / num_train_users).log2()
    return _mean_over_list(lists.top(k), information)


def arp(lists: RankedLists, k: int, train_counts: Tensor) -> Tensor:
    """Average recommendation popularity: mean number of train users of the listed items.

    Yin et al. 2012.

    Args:
        lists: item (U, K), -1 is padding.
        train_counts: (I,) int64, number of train users of each item.
    Returns:
        (U,) float64 in users, lower is more novel; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    return _mean_over_list(lists.top(k), train_counts.double())


def _mean_over_list(top: RankedLists, values: Tensor) -> Tensor:
    listed = top.item >= 0
    return (values[top.item.clamp(min=0)] * listed).sum(1) / listed.sum(1)  # 0 / 0 is NaN
