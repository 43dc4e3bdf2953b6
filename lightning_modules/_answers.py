"""Answers of a language model: their token ids, and heads that compute the logits of these tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recpeft.errors import RecpeftError


class AnswerHead(nn.Module):
    """``scale * logit + bias`` of each answer's first token, in float32; scale starts at 1 and bias at 0.

    Scale and bias do not change the order of a user's items: they fit the loss, and are all that the control learns.

    Args:
        rows: (A, H) rows of the language-model head for the answers, not trained.
        softcap: cap of the logits as in Gemma 2, ``cap * tanh(logit / cap)``; None is no cap.
        row_bias: (A,) bias of the language-model head for the answers; None is 0.
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
        """Return the scaled logits (R, A) of last states (R, H)."""
        return self.scale * self.logits(states) + self.bias

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (R, A) float32 of the language model's own head."""
        # Half precision gives many answers equal logits, so autocast is off from here.
        with torch.autocast(states.device.type, enabled=False):
            logits = states.float() @ self.rows.T + self.row_bias
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class DifferenceHead(AnswerHead):
    """``scale * (logit of one answer - logit of the other) + bias``."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the scaled difference (R,) of last states (R, H)."""
        logits = self.logits(states)
        return self.scale * (logits[:, 0] - logits[:, 1]) + self.bias


def prove_answers(
    tokenizer: Any, prompts: Sequence[str], answers: tuple[str, ...], named: str = "formulation.answers"
) -> tuple[int, ...]:
    """Return the id of each answer's first token, after checking that it is the same behind every prompt.

    Args:
        named: name of the answers in messages.
    Raises:
        RecpeftError: the ids of a prompt are not a prefix of the ids of prompt and answer, two answers begin with the
            same token, or the ids depend on the prompt.
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
