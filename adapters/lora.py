"""LoRA: a low-rank update beside each chosen linear layer (Hu et al. 2022), by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveFloat

from adapters._base import LinearTargetsConfig
from recpeft.config import Dimension

if TYPE_CHECKING:
    from torch import nn


class Config(LinearTargetsConfig):
    can_merge: ClassVar[bool] = True

    method: str = "lora"
    rank: Dimension = 8
    """Rank r of the update B @ A; 8 is PEFT's default."""
    alpha: PositiveFloat = 16
    """Scale of the update, alpha / rank; 16 is the value of the LoRA paper's repository and of TALLRec."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is PEFT's default."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that higher ranks do not learn more slowly (Kalajdzievski 2023)."""
    dora: bool = False
    """Learn the magnitude of each weight row apart from its direction (DoRA, Liu et al. 2024)."""
    loraplus_ratio: PositiveFloat = 1.0
    """Ratio of B's learning rate to A's (LoRA+, Hayou et al. 2024, who recommend about 16); 1 is plain LoRA."""


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if ``target_modules`` or ``last_layers`` match nothing."""
    from adapters._targets import resolve

    resolve(backbone, config.target_modules, config.last_layers)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
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
            target_modules=resolve(backbone, config.target_modules, config.last_layers),
            use_rslora=config.rslora,
            use_dora=config.dora,
        ),
    )


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the adapted layers."""
    from adapters._targets import adapted_names

    return {"target_modules": adapted_names(model)}


def param_groups(model: nn.Module, config: Config, learning_rate: float) -> list[dict[str, Any]]:
    """Return the groups of LoRA+: B's learning rate is ``loraplus_ratio`` times that of A and DoRA's magnitudes."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if config.loraplus_ratio == 1:
        return [{"params": list(trained.values()), "lr": learning_rate}]
    up = [parameter for name, parameter in trained.items() if ".lora_B." in name]
    others = [parameter for name, parameter in trained.items() if ".lora_B." not in name]
    return [{"params": others, "lr": learning_rate}, {"params": up, "lr": learning_rate * config.loraplus_ratio}]
