"""Pool a text's token states into one vector: states (n, L, H) and mask (n, L) to (n, H) float32.

The mask is 1 on text and 0 on padding, which may be on either side and is ignored. A row without text has no vector:
``mean`` and ``weighted`` give NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pooling = Callable[[Tensor, Tensor], Tensor]
"""(states (n, L, H), mask (n, L)) -> (n, H) float32."""


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the text's tokens (Reimers & Gurevych 2019)."""
    mask = mask.unsqueeze(-1)
    # Sums in half precision would lose the end of a long text.
    return (states.float() * mask).sum(dim=1) / mask.sum(dim=1)


def first(states: Tensor, mask: Tensor) -> Tensor:
    """Return the state of the text's first token: BERT's [CLS] (Devlin et al. 2019)."""
    # argmax returns the first of equal maxima.
    return _at(states, mask.long().argmax(dim=1))


def last(states: Tensor, mask: Tensor) -> Tensor:
    """Return the last token's state; in a causal decoder it has seen all others (Neelakantan et al. 2022)."""
    # The cumulative count reaches its maximum at the last token.
    return _at(states, mask.long().cumsum(dim=1).argmax(dim=1))


def weighted(states: Tensor, mask: Tensor) -> Tensor:
    """Return ``sum_i i * state_i / sum_i i`` over the text's tokens i = 1, 2, … (SGPT, Muennighoff 2022).

    A causal decoder's later tokens have seen more of the text.
    """
    position = mask.long().cumsum(dim=1) * mask  # (n, L): counted from the text's own start, 0 on padding
    weight = position / position.sum(dim=1, keepdim=True)
    return (states.float() * weight.unsqueeze(-1)).sum(dim=1)


def _at(states: Tensor, place: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), place].float()


POOLINGS: dict[str, Pooling] = {"mean": mean, "first": first, "last": last, "weighted": weighted}
"""Pooling function for each value of ``formulation.pooling``."""
