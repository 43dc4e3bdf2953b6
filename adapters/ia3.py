"""(IA)³: learned scales of keys, values and the feed-forward sub-layer's inner activations (Liu et al. 2022), by PEFT.

If one linear layer computes queries, keys and values, its whole output is scaled, as PEFT does for GPT-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from adapters._base import AdapterConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn

VECTORS = ("ia3_l",)
"""Scales, which PEFT stores as (n, 1) or (1, n); weight decay is for matrices only."""


class Config(AdapterConfig):
    can_merge: ClassVar[bool] = True

    method: str = "ia3"
    last_layers: PositiveInt | None = None
    """Number of topmost transformer layers to adapt; null is all."""


_KEYS_AND_VALUES = frozenset({"key", "value", "key_proj", "value_proj", "k_proj", "v_proj", "k_lin", "v_lin", "k", "v"})
"""Names in transformers' architectures of the layers that compute keys or values."""

_FUSED = frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "in_proj"})
"""Names of layers that compute queries, keys and values together."""


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if keys, values or the feed-forward sub-layers cannot be found."""
    _targets(backbone, config)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; all scales start at 1.

    Raises:
        RecpeftError: as ``check``.
    """
    from peft import IA3Config, get_peft_model

    attention, feed_forward = _targets(backbone, config)
    return get_peft_model(
        backbone, IA3Config(target_modules=[*attention, *feed_forward], feedforward_modules=feed_forward)
    )


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the layers whose outputs are scaled, and of those whose inputs are scaled."""
    from adapters._targets import adapted_names

    modules = dict(model.named_modules())
    names = adapted_names(model)
    feed_forward = [name for name in names if modules[f"base_model.model.{name}"].is_feedforward]
    return {
        "target_modules": [name for name in names if name not in feed_forward],
        "feedforward_modules": feed_forward,
    }


def _targets(backbone: nn.Module, config: Config) -> tuple[list[str], list[str]]:
    """Return the full names of the layers that compute keys and values, and of the feed-forward output layers."""
    from adapters._targets import blocks, in_last_layers, resolve

    feed_forward = [block.feed_forward_output for block in blocks(backbone)]
    linear = resolve(backbone, "attention")
    kinds = {name.rpartition(".")[2] for name in linear}
    wanted = kinds & _KEYS_AND_VALUES or kinds & _FUSED
    if not wanted:
        raise RecpeftError(
            f"adapter.method is ia3 but no layer of {type(backbone).__name__} is known to give keys or values; its "
            f"attention has {', '.join(sorted(kinds))}; name the layers by adapter.method: peft_method with "
            "peft_type: ia3 and the arguments target_modules and feedforward_modules."
        )
    attention = [name for name in linear if name.rpartition(".")[2] in wanted]
    if config.last_layers is not None:
        attention = in_last_layers(backbone, attention, config.last_layers)
        feed_forward = in_last_layers(backbone, feed_forward, config.last_layers)
    return attention, feed_forward
