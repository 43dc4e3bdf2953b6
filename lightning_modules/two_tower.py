"""Two towers: user text and item text through the same adapted backbone, scored by cosine.

Reimers & Gurevych 2019 for the shared encoder with mean pooling; the class is in ``_two_tower_impl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveFloat

from lightning_modules._formulation import FormulationConfig

if TYPE_CHECKING:
    from torch import nn

    from lightning_modules._rec_module import RecModule


class Config(FormulationConfig):
    name: str = "two_tower"
    score: Literal["cosine"] = "cosine"
    """How two embeddings give a score."""
    pooling: Literal["mean"] = "mean"
    """How token states give an embedding: the mean over the text's tokens."""
    temperature: PositiveFloat = 0.05
    """Where the learned temperature starts: a score is cosine / temperature; 0.05 is SimCSE's (Gao et al. 2021)."""
    item_bias: bool = False
    """Learn a number for each item, added to its score. It can learn popularity without reading any text."""


def build(backbone: nn.Module, config: Config, *, num_items: int, hidden_size: int, **training: Any) -> RecModule:
    """The formulation's module around ``backbone``; ``training`` goes to ``TwoTower``."""
    from lightning_modules._two_tower_impl import TwoTower

    return TwoTower(
        backbone, num_items=num_items, temperature=config.temperature, item_bias=config.item_bias, **training
    )
