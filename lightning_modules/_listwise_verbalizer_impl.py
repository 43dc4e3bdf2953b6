"""The listwise verbalizer's module; its config is in ``listwise_verbalizer``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules._batching import Bucket, ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from datamodules._hashing import splitmix64
from lightning_modules._answers import AnswerHead
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules.losses._base import ScoredPairs


class ListwiseVerbalizer(RecModule):
    """Score a user's candidates by the logits of the letters before them, in one forward pass.

    Args:
        backbone: a decoder without its language-model head, adapted or not.
        num_items: size of the catalogue.
        letter_rows, letter_bias, softcap: as for ``AnswerHead``, for the letters.
        choices: token ids before each candidate.
        tail: token ids after the last candidate.
        pad_id: any token.
        orders: number of orders in which a list is evaluated.
        loss: see ``LossFunction``.
        max_bucket_tokens: maximum number of tokens, including padding, computed at once.
        training: as for ``RecModule``.
    """

    head: AnswerHead

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        letter_rows: Tensor,
        letter_bias: Tensor | None = None,
        softcap: float | None = None,
        choices: Sequence[Sequence[int]],
        tail: Sequence[int],
        pad_id: int,
        orders: int = 1,
        loss: LossFunction,
        max_bucket_tokens: int = 8192,
        **training: Any,
    ) -> None:
        super().__init__(backbone, AnswerHead(letter_rows, softcap, letter_bias), num_items=num_items, **training)
        self._choices = [list(ids) for ids in choices]
        self._tail = list(tail)
        self._pad_id = pad_id
        self._orders = orders
        self._loss_function = loss
        self._max_bucket_tokens = max_bucket_tokens
        self._catalogue: dict[int, list[int]] = {}

    @property
    def size(self) -> int:
        """Return the maximum number of candidates in a list."""
        return len(self._choices)

    def loss(self, batch: PairBatch) -> Tensor:
        chosen = self._chosen(batch)
        lists = [row.nonzero().squeeze(1) for row in chosen]
        lists = [row[torch.randperm(len(row)).to(row.device)] for row in lists]
        found = self._read(_rows(batch.users), _rows(batch.items), [row.tolist() for row in lists])
        row = torch.arange(len(lists), device=chosen.device).repeat_interleave(chosen.sum(dim=1))
        scores = found.new_zeros(chosen.shape).index_put((row, torch.cat(lists)), found)
        return self._loss_function(ScoredPairs.of(scores, replace(batch, excluded=batch.excluded | ~chosen)))

    def _chosen(self, batch: PairBatch) -> Tensor:
        """Return (U, I) bool: at most ``size`` cells per user that are not excluded, with positives and negatives.

        Positives come first but leave a place for a negative; both kinds are drawn at random.
        """
        draw = torch.rand(batch.positive.shape).to(batch.positive.device)
        among_positives = draw.masked_fill(~batch.positive, -1.0).argsort(dim=1, descending=True).argsort(dim=1)
        first = batch.positive & (among_positives < self.size - 1)
        # Further positives come after the negatives, or they could take the negative's place.
        priority = (draw + 2 * first + ~batch.positive).masked_fill(batch.excluded, -1.0)
        place = priority.argsort(dim=1, descending=True).argsort(dim=1)
        return (place < self.size) & ~batch.excluded

    def encode_catalogue(self, batch: ItemBatch) -> None:
        self._catalogue |= dict(zip(batch.item.tolist(), _rows(batch.texts), strict=True))

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        """Return scores as ``RecModule.score``; each row has at most ``size`` candidates, with -1 as padding.

        Raises:
            ValueError: a row has more candidates.
        """
        if len(self._catalogue) != self.num_items:
            raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
        if candidates is None:
            candidates = torch.arange(self.num_items, device=self.device)
        candidates = candidates.expand(users.texts.size, -1)
        longest = int((candidates >= 0).sum(dim=1).max())
        if longest > self.size:
            raise ValueError(f"a list has {longest} candidates, but letters are for {self.size}.")
        return (
            sum(
                (self._in_order(users, candidates, number) for number in range(self._orders)),
                start=torch.zeros(candidates.shape, device=self.device),
            )
            / self._orders
        )

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        """Return scores as ``RecModule.score_items``; more items than letters are read as several lists."""
        texts = dict(zip(items.item.tolist(), _rows(items.texts), strict=True))
        lists = [list(texts)[start : start + self.size] for start in range(0, len(texts), self.size)]
        found = [self._read(_rows(users.texts), texts, [part] * users.texts.size).view(-1, len(part)) for part in lists]
        return torch.cat(found, dim=1)

    def _in_order(self, users: UserBatch, candidates: Tensor, number: int) -> Tensor:
        """Return the scores (T, C) of the candidates in the ``number``-th order of each list."""
        owner = torch.arange(len(candidates)) if users.owner is None else users.owner.cpu()
        order = shuffled(users.user.cpu()[owner], candidates.cpu(), number)
        lists = [[item for item in row if item >= 0] for row in candidates.cpu().gather(1, order).tolist()]
        found = self._read(_rows(users.texts), self._catalogue, lists)
        order = order.to(found.device)
        row, place = (candidates.gather(1, order) >= 0).nonzero(as_tuple=True)
        return found.new_zeros(candidates.shape).index_put((row, order[row, place]), found)

    def diagnose(self, users: UserBatch) -> dict[str, Any]:
        """Return ``order``: the effect of the letters' order, measured by scoring each list in a second order.

        ``best_changes``: share of lists whose best item differs between the orders; ``kendall_tau``: mean rank
        correlation of a list in two orders (Kendall 1938; ties count half), 1 if nothing changes.
        """
        assert users.candidates is not None
        first, second = (self._in_order(users, users.candidates, number) for number in (0, self._orders))
        there = users.candidates >= 0
        best = [part.masked_fill(~there, -torch.inf).argmax(dim=1) for part in (first, second)]
        above = [(part[:, :, None] - part[:, None]).sign() for part in (first, second)]
        pairs = (there[:, :, None] & there[:, None]).triu(diagonal=1)
        agree = (above[0] * above[1] * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))
        return {
            "order": {
                "lists": len(first),
                "best_changes": float((best[0] != best[1]).double().mean()),
                "kendall_tau": float(agree.nanmean()),
            }
        }

    def _read(self, users: list[list[int]], items: Any, lists: list[list[int]]) -> Tensor:
        """Return the scores (R,) of the candidates of all lists, concatenated; letters are assigned in list order."""
        texts = []
        for user, items_of in zip(users, lists, strict=True):
            pieces = [[*choice, *items[item]] for choice, item in zip(self._choices, items_of, strict=False)]
            texts.append([*user, *itertools.chain.from_iterable(pieces), *self._tail])
        batch = bucket(texts, self._pad_id, self._max_bucket_tokens).to(self.device)
        self.tokens_read += batch.num_tokens
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            states = torch.cat([self._last(part) for part in batch.buckets])
        scores = self.head(states[torch.cat([part.row for part in batch.buckets]).argsort()])
        counts = torch.tensor([len(items_of) for items_of in lists], device=scores.device)
        return scores[torch.arange(scores.shape[1], device=scores.device) < counts[:, None]]

    def _last(self, part: Bucket) -> Tensor:
        """Return the state (n, H) of each text's last token."""
        states = self.backbone(input_ids=part.input_ids, attention_mask=part.attention_mask).last_hidden_state
        last = part.attention_mask.sum(dim=1) - 1
        # Virtual tokens of prompt tuning come before the text.
        return states[:, -part.input_ids.shape[1] :][torch.arange(len(last), device=last.device), last]


def shuffled(user: Tensor, candidates: Tensor, number: int) -> Tensor:
    """Return (T, C) an order of each row's candidates, padding last, by a hash of user, item and ``number`` only.

    Args:
        user: (T,) ids.
        candidates: (T, C) items, with -1 as padding.
    """
    with np.errstate(over="ignore"):
        key = splitmix64(splitmix64(user.numpy().astype(np.uint64)) ^ np.uint64(number))
        hashes = splitmix64(key[:, None] ^ candidates.numpy().astype(np.uint64))
    return torch.from_numpy(np.lexsort((hashes, candidates.numpy() < 0), axis=1))


def _rows(texts: TextBatch) -> list[list[int]]:
    """Return the token ids of each text."""
    found: list[list[int]] = [[]] * texts.size
    for part in texts.buckets:
        for row, ids, mask in zip(part.row.tolist(), part.input_ids, part.attention_mask.bool(), strict=True):
            found[row] = ids[mask].tolist()
    return found
