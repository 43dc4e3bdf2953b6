"""Diversity: how different the items of one list are."""

from __future__ import annotations

import torch
from torch import Tensor

from metrics._lists import RankedLists


def ild_jaccard(lists: RankedLists, k: int, categories: Tensor) -> Tensor:
    """Intra-list diversity: mean Jaccard distance of the items' category sets over unordered pairs.

    2 / (m (m - 1)) sum_{i<j} (1 - |G_i & G_j| / |G_i | G_j|) over the m listed items; Smyth & McClave 2001.
    A list of one item gives 0, an empty list NaN; short lists are averaged over the pairs they have.
    Two items without any category have distance 0. Relevance plays no part, and ties were decided by
    :func:`metrics.rank`'s draw.

    Args:
        lists: item (U, K), -1 is padding.
        categories: (I, C) bool, the categories of each item.
    Returns:
        (U,) float64 in [0, 1], higher is more diverse.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    item = lists.top(k).item
    listed = item >= 0
    sets = categories[item.clamp(min=0)].double()  # (U, k, C)
    common = sets @ sets.transpose(1, 2)  # (U, k, k)
    size = sets.sum(2)
    union = size[:, :, None] + size[:, None, :] - common
    # Only the upper triangle: each pair once, no item with itself.
    pair = (listed[:, :, None] & listed[:, None, :]).triu(diagonal=1)
    distance = torch.where(pair & (union > 0), 1 - common / union, 0)
    mean = distance.sum((1, 2)) / pair.sum((1, 2)).clamp(min=1)
    return mean.masked_fill(~listed.any(1), torch.nan)
