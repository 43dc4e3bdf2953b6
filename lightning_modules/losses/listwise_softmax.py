"""Listwise softmax over the items of a batch, with several positives per user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.losses._base import ScoredPairs, SmoothedConfig, mean_over_positives

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    name: str = "listwise_softmax"
    logq: bool = True
    """Correct for the sampling of items into the batch by popularity (Yi et al. 2019)."""


def loss(pairs: ScoredPairs, *, logq: bool = True, label_smoothing: float = 0.0, rating_weight: bool = False) -> Tensor:
    """Cross-entropy between the softmax over the batch's items and a uniform target over the user's positives.

    ``- mean_u mean_{p in P_u} log( exp(z_up) / sum_{i not excluded} exp(z_ui) )`` with
    ``z = s - log q`` (Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item
    recommendations") when ``logq``, else ``z = s``. A user without positives contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
        label_smoothing: share spread over all the user's items that are not excluded.
    Returns:
        () float32.
    """
    from torch import finfo

    logits = pairs.scores - pairs.log_q if logq else pairs.scores
    # The lowest finite number instead of -inf: its softmax is also 0, and a fully excluded row gives no NaN.
    logits = logits.masked_fill(pairs.excluded, finfo(logits.dtype).min)
    # An excluded cell is never a target.
    values = -logits.log_softmax(dim=1).masked_fill(pairs.excluded, 0.0)
    if label_smoothing:
        mean = values.sum(dim=1, keepdim=True) / (~pairs.excluded).sum(dim=1, keepdim=True).clamp(min=1)
        values = (1 - label_smoothing) * values + label_smoothing * mean
    return mean_over_positives(values, pairs, rating_weight, needs_negatives=False)
