"""BitFit in PEFT's layout; importing this registers the type ``BITFIT`` with PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from adapters._peft_types import AddedLayer, NamedTargetsConfig, NamedTargetsTuner, register

PEFT_TYPE = "BITFIT"


@dataclass
class BitFitConfig(NamedTargetsConfig):
    """PEFT config that rebuilds learnt biases on their backbone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BitFitLayer(AddedLayer):
    """A module that adds its bias last, with the learnt change of that bias: ``base(x) + delta``.

    ``delta`` starts at zero and is float32 whatever the base layer's dtype is.
    """

    adapter_layer_names = ("bitfit_delta",)
    bias: nn.Parameter  # PEFT's property: the base layer's

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_delta = nn.ParameterDict()
        self._unmerged_bias: Tensor | None = None

    def add_adapter(self, name: str, config: BitFitConfig, current_key: str, model: nn.Module) -> None:
        if getattr(self.get_base_layer(), "bias", None) is None:
            raise ValueError(f"target_modules has {current_key}, which has no bias; leave it out.")
        self.update_layer(name)

    def update_layer(self, name: str) -> None:
        """Add the adapter ``name``."""
        self.bitfit_delta[name] = nn.Parameter(torch.zeros(self.bias.shape, dtype=torch.float32))
        self._move_adapter_to_device_of_base_layer(name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.bitfit_delta:
                y = (y + self.bitfit_delta[name]).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the changes to the base layer's own bias; a quantised layer works too, as its bias is not quantised.

        Args:
            safe_merge: raise an error if the sum is not finite.
            adapter_names: adapters to merge; None is the active ones.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bitfit_delta:
                continue
            bias = self.bias
            merged = (bias + self.bitfit_delta[name]).to(bias.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"the bias merged with the adapter {name} is not finite; the adapter is broken.")
            if not self.merged:
                self._unmerged_bias = bias.detach().clone()  # subtracting would leave rounding behind
            bias.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the base layer's original bias."""
        if self._unmerged_bias is not None:
            self.bias.data = self._unmerged_bias.to(self.bias.device, self.bias.dtype)
        self._unmerged_bias = None
        self.merged_adapters.clear()


class BitFitModel(NamedTargetsTuner):
    """PEFT's model of a backbone with learnt biases."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer


register(PEFT_TYPE, BitFitConfig, BitFitModel)
