"""Heads that score the representations of a user and an item, one small module each.

Every head is called as ``head(users, items, item) -> (U, I)`` with ``users`` (U, H), ``items`` (I, H) and their ids
``item`` (I,); with items (U, C, H) and ``item`` (U, C) each user has their own candidates, and scores are (U, C).
``embed`` converts the pooled states into the head's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recpeft.errors import RecpeftError

BLOCK_BYTES = 64 * 2**20
"""Approximate maximum number of bytes that a pairwise head holds at once for its intermediate results."""


@dataclass
class TokenStates:
    """Token states of texts, in the buckets in which they were encoded."""

    states: list[Tensor]
    """Each (n, L, H)."""
    masks: list[Tensor]
    """Each (n, L): 1 on text, 0 on padding."""
    rows: list[Tensor]
    """Each (n,) int64: index in the batch of each row's text."""


class Head(nn.Module):
    """``match(user, item) / temperature + bias[item]``, temperature and bias learned.

    Args:
        num_items: size of the catalogue.
        temperature: initial temperature; None is no temperature.
        item_bias: use an item bias, which starts at 0.
    """

    reads_layers: ClassVar[bool] = False
    """True if ``embed`` takes the pooled states of all layers (T, layers, H) instead of the last layer's (T, H)."""
    reads_tokens: ClassVar[bool] = False
    """True if users are given as ``TokenStates`` instead of embeddings."""

    def __init__(self, num_items: int, temperature: float | None = 1.0, item_bias: bool = False) -> None:
        super().__init__()
        scale = None if temperature is None else torch.tensor(math.log(1.0 / temperature))
        self.log_scale = None if scale is None else nn.Parameter(scale)
        self.bias = nn.Parameter(torch.zeros(num_items)) if item_bias else None

    def embed(self, pooled: Tensor) -> Tensor:
        """Return the embeddings (T, H) of pooled states; unchanged unless a head overrides this."""
        return pooled

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        """Return (U, I), or (U, C) for items (U, C, H), before temperature and bias."""
        raise NotImplementedError

    def forward(self, users: Tensor, items: Tensor, item: Tensor) -> Tensor:
        """Return scores (U, I) of users (U, H) and items (I, H), or (U, C) for items (U, C, H); higher is better."""
        # Half precision gives many items equal scores, so autocast is off from here.
        with torch.autocast(items.device.type, enabled=False):
            scores = self.match(users, items)
        if self.log_scale is not None:
            scores = self.log_scale.exp() * scores
        return scores if self.bias is None else scores + self.bias[item]


class CosineHead(Head):
    """``cosine(user, item) / temperature + bias[item]``; ``embed`` scales embeddings to unit length."""

    def __init__(self, num_items: int, temperature: float = 0.05, item_bias: bool = False) -> None:
        super().__init__(num_items, temperature, item_bias)

    def embed(self, pooled: Tensor) -> Tensor:
        return nn.functional.normalize(pooled, dim=-1)

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        return _dot(users, items)


class DotHead(Head):
    """``user · item / (sqrt(H) * temperature) + bias[item]``.

    The sum of H products of independent parts of unit variance has a standard deviation of sqrt(H) (Vaswani et al.
    2017), so dividing by it lets backbones of different widths start alike.
    """

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        return _dot(users, items) / math.sqrt(items.shape[-1])


class EuclideanHead(Head):
    """``-||user - item|| / temperature + bias[item]`` (collaborative metric learning, Hsieh et al. 2017).

    Hsieh et al. keep embeddings in the unit ball; here the backbone's are used unchanged.
    """

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        # Computed from dot products, distances of near neighbours would be differences of large numbers.
        exact = "donot_use_mm_for_euclid_dist"
        if items.ndim == 2:
            return -torch.cdist(users, items, compute_mode=exact)
        return -torch.cdist(users.unsqueeze(1), items, compute_mode=exact).squeeze(1)


class LayerWeightedDotHead(DotHead):
    """``DotHead`` over ``sum_l softmax(w)_l * layer_l``, w learned (ELMo's scalar mix, Peters et al. 2018, eq. 1).

    ``layer_l`` is a text's pooled states of layer l, the token embeddings being layer 0. w starts at 0, the plain
    mean; the mix's factor γ is the temperature.

    Args:
        num_layers: number of layers with states, embeddings included.
        layer_norm: standardise each layer's vector first (their section 3.2), so that layers with larger states
            do not dominate.
    """

    reads_layers = True

    def __init__(
        self,
        num_items: int,
        num_layers: int,
        layer_norm: bool = False,
        temperature: float = 1.0,
        item_bias: bool = False,
    ) -> None:
        super().__init__(num_items, temperature, item_bias)
        self.layer_norm = layer_norm
        self.layer_logits = nn.Parameter(torch.zeros(num_layers))

    def embed(self, pooled: Tensor) -> Tensor:
        """Return the weighted mean (T, H) of pooled states (T, layers, H)."""
        if pooled.shape[1] != len(self.layer_logits):
            raise RecpeftError(
                f"formulation.score is layer_weighted_dot but the backbone gives states of {pooled.shape[1]} layers "
                f"where its config promises {len(self.layer_logits)}; use another formulation.score."
            )
        if self.layer_norm:
            pooled = nn.functional.layer_norm(pooled, pooled.shape[-1:])
        return (self.layer_logits.softmax(dim=0).unsqueeze(-1) * pooled).sum(dim=1)


