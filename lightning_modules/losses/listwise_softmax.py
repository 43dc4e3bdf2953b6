"""Listwise softmax over the items of a batch, with several positives a user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.losses._base import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


class Config(LossConfig):
    name: str = "listwise_softmax"
    logq: bool = True
    """Correct for items being drawn into the batch by their popularity (Yi et al. 2019)."""


def loss(scores: Tensor, positive: Tensor, excluded: Tensor, log_q: Tensor, *, logq: bool = True) -> Tensor:
    """Cross-entropy between the softmax over the batch's items and the user's positives, shared equally.

    ``- mean_u mean_{p in P_u} log( exp(z_up) / sum_{i not excluded} exp(z_ui) )`` with
    ``z = s - log q`` (Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item
    recommendations") when ``logq``, else ``z = s``.

    Args:
        scores: (U, I) float32.
        positive: (U, I) bool, at least one a row.
        excluded: (U, I) bool, the user's other known positives: neither target nor negative.
        log_q: (I,) log of the share of draws that fall on the item.
    Returns:
        () float32.
    """
    logits = scores - log_q if logq else scores
    logits = logits.masked_fill(excluded, float("-inf"))
    # An excluded cell is never a target, so its -inf is cut before the product with 0.
    log_share = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    return -(log_share.sum(dim=1) / positive.sum(dim=1)).mean()
