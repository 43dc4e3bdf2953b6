"""Sums of lists into vectors over the catalogue, the inputs of coverage, exposure and inter-list diversity.

Each function takes lists cut at ``k`` and returns (I,), to be summed over batches and processes before any nonlinear
step. Padding adds nothing; an empty list adds nothing. Functions raise ValueError where ``k`` exceeds K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metrics._info import Summed, same
from metrics._weights import log_discount

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def counts(lists: RankedLists, k: int, num_items: int) -> Tensor:
    """Return (I,) int64: number of lists that hold each item."""
    import torch

    # Padding is counted too, in front.
    return torch.bincount(lists.top(k).item.flatten() + 1, minlength=num_items + 1)[1:]


def hits(lists: RankedLists, k: int, num_items: int) -> Tensor:
    """Return (I,) int64: number of lists that hold the item for a user to whom it is relevant."""
    import torch

    top = lists.top(k)
    return torch.bincount(top.item[top.hit], minlength=num_items)


def exposure(lists: RankedLists, k: int, num_items: int) -> Tensor:
    """Return (I,) float64: sum of 1 / log2(rank + 1) over the lists with the item; Singh & Joachims 2018."""
    top = lists.top(k)
    return _weighted(top, log_discount(k, top.item.device).expand(top.item.shape), num_items)


def cosine_weights(lists: RankedLists, k: int, num_items: int) -> Tensor:
    """Return (I,) float64: sum of 1 / sqrt(length of the list) over the lists with the item."""
    top = lists.top(k)
    return _weighted(top, top.listed.sum(1, keepdim=True).double().rsqrt().expand(top.item.shape), num_items)


def num_lists(lists: RankedLists, k: int) -> Tensor:
    """Return () int64: number of non-empty lists."""
    return lists.top(k).listed.any(1).sum()


def relevant(lists: RankedLists, num_items: int) -> Tensor:
    """Return (I,) int64: number of users to whom the item is relevant, listed or not.

    Raises:
        ValueError: the lists do not say what is relevant.
    """
    import torch

    if lists.relevant is None:
        raise ValueError("the lists do not say what is relevant; make them with rank() or match().")
    return torch.bincount(lists.relevant[1], minlength=num_items)


def candidates(lists: RankedLists) -> Tensor:
    """Return (I,) int64: number of users in whose list the item could be, as it was not masked.

    Raises:
        ValueError: the lists do not say what could be listed.
    """
    return lists.listable().sum(0)


def _weighted(top: RankedLists, weight: Tensor, num_items: int) -> Tensor:
    import torch

    # Weights of float64 make bincount add in float64; of no lists it makes int64.
    return torch.bincount(top.item[top.listed], weights=weight[top.listed], minlength=num_items).double()


COUNTS = Summed(counts, same("num_items"))
HITS = Summed(hits, same("num_items"))
EXPOSURE = Summed(exposure, same("num_items"))
COSINE_WEIGHTS = Summed(cosine_weights, same("num_items"))
NUM_LISTS = Summed(num_lists)
RELEVANT = Summed(relevant, same("num_items"), at_k=False)
CANDIDATES = Summed(candidates, at_k=False)
