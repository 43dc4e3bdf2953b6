"""Encode texts by the backbone, bucket by bucket, in the order of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from datamodules._batching import Bucket, TextBatch
from lightning_modules._pooling import POOLINGS

Encoded = TypeVar("Encoded")


class TextEncoder:
    """The adapted backbone with pooling of a text's token states into one vector.

    Args:
        backbone: called with ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.
        pooling: a key of ``_pooling.POOLINGS``.
        recompute: keep only each bucket's inputs and recompute it in the backward pass.
    """

    def __init__(self, backbone: nn.Module, pooling: str, recompute: bool = False) -> None:
        self._backbone = backbone
        self._pooling = POOLINGS[pooling]
        self._recompute = recompute

    def pooled(self, texts: TextBatch, all_layers: bool = False) -> Tensor:
        """Return encodings (T, H) float32, row t for text t; with ``all_layers`` (T, layers, H)."""
        parts = self.buckets(self._all_layers if all_layers else self._last_layer, texts)
        rows = torch.cat([bucket.row for bucket in texts.buckets])
        return torch.cat(parts)[rows.argsort()]

    def buckets(self, encode: Callable[[Bucket], Encoded], texts: TextBatch) -> list[Encoded]:
        """Return ``encode`` of each bucket, with gradients if the backbone is trained."""
        trained = any(parameter.requires_grad for parameter in self._backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            if self._recompute and torch.is_grad_enabled():
                return [checkpoint(encode, bucket, use_reentrant=False) for bucket in texts.buckets]
            return [encode(bucket) for bucket in texts.buckets]

    def last_states(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Return the texts' states (n, L, H) and their mask (n, L), with padding on the right."""
        output, mask = self._run(bucket)
        return output.last_hidden_state[:, -mask.shape[1] :], mask

    def _last_layer(self, bucket: Bucket) -> Tensor:
        return self._pooling(*self.last_states(bucket))

    def _all_layers(self, bucket: Bucket) -> Tensor:
        output, mask = self._run(bucket, output_hidden_states=True)
        return torch.stack(
            [self._pooling(layer[:, -mask.shape[1] :], mask) for layer in output.hidden_states],
            dim=1,
        )

    def _run(self, bucket: Bucket, **options: Any) -> tuple[Any, Tensor]:
        """Return the backbone's output and the text's mask (n, L); virtual tokens of prompt tuning precede the text."""
        # Move padding to the right: on the left it would shift BERT's absolute positions.
        places = torch.arange(bucket.attention_mask.shape[1], device=bucket.attention_mask.device)  # (L,)
        start = (bucket.attention_mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (n, 1)
        turned = (places + start) % len(places)  # (n, L)
        mask = bucket.attention_mask.gather(1, turned)
        return self._backbone(input_ids=bucket.input_ids.gather(1, turned), attention_mask=mask, **options), mask
