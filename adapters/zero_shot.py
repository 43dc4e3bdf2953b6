"""Zero-shot: nothing is trained; the pretrained backbone's embeddings rank items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig

if TYPE_CHECKING:
    from torch import nn


class Config(AdapterConfig):
    trains_backbone: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False

    method: str = "zero_shot"


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return ``backbone`` with every parameter frozen."""
    return backbone.requires_grad_(False)
