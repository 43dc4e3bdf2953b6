"""Ranks, their discounts, and means over the items of a list."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from metrics._lists import RankedLists


def ranks(k: int, device: torch.device) -> Tensor:
    """Return (k,) float64: 1, 2, …, k."""
    import torch

    return torch.arange(1, k + 1, dtype=torch.float64, device=device)


def log_discount(k: int, device: torch.device) -> Tensor:
    """Return (k,) float64: 1 / log2(rank + 1)."""
    return 1 / (ranks(k, device) + 1).log2()


def at_items(top: RankedLists, values: Tensor) -> Tensor:
    """Return (U, k, ...) float64: ``values`` (I, ...) of the listed items, 0 on padding."""
    import torch

    found = values[top.item.clamp(min=0)].double()
    listed = top.listed
    if listed.all():  # fast path, as most lists are full and features are large
        return found
    return torch.where(listed.reshape(*listed.shape, *[1] * (values.dim() - 1)), found, 0)


def mean_over_list(top: RankedLists, values: Tensor) -> Tensor:
    """Return (U,) float64: mean of ``values`` (I,) over the listed items, NaN for an empty list."""
    return at_items(top, values).sum(1) / top.listed.sum(1)  # 0 / 0 is NaN


def unless_empty(top: RankedLists, values: Tensor) -> Tensor:
    """Return ``values`` (U,), NaN for an empty list."""
    return values.masked_fill(~top.listed.any(1), math.nan)


def inverse_length(vectors: Tensor) -> Tensor:
    """Return 1 / |v| (...) of vectors (..., D); 0 for zero vectors, so that their cosine with anything is 0."""
    import torch

    length = vectors.norm(dim=-1)
    return torch.where(length > 0, 1 / length, 0)
