"""Bottleneck adapters: a small network added to sub-layers' outputs (Houlsby et al. 2019 and its followers).

``h`` becomes ``h + scale * up(dropout(activation(down(h))))``, in three placements:

- ``houlsby``: after the attention and after the feed-forward sub-layer (Houlsby et al. 2019);
- ``pfeiffer``: after the feed-forward sub-layer only (Pfeiffer et al. 2021);
- ``parallel``: ``ffn(x) + scale * up(dropout(activation(down(x))))``, beside the feed-forward sub-layer and with its
  input (He et al. 2022).

A sequential adapter stands right after the sub-layer's last linear layer, so before the residual sum as in Houlsby et
al., but also before a backbone's own dropout there (BERT) or norm (Gemma 3). As in He et al.'s account, ``pfeiffer``
differs from ``houlsby`` in the sub-layers alone; AdapterHub's stands after the residual sum and its norm.
The parallel adapter's ``x`` is what the feed-forward's first linear layer is given: in pre-norm backbones the normed
states.

PEFT has no such method, so it is written in PEFT's layout. To load what was saved without the rest of recpeft::

    from adapters.bottleneck import BottleneckConfig  # PEFT now knows the type BOTTLENECK
    model = peft.PeftModel.from_pretrained(backbone, folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from adapters._base import AdapterConfig
from recpeft import lazy
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn

    from adapters._bottleneck_peft import BottleneckConfig

__all__ = ["BottleneckConfig", "Config", "attach", "check", "describe"]

__getattr__ = lazy.exports(__name__, {"BottleneckConfig": "adapters._bottleneck_peft:BottleneckConfig"})

PEFT_IMPORT = "from adapters.bottleneck import BottleneckConfig"
"""What makes PEFT know the method."""


class Config(AdapterConfig):
    method: str = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Where the adapters stand: after attention and feed-forward, after feed-forward only (AdapterHub's default), or
    beside the feed-forward."""
    bottleneck_dim: Dimension = 48
    """Width of the bottleneck; 48 is AdapterHub's default, hidden_size / 16, for BERT-base."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Between the projections; relu is AdapterHub's default for pfeiffer and He et al.'s choice for parallel."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the bottleneck; 0 is AdapterHub's default."""
    scale: PositiveFloat = 1.0
    """Factor of what an adapter adds; 1 is the sequential adapters' value. He et al. 2022 use 4 for parallel."""
    last_layers: PositiveInt | None = None
    """Only in so many of the topmost transformer layers; null is all."""


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` for a bottleneck that is none, or layers that are not of the expected shape."""
    hidden_size = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
    if config.bottleneck_dim > hidden_size:
        raise RecpeftError(
            f"adapter.bottleneck_dim is {config.bottleneck_dim} but the backbone's hidden_size is {hidden_size}; "
            "choose a smaller bottleneck_dim."
        )
    _targets(backbone, config)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: what ``check`` raises.
    """
    from peft import get_peft_model

    from adapters._bottleneck_peft import BottleneckConfig

    check(backbone, config)
    targets = _targets(backbone, config)
    return get_peft_model(
        backbone,
        BottleneckConfig(
            target_modules=list(targets),
            feed_forward_inputs=targets if config.placement == "parallel" else {},
            **config.model_dump(include={"placement", "bottleneck_dim", "activation", "dropout", "scale"}),
        ),
    )


def load(backbone: nn.Module, config: Config, folder: Path) -> nn.Module:
    """What was saved in ``folder``, on ``backbone``."""
    from peft import PeftModel

    from adapters import _bottleneck_peft  # noqa: F401  (PEFT knows the type from here on)

    return PeftModel.from_pretrained(backbone, str(folder))


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Full names of the adapted layers; for ``parallel`` also of those whose input the adapters take."""
    from adapters._targets import adapted_names

    found: dict[str, Any] = {"target_modules": adapted_names(model)}
    if config.placement == "parallel":
        found["feed_forward_inputs"] = list(model.peft_config["default"].feed_forward_inputs.values())  # type: ignore[index, union-attr]
    return found


def _targets(backbone: nn.Module, config: Config) -> dict[str, str]:
    """Full names of the layers to adapt, each with the first linear layer of its transformer layer's feed-forward."""
    from adapters._targets import blocks, in_last_layers

    targets = {}
    for block in blocks(backbone):
        if config.placement == "houlsby":
            targets[block.attention_output] = block.feed_forward_input
        targets[block.feed_forward_output] = block.feed_forward_input
    if config.last_layers is None:
        return targets
    return {name: targets[name] for name in in_last_layers(backbone, list(targets), config.last_layers)}
