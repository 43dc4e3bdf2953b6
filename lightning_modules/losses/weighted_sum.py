"""Weighted sum of several losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, SerializeAsAny, field_validator

from datamodules._groups import GroupConfig
from lightning_modules.losses._base import LevelLogits, LossConfig, ScoredPairs
from lightning_modules.losses.listwise_softmax import Config as ListwiseSoftmaxConfig
from recpeft import plugins
from recpeft.config import Config as BaseConfig
from recpeft.validation import build_plugin

if TYPE_CHECKING:
    from torch import Tensor


class Part(BaseConfig):
    weight: PositiveFloat = 1.0
    """Factor of the loss."""
    loss: SerializeAsAny[LossConfig]
    """Loss with its options, such as {name: bpr}."""


class Config(LossConfig):
    name: str = "weighted_sum"
    parts: tuple[Part, ...] = Field(default=(Part(loss=ListwiseSoftmaxConfig()),), min_length=1)
    """Such as ``[{weight: 1.0, loss: {name: bpr}}, {weight: 0.3, loss: {name: mse}}]``; default: listwise softmax."""

    @field_validator("parts", mode="before")
    @classmethod
    def _losses_are_plugins(cls, value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        return [
            {
                **part,
                "loss": build_plugin("lightning_modules.losses", "name", part["loss"], f"loss.parts.{place}.loss"),
            }
            if isinstance(part, Mapping) and "loss" in part
            else part
            for place, part in enumerate(value)
        ]

    @property
    def pointwise(self) -> bool:
        """Return whether any part is pointwise."""
        return any(part.loss.pointwise for part in self.parts)

    @property
    def user_groups(self) -> tuple[GroupConfig, ...]:
        """Return the groupings that any part reads."""
        return tuple(dict.fromkeys(group for part in self.parts for group in part.loss.user_groups))

    def refusal(self, formulation: str, logits: LevelLogits | None) -> str | None:
        """Return the first refusal of a part; None if there is none."""
        found = (part.loss.refusal(formulation, logits) for part in self.parts)
        return next((clause for clause in found if clause is not None), None)


def loss(pairs: ScoredPairs, *, parts: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return ``sum_k weight_k * loss_k(pairs)``; each loss leaves out users without a training signal.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
        parts: each with a ``weight`` and a ``loss``, the name of a loss and its options.
    Returns:
        () float32.
    """
    values = []
    for part in parts:
        options = dict(part["loss"])
        plugin = plugins.load("lightning_modules.losses", options.pop("name"))
        values.append(part["weight"] * plugin.loss(pairs, **options))
    return sum(values[1:], start=values[0])
