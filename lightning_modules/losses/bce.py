"""Binary cross-entropy of each pair: positive or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat

from lightning_modules.losses._base import ScoredPairs, SmoothedConfig, mean_over_cells

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    POINTWISE: ClassVar[bool] = True

    name: str = "bce"
    positive_weight: PositiveFloat = 1.0
    """Weight of a positive pair."""
    negative_weight: NonNegativeFloat = 1.0
    """Weight of a negative pair."""


def loss(
    pairs: ScoredPairs,
    *,
    label_smoothing: float = 0.0,
    rating_weight: bool = False,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
) -> Tensor:
    """Pointwise cross-entropy of ``sigmoid(score)`` (He et al. 2017, "Neural collaborative filtering").

    ``- mean_u sum_i w_ui (y_ui log sigmoid(s_ui) + (1 - y_ui) log(1 - sigmoid(s_ui))) / sum_i w_ui`` over the items
    that are not excluded; ``y`` is 1 for a positive and 0 for a negative, ``w`` the weight of its class. With
    ``label_smoothing`` a, y is ``1 - a/2`` and ``a/2``. A user whose items have no weight (all excluded) contributes
    nothing. ``rating_weight`` multiplies a positive's term but not the denominator.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    scores = pairs.scores.masked_fill(pairs.excluded, 0.0)
    target = pairs.positive.to(scores.dtype) * (1 - label_smoothing) + label_smoothing / 2
    values = binary_cross_entropy_with_logits(scores, target, reduction="none")
    return mean_over_cells(values, pairs, positive_weight, negative_weight, rating_weight)
