"""An adapter method with its config: one object with every hook, including those that a plug-in leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters._base import AdapterConfig
from recpeft import plugins

if TYPE_CHECKING:
    from torch import Tensor, nn


class Adapter:
    """Adapter of a module; each method calls the plug-in's hook of that name, or returns a default without one.

    Args:
        config: config whose ``method`` names the plug-in.
        plugin: replaces the named plug-in; any object with ``attach`` and some of the hooks.
    """

    def __init__(self, config: AdapterConfig, plugin: Any = None) -> None:
        self.config = config
        self._plugin = plugin if plugin is not None else plugins.load("adapters", config.method)

    @property
    def peft_import(self) -> str | None:
        """Return the import statement that registers the method with PEFT; None if PEFT has the method."""
        statement: str | None = getattr(self._plugin, "PEFT_IMPORT", None)
        return statement

    @property
    def reads_gradients(self) -> bool:
        """Return whether the method reads the gradients of each step."""
        return hasattr(self._plugin, "after_step")

    @property
    def vectors(self) -> frozenset[str]:
        """Return name parts of two-dimensional parameters that are vectors, which get no weight decay."""
        return frozenset(getattr(self._plugin, "VECTORS", ()))

    def _hook(self, name: str, default: Any, *arguments: Any) -> Any:
        hook = getattr(self._plugin, name, None)
        return default if hook is None else hook(*arguments)

    def check(self, backbone: nn.Module) -> None:
        """Raise ``RecpeftError`` if the method cannot work on ``backbone`` (which needs no weights)."""
        self._hook("check", None, backbone, self.config)

    def attach(self, backbone: nn.Module, total_steps: int, tokenizer: Any = None) -> nn.Module:
        """Return ``backbone`` with the adapter; the backbone's own parameters are frozen unless trained."""
        model: nn.Module = self._plugin.attach(backbone, self.config, total_steps, tokenizer)
        return model

    def load(self, backbone: nn.Module, folder: Path) -> nn.Module:
        """Return ``backbone`` with the adapter saved in ``folder``."""
        hook = getattr(self._plugin, "load", None)
        if hook is not None:
            model: nn.Module = hook(backbone, self.config, folder)
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(backbone, str(folder))

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Return derived values (target modules, phases) for the record."""
        return dict(self._hook("describe", {}, model, self.config))

    def after_step(self, model: nn.Module, step: int) -> None:
        """Run the hook after ``step`` optimiser steps, before gradients are zeroed."""
        self._hook("after_step", None, model, self.config, step)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return the penalty () to be added to the loss; None without one."""
        penalty: Tensor | None = self._hook("penalty", None, model, self.config)
        return penalty

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Return values for the trace at a validation, such as the ranks."""
        return dict(self._hook("observe", {}, model, self.config))

    def may_be_best(self, model: nn.Module, step: int) -> bool:
        """Return whether the model after ``step`` steps may be the run's result."""
        return bool(self._hook("may_be_best", True, model, self.config, step))

    def finish(self, model: nn.Module) -> None:
        """Run the hook after training, so that the tested model is bitwise the saved one."""
        self._hook("finish", None, model, self.config)

    def param_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups; the config's own learning rate overrides ``learning_rate``."""
        rate = self.config.learning_rate if self.config.learning_rate is not None else learning_rate
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        plain = [{"params": trained, "lr": rate}] if trained else []
        return list(self._hook("param_groups", plain, model, self.config, rate))

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return the state that resume needs besides the weights, as plain values and tensors."""
        return dict(self._hook("state_dict", {}, model, self.config))

    def load_state_dict(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._hook("load_state_dict", None, model, self.config, state)


def mergeable_methods() -> list[str]:
    """List the methods whose adapters can be merged into the backbone's weights."""
    configs = {name: plugins.config_class("adapters", name) for name in plugins.names("adapters")}
    return [name for name, config in configs.items() if issubclass(config, AdapterConfig) and config.can_merge]
