"""Base classes of methods that PEFT lacks and recpeft implements in PEFT's layout (config, layer, model).

Such a method's ``peft_type`` is a plain string in PEFT's mappings, and its target modules are full names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from recpeft.errors import RecpeftError


@dataclass
class NamedTargetsConfig(PeftConfig):
    """A PEFT config whose ``target_modules`` are full names, matched exactly and kept in their order.

    PEFT treats names as suffixes and shortens lists of 20 and more to suffixes, which fit the present model but may
    match other modules of another model; it leaves a tuple unchanged.
    """

    target_modules: Iterable[str] | None = field(
        default=None, metadata={"help": "Full names of the modules to adapt; no suffixes and no pattern."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, str):
            raise ValueError(f"target_modules is {self.target_modules!r}; give a list of full module names.")
        if self.target_modules is not None:
            self.target_modules = tuple(self.target_modules)


class AddedLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone together with adapters that add to its output."""

    # PEFT's attributes, declared for the type checker, which would take them for nn.Module's parameters.
    adapter_layer_names: tuple[str, ...]
    active_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []

    def add_adapter(self, name: str, config: Any, current_key: str, model: nn.Module) -> None:
        """Add the weights of the adapter ``name`` to this layer, which is ``current_key`` in ``model``."""
        raise NotImplementedError

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the adapter as PEFT does, but keep the weights float32: PEFT rounds them to the base layer's dtype."""
        target = device or next(self.get_base_layer().parameters()).device
        for attribute in self.adapter_layer_names:
            weights = getattr(self, attribute)
            if adapter_name not in weights or any(parameter.is_meta for parameter in weights.parameters()):
                continue  # PEFT's low_cpu_mem_usage: the values are loaded later
            one = weights[adapter_name]
            if isinstance(one, nn.Parameter):
                if one.device != target:
                    weights[adapter_name] = nn.Parameter(one.detach().to(target), one.requires_grad)
            else:
                one.to(target)


class NamedTargetsTuner(BaseTuner):
    """A PEFT model whose targets are full names; ``tuner_layer_cls`` is an ``AddedLayer``."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (PEFT's declaration)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return key in peft_config.target_modules

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Refuse another backbone: PEFT raises an error only if all targets are missing; else it drops weights."""
        names = {name for name, _ in model.named_modules()}
        missing = [name for name in peft_config.target_modules if name not in names]
        if missing:
            raise RecpeftError(
                f"the adapter belongs to {len(peft_config.target_modules)} modules but {type(model).__name__} lacks "
                f"{len(missing)} of them, such as {missing[0]}; give the backbone that the adapter was trained on."
            )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, self.tuner_layer_cls) else self.tuner_layer_cls(target)
        layer.add_adapter(adapter_name, peft_config, current_key, self.model)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)


def register(peft_type: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register ``peft_type`` with PEFT, as ``peft.utils.register_peft_method`` does for the names of its enum.

    Raises:
        RuntimeError: PEFT has another method of that name or prefix.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type, config)
    taken = {key for key, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items() if prefix == tuner.prefix} - {peft_type}
    if known.__module__ != config.__module__ or taken:  # the same module again is a reload
        raise RuntimeError(f"PEFT has a method {peft_type} or a prefix {tuner.prefix} of its own; use peft 0.21.")
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = tuner.prefix
