"""The control: the backbone stays as it is and only the formulation's head is trained.

What an adapter adds is its row minus this one; what a bias and a temperature add is this row minus zero-shot.
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
    """Return ``backbone`` with every parameter fixed."""
    return backbone.requires_grad_(False)
