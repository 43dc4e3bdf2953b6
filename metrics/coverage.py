"""Coverage: how the catalogue is spread over all lists, and how many users get a list.

Functions of ``counts`` (I,), the number of lists that hold each item of the catalogue (items in no list
included; int64, :func:`metrics.per_item.counts`), returning a () float64. Counts are summed over batches and
processes first: none of these is a mean over users, except :func:`user_coverage`. Short and empty lists add what
they hold; relevance plays no part, and ties were decided by :func:`metrics.rank`'s draw.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from metrics._info import MetricInfo
from metrics.per_item import COUNTS, EXPOSURE

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def item_coverage(counts: Tensor, among: Tensor | None = None) -> Tensor:
    """Share of the catalogue that is in at least one list; in [0, 1], higher is better.

    Args:
        counts: (I,) int64.
        among: (I,) bool, the items to be covered, such as those with train users; None is the catalogue.
    """
    covered = counts > 0
    return (covered if among is None else covered[among]).double().mean()


def gini(counts: Tensor, corrected: bool = False) -> Tensor:
    """Gini index of the exposure; in [0, 1), lower is more equal.

    sum_j (2j - n - 1) x_(j) / (n sum x) over the n items by ascending count, items in no list included
    (Elliot returns 1 - Gini, ClayRS drops the zeros, others divide by n - 1). NaN where nothing is listed.
    Of exposures (:func:`metrics.per_item.exposure`) or of users' values it is the same formula.

    Args:
        counts: (I,) int64 or float64, at least 0.
        corrected: n - 1 in the denominator, so that all on one item gives 1.
    """
    import torch

    n = len(counts)
    weight = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=counts.device) - n - 1
    return (weight * counts.sort().values).sum() / ((n - 1 if corrected else n) * counts.sum())


def shannon_entropy(counts: Tensor, normalised: bool = False) -> Tensor:
    """Entropy of the exposure in bits, -sum p log2 p; in [0, log2 n], higher is more even.

    NaN where nothing is listed.

    Args:
        counts: (I,) int64.
        normalised: divide by log2 n, so that an even exposure has 1.
    """
    import torch

    share = counts.double() / counts.sum()
    entropy = -torch.xlogy(share, share).sum() / math.log(2)
    return entropy / math.log2(len(counts)) if normalised else entropy


def user_coverage(lists: RankedLists, k: int) -> Tensor:
    """1 for a user with a list that is not empty, else 0, so that its mean is the share of users served.

    Returns:
        (U,) float64, higher is better; never NaN.
    Raises:
        ValueError: ``k`` exceeds K.
    """
    return lists.top(k).listed.any(1).double()


METRICS = (
    MetricInfo("item_coverage", item_coverage, "+", "items", "sums", {"counts": COUNTS}),
    MetricInfo("gini", gini, "-", "items", "sums", {"counts": COUNTS}),
    MetricInfo("shannon_entropy", shannon_entropy, "+", "items", "sums", {"counts": COUNTS}),
    MetricInfo("gini_exposure", gini, "-", "items", "sums", {"counts": EXPOSURE}),
    MetricInfo("user_coverage", user_coverage, "+", "all"),
)
