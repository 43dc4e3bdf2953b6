"""Cross-encoder: a linear head reads one state of user text and item text joined in one sequence.

Nogueira & Cho 2019, "Passage re-ranking with BERT": ``[CLS] user [SEP] item [SEP]``, read at the first token. A causal
decoder is read at the last token, the only one that has seen both texts, and computes each user's text once for all
items; an encoder's tokens attend to later ones, so it reads each pair's whole text. The class is in
``_cross_encoder_impl``.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from datamodules._prompts import Form
from lightning_modules._formulation import FormulationConfig, Output, Pooling
from lightning_modules.losses._base import LevelLogits

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import nn
    from transformers import PreTrainedModel

    from datamodules._assembler import PromptAssembler
    from lightning_modules._backbone import Backbone
    from lightning_modules._rec_module import RecModule


class Config(FormulationConfig):
    FORM: ClassVar[Form] = "closed_pair"

    name: str = "cross_encoder"
    output: Output = "score"
    """Output of the head. score: one logit, for ranking losses and bce; rating: one number on the ratings' scale, for
    loss mse; classes: a logit for each of ``levels`` (loss cross_entropy), with the expected level as score; labels: a
    logit for each of ``levels`` except the lowest, answering "is the rating at least this level?" (loss level_bce;
    Frank & Hall 2001), with the sum of their sigmoids as score. Any loss can train the scores of all four."""
    levels: tuple[float, ...] = Field(default=(1.0, 2.0, 3.0, 4.0, 5.0), min_length=2)
    """Rating levels for outputs rating, classes and labels, ascending; 1 to 5 are MovieLens-100K's and Amazon's. A
    rating between two levels counts as the lower; output rating starts midway between the first and the last."""
    pooling: Pooling = "auto"
    """State of the text that the head reads: for an encoder the first token's (BERT's [CLS]) or the mean over all
    tokens; for a decoder the last token's. auto is first for an encoder and last for a decoder."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Dropout of the state that the head reads, in training; 0.1 is BERT's (Devlin et al. 2019)."""

    @field_validator("levels")
    @classmethod
    def _levels_ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(value)):
            raise ValueError(f"{list(value)} do not ascend; name each level once, from the lowest to the highest")
        return value

    @model_validator(mode="after")
    def _options_fit_the_output(self) -> Config:
        # Checked by value, not by whether they were given, as a record holds every default.
        if self.output == "score" and self.levels != type(self).model_fields["levels"].default:
            raise ValueError(
                f"levels are {list(self.levels)} but output is score, which has none; leave them out or set output: "
                "rating, classes or labels"
            )
        return self

    @property
    def starts_at_random(self) -> bool:
        return True

    @property
    def predicts(self) -> Literal["rating", "logit"] | None:
        if self.output == "labels":  # the expected number of levels reached
            return None
        return "logit" if self.output == "score" else "rating"

    @property
    def level_logits(self) -> LevelLogits | None:
        match self.output:
            case "classes":
                return LevelLogits("classes", len(self.levels))
            case "labels":
                return LevelLogits("labels", len(self.levels) - 1)
            case _:
                return None


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` if ``pooling`` reads a state that does not represent both texts."""
    from lightning_modules._cross_encoder_impl import resolve_pooling

    resolve_pooling(config.pooling, skeleton)


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """Return the arguments for ``build`` from the prompt: the number of separators between user and item."""
    separator = backbone.tokenizer.sep_token_id
    return {"num_separators": len(list(takewhile(lambda token: token == separator, prompt.item(0))))}


def build(
    backbone: nn.Module,
    config: Config,
    *,
    num_items: int,
    hidden_size: int,
    gradient_checkpointing: str = "none",
    **training: Any,
) -> RecModule:
    """Build the formulation's module around ``backbone``; ``training`` is passed to ``CrossEncoder``.

    Raises:
        RecpeftError: as ``check``.
    """
    from lightning_modules._cross_encoder_impl import CrossEncoder, PairHead

    # As transformers initialises classification heads; BERT's 0.02 if the config has no value.
    spread = getattr(getattr(backbone, "config", None), "initializer_range", 0.02)
    head = PairHead(hidden_size, config.output, config.levels, config.dropout, spread)
    return CrossEncoder(backbone, head, num_items=num_items, pooling=config.pooling, **training)
