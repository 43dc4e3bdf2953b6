"""Binary cross-entropy of levels: for each level, whether a pair's rating reaches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat

from lightning_modules.losses._base import (
    LevelKind,
    LevelsConfig,
    ScoredPairs,
    level_logits,
    level_places,
    level_weights,
    weighted_mean,
)

if TYPE_CHECKING:
    from torch import Tensor


class Config(LevelsConfig):
    KIND: ClassVar[LevelKind] = "labels"
    WEIGHTS: ClassVar[str] = "label_weights"

    name: str = "level_bce"
    label_weights: tuple[PositiveFloat, ...] | None = None
    """Weight for each of formulation.levels except the lowest, such as more for the step from disliked to liked; null
    is 1 for all."""


def loss(pairs: ScoredPairs, *, label_weights: tuple[float, ...] | None = None, negative_weight: float = 1.0) -> Tensor:
    """Cross-entropy of each question "is the rating at least this level?" (multi-label; Frank & Hall 2001, "A simple
    approach to ordinal classification"; trained jointly as in Cheng et al. 2008, "A neural network approach to ordinal
    regression").

    ``- mean_u sum_i n_ui m_ui / sum_i n_ui`` over the items that are not excluded, with
    ``m = sum_k w_k (y_k log sigmoid(z_k) + (1 - y_k) log(1 - sigmoid(z_k))) / sum_k w_k`` over the labels; ``y_k``
    is 1 if the pair's level (see ``level_places``) is at least the label's, ``w`` the label's weight, and ``n`` 1, or
    ``negative_weight`` for a pair that is neither rated nor positive. A user whose items have no weight contributes
    nothing.

    Args:
        pairs: (U, C), with logits of labels; see ``ScoredPairs``.
    Returns:
        () float32.
    Raises:
        RecpeftError: the formulation gives no such logits.
    """
    from torch import arange
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits, level = level_logits(pairs, "level_bce", "labels"), level_places(pairs)
    # Label k asks whether level k + 1 is reached.
    reached = level.unsqueeze(-1) > arange(logits.shape[-1], device=logits.device)
    values = binary_cross_entropy_with_logits(logits, reached.to(logits.dtype), reduction="none")
    of_labels = logits.new_ones(logits.shape[-1]) if label_weights is None else logits.new_tensor(label_weights)
    weight = level_weights(pairs, negative_weight)
    return weighted_mean((values @ of_labels / of_labels.sum()) * weight, weight)
