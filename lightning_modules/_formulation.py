"""What all formulations' configs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from datamodules._prompts import Form
from recpeft.config import Config

if TYPE_CHECKING:
    from lightning_modules.losses._base import LevelLogits, LossConfig


Output = Literal["score", "rating", "classes", "labels"]
"""What a cross-encoder's head gives: a score, a rating, a class for each level, or a label for each level."""
Pooling = Literal["auto", "first", "mean", "last"]
"""Which state stands for a cross-encoder's text."""


class FormulationConfig(Config):
    """Base of every formulation's ``Config``."""

    FORM: ClassVar[Form] = "single"
    """How user and item are read: each on its own, or as one text; see ``PromptAssembler``."""

    name: str
    """Which formulation: the name of a file in lightning_modules/, or a dotted module name."""

    @property
    def form(self) -> Form:
        """``FORM``, unless a formulation holds another one that decides."""
        return self.FORM

    @property
    def max_candidates(self) -> int | None:
        """Most items that it can rank for a user; None is any number."""
        return None

    @property
    def list_size(self) -> int | None:
        """How many items it reads in one text; None where each item has a score of its own."""
        return None

    @property
    def proposes(self) -> int | None:
        """How many items a first stage of its own proposes a user; None where it ranks all candidates."""
        return None

    @property
    def starts_at_random(self) -> bool:
        """Whether its head is drawn at random, so that untrained it ranks at random (no zero_shot)."""
        return False

    @property
    def predicts(self) -> Literal["rating", "logit"] | None:
        """What its scores are: numbers on the ratings' scale, or logits of a like."""
        return "logit"

    @property
    def can_do_without_text(self) -> bool:
        """Whether items are told apart where no text is read (adapter method none)."""
        return False

    @property
    def sequence_length(self) -> int | None:
        """Where only items are read (``form`` is ``items``): the most of them in a user's sequence."""
        return None

    @property
    def encoded_per_step(self) -> int | None:
        """Where only items are read: how many of a batch's are encoded with a gradient; None is all."""
        return None

    @property
    def rated_sequences(self) -> bool:
        """Whether what is disliked stands in sequences too."""
        return False

    @property
    def learns_at_each_place(self) -> bool:
        """Whether it can be trained at every place of a sequence at once (training.examples: positions)."""
        return False

    @property
    def item_features(self) -> tuple[str, ...]:
        """Columns of the item table, a number or a list of numbers an item, that batches carry beside texts."""
        return ()

    @property
    def level_logits(self) -> LevelLogits | None:
        """Which logits of the ratings' levels it gives losses; None is scores alone."""
        return None


def refusal(formulation: FormulationConfig, loss: LossConfig) -> str | None:
    """Why ``loss`` cannot teach ``formulation``, as a clause with the remedy; None where it can.

    Asked when the config is read, so it needs neither torch nor the backbone.
    """
    return loss.refusal(formulation.name, formulation.level_logits)
