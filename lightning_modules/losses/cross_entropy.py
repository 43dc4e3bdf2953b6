"""Cross-entropy over the levels of a pair's rating."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat

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
    KIND: ClassVar[LevelKind] = "classes"
    WEIGHTS: ClassVar[str] = "class_weights"

    name: str = "cross_entropy"
    class_weights: tuple[PositiveFloat, ...] | None = None
    """Weight for each of formulation.levels, such as more for rare ratings; null is 1 for all."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread evenly over the levels (Szegedy et al. 2016); 0 is off."""


def loss(
    pairs: ScoredPairs,
    *,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    negative_weight: float = 1.0,
) -> Tensor:
    """Cross-entropy of the softmax over levels (multi-class), with ratings as classes as in Salakhutdinov et al. 2007,
    "Restricted Boltzmann machines for collaborative filtering".

    ``- mean_u sum_i n_ui w_c log softmax(z_ui)_c / sum_i n_ui w_c`` over the items that are not excluded; ``c`` is
    the pair's level (see ``level_places``), ``w`` its class's weight and ``n`` 1, or ``negative_weight`` for a pair
    that is neither rated nor positive. With ``label_smoothing`` a, ``w_c log softmax(z)_c`` has weight ``1 - a`` and
    its mean over all levels ``a``, as in torch. A user whose items have no weight contributes nothing.

    Args:
        pairs: (U, C), with logits of classes; see ``ScoredPairs``.
    Returns:
        () float32.
    Raises:
        RecpeftError: the formulation gives no such logits.
    """
    from torch.nn.functional import cross_entropy

    logits, level = level_logits(pairs, "cross_entropy", "classes"), level_places(pairs)
    of_classes = logits.new_ones(logits.shape[-1]) if class_weights is None else logits.new_tensor(class_weights)
    values = cross_entropy(
        logits.flatten(0, 1), level.flatten(), of_classes, label_smoothing=label_smoothing, reduction="none"
    )
    weight = level_weights(pairs, negative_weight)
    return weighted_mean(values.view(level.shape) * weight, of_classes[level] * weight)
