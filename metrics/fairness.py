"""Fairness: how a per-user metric differs between groups of users.

Functions of sums and counts over the users of each group who have a value, added up over batches and ranks
first. So users without relevant items and empty lists take part as the base metric says.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_means(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Mean of each group, NaN for a group without data.

    Args:
        group_sums: (..., G) float64.
        group_counts: (..., G) int64.
    Returns:
        (..., G) float64.
    """
    return group_sums / group_counts  # 0 / 0 is NaN


def user_gap(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Largest difference between group means, max - min; lower is fairer.

    NaN where fewer than two groups have data. For two groups the absolute difference, as in RecBole-FairRec.

    Args:
        group_sums: (..., G) float64.
        group_counts: (..., G) int64.
    Returns:
        (...) float64, at least 0.
    """
    means = group_means(group_sums, group_counts)
    empty = group_counts == 0
    gap = means.masked_fill(empty, -torch.inf).amax(-1) - means.masked_fill(empty, torch.inf).amin(-1)
    return gap.masked_fill((~empty).sum(-1) < 2, torch.nan)
