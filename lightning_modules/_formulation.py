"""Base of the formulations' configs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from datamodules._prompts import Form
from recpeft.config import Config

if TYPE_CHECKING:
    from lightning_modules.losses._base import LevelLogits, LossConfig


Output = Literal["score", "rating", "classes", "labels"]
"""Output of a cross-encoder's head: a score, a rating, a class for each level, or a label for each level."""
Pooling = Literal["auto", "first", "mean", "last"]
"""State that represents a cross-encoder's text."""


class FormulationConfig(Config):
    """Base of every formulation's ``Config``."""

    FORM: ClassVar[Form] = "single"
    """Form of the prompt: user and item as separate texts or as one; see ``PromptAssembler``."""

    name: str
    """Name of the formulation: a file in lightning_modules/, or a dotted module name."""

    @property
    def form(self) -> Form:
        """Return ``FORM``, or the form of the inner formulation if there is one."""
        return self.FORM

    @property
    def max_candidates(self) -> int | None:
        """Return the maximum number of items it can rank for a user; None is no limit."""
        return None

    @property
    def list_size(self) -> int | None:
        """Return the number of items it reads in one text; None if it scores each item separately."""
        return None

    @property
    def proposes(self) -> int | None:
        """Return the number of items its first stage proposes to a user; None if it ranks all candidates."""
        return None

    @property
    def starts_at_random(self) -> bool:
        """Return whether its head is initialised at random, so that it ranks at random untrained (no zero_shot)."""
        return False

    @property
    def predicts(self) -> Literal["rating", "logit"] | None:
        """Return the meaning of its scores: values on the ratings' scale, logits of a like, or None for neither."""
        return "logit"

    @property
    def can_do_without_text(self) -> bool:
        """Return whether it can distinguish items without text (adapter method none)."""
        return False

    @property
    def sequence_length(self) -> int | None:
        """Return the maximum length of a user's sequence if only items are read (``form`` is ``items``); else None."""
        return None

    @property
    def encoded_per_step(self) -> int | None:
        """Return the number of items per batch encoded with a gradient, if only items are read; None is all."""
        return None

    @property
    def rated_sequences(self) -> bool:
        """Return whether sequences include disliked items."""
        return False

    @property
    def learns_at_each_place(self) -> bool:
        """Return whether it can be trained at all positions of a sequence at once (training.examples: positions)."""
        return False

    @property
    def item_features(self) -> tuple[str, ...]:
        """Return the columns of the item table, with a number or a list of numbers per item, that batches carry."""
        return ()

    @property
    def level_logits(self) -> LevelLogits | None:
        """Return the kind of rating-level logits it gives to losses; None if it gives only scores."""
        return None


def refusal(formulation: FormulationConfig, loss: LossConfig) -> str | None:
    """Return the reason why ``loss`` cannot train ``formulation``, with the remedy; None if it can.

    Called when the config is read, so it needs neither torch nor the backbone.
    """
    return loss.refusal(formulation.name, formulation.level_logits)
