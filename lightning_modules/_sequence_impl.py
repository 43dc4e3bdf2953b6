"""The sequence module, with users as sequences of items; its config is in ``sequence``."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from datamodules._batching import NO_ITEM, ItemBatch, ItemSequences, PairBatch, TextBatch, UserBatch
from lightning_modules import _user_encoders as encoders
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules._text_encoder import TextEncoder
from lightning_modules.losses._base import ScoredPairs

_TEXT_SCALE = 0.1
"""Initial standard deviation of the entries of item vectors from text alone; initial scores are then of order 1."""

_BLOCK_BYTES = 256 * 2**20
"""Approximate maximum number of bytes that ``target_attention`` holds at once for users and candidates."""


class SequenceHead(nn.Module):
    """Item vectors from texts and ids, and the user encoder.

    Args:
        num_items: size of the catalogue.
        text_size: H of the texts' encodings; 0 if no text is read.
        has_id: (num_items,) bool, True if the item has an id embedding.
        ids, user_encoder, length, width, layers, heads, dropout, ratings: see ``sequence.Config``.
    """

    has_id: Tensor

    def __init__(
        self,
        num_items: int,
        text_size: int,
        has_id: Tensor,
        *,
        ids: str = "none",
        user_encoder: str = "transformer",
        length: int = 100,
        width: int = 128,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        ratings: bool = False,
    ) -> None:
        super().__init__()
        self.reads_text = text_size > 0
        if self.reads_text:
            self.text_norm = nn.LayerNorm(text_size, elementwise_affine=False)
            self.text = nn.Linear(text_size, width)
            nn.init.normal_(self.text.weight, std=_TEXT_SCALE / text_size**0.5)
            nn.init.zeros_(self.text.bias)
        self.register_buffer("has_id", has_id.clone(), persistent=False)  # derived from the data, so not saved
        self.ids = None if ids == "none" else nn.Embedding(num_items, width)
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=0.02)
        self.gate = nn.Linear(2 * width, width) if ids == "gate" else None
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.rating = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width)) if ratings else None
        self.dropout = nn.Dropout(dropout)
        places = length + 1  # START precedes a complete history
        self.users: nn.Module
        match user_encoder:
            case "transformer":
                self.users = encoders.Transformer(width, places, layers, heads, dropout)
            case "gru":
                self.users = encoders.Gru(width, layers, dropout)
            case "attention":
                self.users = encoders.Attention(width, dropout)
            case "target_attention":
                self.users = encoders.TargetAttention(width, dropout)
            case "mean":
                self.users = encoders.Mean(width, dropout)
        self.reads_candidates = user_encoder == "target_attention"

    def items(self, text: Tensor | None, item: Tensor) -> Tensor:
        """Return the vectors (n, D) of items.

        Args:
            text: (n, H) encodings of their texts; None if no text is read.
            item: (n,) dense ids.
        """
        by_text = self.text(self.text_norm(text)) if self.reads_text else None
        if self.ids is None:
            assert by_text is not None
            return by_text
        known = self.has_id[item][:, None]
        by_id = self.ids(item) * known  # an untrained id embedding would be noise
        if by_text is None:
            return by_id
        if self.gate is None:
            return by_text + by_id
        share = torch.sigmoid(self.gate(torch.cat([by_text, by_id], dim=-1))) * known
        return (1 - share) * by_text + share * by_id

    def history(self, vectors: Tensor, place: Tensor, sequences: ItemSequences) -> Tensor:
        """Return the input (U, L, D) of the user encoder.

        Args:
            vectors: (n, D) item vectors.
            place: (U, L) index in ``vectors`` of each entry of ``sequences``; ignored for START and padding.
        """
        found = torch.where((sequences.item >= 0)[..., None], vectors[place], self.start)
        if self.rating is not None:
            rated = ~sequences.rating.isnan()
            rating = self.rating(sequences.rating.nan_to_num()[..., None].to(found.dtype))
            found = found + rating * rated[..., None]
        return found


class Sequence(RecModule):
    """Users as sequences of items, whose vectors come from texts through the backbone, from ids, or both.

    For texts that are not encoded in a step, ``bank`` holds the latest encoding of each item.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``; not called if the head
            reads no text.
        num_items: size of the catalogue.
        head: item vectors and user encoder.
        loss: see ``LossFunction``; default is the listwise softmax.
        pooling: a key of ``_pooling.POOLINGS``.
        text_dropout: keep the backbone's dropout on in training.
        gradient_checkpointing: ``buckets`` recomputes each bucket of texts in the backward pass.
        training: as for ``RecModule``.
    """

    head: SequenceHead

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        head: SequenceHead,
        loss: LossFunction | None = None,
        pooling: str = "mean",
        text_dropout: bool = False,
        gradient_checkpointing: Literal["none", "layers", "buckets"] = "none",
        **training: Any,
    ) -> None:
        super().__init__(backbone, head, num_items=num_items, **training)
        if loss is None:
            from lightning_modules.losses.listwise_softmax import loss as listwise_softmax

            loss = listwise_softmax
        if gradient_checkpointing == "layers" and self.backbone_is_trained:
            from lightning_modules._backbone import enable_layer_checkpointing

            enable_layer_checkpointing(backbone)
        self._loss_function = loss
        self._texts = TextEncoder(backbone, pooling, recompute=gradient_checkpointing == "buckets")
        self._pooling, self._text_dropout = pooling, text_dropout
        self._parts: list[tuple[Tensor, Tensor]] = []
        self.bank: Tensor | None = None
        """(I, H) float32 latest encoding of each item; None before the first encoding, or if no text is read."""
        self._bank_age: Tensor | None = None
        self._age_sum, self._age_steps = 0.0, 0  # sum of the bank's mean ages, and over how many steps
        self._fixed_bank = False
        self._vectors: Tensor | None = None

    # Texts -----------------------------------------------------------------------------------------

    def encode(self, texts: TextBatch) -> Tensor:
        """Return the encodings (T, H) float32, row t for text t."""
        self.tokens_read += texts.num_tokens
        return self._texts.pooled(texts)

    @property
    def has_bank(self) -> bool:
        return self.head.reads_text

    @property
    def bank_age(self) -> float:
        return self._age_sum / max(self._age_steps, 1)

    @property
    def bank_pooling(self) -> str:
        return self._pooling

    def take_bank(self, encodings: Tensor, fixed: bool) -> None:
        """Use the encodings (I, H) of all items.

        Args:
            fixed: the encodings never change, as the backbone is not trained; the catalogue is not encoded again.
        """
        self.bank, self._fixed_bank, self._vectors = encodings.to(self.device), fixed, None
        self._bank_age = torch.zeros(len(encodings), dtype=torch.int64)

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if not self.head.reads_text or self._fixed_bank:
            return
        self._parts.append((batch.item, self.encode(batch.texts)))
        item = torch.cat([item for item, _ in self._parts])
        if len(item) == self.num_items:
            self.take_bank(torch.cat([encoded for _, encoded in self._parts])[item.argsort()].detach(), fixed=False)
            self._parts = []

    def encodings(self) -> Tensor | None:
        return self.bank

    def take_encodings(self, encodings: Tensor) -> None:
        self.take_bank(encodings, fixed=True)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.bank is not None:
            self.bank = self.bank.to(self.device)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._vectors = None
        if not self._text_dropout:
            self.backbone.eval()
        return self

    # Scores ----------------------------------------------------------------------------------------

    def loss(self, batch: PairBatch) -> Tensor:
        assert batch.sequences is not None
        assert batch.text_item is not None
        history = batch.sequences.item
        needed = torch.cat([history[history >= 0], batch.item]).unique()  # (n,) ascending
        text = self._bank_of(needed)
        if len(batch.text_item) and self.head.reads_text:
            fresh = self.encode(batch.items)
            self._renew(batch.text_item, fresh)
            known = fresh.new_zeros(len(needed), fresh.shape[1]) if text is None else text
            text = known.index_copy(0, torch.searchsorted(needed, batch.text_item), fresh)
        vectors = self.head.items(text, needed)
        items = vectors[torch.searchsorted(needed, batch.item)]
        read = self._read(batch.sequences, vectors, needed)
        if batch.targets is None:
            scores = self._score(*read, items)
        else:
            states = self.head.users(read[0])
            scores = states[batch.targets.row, batch.targets.place] @ items.T
        return self._loss_function(ScoredPairs.of(scores, batch))

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        vectors = self._catalogue()
        assert users.sequences is not None
        every = torch.arange(self.num_items, device=vectors.device)
        items = vectors if candidates is None else vectors[candidates]
        return self._score(*self._read(users.sequences, vectors, every), items)

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        assert users.sequences is not None
        text = self.encode(items.texts) if self.head.reads_text else None
        vectors = self.head.items(text, items.item)
        return self._score(*self._read(users.sequences, vectors, items.item), vectors)

    def _read(self, sequences: ItemSequences, vectors: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input (U, L, D) of the user encoder, and its mask (U, L), False on padding.

        Args:
            vectors: (n, D) vectors of the items ``of`` (n,), ascending, which include all items of ``sequences``.
        """
        place = torch.searchsorted(of, sequences.item.clamp(min=0)).clamp(max=len(of) - 1)
        history = self.head.history(self.head.dropout(vectors), place, sequences)
        return history, sequences.item != NO_ITEM

    def _score(self, history: Tensor, there: Tensor, items: Tensor) -> Tensor:
        """Return the scores (U, C) float32 of items (C, D) or (U, C, D) after each complete history."""
        if self.head.reads_candidates:
            candidates = items.shape[-2]
            size = max(1, _BLOCK_BYTES // (4 * candidates * (history.shape[1] + 3 * history.shape[2])))
            of_users = [items] * -(-len(history) // size) if items.ndim == 2 else items.split(size)
            parts = zip(history.split(size), there.split(size), of_users, strict=True)
            return torch.cat([self.head.users(*part) for part in parts]).float()
        states = self.head.users(history)[torch.arange(len(history)), there.sum(dim=1) - 1]  # (U, D)
        scores = states @ items.T if items.ndim == 2 else (items @ states[..., None]).squeeze(-1)
        return scores.float()

    def _catalogue(self) -> Tensor:
        """Return the vectors (I, D) of all items."""
        if self._vectors is not None:
            return self._vectors
        if self.head.reads_text and self.bank is None:
            raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
        every = torch.arange(self.num_items, device=self.head.start.device)
        vectors = self.head.items(self.bank, every)
        if not torch.is_grad_enabled():
            self._vectors = vectors
        return vectors

    # The bank --------------------------------------------------------------------------------------

    def _bank_of(self, item: Tensor) -> Tensor | None:
        return None if self.bank is None else self.bank[item]

    def _renew(self, item: Tensor, encoded: Tensor) -> None:
        """Put the encodings of this step into the bank."""
        if self.bank is None or self._bank_age is None:
            return
        self.bank = self.bank.index_copy(0, item, encoded.detach())
        self._bank_age += 1
        self._bank_age[item.cpu()] = 0
        self._age_sum += float(self._bank_age.float().mean())
        self._age_steps += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.bank is not None and not self._fixed_bank:
            ages = {"age": self._bank_age, "age_sum": self._age_sum, "age_steps": self._age_steps}
            checkpoint["bank"] = {"encodings": self.bank.cpu(), **ages}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "bank" in checkpoint:
            self.take_bank(checkpoint["bank"]["encodings"], fixed=False)
            self._bank_age = checkpoint["bank"]["age"]
            self._age_sum, self._age_steps = checkpoint["bank"]["age_sum"], checkpoint["bank"]["age_steps"]
