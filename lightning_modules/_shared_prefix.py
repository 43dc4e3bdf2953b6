"""Pairs of a user's text and an item's, with the user's computed once.

The keys and values of a user's text are the same whatever stands behind it, so they are computed once and each
item's text attends to them. Exact: the same sums as over the whole text, and the gradient flows through the keys and
values too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datamodules._batching import Bucket
from recpeft.errors import RecpeftError

KEY_VALUE_BYTES = 2**28
"""Most bytes of keys and values that a block of items' texts attends to, copies for each item included."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of n users' texts, in every layer."""

    layers: list[tuple[Tensor, Tensor]]
    """(n, heads, P, d) each; P is the number of virtual tokens and the length of the bucket."""
    mask: Tensor
    """(n, P) int64: 1 on virtual tokens and text, 0 on the padding behind a text."""

    @property
    def bytes_per_user(self) -> int:
        return sum(t[0].numel() * t.element_size() for pair in self.layers for t in pair)


def prefix(backbone: nn.Module, bucket: Bucket) -> Prefix:
    """One forward pass over users' texts, padded on the right.

    With prefix and prompt tuning PEFT puts virtual tokens before the texts; it must make the cache itself, since it
    overwrites one that it is given.
    """
    from transformers import DynamicCache

    prompt_learning = getattr(getattr(backbone, "active_peft_config", None), "is_prompt_learning", False)
    # The model's own cache would drop what is outside a sliding window; masks hide that as well.
    cache = {} if prompt_learning else {"past_key_values": DynamicCache()}
    outputs = backbone(input_ids=bucket.input_ids, attention_mask=bucket.attention_mask, use_cache=True, **cache)
    layers = [(keys, values) for keys, values, *_ in outputs.past_key_values]
    if len({keys.shape[-2] for keys, _ in layers}) > 1:
        raise RecpeftError(
            "with this adapter the user's text must fit into the backbone's sliding window; lower "
            "prompt.max_user_tokens."
        )
    virtual = layers[0][0].shape[-2] - bucket.attention_mask.shape[1]
    ones = bucket.attention_mask.new_ones((len(bucket.attention_mask), virtual))
    return Prefix(layers, torch.cat([ones, bucket.attention_mask], dim=1))


def behind(backbone: nn.Module, users: Prefix, row: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(R, H) state of the last token of texts behind users' texts.

    Args:
        row: (R,) whose text each one stands behind.
        input_ids: (R, S), padded on the right.
        attention_mask: (R, S).
    """
    from transformers import DynamicCache

    # Adapters live in the base model's layers; PEFT's own forward would put virtual tokens in once more.
    base: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    cache = DynamicCache([(keys[row], values[row]) for keys, values in users.layers])
    before = users.mask[row]
    lengths = before.sum(dim=1, keepdim=True)
    outputs = base(
        input_ids=input_ids,
        attention_mask=torch.cat([before, attention_mask], dim=1),
        position_ids=lengths + torch.arange(input_ids.shape[1], device=input_ids.device),
        past_key_values=cache,
        use_cache=True,
    )
    last = attention_mask.sum(dim=1) - 1
    states: Tensor = outputs.last_hidden_state
    return states[torch.arange(len(last), device=last.device), last]


def of_one_length(bucket: Bucket) -> list[Bucket]:
    """The texts of a bucket in buckets without padding."""
    lengths = bucket.attention_mask.sum(dim=1)
    parts = []
    for length in lengths.unique().tolist():
        rows = lengths == length
        parts.append(Bucket(bucket.input_ids[rows, :length], bucket.attention_mask[rows, :length], bucket.row[rows]))
    return parts


def blocks(users: Prefix, lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Places of pairs to be computed at once: texts of like length, as many as memory allows."""
    order = lengths.argsort(stable=True)
    per_pair = max(users.bytes_per_user, 1)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order):
            size = stop + 1 - start
            if size * int(lengths[order[stop]]) > max_tokens or size * per_pair > KEY_VALUE_BYTES:
                break
            stop += 1
        yield order[start:stop]
        start = stop
