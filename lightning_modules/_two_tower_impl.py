"""The two-tower module; its config is in ``two_tower``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules._backbone import enable_layer_checkpointing
from lightning_modules._rec_module import LossFunction, RecModule
from lightning_modules._scores import CosineHead, Head, TokenStates
from lightning_modules._text_encoder import TextEncoder
from lightning_modules.losses._base import ScoredPairs


class TwoTower(RecModule):
    """Encode user text and item text by the same backbone, pool them, and score them by a head of ``_scores``.

    Use it as ``Trainer().fit(TwoTower(backbone, num_items=…), TextPairDataModule(…))``.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``; also with
            ``output_hidden_states`` if the head reads all layers.
        num_items: size of the catalogue.
        loss: see ``LossFunction``; default is the listwise softmax with logQ correction.
        head: the score; default is ``CosineHead``.
        pooling: a key of ``_pooling.POOLINGS``.
        temperature, item_bias: options of the default ``CosineHead``; unused if ``head`` is given.
        gradient_checkpointing: ``layers`` keeps only each transformer layer's inputs and recomputes it in the backward
            pass, ``buckets`` does so for each bucket; for batches that would not fit otherwise, about a third slower.
            ``none`` keeps all.
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
        self._texts = TextEncoder(backbone, pooling, recompute=gradient_checkpointing == "buckets")
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._catalogue: Tensor | None = None

    def encode(self, texts: TextBatch) -> Tensor:
        """Return embeddings (T, H) float32, row t for text t; of unit length if the head normalises them."""
        self.tokens_read += texts.num_tokens
        return self.head.embed(self._texts.pooled(texts, all_layers=self.head.reads_layers))

    def encode_users(self, texts: TextBatch) -> Any:
        """Return the head's input for users: embeddings (U, H), or ``TokenStates`` if it reads their tokens."""
        if not self.head.reads_tokens:
            return self.encode(texts)
        self.tokens_read += texts.num_tokens
        states, masks = zip(*self._texts.buckets(self._texts.last_states, texts), strict=True)
        return TokenStates(list(states), list(masks), [bucket.row for bucket in texts.buckets])

    def loss(self, batch: PairBatch) -> Tensor:
        scores = self.head(self.encode_users(batch.users), self.encode(batch.items), batch.item)
        return self._loss_function(ScoredPairs.of(scores, batch))

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if sum(len(item) for item, _ in self._parts) == self.num_items:  # complete: a new epoch begins
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
