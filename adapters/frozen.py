"""The control: the backbone is frozen and only the formulation's head is trained.

An adapter's contribution is its row minus this one; that of bias and temperature is this row minus zero-shot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig

if TYPE_CHECKING:
    from torch import nn


class Config(AdapterConfig):
    trains_backbone: ClassVar[bool] = False

    method: str = "frozen"


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return ``backbone`` with every parameter frozen."""
    return backbone.requires_grad_(False)
