"""Listwise verbalizer: lettered candidates in one prompt, scored by the letters' logits in one forward pass.

Yue et al. 2023, "LlamaRec". Letters are reassigned at random in every training step, and by a hash of user and item in
evaluation, so that they depend neither on an item's id nor on the order of the candidates. The class is in
``_listwise_verbalizer_impl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

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
    FORM: ClassVar[Form] = "list"

    name: str = "listwise_verbalizer"
    size: Annotated[int, Field(ge=2, le=20)] = 20
    """Maximum number of candidates in a list: a user's positives and negatives in a training step, or the candidates in
    evaluation, of which evaluation.candidates must not give a user more. 20 is LlamaRec's."""
    orders: PositiveInt = 1
    """Number of orders in which each list is evaluated; an item's score is the mean. More orders reduce the effect of
    the letters themselves and multiply the work."""

    @property
    def max_candidates(self) -> int:
        return self.size

    @property
    def list_size(self) -> int:
        return self.size


LETTERS = "ABCDEFGHIJKLMNOPQRST"


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` if the backbone is not a decoder with readable logits, or letters share a first token."""
    from lightning_modules._label_rows import check_labels
    from lightning_modules._pair_module import check_causal

    check_causal(skeleton, config.name)
    check_labels(skeleton.config)
    labels(config, tokenizer, prompt)


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """Return the arguments for ``build``: the head's rows for the letters, and the prompt's tokens around items."""
    from lightning_modules._label_rows import label_rows

    found = label_rows(backbone, list(labels(config, backbone.tokenizer, prompt).values()))
    return {
        "letter_rows": found.rows,
        "letter_bias": found.bias,
        "softcap": found.softcap,
        "choices": prompt.choices(config.size),
        "tail": prompt.tail,
        "pad_id": int(backbone.tokenizer.pad_token_id),
    }


def labels(config: Config, tokenizer: Any, prompt: PromptAssembler) -> dict[str, int]:
    """Return the token id of each letter, checked behind the prompts' own texts.

    Raises:
        RecpeftError: the letters cannot be distinguished by their first token.
    """
    from lightning_modules._answers import prove_answers

    # A chat template ends in a line break, after which a letter needs no space.
    space = "" if prompt.config.chat else " "
    answers = tuple(f"{space}{letter}" for letter in LETTERS[: config.size])
    ids = prove_answers(tokenizer, prompt.tails(prompt.num_proven), answers, "the letters")
    return dict(zip(answers, ids, strict=True))


def build(
    backbone: nn.Module,
    config: Config,
    *,
    num_items: int,
    hidden_size: int,
    gradient_checkpointing: str = "none",
    **training: Any,
) -> RecModule:
    """Build the formulation's module around ``backbone``; ``training`` is passed to ``ListwiseVerbalizer``."""
    from lightning_modules._listwise_verbalizer_impl import ListwiseVerbalizer

    return ListwiseVerbalizer(backbone, num_items=num_items, orders=config.orders, **training)
