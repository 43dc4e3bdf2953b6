"""Sequence model: a user is a sequence of items; an item is its encoded text, its id embedding, or both.

With only ids (``adapter: {method: none}``) and the transformer it is SASRec (Kang & McAuley 2018). The class is in
``_sequence_impl``, the user encoders are in ``_user_encoders``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from datamodules._prompts import Form
from lightning_modules._formulation import FormulationConfig
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import nn
    from transformers import PreTrainedModel

    from datamodules._assembler import PromptAssembler
    from lightning_modules._backbone import Backbone
    from lightning_modules._rec_module import RecModule

_OF_HEAD = {"ids", "user_encoder", "length", "width", "layers", "heads", "dropout", "ratings"}
"""Config fields that are arguments of the head."""

UserEncoder = Literal["transformer", "gru", "attention", "target_attention", "mean"]


class Config(FormulationConfig):
    FORM: ClassVar[Form] = "items"

    name: str = "sequence"
    ids: Literal["none", "add", "gate"] = "none"
    """Use of an id embedding per item: none, added to its text's vector, or mixed with it by a learned gate. Items
    without a train interaction use only their text. If no text is read (adapter method none), set add to use only
    ids."""
    user_encoder: UserEncoder = "transformer"
    """Encoder from a history to a user's state: transformer, causal (SASRec, Kang & McAuley 2018); gru (GRU4Rec, Hidasi
    et al. 2016); attention, pooling by learned weights (Wu et al. 2019); target_attention, of each candidate over the
    history (DIN, Zhou et al. 2018), which is trained at one position per user; mean."""
    length: PositiveInt = Field(default=100, le=2**14)
    """Maximum number of a user's latest interactions in a sequence."""
    width: Dimension = 128
    """Dimension of item vectors and states."""
    layers: PositiveInt = Field(default=2, le=64)
    """Number of layers of transformer and gru; 2 is SASRec's."""
    heads: Dimension = 2
    """Number of attention heads of the transformer, a divisor of width."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Dropout in the user encoder and of item vectors; 0.2 is SASRec's on MovieLens-1M, whose histories are long."""
    pooling: Literal["mean", "first", "last", "weighted"] = "mean"
    """Pooling of an item's token states into one vector; see two_tower."""
    text_dropout: bool = False
    """Keep the dropout of backbone and adapter on in training. If off, texts encoded with a gradient and those from the
    bank are the same function of the weights."""
    ratings: bool = False
    """Include ratings and disliked items (data.liked_from) in histories; else a history holds only liked items."""
    texts_per_step: PositiveInt | Literal["all"] = "all"
    """Number of items per batch encoded with a gradient; the others come from a bank of the latest encodings. all gives
    the exact gradient."""

    @model_validator(mode="after")
    def _options_fit_the_user_encoder(self) -> Config:
        owners: dict[str, tuple[str, ...]] = {"layers": ("transformer", "gru"), "heads": ("transformer",)}
        for option, encoders in owners.items():
            value = getattr(self, option)
            if self.user_encoder not in encoders and value != type(self).model_fields[option].default:
                raise ValueError(
                    f"{option} is {value} but user_encoder is {self.user_encoder}, which has no such option; leave it "
                    f"out or set user_encoder: {encoders[0]}"
                )
        if self.user_encoder == "transformer" and self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide width {self.width}; change one of them")
        return self

    @property
    def starts_at_random(self) -> bool:
        return True

    @property
    def can_do_without_text(self) -> bool:
        return self.ids != "none"

    @property
    def sequence_length(self) -> int:
        return self.length

    @property
    def rated_sequences(self) -> bool:
        return self.ratings

    @property
    def encoded_per_step(self) -> int | None:
        return None if self.texts_per_step == "all" else self.texts_per_step

    @property
    def learns_at_each_place(self) -> bool:
        return self.user_encoder != "target_attention"


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` if ``pooling`` does not fit the backbone."""
    from lightning_modules._backbone import reads_text
    from lightning_modules._pair_module import is_causal

    if not reads_text(skeleton):
        return
    if config.pooling == "first" and is_causal(skeleton):
        raise RecpeftError(
            "formulation.pooling is first but the backbone is causal: its first token sees nothing of the text after "
            "it; use formulation.pooling: last, weighted or mean."
        )


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler | None, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """Return a mask of the items with a train interaction, which get an id embedding."""
    return {"has_id": train_counts > 0}


def build(
    backbone: nn.Module, config: Config, *, num_items: int, hidden_size: int, has_id: np.ndarray, **training: Any
) -> RecModule:
    """Build the formulation's module around ``backbone``; ``training`` is passed to ``RecModule``.

    Args:
        has_id: (num_items,) bool, True if the item has an id embedding.
    """
    import torch

    from lightning_modules._sequence_impl import Sequence, SequenceHead

    options = config.model_dump(include=_OF_HEAD)
    head = SequenceHead(num_items, hidden_size, torch.from_numpy(has_id), **options)
    return Sequence(
        backbone,
        num_items=num_items,
        head=head,
        pooling=config.pooling,
        text_dropout=config.text_dropout,
        **training,
    )
