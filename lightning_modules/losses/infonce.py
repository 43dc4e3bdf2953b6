"""InfoNCE: which of the batch's items is the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from lightning_modules.losses._base import ScoredPairs, SmoothedConfig, contrast

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    name: str = "infonce"
    temperature: PositiveFloat = 1.0
    """What scores are divided by; 1 as the two-tower's scores already have a temperature of their own."""


def loss(
    pairs: ScoredPairs, *, temperature: float = 1.0, label_smoothing: float = 0.0, rating_weight: bool = False
) -> Tensor:
    """Contrast of one positive at a time with the negatives (van den Oord et al. 2018, "Representation learning with
    contrastive predictive coding").

    ``- mean_u mean_{p in P_u} log( exp(s_up / t) / (exp(s_up / t) + sum_{n in N_u} exp(s_un / t)) )`` with
    temperature ``t``; how often an item is drawn has no part in it. A user without positives or without negatives
    contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
        label_smoothing: spread over the positive and the negatives.
    Returns:
        () float32.
    """
    return contrast(pairs.scores / temperature, pairs, label_smoothing, rating_weight)
