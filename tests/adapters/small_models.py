"""Small random backbones of the families that every method is tried on, and two texts for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)

SMALL: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GATED: dict[str, Any] = SMALL | SPECIAL | {"num_key_value_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(**SMALL, intermediate_size=24)),
    "gpt2": lambda: GPT2Model(GPT2Config(**SMALL, **SPECIAL)),
    "llama": lambda: LlamaModel(LlamaConfig(**GATED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GATED, head_dim=4)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**GATED, head_dim=4)),
}
IDS = torch.tensor([[2, 10, 8, 3, 0], [2, 11, 9, 10, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def states(model: nn.Module) -> Tensor:
    """Hidden states of the two texts, (2, 5, hidden)."""
    result: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return result
