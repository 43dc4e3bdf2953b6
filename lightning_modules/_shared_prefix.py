"""Read item texts after user texts, computing each user's text once.

The keys and values of a user's text do not depend on the text after it, so they are computed once. Many item texts
then follow it in one row; each attends only to the user's text and to itself, and a common beginning of several texts
is stored once (tree attention, as in speculative decoding: Miao et al. 2024, "SpecInfer").
The result is exact: the same sums as over each whole text, with gradients through the keys and values too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules._batching import Bucket, TextBatch
from recpeft.errors import RecpeftError

ROW_TOKENS = 320
"""Approximate number of text tokens in a row: more wastes attention on other texts' tokens, fewer leaves more padding
and copies a user's keys and values more often. On a CPU with two cores 250 to 700 were equally fast, and twice as fast
as one row per item text; eight whole texts of 70 tokens were 10% faster in two rows than in two buckets by length."""
KEY_VALUE_BYTES = 2**28
"""Maximum bytes of users' keys and values, copied for each row, in one forward pass."""


class Texts:
    """Texts in one table, to be joined with other texts.

    Args:
        texts: padding on either side.
    """

    def __init__(self, texts: TextBatch) -> None:
        longest = max(bucket.input_ids.shape[1] for bucket in texts.buckets)
        device = texts.buckets[0].input_ids.device
        self.ids = torch.full((texts.size, longest), -1, device=device)
        """(T, S) int64, padded by -1 on the right."""
        self.lengths = torch.zeros(texts.size, dtype=torch.int64, device=device)
        """(T,)"""
        for bucket in texts.buckets:
            row, place = bucket.attention_mask.nonzero(as_tuple=True)
            self.lengths[bucket.row] = bucket.attention_mask.sum(dim=1)
            start = (bucket.attention_mask.cumsum(dim=1) == 0).sum(dim=1)
            self.ids[bucket.row[row], place - start[row]] = bucket.input_ids[row, place]
        self.rank = in_order(self.ids).argsort()
        """(T,) position in lexicographic order of the tokens, in which texts with a common beginning are neighbours."""


def in_order(ids: Tensor) -> Tensor:
    """Return the lexicographic order (T,) of texts (T, S), in which texts with a common beginning are neighbours."""
    return torch.from_numpy(np.lexsort(ids.cpu().numpy().T[::-1])).to(ids.device)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of n users' texts, in every layer."""

    layers: list[tuple[Tensor, Tensor]]
    """(n, heads, P, d) each; P is the number of virtual tokens and the length of the bucket."""
    mask: Tensor
    """(n, P) bool: True on virtual tokens and text, False on the padding after a text."""

    @property
    def bytes_per_user(self) -> int:
        return sum(t[0].numel() * t.element_size() for pair in self.layers for t in pair)


def last_states(
    backbone: nn.Module, users: TextBatch, behind: Texts, row: Tensor, text: Tensor, max_tokens: int = 8192
) -> tuple[Tensor, int]:
    """Return the last token's state (R, H) of each pair's whole text, and the number of tokens processed.

    Args:
        backbone: a causal decoder without its language-model head, adapted or not.
        users: padded on the right.
        row: (R,) index of each pair's user text.
        text: (R,) index of the text after it.
        max_tokens: maximum number of tokens of the texts after users' texts computed at once.
    """
    states, places, num_tokens = [], [], 0
    # For one item, caching keys and values is not worth it; but only PEFT's own forward inserts virtual tokens.
    shared = (torch.bincount(row, minlength=users.size)[row] > 1) | (virtual_tokens(backbone) > 0)
    alone = (~shared).nonzero().squeeze(1)
    if len(alone):
        for part, found, read in _whole(backbone, Texts(users), behind, row[alone], text[alone], max_tokens):
            states.append(found)
            places.append(alone[part])
            num_tokens += read
    for bucket in users.buckets:
        there = torch.isin(bucket.row, row[shared])
        if not there.any():
            continue
        bucket = Bucket(bucket.input_ids[there], bucket.attention_mask[there], bucket.row[there])
        local = row.new_full((users.size,), -1)
        local[bucket.row] = torch.arange(len(bucket.row), device=row.device)
        pair = (shared & (local[row] >= 0)).nonzero().squeeze(1)
        own = local[row[pair]]
        before = _prefix(backbone, bucket)
        num_tokens += int(bucket.attention_mask.sum())
        order = torch.argsort(own * len(behind.rank) + behind.rank[text[pair]], stable=True)
        pair, own = pair[order], own[order]
        lengths = behind.lengths[text[pair]]
        rows = _rows_of_users(own, lengths, max_tokens)
        for part, number in _passes(rows, lengths, before.bytes_per_user, max_tokens):
            found, read = _read(backbone, before, behind, own[part], text[pair[part]], number)
            states.append(found)
            places.append(pair[part])
            num_tokens += read
    return torch.cat(states)[torch.cat(places).argsort()], num_tokens


