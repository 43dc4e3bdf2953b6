"""One question over a list: lettered candidates in one prompt, one forward pass, and the letters' logits as scores.

Yue et al. 2023, "LlamaRec". Letters are dealt anew in every training step; in evaluation by a hash of user and item,
so that they follow neither an item's number nor the order in which candidates come. The class is in
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
    """Most candidates of a list, LlamaRec's 20: a user's positives and negatives of a training step, and what is
    ranked in evaluation, where evaluation.candidates must not give a user more."""
    orders: PositiveInt = 1
    """Evaluate each list in so many orders, and take the mean of an item's scores: less of the letters' own pull, for
    so many times the work."""

    @property
    def max_candidates(self) -> int:
        return self.size

    @property
    def list_size(self) -> int:
        return self.size


LETTERS = "ABCDEFGHIJKLMNOPQRST"


def check(config: Config, skeleton: PreTrainedModel, prompt: PromptAssembler, tokenizer: Any) -> None:
    """Raise ``RecpeftError`` where the backbone is no decoder whose logits can be read, or the letters are alike."""
    from lightning_modules._label_rows import check_labels
    from lightning_modules._pair_module import check_causal

    check_causal(skeleton, config.name)
    check_labels(skeleton.config)
    labels(config, tokenizer, prompt)


def prepare(
    config: Config, backbone: Backbone, prompt: PromptAssembler, items: pl.DataFrame, train_counts: np.ndarray
) -> dict[str, Any]:
    """What ``build`` needs: the letters' rows of the backbone's head, and what stands around the prompt's items."""
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
    """The token that each letter is read by, proven behind the prompts' own texts.

    Raises:
        RecpeftError: the letters cannot be told apart.
    """
    from lightning_modules._answers import prove_answers

    # A chat template ends in a line break, behind which a letter stands alone.
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
    """The formulation's module around ``backbone``; ``training`` goes to ``ListwiseVerbalizer``."""
    from lightning_modules._listwise_verbalizer_impl import ListwiseVerbalizer

    return ListwiseVerbalizer(backbone, num_items=num_items, orders=config.orders, **training)
