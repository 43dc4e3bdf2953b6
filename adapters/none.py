"""No backbone: no text is read, and only the formulation's head is trained.

The contribution of text is another row minus this one. Under ``formulation: {name: sequence, ids: add}`` it is SASRec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig

if TYPE_CHECKING:
    from torch import nn


class Config(AdapterConfig):
    trains_backbone: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    method: str = "none"


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return ``backbone`` with its parameters, if any, frozen."""
    return backbone.requires_grad_(False)
