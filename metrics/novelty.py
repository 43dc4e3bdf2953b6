"""Novelty: how little known the listed items are, by their number of train users.

Means over the listed items only, so a short list is judged by what it holds; an empty list is NaN, or 0 where
relevance takes part. Relevance plays no part unless the function says so, and ties were decided by
:func:`metrics.rank`'s draw. All raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metrics._info import Derived, MetricInfo, PerUser, Reduced, same
from metrics._weights import at_items, log_discount, mean_over_list

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._history import History
    from metrics._lists import RankedLists


def novelty(lists: RankedLists, k: int, train_counts: Tensor, num_train_users: int, normalised: bool = False) -> Tensor:
    """Mean self-information of the listed items (MIUF), one value per user.

    mean_i -log2(max(1, c_i) / N) with c_i of the N train users; Zhou et al. 2010, Castells et al. 2011.
    An item no train user knows counts as known to one.

    Args:
        lists: item (U, K), -1 is padding.
        train_counts: (I,) int64, number of train users of each item.
        num_train_users: N.
        normalised: divide by log2 N, the most that is possible.
    Returns:
        (U,) float64 in bits, at least 0, higher is more novel; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    information = -(train_counts.clamp(min=1).double() / num_train_users).log2()
    return mean_over_list(lists.top(k), information / math.log2(num_train_users) if normalised else information)


def epc(
    lists: RankedLists,
    k: int,
    train_counts: Tensor,
    num_train_users: int,
    relevance: bool = True,
    without_relevant: float = math.nan,
) -> Tensor:
    """Expected popularity complement: how novel the found items are, weighted by rank.

    sum_r w_r rel_r (1 - c_i / N) / sum_r w_r over the listed items, w_r = 1 / log2(r + 1); Vargas & Castells
    2011.

    Args:
        lists: item and hit (U, K), -1 is padding.
        train_counts: (I,) int64, number of train users of each item, c.
        num_train_users: N.
        relevance: False takes rel = 1 for all listed items.
        without_relevant: value of users without relevant items.
    Returns:
        (U,) float64 in [0, 1], higher is better. With relevance NaN for users without relevant items and 0
        for an empty list of one with; without relevance NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    return _by_rank(lists.top(k), k, 1 - train_counts.double() / num_train_users, relevance, without_relevant)


def efd(
    lists: RankedLists, k: int, train_counts: Tensor, relevance: bool = True, without_relevant: float = math.nan
) -> Tensor:
    """Expected free discovery: as :func:`epc`, with the items' self-information among all interactions.

    sum_r w_r rel_r (-log2(max(1, c_i) / T)) / sum_r w_r, T the sum of all c_i; Vargas & Castells 2011.
    Arguments, shapes and failures as :func:`epc`.

    Returns:
        (U,) float64 in bits, at least 0, higher is better.
    """
    information = -(train_counts.clamp(min=1).double() / train_counts.sum()).log2()
    return _by_rank(lists.top(k), k, information, relevance, without_relevant)


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
    return mean_over_list(lists.top(k), train_counts)


def aplt(lists: RankedLists, k: int, tail: Tensor) -> Tensor:
    """Average percentage of long-tail items: share of the listed items that are in the tail.

    Abdollahpouri et al. 2019 ("Managing popularity bias").

    Args:
        lists: item (U, K), -1 is padding.
        tail: (I,) bool; :func:`long_tail` or :func:`least_popular`.
    Returns:
        (U,) float64 in [0, 1], higher is more novel; NaN for an empty list.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    return mean_over_list(lists.top(k), tail)


def popularity_lift(recommended: Tensor, profile: Tensor) -> Tensor:
    """Relative increase in popularity from users' histories to their lists: (GAP_r - GAP_p) / GAP_p.

    GAP is the mean over users of the mean popularity of their items, recommended (r) or in their profile (p).
    Over all users popularity lift (Abdollahpouri et al. 2020), in each group delta-GAP (Abdollahpouri et al.
    2019, "The unfairness of popularity bias"). Take the means over the same users: those with a list and a
    history.

    Args:
        recommended: (...) float64, GAP_r: mean, or sum over the users, of :func:`arp`.
        profile: (...) float64, GAP_p: the same of ``history.mean(train_counts)`` at those users.
    Returns:
        (...) float64, above -1; 0 is even, above 0 the lists are more popular. NaN without users.
    """
    return (recommended - profile) / profile


def profile_popularity(history: History, train_counts: Tensor) -> Tensor:
    """Return (num_users,) float64: mean popularity of each user's train items; NaN without any."""
    return history.mean(train_counts)


