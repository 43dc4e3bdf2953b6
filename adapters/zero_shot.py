"""Nothing is trained: the pretrained backbone's embeddings rank as they are."""

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
    """Return ``backbone`` with every parameter fixed."""
    return backbone.requires_grad_(False)
