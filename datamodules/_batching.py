"""Batches of token ids: distinct texts, in buckets of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Bucket:
    """Texts of like length, padded to the longest of them."""

    input_ids: Tensor
    """(n, L) int64."""
    attention_mask: Tensor
    """(n, L) int64: 1 on text, 0 on padding."""
    row: Tensor
    """(n,) int64: which text of the batch each row is."""


@dataclass
class TextBatch:
    """Texts to be encoded, in buckets; text t of the batch is the row whose ``row`` is t."""

    buckets: list[Bucket]
    size: int
    """How many texts."""
    num_tokens: int
    """Tokens of the texts, padding left out."""

    def to(self, device: torch.device | str, **kwargs: object) -> TextBatch:
        """The same on ``device``; Lightning calls this when it moves a batch."""
        moved = [Bucket(b.input_ids.to(device), b.attention_mask.to(device), b.row.to(device)) for b in self.buckets]
        return TextBatch(moved, self.size, self.num_tokens)


@dataclass
class PairBatch:
    """A training step: users, the distinct items of all their positives, and which belong together."""

    users: TextBatch
    items: TextBatch
    item: Tensor
    """(I,) int64: dense ids of the items, ascending."""
    positive: Tensor
    """(U, I) bool."""
    excluded: Tensor
    """(U, I) bool: other items the user is known to like in train; neither target nor negative."""
    log_q: Tensor
    """(I,) float32: log of the share of draws that fall on the item."""

    @property
    def num_tokens(self) -> int:
        return self.users.num_tokens + self.items.num_tokens


@dataclass
class ItemBatch:
    """A part of the catalogue, to be encoded before users are ranked."""

    item: Tensor
    """(n,) int64: dense ids."""
    texts: TextBatch


@dataclass
class UserBatch:
    """Users to be ranked against the catalogue."""

    user: Tensor
    """(U,) int64: dense ids."""
    texts: TextBatch
    seen: tuple[Tensor, Tensor]
    """Row of the batch and item of each pair to be masked."""
    relevant: tuple[Tensor, Tensor]
    """Row of the batch and item of each held-out pair."""


def bucket(texts: Sequence[Sequence[int]], pad_id: int, max_tokens: int, padding_side: str = "right") -> TextBatch:
    """Put texts of like length together, each bucket of at most ``max_tokens`` with its padding.

    A bucket's shortest text has at least 0.8 of the length of its longest, so padding stays under a fifth of
    any bucket, and at about a tenth of all.
    """
    order = sorted(range(len(texts)), key=lambda t: (len(texts[t]), t))
    buckets: list[Bucket] = []
    start = 0
    while start < len(order):
        shortest = len(texts[order[start]])
        longest = shortest * 5 // 4
        stop = start + 1
        while stop < len(order):
            length = len(texts[order[stop]])
            if length > longest or length * (stop + 1 - start) > max_tokens:
                break
            stop += 1
        buckets.append(_pad(texts, order[start:stop], pad_id, padding_side))
        start = stop
    return TextBatch(buckets, len(texts), sum(len(text) for text in texts))


def _pad(texts: Sequence[Sequence[int]], rows: list[int], pad_id: int, padding_side: str) -> Bucket:
    length = max(len(texts[r]) for r in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for n, r in enumerate(rows):
        part = slice(0, len(texts[r])) if padding_side == "right" else slice(length - len(texts[r]), length)
        input_ids[n, part] = torch.tensor(texts[r], dtype=torch.int64)
        attention_mask[n, part] = 1
    return Bucket(input_ids, attention_mask, torch.tensor(rows, dtype=torch.int64))
