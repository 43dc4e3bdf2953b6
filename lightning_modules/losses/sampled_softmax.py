"""Sampled softmax: each positive against the negatives only, corrected for their sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.losses._base import ScoredPairs, SmoothedConfig, contrast

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    name: str = "sampled_softmax"
    logq: bool = True
    """Correct for the sampling of items into the batch by popularity (Yi et al. 2019)."""


def loss(pairs: ScoredPairs, *, logq: bool = True, label_smoothing: float = 0.0, rating_weight: bool = False) -> Tensor:
    """Softmax over a positive and the batch's sample of negatives, not the catalogue (Jean et al. 2015, "On
    using very large target vocabulary for neural machine translation").

    ``- mean_u mean_{p in P_u} log( exp(z_up) / (exp(z_up) + sum_{n in N_u} exp(z_un)) )`` with ``z = s - log q`` (Yi
    et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations") when ``logq``, else
    ``z = s``. Unlike in the listwise softmax, a user's positives do not compete with each other. A user without
    positives or without negatives contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
        label_smoothing: share spread over the positive and the negatives.
    Returns:
        () float32.
    """
    logits = pairs.scores - pairs.log_q if logq else pairs.scores
    return contrast(logits, pairs, label_smoothing, rating_weight)
