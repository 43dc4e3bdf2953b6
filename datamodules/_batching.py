"""Batches of token ids: distinct texts, in buckets of similar length."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from datamodules._ragged import Ragged


@dataclass
class Bucket:
    """Texts of similar length, padded to the longest of them."""

    input_ids: Tensor
    """(n, L) int64."""
    attention_mask: Tensor
    """(n, L) int64: 1 on text, 0 on padding."""
    row: Tensor
    """(n,) int64: index in the batch of each row's text."""


@dataclass
class TextBatch:
    """Texts to be encoded, in buckets; text t of the batch is the row whose ``row`` is t."""

    buckets: list[Bucket]
    size: int
    """Number of texts."""
    num_tokens: int
    """Number of tokens in the texts, without padding."""

    def to(self, device: torch.device | str, **kwargs: object) -> TextBatch:
        """Return a copy on ``device``; Lightning calls this when it moves a batch."""
        moved = [Bucket(b.input_ids.to(device), b.attention_mask.to(device), b.row.to(device)) for b in self.buckets]
        return TextBatch(moved, self.size, self.num_tokens)


@dataclass
class ItemSequences:
    """Users' latest interactions, oldest first, which represent users where only items are read."""

    item: Tensor
    """(U, L) int64: dense ids; ``START`` before the first item of a complete history, ``NO_ITEM`` after the last
    item."""
    rating: Tensor
    """(U, L) float32, NaN where there is none."""


START, NO_ITEM = -1, -2
"""Values in place of an item: the beginning of a history, and padding."""


@dataclass
class PositionTargets:
    """P positions in the sequences of a batch, with a prediction at each."""

    row: Tensor
    """(P,) int64: index of the sequence."""
    place: Tensor
    """(P,) int64: column of the last item in the sequence that the prediction sees."""


@dataclass
class PairBatch:
    """A training batch: users, the distinct items of the batch, and which of them are each user's positives."""

    users: TextBatch
    items: TextBatch
    item: Tensor
    """(I,) int64: dense ids of the items, ascending."""
    positive: Tensor
    """(U, I) bool."""
    excluded: Tensor
    """(U, I) bool: items that are neither target nor negative, such as others that the user met in train."""
    log_q: Tensor
    """(I,) float32: log of the expected share of draws that fall on the item."""
    rating: Tensor
    """(U, I) float32: the user's rating of the item in train, NaN where there is none."""
    user: Tensor | None = None
    """(U,) int64: dense ids of the users; None in batches that tests make by hand."""
    groups: dict[str, Tensor] = field(default_factory=dict)
    """(U,) int64 for each grouping that the loss requires (``LossConfig.user_groups``): each user's group, -1 for
    none."""
    item_features: dict[str, Tensor] = field(default_factory=dict)
    """(I, D) float32 for each column that the formulation requires (``FormulationConfig.item_features``)."""
    sequences: ItemSequences | None = None
    """Histories in place of ``users``, where only items are read; ``items`` then has only the texts of ``text_item``,
    and with ``targets``, ``positive`` and the other (U, …) tensors have a row for each target."""
    targets: PositionTargets | None = None
    text_item: Tensor | None = None
    """(n,) int64: dense ids of the items that are encoded with a gradient in this step."""


@dataclass
class ItemBatch:
    """A part of the catalogue, encoded before items are ranked for users."""

    item: Tensor
    """(n,) int64: dense ids."""
    texts: TextBatch
    features: dict[str, Tensor] = field(default_factory=dict)
    """(n, D) float32 for each column that the formulation requires (``FormulationConfig.item_features``)."""


@dataclass
class UserBatch:
    """Users for whom items are ranked."""

    user: Tensor
    """(U,) int64: dense ids."""
    texts: TextBatch
    """T texts: one per user, or one per candidate (``owner``)."""
    seen: tuple[Tensor, Tensor]
    """Batch row and item of each pair to be masked."""
    relevant: tuple[Tensor, Tensor]
    """Batch row and item of each held-out pair."""
    grade: Tensor | None = None
    """Rating of each pair of ``relevant``, float32; None if any is missing or negative."""
    candidates: Tensor | None = None
    """(T, C) int64: the only items to be ranked, -1 padding; None is the whole catalogue."""
    owner: Tensor | None = None
    """(T,) int64: batch row of each text's user, if users have several texts, each with its own candidates;
    None is one text per user."""
    liked: Tensor | None = None
    """(T, C) bool: True if the user likes the candidate; None unless the candidates are the rated held-out items."""
    rating: Tensor | None = None
    """(T, C) float32: the candidates' ratings, NaN where there is none; None if ``liked`` is None."""
    unavailable: Tensor | None = None
    """(U, I) bool: items outside the user's domain, which are never listed; None if there is only one domain."""
    repeated: bool = False
    """True if the batch only makes the number of batches equal on all processes: its users are counted elsewhere."""
    sequences: ItemSequences | None = None
    """T histories in place of ``texts``, which then has T empty texts, where only items are read."""


def bucket(
    texts: Ragged | Sequence[Sequence[int]], pad_id: int, max_tokens: int, padding_side: str = "right"
) -> TextBatch:
    """Put texts of similar length into buckets of at most ``max_tokens`` tokens, padding included.

    A bucket's shortest text has at least 0.8 of the length of its longest, so padding is less than a fifth of
    any bucket, and about a tenth overall. A longer single text has a bucket of its own.
    """
    texts = texts if isinstance(texts, Ragged) else Ragged.of(texts)
    lengths = texts.lengths
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order].tolist()
    buckets: list[Bucket] = []
    start = 0
    while start < len(ascending):
        # Texts at most a quarter longer than the shortest, and as many as max_tokens allows.
        stop = bisect.bisect_right(ascending, ascending[start] * 5 // 4, lo=start)
        while stop > start + 1 and ascending[stop - 1] * (stop - start) > max_tokens:
            stop -= 1
        buckets.append(_pad(texts, order[start:stop], pad_id, padding_side))
        start = stop
    return TextBatch(buckets, len(texts), int(lengths.sum()))


def one_bucket(texts: Ragged, pad_id: int, padding_side: str = "right") -> TextBatch:
    """Put all texts into one bucket, for processes that must call the backbone equally often."""
    return TextBatch([_pad(texts, np.arange(len(texts)), pad_id, padding_side)], len(texts), int(texts.lengths.sum()))


def _pad(texts: Ragged, rows: np.ndarray, pad_id: int, padding_side: str) -> Bucket:
    part = texts.take(rows)
    lengths = part.lengths[:, None]  # (n, 1)
    places = np.arange(lengths.max(initial=0))  # (L,)
    mask = places < lengths if padding_side == "right" else places >= len(places) - lengths
    input_ids = np.full(mask.shape, pad_id, np.int64)
    input_ids[mask] = part.values
    return Bucket(
        torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(rows.astype(np.int64))
    )