def _whole(
    backbone: nn.Module, users: Texts, behind: Texts, row: Tensor, text: Tensor, max_tokens: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Read texts (R,) after users (R,), each user's and item's text as one, several in a row.

    Yields:
        Indices (n,) of pairs, their last states (n, H), and the number of tokens processed.
    """
    before, lengths = users.lengths[row], users.lengths[row] + behind.lengths[text]
    ids = behind.ids.new_full((len(row), int(lengths.max())), -1)
    for part, start in ((users.ids[row], torch.zeros_like(before)), (behind.ids[text], before)):
        pair, place = (part >= 0).nonzero(as_tuple=True)
        ids[pair, start[pair] + place] = part[pair, place]
    own = _even_rows(lengths, max_tokens)
    rank = in_order(ids).argsort()
    order = torch.argsort(own * len(rank) + rank)
    for part, number in _passes(own[order], lengths[order], 0, max_tokens):
        pair = order[part]
        tree, column = _Tree.of(ids[pair], number)
        # Padding attends to itself: some kinds of attention give NaN for a token that attends to nothing.
        seen = tree.seen | torch.eye(tree.seen.shape[1], dtype=torch.bool, device=ids.device)
        model = base(backbone)
        outputs = model(
            input_ids=tree.token,
            attention_mask=_masks(model.config, seen, tree.depth[:, :, None] - tree.depth[:, None], model.dtype),
            position_ids=tree.depth,
            use_cache=False,
        )
        yield pair, outputs.last_hidden_state[number, tree.leaf[number, column]], tree.num_tokens


def whole_texts(backbone: nn.Module, users: TextBatch, behind: Texts, row: Tensor, text: Tensor) -> Tensor:
    """Return the states (R, H) of ``last_states``, computed slowly from each whole text, as a reference."""
    states = []
    for user, item in zip(row.tolist(), text.tolist(), strict=True):
        (bucket,) = (bucket for bucket in users.buckets if (bucket.row == user).any())
        place = bucket.row.tolist().index(user)
        before = bucket.input_ids[place][bucket.attention_mask[place].bool()]
        ids = torch.cat([before, behind.ids[item, : behind.lengths[item]]])[None]
        outputs: Any = backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
        states.append(outputs.last_hidden_state[0, -1])
    return torch.stack(states)


def _prefix(backbone: nn.Module, bucket: Bucket) -> Prefix:
    """Run one forward pass over users' texts, padded on the right, and return their keys and values.

    With prefix and prompt tuning PEFT puts virtual tokens before the texts; PEFT must then create the cache, since it
    overwrites a given one.
    """
    from transformers import DynamicCache

    virtual = virtual_tokens(backbone)
    # The model's own cache would drop tokens outside a sliding window; here masks hide them instead.
    cache = {} if virtual else {"past_key_values": DynamicCache()}
    outputs = backbone(input_ids=bucket.input_ids, attention_mask=bucket.attention_mask, use_cache=True, **cache)
    layers = [(keys, values) for keys, values, *_ in outputs.past_key_values]
    if any(keys.shape[-2] != virtual + bucket.attention_mask.shape[1] for keys, _ in layers):
        raise RecpeftError(
            "with this adapter the user's text must fit into the backbone's sliding window; lower "
            "prompt.max_user_tokens."
        )
    ones = bucket.attention_mask.new_ones((len(bucket.attention_mask), virtual))
    return Prefix(layers, torch.cat([ones, bucket.attention_mask], dim=1).bool())


def virtual_tokens(backbone: nn.Module) -> int:
    """Return the number of virtual tokens that the adapter puts before a text."""
    config: Any = getattr(backbone, "active_peft_config", None)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def _even_rows(lengths: Tensor, max_tokens: int) -> Tensor:
    """Return the row (R,) of each text, about ``ROW_TOKENS`` tokens per row, assigning the longest texts first."""
    held = [0] * math.ceil(int(lengths.sum()) / min(ROW_TOKENS, max_tokens))
    found = torch.empty_like(lengths)
    for text in lengths.argsort(descending=True, stable=True).tolist():
        row = held.index(min(held))
        held[row] += int(lengths[text])
        found[text] = row
    return found


def _rows_of_users(own: Tensor, lengths: Tensor, max_tokens: int) -> Tensor:
    """Return ascending rows (R,) of texts (R,) sorted by user ``own``: each row has one user and about ``ROW_TOKENS``
    tokens."""
    before = lengths.cumsum(0) - lengths
    before = before - before[torch.searchsorted(own, own)]  # within the same user
    # A user's rows get similar lengths, since shorter ones are padded to the longest.
    total = lengths.new_zeros(int(own[-1]) + 1).index_add(0, own, lengths)[own]
    rows = (total / min(ROW_TOKENS, max_tokens)).ceil()
    return own * (int(rows.max()) + 1) + (before * rows / total).floor().long()


def _passes(rows: Tensor, lengths: Tensor, bytes_per_row: int, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices of texts (R,) to read at once, as many as memory allows, and each text's row among them.

    Args:
        rows: (R,) ascending; a row is never split.
    """
    _, number, counts = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
    tokens = torch.zeros_like(counts).index_add(0, number, lengths).tolist()
    most_rows = max(1, KEY_VALUE_BYTES // max(bytes_per_row, 1))
    ends, start = counts.cumsum(0).tolist(), 0
    while start < len(tokens):
        stop, widest = start + 1, tokens[start]
        while stop < len(tokens) and stop - start < most_rows:
            widest = max(widest, tokens[stop])
            if widest * (stop + 1 - start) > max_tokens:
                break
            stop += 1
        place = torch.arange(ends[start - 1] if start else 0, ends[stop - 1], device=rows.device)
        yield place, number[place] - start
        start = stop


def _read(
    backbone: nn.Module, before: Prefix, behind: Texts, own: Tensor, text: Tensor, number: Tensor
) -> tuple[Tensor, int]:
    """Return the last states (R, H) of texts (R,) after users (R,) in rows (R,), and the number of tokens read."""
    from transformers import DynamicCache

    tree, column = _Tree.of(behind.ids[text, : int(behind.lengths[text].max())], number)
    users = own[column == 0]  # (G,) user of each row

    mask = before.mask[users]  # (G, P)
    num_before = mask.sum(dim=1)
    position = num_before[:, None] + tree.depth  # (G, N)
    seen = torch.cat([mask[:, None].expand(-1, position.shape[1], -1), tree.seen], dim=2)  # (G, N, P + N)
    of_keys = torch.cat([torch.arange(mask.shape[1], device=own.device).expand_as(mask), position], dim=1)
    config = base(backbone).config
    # Adapters are in the base model's layers; PEFT's own forward would insert virtual tokens again.
    outputs = base(backbone)(
        input_ids=tree.token,
        attention_mask=_masks(config, seen, position[:, :, None] - of_keys[:, None], before.layers[0][0].dtype),
        position_ids=position,
        past_key_values=DynamicCache([(keys[users], values[users]) for keys, values in before.layers]),
        use_cache=True,
    )
    states: Tensor = outputs.last_hidden_state
    return states[number, tree.leaf[number, column]], tree.num_tokens


class _Tree:
    """Texts in rows (G, C, S), in which neighbours share the tokens of a common beginning.

    Args:
        ids: padded by -1 on the right, in lexicographic order; texts of padding only are at the end of a row.
    """

    def __init__(self, ids: Tensor) -> None:
        there = ids >= 0
        differs = torch.ones_like(there)
        differs[:, 1:] = ids[:, 1:] != ids[:, :-1]
        new = differs.cummax(dim=2).values & there  # from the first different token on, all count as new
        number = new.flatten(1).cumsum(dim=1).view(new.shape) - 1
        # A token shared with the previous text has the same node.
        path = torch.where(new, number, -1).cummax(dim=1).values  # (G, C, S)
        row, text, depth = new.nonzero(as_tuple=True)
        node = number[row, text, depth]
        shape = (len(ids), int(number.max()) + 1)
        self.num_tokens = len(node)
        self.token = ids.new_zeros(shape)
        """(G, N)"""
        self.token[row, node] = ids[row, text, depth]
        self.depth = ids.new_zeros(shape)
        """(G, N) number of tokens before it in its text."""
        self.depth[row, node] = depth
        self.seen = torch.zeros((*shape, shape[1]), dtype=torch.bool, device=ids.device)
        """(G, N, N) bool: tokens that each token attends to, itself and those before it in its text."""
        within = torch.arange(ids.shape[2], device=ids.device) <= depth[:, None]  # (K, S)
        one, place = within.nonzero(as_tuple=True)
        self.seen[row[one], node[one], path[row[one], text[one], place]] = True
        lengths = there.sum(dim=2, keepdim=True)
        self.leaf = path.gather(2, (lengths - 1).clamp(min=0)).squeeze(2)
        """(G, C) node of each text's last token."""

    @classmethod
    def of(cls, ids: Tensor, number: Tensor) -> tuple[_Tree, Tensor]:
        """Return the tree of texts (R, S) in rows (R,), ascending, and each text's position (R,) in its row."""
        counts = torch.bincount(number)
        column = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[number]
        table = ids.new_full((len(counts), int(counts.max()), ids.shape[1]), -1)
        table[number, column] = ids
        return cls(table), column


def _masks(config: Any, seen: Tensor, distance: Tensor, dtype: torch.dtype) -> Any:
    """Return additive masks (G, 1, N, P + N), one for each kind of layer in the backbone.

    Args:
        seen: (G, N, P + N) bool.
        distance: (G, N, P + N) number of positions by which each key precedes its query.
    """

    def additive(visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min).unsqueeze(1)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    found = {
        kind: additive(seen & (distance < window) if kind == "sliding_attention" and window else seen)
        for kind in sorted(kinds)
    }
    return found if len(found) > 1 else next(iter(found.values()))


def base(backbone: nn.Module) -> Any:
    """Return the backbone without PEFT's wrapper."""
    return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
