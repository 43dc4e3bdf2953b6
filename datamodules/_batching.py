"""Batches of token ids: distinct texts, in buckets of like length."""

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
class ItemSequences:
    """What users are where only items are read: their latest interactions, oldest first."""

    item: Tensor
    """(U, L) int64: dense ids; ``START`` before the first of a history that is there whole, ``NO_ITEM`` behind the
    last."""
    rating: Tensor
    """(U, L) float32, NaN where there is none."""


START, NO_ITEM = -1, -2
"""In place of an item: a history's beginning, and padding."""


@dataclass
class PositionTargets:
    """P places of the sequences of a batch, at each of which something is to be predicted."""

    row: Tensor
    """(P,) int64: the sequence."""
    place: Tensor
    """(P,) int64: the last item of it that the prediction sees."""


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
    rating: Tensor
    """(U, I) float32: the user's rating of the item in train, NaN where there is none."""
    user: Tensor | None = None
    """(U,) int64: dense ids of the users; None where a test makes a batch by hand."""
    groups: dict[str, Tensor] = field(default_factory=dict)
    """(U,) int64 for each grouping that the loss asks for (``LossConfig.user_groups``): each user's group, -1 for
    none."""
    item_features: dict[str, Tensor] = field(default_factory=dict)
    """(I, D) float32 for each column that the formulation asks for (``FormulationConfig.item_features``)."""
    sequences: ItemSequences | None = None
    """Where only items are read: the histories, in place of ``users``. ``positive`` and the like have then a row for
    each of ``targets``, and ``items`` are the texts of ``text_item`` alone."""
    targets: PositionTargets | None = None
    text_item: Tensor | None = None
    """(n,) int64: dense ids of the items that are encoded with a gradient in this step."""


@dataclass
class ItemBatch:
    """A part of the catalogue, to be encoded before users are ranked."""

    item: Tensor
    """(n,) int64: dense ids."""
    texts: TextBatch
    features: dict[str, Tensor] = field(default_factory=dict)
    """(n, D) float32 for each column that the formulation asks for (``FormulationConfig.item_features``)."""


@dataclass
class UserBatch:
    """Users to be ranked."""

    user: Tensor
    """(U,) int64: dense ids."""
    texts: TextBatch
    """T texts: one a user, or one for each candidate (``owner``)."""
    seen: tuple[Tensor, Tensor]
    """Row of the batch and item of each pair to be masked."""
    relevant: tuple[Tensor, Tensor]
    """Row of the batch and item of each held-out pair."""
    grade: Tensor | None = None
    """Rating of each pair of ``relevant``, float32; None where one has none, or is below 0."""
    candidates: Tensor | None = None
    """(T, C) int64: the only items to be ranked, -1 padding; None is the whole catalogue."""
    owner: Tensor | None = None
    """(T,) int64: row of the user that each text is of, where users have several, each with candidates of its own;
    None is one text a user."""
    liked: Tensor | None = None
    """(T, C) bool: whether the user likes the candidate, where all candidates are rated; else None."""
    rating: Tensor | None = None
    """(T, C) float32: the candidates' ratings, NaN where there is none; None where ``liked`` is."""
    unavailable: Tensor | None = None
    """(U, I) bool: items of other domains than the user's, never to be listed; None where there is one domain."""
    repeated: bool = False
    """Whether it stands here only so that all processes have equally many: its users are counted elsewhere."""
    sequences: ItemSequences | None = None
    """Where only items are read: T histories, in place of ``texts``, which has T empty ones."""


def bucket(
    texts: Ragged | Sequence[Sequence[int]], pad_id: int, max_tokens: int, padding_side: str = "right"
) -> TextBatch:
    """Put texts of like length together, each bucket of at most ``max_tokens`` with its padding.

    A bucket's shortest text has at least 0.8 of the length of its longest, so padding stays under a fifth of
    any bucket, and at about a tenth of all.
    """
    texts = texts if isinstance(texts, Ragged) else Ragged.of(texts)
    lengths = texts.lengths
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order].tolist()
    buckets: list[Bucket] = []
    start = 0
    while start < len(ascending):
        # At most a quarter above the shortest, and as many as the tokens allow.
        stop = bisect.bisect_right(ascending, ascending[start] * 5 // 4, lo=start)
        while stop > start + 1 and ascending[stop - 1] * (stop - start) > max_tokens:
            stop -= 1
        buckets.append(_pad(texts, order[start:stop], pad_id, padding_side))
        start = stop
    return TextBatch(buckets, len(texts), int(lengths.sum()))


def one_bucket(texts: Ragged, pad_id: int, padding_side: str = "right") -> TextBatch:
    """All texts in a single bucket, for processes that must call the backbone equally often."""
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
