"""Base classes of all adapters' configs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from recpeft.config import Config


class AdapterConfig(Config):
    """Base of every adapter's ``Config``."""

    trains_backbone: ClassVar[bool] = True
    """True if any parameter inside the backbone is trained."""
    trains_head: ClassVar[bool] = True
    """True if the formulation's head (temperature, item bias) is trained."""
    reads_text: ClassVar[bool] = True
    """True if there is a backbone; see ``none``."""
    starts_as_backbone: ClassVar[bool] = True
    """True if the adapted backbone computes exactly what the backbone computes before training."""
    can_merge: ClassVar[bool] = False
    """True if the adapter can be merged into the backbone's own weights (PEFT's ``merge_and_unload``)."""

    method: str
    """Adapter method: the name of a file in adapters/, or a dotted module name."""
    learning_rate: PositiveFloat | None = None
    """Learning rate of the adapter's parameters; null is training.learning_rate. Good values differ between methods by
    orders of magnitude, so a grid over methods gives each its own."""

    @model_validator(mode="after")
    def _learning_rate_has_parameters(self) -> AdapterConfig:
        if self.learning_rate is not None and not self.trains_backbone:
            raise ValueError(f"learning_rate is {self.learning_rate} but {self.method} trains no adapter; leave it out")
        return self

    def positions(self) -> int:
        """Return the number of the backbone's positions that the adapter takes before every text."""
        return 0

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        """Return why this adapter cannot work in such a run, as a clause with the remedy; None if it can.

        It is called when the config is read, so it needs neither torch nor the backbone; the plug-in's ``check``
        covers what depends on the backbone's architecture.
        """
        return None


class LinearTargetsConfig(AdapterConfig):
    """Base of the ``Config`` of methods that adapt linear layers of the user's choice."""

    target_modules: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    """Linear layers to adapt: all of them (as in AdaLoRA's paper, and QLoRA's finding: Dettmers et al. 2023), those of
    attention sub-layers, or those whose names end in the given parts."""
    last_layers: PositiveInt | None = None
    """Number of topmost transformer layers to adapt; null is all."""
