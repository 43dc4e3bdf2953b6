"""A method with its config: one object that has every hook, also those a plug-in leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters._base import AdapterConfig
from recpeft import plugins

if TYPE_CHECKING:
    from torch import Tensor, nn


class Adapter:
    """What a module asks of its adapter; each method is the plug-in's hook of that name, or does nothing.

    Args:
        config: whose ``method`` names the plug-in.
        plugin: takes the named one's place; any object with ``attach`` and some of the hooks.
    """

    def __init__(self, config: AdapterConfig, plugin: Any = None) -> None:
        self.config = config
        self._plugin = plugin if plugin is not None else plugins.load("adapters", config.method)

    @property
    def peft_import(self) -> str | None:
        """The statement that makes PEFT know the method; None where PEFT has it."""
        statement: str | None = getattr(self._plugin, "PEFT_IMPORT", None)
        return statement

    @property
    def reads_gradients(self) -> bool:
        """Whether the method looks at the gradients of each step."""
        return hasattr(self._plugin, "after_step")

    @property
    def vectors(self) -> frozenset[str]:
        """Parts of names of parameters that are vectors of two dimensions, to which weight decay is not applied."""
        return frozenset(getattr(self._plugin, "VECTORS", ()))

    def _hook(self, name: str, default: Any, *arguments: Any) -> Any:
        hook = getattr(self._plugin, name, None)
        return default if hook is None else hook(*arguments)

    def check(self, backbone: nn.Module) -> None:
        """Raise ``RecpeftError`` where the method cannot work on ``backbone`` (which needs no weights)."""
        self._hook("check", None, backbone, self.config)

    def attach(self, backbone: nn.Module, total_steps: int, tokenizer: Any = None) -> nn.Module:
        """``backbone`` with the adapter in it, the backbone's own parameters fixed unless the method trains them."""
        model: nn.Module = self._plugin.attach(backbone, self.config, total_steps, tokenizer)
        return model

    def load(self, backbone: nn.Module, folder: Path) -> nn.Module:
        """``backbone`` with the adapter that was saved in ``folder``."""
        hook = getattr(self._plugin, "load", None)
        if hook is not None:
            model: nn.Module = hook(backbone, self.config, folder)
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(backbone, str(folder))

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """What was derived (target modules, phases), for the record."""
        return dict(self._hook("describe", {}, model, self.config))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called when ``step`` optimiser steps are done and gradients still stand."""
        self._hook("after_step", None, model, self.config, step)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """(), added to the loss; None where there is none."""
        penalty: Tensor | None = self._hook("penalty", None, model, self.config)
        return penalty

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """What the trace says of the adapter at a validation, such as the ranks."""
        return dict(self._hook("observe", {}, model, self.config))

    def may_be_best(self, model: nn.Module, step: int) -> bool:
        """Whether the model as it is after ``step`` steps may be the run's result."""
        return bool(self._hook("may_be_best", True, model, self.config, step))

    def finish(self, model: nn.Module) -> None:
        """Called once training is over, so that what is tested is what will be saved, to the last bit."""
        self._hook("finish", None, model, self.config)

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """The optimiser's groups; ``learning_rate`` gives way to the config's own."""
        rate = self.config.learning_rate if self.config.learning_rate is not None else learning_rate
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        plain = [{"params": trained, "lr": rate}] if trained else []
        return list(self._hook("param_groups", plain, model, self.config, rate))

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """What resume needs beyond the weights; plain values and tensors."""
        return dict(self._hook("state_dict", {}, model, self.config))

    def load_state_dict(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self._hook("load_state_dict", None, model, self.config, state)


def mergeable_methods() -> list[str]:
    """The methods whose adapters can be folded into the backbone's weights."""
    configs = {name: plugins.config_class("adapters", name) for name in plugins.names("adapters")}
    return [name for name, config in configs.items() if issubclass(config, AdapterConfig) and config.can_merge]
