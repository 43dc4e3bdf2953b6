"""The two-tower module; its config is in ``two_tower``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datamodules._batching import Bucket, ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules._backbone import enable_layer_checkpointing
from lightning_modules._pooling import POOLINGS
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules._scores import CosineHead, Head, TokenStates
from lightning_modules.losses._base import ScoredPairs

Encoded = TypeVar("Encoded")


class TwoTower(RecModule):
    """User text and item text through the same backbone, pooled, scored by a head of ``_scores``.

    ``Trainer().fit(TwoTower(backbone, num_items=…), TextPairDataModule(…))`` is all it takes.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``; also with
            ``output_hidden_states`` where the head reads all layers.
        num_items: size of the catalogue.
        loss: see ``LossFunction``; the listwise softmax with logQ correction unless given.
        head: the score; ``CosineHead`` unless given.
        pooling: a key of ``_pooling.POOLINGS``.
        temperature, item_bias: of ``CosineHead``; a head that is given has its own.
        gradient_checkpointing: ``layers`` keeps each transformer layer's inputs alone and computes it again in
            the backward pass, ``buckets`` each bucket's; for batches that would not fit otherwise, about a third
            slower. ``none`` keeps all.
        training: as for ``RecModule``.
    """

    head: Head

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        loss: LossFunction | None = None,
        head: Head | None = None,
        pooling: Literal["mean", "first", "last", "weighted"] = "mean",
        temperature: float = 0.05,
        item_bias: bool = False,
        gradient_checkpointing: Literal["none", "layers", "buckets"] = "none",
        **training: Any,
    ) -> None:
        head = head if head is not None else CosineHead(num_items, temperature, item_bias)
        super().__init__(backbone, head, num_items=num_items, **training)
        if loss is None:
            from lightning_modules.losses.listwise_softmax import loss as listwise_softmax

            loss = listwise_softmax
        self._loss_function = loss
        if gradient_checkpointing == "layers" and self.backbone_is_trained:
            enable_layer_checkpointing(backbone)
        self._pooling = POOLINGS[pooling]
        self._recompute = gradient_checkpointing == "buckets"
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._catalogue: Tensor | None = None

    def encode(self, texts: TextBatch) -> Tensor:
        """(T, H) float32 embeddings, row t for text t; of unit length where the head makes them so."""
        parts = self._encode_buckets(self._pool, texts)
        rows = torch.cat([bucket.row for bucket in texts.buckets])
        return self.head.embed(torch.cat(parts)[rows.argsort()])

    def encode_users(self, texts: TextBatch) -> Any:
        """What the head takes for users: ``encode``'s (U, H), or ``TokenStates`` where it reads their tokens."""
        if not self.head.reads_tokens:
            return self.encode(texts)
        states, masks = zip(*self._encode_buckets(self._last_states, texts), strict=True)
        return TokenStates(list(states), list(masks), [bucket.row for bucket in texts.buckets])

    def _encode_buckets(self, encode: Callable[[Bucket], Encoded], texts: TextBatch) -> list[Encoded]:
        self.tokens_read += texts.num_tokens
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            if self._recompute and torch.is_grad_enabled():
                return [checkpoint(encode, bucket, use_reentrant=False) for bucket in texts.buckets]
            return [encode(bucket) for bucket in texts.buckets]

    def _pool(self, bucket: Bucket) -> Tensor:
        """(n, H) float32, or (n, layers, H) where the head reads all layers."""
        if not self.head.reads_layers:
            return self._pooling(*self._last_states(bucket))
        output, mask = self._run(bucket, output_hidden_states=True)
        layers = [self._pooling(layer[:, -mask.shape[1] :], mask) for layer in output.hidden_states]
        return torch.stack(layers, dim=1)

    def _last_states(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """The text's states (n, L, H) and their mask (n, L), padding on the right."""
        output, mask = self._run(bucket)
        return output.last_hidden_state[:, -mask.shape[1] :], mask

    def _run(self, bucket: Bucket, **options: Any) -> tuple[Any, Tensor]:
        """The backbone's output and the text's mask (n, L); prompt tuning's virtual tokens stand before the text's."""
        # Padding on the left would move the absolute positions that a BERT learnt: turn it to the right.
        places = torch.arange(bucket.attention_mask.shape[1], device=bucket.attention_mask.device)  # (L,)
        start = (bucket.attention_mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (n, 1)
        turned = (places + start) % len(places)  # (n, L)
        mask = bucket.attention_mask.gather(1, turned)
        return self.backbone(input_ids=bucket.input_ids.gather(1, turned), attention_mask=mask, **options), mask

    def loss(self, batch: PairBatch) -> Tensor:
        scores = self.head(self.encode_users(batch.users), self.encode(batch.items), batch.item)
        return self._loss_function(ScoredPairs.of(scores, batch))

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if sum(len(item) for item, _ in self._parts) == self.num_items:  # it is whole: a new epoch begins
            self._parts, self._catalogue = [], None
        self._parts.append((batch.item, self.encode(batch.texts)))

    def encodings(self) -> Tensor:
        if self._catalogue is None:
            encoded = torch.cat([item for item, _ in self._parts]) if self._parts else torch.empty(0)
            if len(encoded) != self.num_items:
                raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
            self._catalogue = torch.cat([embeddings for _, embeddings in self._parts])[encoded.argsort()]
        return self._catalogue

    def take_encodings(self, encodings: Tensor) -> None:
        self._catalogue = encodings

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        catalogue = self.encodings()
        item = candidates if candidates is not None else torch.arange(self.num_items, device=self.device)
        items = catalogue if candidates is None else catalogue[candidates]
        return self.head(self.encode_users(users.texts), items, item)

    def score_items(self, users: UserBatch, items: ItemBatch) -> Tensor:
        return self.head(self.encode_users(users.texts), self.encode(items.texts), items.item)
