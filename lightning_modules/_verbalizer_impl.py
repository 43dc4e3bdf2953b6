"""The verbalizer module; its config is in ``verbalizer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules import _shared_prefix
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules.losses._base import ScoredPairs
from recpeft.errors import RecpeftError


class AnswerHead(nn.Module):
    """``scale * (logit of one answer - logit of the other) + bias``; scale starts at 1 and bias at 0.

    Scale and bias order no user's items anew: they fit the loss, and are all that the control learns.

    Args:
        answer_rows: (2, H) rows of the language-model head, not trained.
        softcap: of logits, as Gemma 2 has it: ``cap * tanh(logit / cap)``; None has none.
    """

    rows: Tensor

    def __init__(self, answer_rows: Tensor, softcap: float | None = None) -> None:
        super().__init__()
        self.register_buffer("rows", answer_rows.float(), persistent=False)
        self.softcap = softcap
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """(R,) float32 scores of last states (R, H)."""
        logits = states.float() @ self.rows.T  # (R, 2)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return self.scale * (logits[:, 0] - logits[:, 1]) + self.bias


class Verbalizer(RecModule):
    """Scores by the answer to a question on each item, the user's text being computed once for all of them.

    Args:
        backbone: a decoder without its language-model head, adapted or not.
        num_items: size of the catalogue.
        answer_rows: as for ``AnswerHead``.
        loss: see ``LossFunction``.
        max_pair_tokens: most tokens of items' texts that are computed at once.
        training: as for ``RecModule``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        answer_rows: Tensor,
        softcap: float | None = None,
        loss: LossFunction,
        max_pair_tokens: int = 8192,
        **training: Any,
    ) -> None:
        super().__init__(backbone, AnswerHead(answer_rows, softcap), num_items=num_items, **training)
        self._loss_function = loss
        self._max_pair_tokens = max_pair_tokens
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._catalogue: tuple[Tensor, Tensor] | None = None

    def loss(self, batch: PairBatch) -> Tensor:
        scores = self._scores(batch.users, *_table(batch.items))
        return self._loss_function(ScoredPairs.of(scores, batch))

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if self._catalogue is not None:  # users have been scored since: a new epoch begins
            self._parts, self._catalogue = [], None
        self._parts.append((batch.item, *_table(batch.texts)))

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        if self._catalogue is None:
            encoded = torch.cat([item for item, *_ in self._parts]) if self._parts else torch.empty(0)
            if len(encoded) != self.num_items:
                raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
            order = encoded.argsort()
            longest = max(ids.shape[1] for _, ids, _ in self._parts)
            ids, mask = (
                torch.cat([nn.functional.pad(part[place], (0, longest - part[place].shape[1])) for part in self._parts])
                for place in (1, 2)
            )
            self._catalogue = (ids[order], mask[order])
        columns = candidates if candidates is None or candidates.ndim == 2 else candidates.expand(len(users.user), -1)
        return self._scores(users.texts, *self._catalogue, columns)

    def _scores(self, users: TextBatch, ids: Tensor, mask: Tensor, columns: Tensor | None = None) -> Tensor:
        """(U, C) scores of users with items' texts (I, S); ``columns`` (U, C) says which, None is all.

        Each user's text goes through the backbone once, each item's once behind it.
        """
        num_columns = len(ids) if columns is None else columns.shape[1]
        lengths = mask.sum(dim=1)  # (I,)
        window = getattr(_config(self.backbone), "sliding_window", None)
        states, places = [], []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            for bucket in users.buckets:
                # Within a window of places, padding would take the place of text.
                beyond = window is not None and bucket.input_ids.shape[1] + int(lengths.max()) > window
                for part in _shared_prefix.of_one_length(bucket) if beyond else [bucket]:
                    before = _shared_prefix.prefix(self.backbone, part)
                    row = torch.arange(len(part.row), device=ids.device).repeat_interleave(num_columns)
                    column = torch.arange(num_columns, device=ids.device).repeat(len(part.row))
                    item = column if columns is None else columns[part.row].flatten()
                    for block in _shared_prefix.blocks(before, lengths[item], self._max_pair_tokens):
                        length = int(lengths[item[block]].max())
                        pair = (ids[item[block], :length], mask[item[block], :length])
                        states.append(_shared_prefix.behind(self.backbone, before, row[block], *pair))
                        places.append(part.row[row[block]] * num_columns + column[block])
        read = lengths.sum() * users.size if columns is None else lengths[columns].sum()
        self.tokens_read += users.num_tokens + int(read)
        scores = self.head(torch.cat(states))
        order = torch.cat(places).argsort()
        return scores[order].view(users.size, num_columns)


def _table(texts: TextBatch) -> tuple[Tensor, Tensor]:
    """(T, S) ids and mask of all texts, padded on the right."""
    longest = max(bucket.input_ids.shape[1] for bucket in texts.buckets)
    ids = texts.buckets[0].input_ids.new_zeros((texts.size, longest))
    mask = torch.zeros_like(ids)
    for bucket in texts.buckets:
        width = bucket.input_ids.shape[1]
        ids[bucket.row, :width] = bucket.input_ids
        mask[bucket.row, :width] = bucket.attention_mask
    return ids, mask


def _config(backbone: nn.Module) -> Any:
    base: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    return base.config


def check_causal(model: nn.Module) -> None:
    """Raise ``RecpeftError`` where the backbone's tokens see those behind them."""
    attention = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if not attention or not all(attention):
        raise RecpeftError(
            f"formulation.name is verbalizer, which needs a decoder, but {type(model).__name__} reads its text in both "
            "directions; name a causal language model, or use two_tower."
        )


def prove_answers(tokenizer: Any, prompts: Sequence[str], answers: tuple[str, str]) -> tuple[int, int]:
    """The ids by which the answers are told apart, the same behind every prompt.

    Raises:
        RecpeftError: a prompt's ids are no prefix of prompt and answer, the answers begin alike, or their ids depend on
            the prompt.
    """
    found: set[tuple[int, int]] = set()
    for prompt in prompts:
        bare, *whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, *(f"{prompt}{answer}" for answer in answers))
        )
        for answer, ids in zip(answers, whole, strict=True):
            if ids[: len(bare)] != bare or len(ids) == len(bare):
                raise RecpeftError(
                    f"formulation.answers: behind {prompt!r} the answer {answer!r} changes the prompt's own tokens; "
                    "end prompt.question otherwise, such as in a colon."
                )
        first, second = (ids[len(bare)] for ids in whole)
        if first == second:
            raise RecpeftError(
                f"formulation.answers are {answers[0]!r} and {answers[1]!r}, which begin with the same token; choose "
                "answers that differ in their first token."
            )
        found.add((first, second))
    if len(found) != 1:
        raise RecpeftError(
            f"formulation.answers {answers[0]!r} and {answers[1]!r} have different tokens behind different items; end "
            "prompt.question in text, such as 'Answer:'."
        )
    return found.pop()
