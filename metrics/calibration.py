"""Calibration: whether a list has the mix of the user's history, by category or by popularity.

p is the distribution of the history over the categories, q that of the list, both
mean_i 1[g in G_i] / |G_i| (Steck 2018). Lower is better calibrated. Relevance plays no part; short lists are
judged by what they hold; NaN for an empty list, for users without history, and where no item has a category.
Ties were decided by :func:`metrics.rank`'s draw.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from metrics._info import Derived, MetricInfo, same
from metrics._weights import log_discount
from metrics.diversity import MAIN_CATEGORIES, category_shares, per_item_shares
from metrics.novelty import POPULARITY_GROUPS

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._history import History
    from metrics._lists import RankedLists


def category_profile(history: History, categories: Tensor) -> Tensor:
    """Return (num_users, C) float64: p of each user, over the train items that have a category; NaN without any.

    Args:
        history: of all users.
        categories: (I, C) bool; the popularity groups of :func:`metrics.novelty.popularity_groups` too.
    """
    total = history.mean(per_item_shares(categories))
    return total / total.sum(1, keepdim=True)


def miscalibration(
    lists: RankedLists,
    k: int,
    categories: Tensor,
    profile: Tensor,
    divergence: Literal["kl", "js", "hellinger"] = "kl",
    rank_weighted: bool = False,
    alpha: float = 0.01,
    both_smoothed: bool = False,
    base: float = math.e,
) -> Tensor:
    """Divergence of the list's categories from the history's, one value per user.

    ``kl``: sum_g p(g) ln(p(g) / ((1 - alpha) q(g) + alpha p(g))), Steck 2018. With ``both_smoothed``, ``alpha``
    0.001 and ``base`` 2 it is RADio's (Vrijenhoek et al. 2022), where p is mixed with q too. ``js``: the
    Jensen-Shannon divergence in bits (Lin 1991), not its root; ``hellinger``: sqrt(sum_g (sqrt p - sqrt q)^2 / 2);
    neither needs smoothing. Over head, middle and tail with ``js`` it is the user popularity deviation of
    Abdollahpouri et al. 2021.

    Args:
        lists: user (U,), item (U, K), -1 is padding.
        categories: (I, C) bool.
        profile: (num_users, C) float64, p; :func:`category_profile` of the same categories.
        rank_weighted: weigh the list's items by 1 / log2(rank + 1) instead of evenly.
        alpha, both_smoothed, base: of ``kl`` alone.
    Returns:
        (U,) float64, at least 0 (``js`` and ``hellinger`` at most 1), lower is better.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    weight = log_discount(k, lists.item.device) if rank_weighted else None
    q = category_shares(lists, k, categories, weight)
    p = profile[lists.user]
    if divergence == "js":
        middle = (p + q) / 2
        value = (_kl(p, middle) + _kl(q, middle)) / (2 * math.log(2))
    elif divergence == "hellinger":
        value = ((p.sqrt() - q.sqrt()).square().sum(1) / 2).sqrt()
    else:
        # From the same p and q: a smoothed p must not enter the smoothing of q.
        smoothed_p = (1 - alpha) * p + alpha * q if both_smoothed else p
        value = _kl(smoothed_p, (1 - alpha) * q + alpha * p) / math.log(base)
    return value.clamp(min=0)  # equal distributions may come out at -1e-17


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence (U,) in nats; a term with p = 0 is 0 for any q."""
    import torch

    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1)


_PROFILE = same("categories") | {"profile": Derived(category_profile, same("history", "categories"))}
_MAIN_PROFILE = {
    "categories": MAIN_CATEGORIES,
    "profile": Derived(category_profile, {"history": "history", "categories": MAIN_CATEGORIES}),
}
_POPULARITY_PROFILE = {
    "categories": POPULARITY_GROUPS,
    "profile": Derived(category_profile, {"history": "history", "categories": POPULARITY_GROUPS}),
}
_RADIO = {"alpha": 0.001, "both_smoothed": True, "base": 2.0}

METRICS = tuple(
    MetricInfo(name, miscalibration, "-", "listed", inputs=inputs, options=options)
    for name, inputs, options in (
        ("calibration_kl", _PROFILE, {}),
        ("calibration_kl_rankw", _PROFILE, {"rank_weighted": True}),
        ("calibration_js", _PROFILE, {"divergence": "js"}),
        ("calibration_hellinger", _PROFILE, {"divergence": "hellinger"}),
        ("calibration_single_kl", _MAIN_PROFILE, _RADIO),
        ("popularity_calibration_js", _POPULARITY_PROFILE, {"divergence": "js"}),
    )
)
