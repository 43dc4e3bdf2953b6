"""Shared parts of methods with virtual tokens: their number and the text they start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from adapters._base import AdapterConfig
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn


class VirtualTokensConfig(AdapterConfig):
    """Base of the ``Config`` of methods that put virtual tokens before every text."""

    starts_as_backbone: ClassVar[bool] = False

    num_virtual_tokens: Dimension = 20
    """Number of virtual tokens; Lester et al. (2021) gained little beyond 20. Each takes one of the backbone's
    positions."""
    init_text: str | None = "Recommend items that this user will like, given what the user liked before."
    """Text whose tokens, repeated or cut to length, initialise the virtual tokens. null is PEFT's random start, which
    did worse for Li & Liang (2021, section 7.4) and, on all but the largest model, for Lester et al."""

    def positions(self) -> int:
        return self.num_virtual_tokens


def init_ids(tokenizer: Any, text: str, num_virtual_tokens: int) -> list[int]:
    """Return ``num_virtual_tokens`` ids: the tokenizer's opening tokens ([CLS], <bos>), then ``text`` repeated.

    Without the opening token a BERT's embeddings move further from their original values; closing tokens ([SEP]) are
    left out, since the text continues.

    Raises:
        RecpeftError: there is no tokenizer, or ``text`` has no tokens.
    """
    if tokenizer is None:
        raise RecpeftError(
            "adapter.init_text needs the backbone's tokenizer and attach was given none; "
            "pass tokenizer, or set adapter.init_text: null for a random start."
        )
    encoded = tokenizer(text, return_special_tokens_mask=True)
    tokens = list(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
    opening = [token for token, _ in takewhile(lambda pair: pair[1], tokens)]
    body = [token for token, special in tokens if not special]
    if not body:
        raise RecpeftError(
            f"adapter.init_text is {text!r}, of which the tokenizer leaves nothing; "
            "give another text, or null for a random start."
        )
    return [*opening, *islice(cycle(body), num_virtual_tokens)][:num_virtual_tokens]


@contextmanager
def as_in_evaluation(backbone: nn.Module) -> Iterator[None]:
    """Switch off dropout (so nothing is random) and gradients within the block, then restore every module's mode."""
    import torch

    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
