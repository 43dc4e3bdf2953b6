"""Association: whether what is recommended depends on who is asking."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metrics._info import MetricInfo, Summed
from metrics.diversity import category_shares

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def group_category_sums(lists: RankedLists, k: int, categories: Tensor, membership: Tensor) -> Tensor:
    """Return (G, C) float64: the lists' category shares summed over the users of each group, to sum over batches.

    Every list counts 1, whatever its length; empty lists and lists without any category count nothing.

    Args:
        lists: user (U,), item (U, K), -1 is padding.
        categories: (I, C) bool.
        membership: (num_users, G) bool, one group per user; users of no group are left out.
    """
    shares = category_shares(lists, k, categories).nan_to_num(0)
    return membership[lists.user].double().T @ shares


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information between the user's group and the recommended category, in bits.

    sum_{g,c} p(g, c) log2(p(g, c) / (p(g) p(c))); Shannon 1948. 0 where all groups get the same categories. The
    estimate is biased upwards by about (G - 1)(C - 1) / (2 n ln 2) for n independent recommendations (Miller 1955),
    so values of data of different sizes do not compare.

    Args:
        joint: (G, C) float64, :func:`group_category_sums`, added up over batches and processes.
    Returns:
        () float64 in [0, log2 min(G, C)], lower depends less on the group; NaN where fewer than two groups are
        recommended something.
    """
    import torch

    p = joint.double() / joint.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    information = ((torch.xlogy(p, p) - torch.xlogy(p, independent)).sum() / math.log(2)).clamp(min=0)
    return information.masked_fill((p.sum(1) > 0).sum() < 2, math.nan)


METRICS = (
    MetricInfo(
        "category_information",
        mutual_information,
        "-",
        "groups",
        "user_groups",
        {"joint": Summed(group_category_sums, {"categories": "categories", "membership": "groups"}, by_group=True)},
    ),
)
