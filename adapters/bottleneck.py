"""Bottleneck adapters: a small network added to sub-layers' outputs (Houlsby et al. 2019 and its followers).

``h`` becomes ``h + scale * up(dropout(activation(down(h))))``, in three placements:

- ``houlsby``: after the attention and after the feed-forward sub-layer (Houlsby et al. 2019);
- ``pfeiffer``: after the feed-forward sub-layer only (Pfeiffer et al. 2021);
- ``parallel``: ``ffn(x) + scale * up(dropout(activation(down(x))))``, beside the feed-forward sub-layer and with its
  input (He et al. 2022).

A sequential adapter is right after the sub-layer's last linear layer, so before the residual sum as in Houlsby et
al., but also before a backbone's own dropout (BERT) or norm (Gemma 3) there. As in He et al.'s account, ``pfeiffer``
differs from ``houlsby`` only in the sub-layers; AdapterHub's is after the residual sum and its norm.
The parallel adapter's ``x`` is the input of the feed-forward's first linear layer: in pre-norm backbones the normed
states.

PEFT lacks this method, so it is implemented in PEFT's layout. To load a saved adapter without the rest of recpeft::

    from adapters.bottleneck import BottleneckConfig  # registers the type BOTTLENECK with PEFT
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
"""Statement that registers the method with PEFT."""


class Config(AdapterConfig):
    method: str = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Placement of the adapters: after attention and feed-forward, after feed-forward only (AdapterHub's default), or
    parallel to the feed-forward."""
    bottleneck_dim: Dimension = 48
    """Width of the bottleneck; 48 is AdapterHub's default, hidden_size / 16, for BERT-base."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation between the projections; relu is AdapterHub's default for pfeiffer and He et al.'s for parallel."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the bottleneck; 0 is AdapterHub's default."""
    scale: PositiveFloat = 1.0
    """Factor of an adapter's output; 1 is the sequential adapters' value. He et al. 2022 use 4 for parallel."""
    last_layers: PositiveInt | None = None
    """Number of topmost transformer layers to adapt; null is all."""


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if the bottleneck is wider than the backbone or layers do not have the expected shape."""
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
        RecpeftError: as ``check``.
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
    """Return ``backbone`` with the adapter saved in ``folder``."""
    from peft import PeftModel

    from adapters import _bottleneck_peft  # noqa: F401  (PEFT knows the type from here on)

    return PeftModel.from_pretrained(backbone, str(folder))


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the adapted layers; for ``parallel`` also of those whose input the adapters take."""
    from adapters._targets import adapted_names

    found: dict[str, Any] = {"target_modules": adapted_names(model)}
    if config.placement == "parallel":
        found["feed_forward_inputs"] = list(model.peft_config["default"].feed_forward_inputs.values())  # type: ignore[index, union-attr]
    return found


def _targets(backbone: nn.Module, config: Config) -> dict[str, str]:
    """Map the full name of each layer to adapt to the first linear layer of its transformer layer's feed-forward."""
    from adapters._targets import blocks, in_last_layers

    targets = {}
    for block in blocks(backbone):
        if config.placement == "houlsby":
            targets[block.attention_output] = block.feed_forward_input
        targets[block.feed_forward_output] = block.feed_forward_input
    if config.last_layers is None:
        return targets
    return {name: targets[name] for name in in_last_layers(backbone, list(targets), config.last_layers)}