def recommended_popularity(lists: RankedLists, k: int, train_counts: Tensor, profile: Tensor) -> Tensor:
    """Return (U,) float64: :func:`arp` of users with a list and a history, NaN for others.

    Args:
        profile: (num_users,) float64, :func:`profile_popularity`.
    """
    recommended = arp(lists, k, train_counts)
    return recommended.masked_fill(profile[lists.user].isnan(), math.nan)


def had_popularity(lists: RankedLists, k: int, train_counts: Tensor, profile: Tensor) -> Tensor:
    """Return (U,) float64: ``profile`` of the same users as in :func:`recommended_popularity`."""
    return profile[lists.user].masked_fill(arp(lists, k, train_counts).isnan(), math.nan)


def by_popularity(train_counts: Tensor) -> Tensor:
    """Return (I,) int64: item ids by descending number of train users, ties by ascending id."""
    return train_counts.argsort(descending=True, stable=True)


def long_tail(train_counts: Tensor, head_share: float = 0.8) -> Tensor:
    """Return (I,) bool: items outside the head, which is the shortest prefix of the popularity order that holds
    at least ``head_share`` of all interactions."""
    import torch

    order = by_popularity(train_counts)
    tail = torch.empty_like(train_counts, dtype=torch.bool)
    tail[order] = ~_head(train_counts[order], head_share)
    return tail


def least_popular(train_counts: Tensor, share: float) -> Tensor:
    """Return (I,) bool: the ``share`` of the items (rounded down) that come last in the popularity order."""
    import torch

    number = math.floor(share * len(train_counts) + 1e-9)
    lowest = torch.zeros_like(train_counts, dtype=torch.bool)
    lowest[by_popularity(train_counts)[len(train_counts) - number :]] = True
    return lowest


def popularity_groups(train_counts: Tensor, head_share: float = 0.2, tail_share: float = 0.2) -> Tensor:
    """Return (I, 3) bool: head, middle and tail of the popularity order.

    Head is the shortest prefix with at least ``head_share`` of all interactions, tail the longest suffix with
    at most ``tail_share``; Abdollahpouri et al. 2021.
    """
    import torch

    order = by_popularity(train_counts)
    ordered = train_counts[order]
    head = _head(ordered, head_share)
    # Integers are compared, so that 0.2 of 10 is exactly 2.
    left = ordered.flip(0).cumsum(0).flip(0)
    tail = (left <= math.floor(tail_share * int(train_counts.sum()) + 1e-9)) & ~head
    groups = torch.empty(len(train_counts), 3, dtype=torch.bool, device=train_counts.device)
    groups[order] = torch.stack([head, ~(head | tail), tail], dim=1)
    return groups


def _head(ordered: Tensor, share: float) -> Tensor:
    """Return (I,) bool: the shortest prefix of the counts with at least ``share`` of their sum."""
    before = ordered.cumsum(0) - ordered
    return before < math.ceil(share * int(ordered.sum()) - 1e-9)


def _by_rank(top: RankedLists, k: int, values: Tensor, relevance: bool, without_relevant: float) -> Tensor:
    weight = log_discount(k, top.item.device) * top.listed
    gained = at_items(top, values) * weight
    if not relevance:
        return gained.sum(1) / weight.sum(1)  # 0 / 0 is NaN
    # An empty list of a user with relevant items finds nothing.
    total = weight.sum(1).masked_fill(~top.listed.any(1), 1)
    return ((gained * top.hit).sum(1) / total).masked_fill(top.num_relevant == 0, without_relevant)


POPULARITY_GROUPS = Derived(popularity_groups, same("train_counts"))
_POPULARITY = same("train_counts") | {"profile": Derived(profile_popularity, same("history", "train_counts"))}
_MEANS = {
    "recommended": Reduced(PerUser(recommended_popularity, _POPULARITY), "mean"),
    "profile": Reduced(PerUser(had_popularity, _POPULARITY), "mean"),
}

METRICS = (
    MetricInfo("novelty", novelty, "+", "listed", inputs=same("train_counts", "num_train_users")),
    MetricInfo("epc", epc, "+", "relevant", inputs=same("train_counts", "num_train_users")),
    MetricInfo(
        "epc_norel",
        epc,
        "+",
        "listed",
        inputs=same("train_counts", "num_train_users"),
        options={"relevance": False},
    ),
    MetricInfo("efd", efd, "+", "relevant", inputs=same("train_counts")),
    MetricInfo("arp", arp, "-", "listed", inputs=same("train_counts")),
    MetricInfo("aplt", aplt, "+", "listed", inputs={"tail": Derived(long_tail, same("train_counts"))}),
    MetricInfo("pop_lift", popularity_lift, "0", "listed", "sums", _MEANS),
    MetricInfo("delta_gap", popularity_lift, "0", "groups", "user_groups", _MEANS, per_group=True),
)
