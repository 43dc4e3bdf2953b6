"""Answers of a language model: which tokens they are, and heads that read their logits alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recpeft.errors import RecpeftError


class AnswerHead(nn.Module):
    """``scale * logit + bias`` of each answer's first token, in float32; scale starts at 1 and bias at 0.

    Scale and bias order no user's items anew: they fit the loss, and are all that the control learns.

    Args:
        rows: (A, H) the answers' rows of the language-model head, not trained.
        softcap: of logits, as Gemma 2 has it: ``cap * tanh(logit / cap)``; None has none.
        row_bias: (A,) the answers' part of the language-model head's bias; None is 0.
    """

    rows: Tensor
    row_bias: Tensor

    def __init__(self, rows: Tensor, softcap: float | None = None, row_bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("rows", rows.float(), persistent=False)
        bias = rows.new_zeros(len(rows)) if row_bias is None else row_bias
        self.register_buffer("row_bias", bias.float(), persistent=False)
        self.softcap = softcap
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """(R, A) of last states (R, H)."""
        return self.scale * self.logits(states) + self.bias

    def logits(self, states: Tensor) -> Tensor:
        """(R, A) float32, as the language model's own head has them."""
        # Half precision ties many answers, so autocast ends here.
        with torch.autocast(states.device.type, enabled=False):
            logits = states.float() @ self.rows.T + self.row_bias
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class DifferenceHead(AnswerHead):
    """``scale * (logit of one answer - logit of the other) + bias``."""

    def forward(self, states: Tensor) -> Tensor:
        """(R,) of last states (R, H)."""
        logits = self.logits(states)
        return self.scale * (logits[:, 0] - logits[:, 1]) + self.bias


def prove_answers(
    tokenizer: Any, prompts: Sequence[str], answers: tuple[str, ...], named: str = "formulation.answers"
) -> tuple[int, ...]:
    """The ids by which the answers are told apart, the same behind every prompt.

    Args:
        named: what the answers are called in messages.
    Raises:
        RecpeftError: a prompt's ids are no prefix of prompt and answer, the answers begin alike, or their ids depend on
            the prompt.
    """
    found: set[tuple[int, ...]] = set()
    for prompt in prompts:
        bare, *whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, *(f"{prompt}{answer}" for answer in answers))
        )
        for answer, ids in zip(answers, whole, strict=True):
            if ids[: len(bare)] != bare or len(ids) == len(bare):
                raise RecpeftError(
                    f"{named}: behind {prompt!r} the answer {answer!r} changes the prompt's own tokens; end the "
                    "prompt's question otherwise, such as in a colon."
                )
        first = tuple(ids[len(bare)] for ids in whole)
        alike = [answer for answer, token in zip(answers, first, strict=True) if first.count(token) > 1]
        if alike:
            raise RecpeftError(
                f"{named} are {', '.join(map(repr, answers))}, of which {' and '.join(map(repr, alike))} begin with "
                "the same token; choose answers that differ in their first token."
            )
        found.add(first)
    if len(found) != 1:
        raise RecpeftError(
            f"{named} {', '.join(map(repr, answers))} have different tokens behind different items; end the prompt's "
            "question in text, such as 'Answer:'."
        )
    return found.pop()
