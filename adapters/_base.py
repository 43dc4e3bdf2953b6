"""What all adapters' configs share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from recpeft.config import Config


class AdapterConfig(Config):
    """Base of every adapter's ``Config``."""

    trains_backbone: ClassVar[bool] = True
    """Whether any parameter inside the backbone is trained."""
    trains_head: ClassVar[bool] = True
    """Whether the formulation's head (temperature, item bias) is trained."""
    reads_text: ClassVar[bool] = True
    """Whether there is a backbone; see ``none``."""
    starts_as_backbone: ClassVar[bool] = True
    """Whether the adapted backbone computes exactly what the backbone computes until something is learnt."""
    can_merge: ClassVar[bool] = False
    """Whether what was learnt can be folded into the backbone's own weights (PEFT's ``merge_and_unload``)."""

    method: str
    """Which adapter: the name of a file in adapters/, or a dotted module name."""
    learning_rate: PositiveFloat | None = None
    """For the adapter's parameters; null is training.learning_rate. Good values differ between methods by orders
    of magnitude, so a grid over methods gives each its own."""

    @model_validator(mode="after")
    def _learning_rate_has_parameters(self) -> AdapterConfig:
        if self.learning_rate is not None and not self.trains_backbone:
            raise ValueError(f"learning_rate is {self.learning_rate} but {self.method} trains no adapter; leave it out")
        return self

    def positions(self) -> int:
        """How many of the backbone's positions the adapter takes before every text."""
        return 0

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        """Why this adapter cannot work under such a run, as a clause with the remedy; None where it can.

        Asked when the config is read, so it needs neither torch nor the backbone; what depends on the backbone's
        architecture is the plug-in's ``check``.
        """
        return None


class LinearTargetsConfig(AdapterConfig):
    """Base of the ``Config`` of methods that go beside linear layers of the user's choice."""

    target_modules: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    """Which linear layers: all of them (as AdaLoRA's paper has it, and QLoRA's finding: Dettmers et al. 2023), those of
    attention sub-layers, or last parts of names."""
    last_layers: PositiveInt | None = None
    """Only in so many of the topmost transformer layers; null is all."""