class MLPHead(Head):
    """``w2 · relu(W1 [user, item, user * item, |user - item|] + b1) + bias[item]`` (after NCF, He et al. 2017).

    NCF's two branches, of products and of concatenation, in one network; |user - item| as in InferSent (Conneau et
    al. 2017). W1 and w2 are initialised at random, so it ranks at random untrained. It has no constant, which would
    change no ranking, and no temperature, which w2 includes.

    Args:
        hidden_size: H.
        mlp_hidden: width of its one hidden layer.
    """

    def __init__(self, num_items: int, hidden_size: int, mlp_hidden: int = 64, item_bias: bool = False) -> None:
        super().__init__(num_items, None, item_bias)
        self.mlp_hidden = mlp_hidden
        self.network = nn.Sequential(
            nn.Linear(4 * hidden_size, mlp_hidden), nn.ReLU(), nn.Linear(mlp_hidden, 1, bias=False)
        )

    def match(self, users: Tensor, items: Tensor) -> Tensor:
        def pairs(items: Tensor) -> Tensor:
            user, item = torch.broadcast_tensors(users.unsqueeze(1), items)  # (U, C, H) both
            features = torch.cat([user, item, user * item, (user - item).abs()], dim=-1)
            scores: Tensor = self.network(features).squeeze(-1)
            return scores

        width = 4 * users.shape[-1] + 2 * self.mlp_hidden
        return _in_blocks(pairs, items if items.ndim == 3 else items.unsqueeze(0), len(users) * width)


class AttentionHead(Head):
    """``user(item) · item / (sqrt(H) * temperature) + bias[item]``: the item attends to the user's tokens.

    ``user(item) = sum_t a_t * state_t`` with ``a = softmax_t((Wq item) · (Wk state_t) / sqrt(d))``, in each of the
    heads of width d = H / attention_heads: attention over a user's behaviour with the target item as query (DIN, Zhou
    et al. 2018, without normalisation), in the scaled form of Vaswani et al. 2017. Wq and Wk start as identities: at
    first an item attends to the tokens that are similar to it.

    Args:
        hidden_size: H.
        attention_heads: number of attention heads; must divide H.
    Raises:
        RecpeftError: ``attention_heads`` does not divide ``hidden_size``.
    """

    reads_tokens = True

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        attention_heads: int = 1,
        temperature: float = 1.0,
        item_bias: bool = False,
    ) -> None:
        super().__init__(num_items, temperature, item_bias)
        if hidden_size % attention_heads:
            raise RecpeftError(
                f"formulation.attention_heads is {attention_heads}, which does not divide the backbone's hidden_size "
                f"{hidden_size}; choose one of its divisors."
            )
        self.attention_heads = attention_heads
        self.query = nn.Parameter(torch.eye(hidden_size))
        self.key = nn.Parameter(torch.eye(hidden_size))

    def match(self, users: TokenStates, items: Tensor) -> Tensor:  # type: ignore[override]
        parts = [
            # Own candidates are selected by user; the catalogue is shared by all.
            self._attend(states.to(items.dtype), mask, items[row] if items.ndim == 3 else items.unsqueeze(0))
            for states, mask, row in zip(users.states, users.masks, users.rows, strict=True)
        ]
        return torch.cat(parts)[torch.cat(users.rows).argsort()]

    def _attend(self, states: Tensor, mask: Tensor, items: Tensor) -> Tensor:
        """Return (n, C) for states (n, L, H), mask (n, L) and items (n, C, H), or (1, C, H) for all users."""
        hidden_size, heads = states.shape[-1], self.attention_heads
        values = states.unflatten(-1, (heads, -1))  # (n, L, h, d)
        keys = (states @ self.key.T).unflatten(-1, (heads, -1))
        padding = mask[:, None, None] == 0  # (n, 1, 1, L)

        def pairs(items: Tensor) -> Tensor:
            queries = (items @ self.query.T).unflatten(-1, (heads, -1))  # (n or 1, C, h, d)
            logits = _token_dots(queries, keys) / math.sqrt(hidden_size // heads)  # (n, h, C, L)
            attention = logits.masked_fill(padding, -torch.inf).softmax(dim=-1)
            # The dot product is inside the weighted sum, so user representations (n, C, H) are never stored.
            dots = _token_dots(items.unflatten(-1, (heads, -1)), values)
            return (attention * dots).sum(dim=(1, 3)) / math.sqrt(hidden_size)

        return _in_blocks(pairs, items, 4 * heads * mask.numel())


def _dot(users: Tensor, items: Tensor) -> Tensor:
    """Return dot products (U, I) of users (U, H) and items (I, H), or (U, C) for items (U, C, H)."""
    return users @ items.T if items.ndim == 2 else torch.einsum("uh,uch->uc", users, items)


def _token_dots(items: Tensor, tokens: Tensor) -> Tensor:
    """Return dot products (n, h, C, L) of items (n, C, h, d), or (1, C, h, d) for all, and tokens (n, L, h, d)."""
    if len(items) == 1:
        return torch.einsum("chd,nlhd->nhcl", items[0], tokens)
    return torch.einsum("nchd,nlhd->nhcl", items, tokens)


def _in_blocks(pairs: Callable[[Tensor], Tensor], items: Tensor, numbers_per_item: int) -> Tensor:
    """Return ``pairs(items)`` (U, C), computed in blocks of columns of items (n, C, H) to bound memory.

    In training, blocks are recomputed in the backward pass: storing them all would use the memory they save.
    """
    size = max(1, BLOCK_BYTES // max(1, numbers_per_item * items.element_size()))
    blocks = items.split(size, dim=1)
    if len(blocks) == 1:
        return pairs(items)
    if not torch.is_grad_enabled():
        return torch.cat([pairs(block) for block in blocks], dim=1)
    # Blocks use no random numbers, so no generator state need be restored.
    again = [checkpoint(pairs, block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return torch.cat(again, dim=1)
