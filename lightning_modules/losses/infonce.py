"""InfoNCE: identify the user's item among the batch's items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from lightning_modules.losses._base import ScoredPairs, SmoothedConfig, contrast

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    name: str = "infonce"
    temperature: PositiveFloat = 1.0
    """Divisor of the scores; 1, as the two-tower's scores already have their own temperature."""


def loss(
    pairs: ScoredPairs, *, temperature: float = 1.0, label_smoothing: float = 0.0, rating_weight: bool = False
) -> Tensor:
    """Contrast of one positive at a time with the negatives (van den Oord et al. 2018, "Representation learning with
    contrastive predictive coding").

    ``- mean_u mean_{p in P_u} log( exp(s_up / t) / (exp(s_up / t) + sum_{n in N_u} exp(s_un / t)) )`` with
    temperature ``t``; there is no correction for sampling frequency. A user without positives or without negatives
    contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
        label_smoothing: spread over the positive and the negatives.
    Returns:
        () float32.
    """
    return contrast(pairs.scores / temperature, pairs, label_smoothing, rating_weight)
