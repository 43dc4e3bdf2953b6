"""Bottleneck adapters in PEFT's layout; importing this registers the type ``BOTTLENECK`` with PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from adapters._peft_types import AddedLayer, NamedTargetsConfig, NamedTargetsTuner, register
from adapters._targets import shape
from recpeft.errors import RecpeftError

PEFT_TYPE = "BOTTLENECK"

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}

_NO_MERGE = (
    "a bottleneck adapter is not linear, so it cannot be merged into the backbone's weights; save it with "
    "save_pretrained and load it with peft.PeftModel.from_pretrained."
)


@dataclass
class BottleneckConfig(NamedTargetsConfig):
    """PEFT config that rebuilds a bottleneck adapter on its backbone."""

    placement: str = field(default="pfeiffer", metadata={"help": "houlsby, pfeiffer (both sequential) or parallel."})
    bottleneck_dim: int = field(default=48, metadata={"help": "Rows of the projection down."})
    activation: str = field(default="relu", metadata={"help": f"One of {', '.join(ACTIVATIONS)}."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout between activation and projection up."})
    scale: float = field(default=1.0, metadata={"help": "Factor of what the adapter adds."})
    feed_forward_inputs: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "Parallel: each target module to the linear layer that its sub-layer begins with."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name, value, allowed in (
            ("placement", self.placement, ("houlsby", "pfeiffer", "parallel")),
            ("activation", self.activation, tuple(ACTIVATIONS)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}.")
        wanted = set(self.target_modules or ()) if self.placement == "parallel" else set()
        if set(self.feed_forward_inputs) != wanted:
            raise ValueError(
                f"placement is {self.placement} but feed_forward_inputs has {len(self.feed_forward_inputs)} entries "
                f"where {len(wanted)} are needed; give one for each target module if parallel, else none."
            )


class BottleneckLayer(AddedLayer):
    """The last linear layer of a sub-layer, and its adapters.

    With ``f(h) = scale * up(dropout(activation(down(h))))`` and ``y = base(x)``: sequential is ``y + f(y)``, parallel
    is ``y + f(h)`` where ``h`` is the sub-layer's input. ``up`` starts at zero, so the layer starts as its base layer;
    ``down`` starts as LoRA's A does (He et al. 2022's "lora" initialisation). Adapters compute in float32 whatever
    the base layer's dtype is; several active adapters are applied in turn, each to the output of the one before.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_activation", "bottleneck_scale", "bottleneck_parallel")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_activation: dict[str, str] = {}
        self.bottleneck_scale: dict[str, float] = {}
        self.bottleneck_parallel: dict[str, bool] = {}
        self._sub_layer_input: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def add_adapter(self, name: str, config: BottleneckConfig, current_key: str, model: nn.Module) -> None:
        self.update_layer(name, config.bottleneck_dim, config.activation, config.dropout, config.scale)
        if config.placement == "parallel":
            begin = config.feed_forward_inputs[current_key]
            self.watch(name, model.get_submodule(begin), model.get_submodule(_common_parent(begin, current_key)))

    def update_layer(self, name: str, bottleneck_dim: int, activation: str, dropout: float, scale: float) -> None:
        """Add the adapter ``name``, sequential until ``watch`` makes it parallel."""
        hidden_size = shape(self.get_base_layer())[1]  # also the size of the sub-layer's input
        down = nn.Linear(hidden_size, bottleneck_dim, dtype=torch.float32)
        up = nn.Linear(bottleneck_dim, hidden_size, dtype=torch.float32)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[name] = down
        self.bottleneck_up[name] = up
        self.bottleneck_dropout[name] = nn.Dropout(dropout)
        self.bottleneck_activation[name] = activation
        self.bottleneck_scale[name] = scale
        self.bottleneck_parallel[name] = False
        self._move_adapter_to_device_of_base_layer(name)

    def watch(self, name: str, begin: nn.Module, sub_layer: nn.Module) -> None:
        """Make the adapter ``name`` parallel to the sub-layer that starts with ``begin``.

        Args:
            begin: the linear layer whose input is the sub-layer's.
            sub_layer: a module whose forward calls both ``begin`` and this layer.
        """
        self.bottleneck_parallel[name] = True
        if not self._handles:
            # Methods, not closures: copy.deepcopy rebinds a method to the copy of its object.
            self._handles = [
                begin.register_forward_pre_hook(self._remember, with_kwargs=True),
                # Also after an exception, so that a later forward does not use a stale input.
                sub_layer.register_forward_hook(self._forget, always_call=True),
            ]

    def _active(self) -> list[str]:
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.bottleneck_down]

    def _remember(self, begin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._sub_layer_input = args[0] if args else next(iter(kwargs.values()))

    def _forget(self, sub_layer: nn.Module, args: Any, output: Any) -> None:
        self._sub_layer_input = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        sub_layer_input, self._sub_layer_input = self._sub_layer_input, None
        for name in self._active():
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            assert isinstance(down, nn.Linear)
            h = y
            if self.bottleneck_parallel[name]:
                if sub_layer_input is None or sub_layer_input.shape[:-1] != x.shape[:-1]:
                    raise RuntimeError(
                        "a parallel adapter has not seen the input of its feed-forward sub-layer in this forward pass; "
                        "call the whole sub-layer, not its last layer alone."
                    )
                h = sub_layer_input
            h = ACTIVATIONS[self.bottleneck_activation[name]](down(h.to(down.weight.dtype)))  # (..., bottleneck_dim)
            y = (y + self.bottleneck_scale[name] * up(self.bottleneck_dropout[name](h))).to(y.dtype)
        return y

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        if not any(self.bottleneck_parallel.values()):
            self._unwatch()

    def _unwatch(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise RecpeftError(_NO_MERGE)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the original base layer; PEFT calls this on layers that leave more behind than themselves: hooks."""
        if merge:
            self.merge(safe_merge, adapter_names)
        self._unwatch()
        return self.get_base_layer()


class BottleneckModel(NamedTargetsTuner):
    """PEFT's model of a backbone with bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer


def _common_parent(one: str, other: str) -> str:
    parts = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)


register(PEFT_TYPE, BottleneckConfig, BottleneckModel)
