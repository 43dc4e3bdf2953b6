"""Verbalizer: a causal language model answers a question about user and item, scored by P(Yes) against P(No).

Bao et al. 2023, "TALLRec". The score is the difference of the two answers' logits, in float32, at the last
position; the logits of other tokens are never computed. The class is in ``_verbalizer_impl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from datamodules._prompts import Form
from lightning_modules._formulation import FormulationConfig

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import nn
    from transformers import PreTrainedModel

    from datamodules._assembler import PromptAssembler
    from lightning_modules._backbone import Backbone
    from lightning_modules._rec_module import RecModule


class Config(FormulationConfig):
    FORM: ClassVar[Form] = "pair"

    name: str = "verbalizer"
    answers: tuple[str, str] = (" Yes", " No")
    """Answers after ``prompt.question`` for an item that the user likes and for one that the user does not. They start
    with white space, as all segments do; after a chat template (``prompt.chat``) it is removed."""

    @field_validator("answers")
    @classmethod
    def _end_with_text(cls, value: tuple[str, str]) -> tuple[str, str]:
        for answer in value:
            if not answer.strip() or answer != answer.rstrip():
                raise ValueError(f"{answer!r} must end with text, as ' Yes' does")
        return value


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` if the backbone is not a decoder with readable logits, or answers share a first token."""
    from lightning_modules._label_rows import check_labels
    from lightning_modules._pair_module import check_causal

    check_causal(skeleton, config.name)
    check_labels(skeleton.config)
    labels(config, tokenizer, prompt)


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """Return the arguments for ``build``: the rows of the backbone's head for the answers."""
    from lightning_modules._label_rows import label_rows

    found = label_rows(backbone, list(labels(config, backbone.tokenizer, prompt).values()))
    return {"answer_rows": found.rows, "answer_bias": found.bias, "softcap": found.softcap}


def labels(config: Config, tokenizer: Any, prompt: PromptAssembler) -> dict[str, int]:
    """Return the token id of each answer, checked behind the prompts' own texts.

    Raises:
        RecpeftError: the answers cannot be distinguished by their first token.
    """
    from lightning_modules._answers import prove_answers

    first, second = (answer.lstrip() if prompt.config.chat else answer for answer in config.answers)
    ids = prove_answers(tokenizer, prompt.tails(prompt.num_proven), (first, second))
    return dict(zip((first, second), ids, strict=True))


def build(
    backbone: nn.Module,
    config: Config,
    *,
    num_items: int,
    hidden_size: int,
    gradient_checkpointing: str = "none",
    **training: Any,
) -> RecModule:
    """Build the formulation's module around ``backbone``; ``training`` is passed to ``Verbalizer``."""
    from lightning_modules._verbalizer_impl import Verbalizer

    return Verbalizer(backbone, num_items=num_items, **training)
