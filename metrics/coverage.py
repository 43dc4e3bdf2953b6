"""Coverage: how the catalogue is spread over all lists.

Functions of ``counts`` (I,) int64, the number of lists that hold each item of the catalogue (items in no
list included), returning a () float64. Counts are summed over batches and ranks first: none of these is a
mean over users. Short and empty lists add what they hold; relevance plays no part, and ties were decided by
:func:`metrics.rank`'s draw.
"""

from __future__ import annotations

import torch
from torch import Tensor


def item_coverage(counts: Tensor) -> Tensor:
    """Share of the catalogue that is in at least one list; in [0, 1], higher is better."""
    return (counts > 0).double().mean()


def gini(counts: Tensor) -> Tensor:
    """Gini index of the exposure; in [0, 1), lower is more equal.

    sum_j (2j - n - 1) x_(j) / (n sum x) over the n items by ascending count, items in no list included
    (Elliot returns 1 - Gini, ClayRS drops the zeros, others divide by n - 1). NaN where nothing is listed.
    """
    n = len(counts)
    weight = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=counts.device) - n - 1
    return (weight * counts.sort().values).sum() / (n * counts.sum())


def shannon_entropy(counts: Tensor) -> Tensor:
    """Entropy of the exposure in bits, -sum p log2 p; in [0, log2 n], higher is more even.

    NaN where nothing is listed.
    """
    share = counts.double() / counts.sum()
    return -torch.xlogy(share, share).sum() / torch.log(share.new_tensor(2))
