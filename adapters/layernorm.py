"""LN tuning: only the normalisation layers are trained (Zhao et al. 2024), by PEFT.

This covers all LayerNorm and RMSNorm layers, including those of queries and keys. A trained copy replaces each of them;
PEFT saves the copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class Config(AdapterConfig):
    can_merge: ClassVar[bool] = True

    method: str = "layernorm"


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if there is no normalisation layer with weights."""
    _targets(backbone)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: as ``check``.
    """
    import warnings

    from peft import LNTuningConfig, get_peft_model
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    targets = _targets(backbone)
    with warnings.catch_warnings():
        # PEFT reads each layer's number of inputs, which norms lack and LN tuning does not need.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        model = get_peft_model(backbone, LNTuningConfig(target_modules=targets))
    for module in model.modules():
        if isinstance(module, LNTuningLayer):
            _learn_in_float32(module.ln_tuning_layers["default"])
    return model


def load(backbone: nn.Module, config: Config, folder: Path) -> nn.Module:
    """Return ``backbone`` with the norms that PEFT saved in ``folder``, frozen.

    They stay float32; PEFT's own loading would round them to the backbone's dtype.
    """
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    model = attach(backbone, config, 1)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    return model.requires_grad_(False)


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the trained layers."""
    from adapters._targets import adapted_names

    return {"target_modules": adapted_names(model)}


def _targets(backbone: nn.Module) -> list[str]:
    """Return the full names of the normalisation layers that have parameters."""
    from adapters._targets import norm_names

    modules = dict(backbone.named_modules())
    found = [name for name in norm_names(backbone) if any(True for _ in modules[name].parameters())]
    if not found:
        raise RecpeftError(
            f"adapter.method is layernorm but {type(backbone).__name__} has no normalisation layer with weights; "
            "choose another method, such as lora or ia3."
        )
    return found


def _learn_in_float32(norm: nn.Module) -> None:
    """Keep a half-precision norm's weights in float32: near 1, bfloat16's spacing is wider than most updates."""
    import torch

    dtype = next(norm.parameters()).dtype
    if dtype == torch.float32:
        return

    def widen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].float(), *inputs[1:])

    def narrow(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    norm.float()
    norm.register_forward_pre_hook(widen)
    norm.register_forward_hook(narrow)
