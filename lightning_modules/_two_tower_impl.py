"""The two-tower module; its config is in ``two_tower``."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datamodules._batching import Bucket, ItemBatch, PairBatch, TextBatch, UserBatch
from lightning_modules._backbone import enable_layer_checkpointing
from lightning_modules._rec_module import LossFunction, RecModule


class CosineHead(nn.Module):
    """``cosine(user, item) / temperature + bias[item]``, temperature and bias learned.

    Args:
        num_items: size of the catalogue.
        temperature: where it starts.
        item_bias: whether there is a bias; it starts at 0.
    """

    def __init__(self, num_items: int, temperature: float = 0.05, item_bias: bool = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature)))
        self.bias = nn.Parameter(torch.zeros(num_items)) if item_bias else None

    def forward(self, users: Tensor, items: Tensor, item: Tensor) -> Tensor:
        """Scores (U, I) of unit embeddings users (U, H) and items (I, H); ``item`` (I,) their ids.

        With items (U, C, H) and ``item`` (U, C), each user has candidates of their own: (U, C).
        """
        cosine = users @ items.T if items.ndim == 2 else torch.einsum("uh,uch->uc", users, items)
        scores = self.log_scale.exp() * cosine
        return scores if self.bias is None else scores + self.bias[item]


class TwoTower(RecModule):
    """User text and item text through the same backbone, mean-pooled, scored by ``CosineHead``.

    ``Trainer().fit(TwoTower(backbone, num_items=…), TextPairDataModule(…))`` is all it takes.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.
        num_items: size of the catalogue.
        loss: see ``LossFunction``; the listwise softmax with logQ correction unless given.
        gradient_checkpointing: ``layers`` keeps each transformer layer's inputs alone and computes it again in
            the backward pass, ``buckets`` each bucket's; for batches that would not fit otherwise, about a third
            slower. ``none`` keeps all.
        training: as for ``RecModule``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_items: int,
        loss: LossFunction | None = None,
        temperature: float = 0.05,
        item_bias: bool = False,
        gradient_checkpointing: Literal["none", "layers", "buckets"] = "none",
        **training: Any,
    ) -> None:
        super().__init__(backbone, CosineHead(num_items, temperature, item_bias), num_items=num_items, **training)
        if loss is None:
            from lightning_modules.losses.listwise_softmax import loss as listwise_softmax

            loss = listwise_softmax
        self._loss_function = loss
        if gradient_checkpointing == "layers" and self.backbone_is_trained:
            enable_layer_checkpointing(backbone)
        self._recompute = gradient_checkpointing == "buckets"
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._catalogue: Tensor | None = None

    def encode(self, texts: TextBatch) -> Tensor:
        """(T, H) float32 embeddings of unit length, row t for text t."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backbone_is_trained):
            if self._recompute and torch.is_grad_enabled():
                parts = [checkpoint(self._pool, bucket, use_reentrant=False) for bucket in texts.buckets]
            else:
                parts = [self._pool(bucket) for bucket in texts.buckets]
        rows = torch.cat([bucket.row for bucket in texts.buckets])
        return nn.functional.normalize(torch.cat(parts)[rows.argsort()], dim=-1)

    def _pool(self, bucket: Bucket) -> Tensor:
        # Padding on the left would move the absolute positions that a BERT learnt: turn it to the right.
        places = torch.arange(bucket.attention_mask.shape[1], device=bucket.attention_mask.device)  # (L,)
        start = (bucket.attention_mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (n, 1)
        turned = (places + start) % len(places)  # (n, L)
        attention_mask = bucket.attention_mask.gather(1, turned)
        states = self.backbone(
            input_ids=bucket.input_ids.gather(1, turned), attention_mask=attention_mask
        ).last_hidden_state  # (n, L, H)
        states = states[:, -len(places) :]  # prompt tuning puts virtual tokens before the text's
        mask = attention_mask.unsqueeze(-1)
        # Sums in half precision would lose the tail of a long text.
        return (states.float() * mask).sum(dim=1) / mask.sum(dim=1)

    def loss(self, batch: PairBatch) -> Tensor:
        scores = self.head(self.encode(batch.users), self.encode(batch.items), batch.item)
        return self._loss_function(scores, batch.positive, batch.excluded, batch.log_q)

    def encode_catalogue(self, batch: ItemBatch) -> None:
        if self._catalogue is not None:  # users have been scored since: a new epoch begins
            self._parts, self._catalogue = [], None
        self._parts.append((batch.item, self.encode(batch.texts)))

    def score(self, users: UserBatch, candidates: Tensor | None = None) -> Tensor:
        if self._catalogue is None:
            encoded = torch.cat([item for item, _ in self._parts]) if self._parts else torch.empty(0)
            if len(encoded) != self.num_items:
                raise RuntimeError("score() needs the catalogue: call encode_catalogue with every ItemBatch first")
            self._catalogue = torch.cat([embeddings for _, embeddings in self._parts])[encoded.argsort()]
        item = candidates if candidates is not None else torch.arange(self.num_items, device=self.device)
        items = self._catalogue if candidates is None else self._catalogue[candidates]
        return self.head(self.encode(users.texts), items, item)
