"""LoRA: a low-rank update beside each chosen linear layer (Hu et al. 2022), by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from adapters._base import AdapterConfig

if TYPE_CHECKING:
    from torch import nn


class Config(AdapterConfig):
    method: str = "lora"
    rank: PositiveInt = 8
    """Rank r of the update B @ A; 8 is PEFT's default."""
    alpha: PositiveFloat = 16
    """The update is scaled by alpha / rank; 16 is the LoRA paper's repository's and TALLRec's value."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is PEFT's default."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers: all of them (QLoRA's finding, Dettmers et al. 2023), or last parts of names."""


def attach(backbone: nn.Module, config: Config, total_steps: int) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: ``target_modules`` match nothing.
    """
    from peft import LoraConfig, get_peft_model

    from adapters._targets import resolve

    return get_peft_model(
        backbone,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=resolve(backbone, config.target_modules),
        ),
    )
