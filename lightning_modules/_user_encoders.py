"""Causal encoders from a sequence of item vectors to a user's state at each position.

Each encoder is called with ``items`` (U, L, D), padded after the last item, and gives states (U, L, D). A state depends
only on its position and earlier ones, so padding needs no mask. ``TargetAttention`` gives scores of candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Transformer(nn.Module):
    """Causal self-attention with learned positions (SASRec, Kang & McAuley 2018), pre-norm.

    Args:
        width: D.
        length: largest L.
        layers, heads: numbers of layers and of heads per layer.
        dropout: dropout of inputs, attention and both parts of a layer.
    """

    def __init__(self, width: int, length: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Embedding(length, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        places = torch.arange(items.shape[1], device=items.device)
        # Scaled as in SASRec, so that the small item vectors matter beside positions.
        states = self.dropout(items * items.shape[-1] ** 0.5 + self.position(places))
        for layer in self.layers:
            states = layer(states)
        normed: Tensor = self.norm(states)
        return normed


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        users, length, width = states.shape
        parts = self.project(self.norm_attention(states)).view(users, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (U, heads, L, D / heads)
        dropout = self.attention_dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        states = states + self.dropout(self.out(read.transpose(1, 2).reshape(users, length, width)))
        moved: Tensor = states + self.dropout(self.feed_forward(self.norm_forward(states)))
        return moved


class Gru(nn.Module):
    """Gated recurrent units (GRU4Rec, Hidasi et al. 2016).

    Args:
        width: D, of items and states.
        layers: number of recurrent layers.
        dropout: dropout of inputs and between layers.
    """

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        states: Tensor = self.norm(self.units(self.dropout(items * items.shape[-1] ** 0.5))[0])
        return states


class Attention(nn.Module):
    """Additive attention pooling over the items so far (NRMS's user encoder, Wu et al. 2019).

    Args:
        width: D.
        dropout: dropout of inputs.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, 1, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        items = self.dropout(items * items.shape[-1] ** 0.5)
        # Bounded, so that exp neither overflows nor leaves an early position without weight.
        weight = (10 * torch.tanh(self.query(torch.tanh(self.key(items))) / 10)).exp()
        pooled: Tensor = self.norm((weight * items).cumsum(dim=1) / weight.cumsum(dim=1))
        return pooled


class Mean(nn.Module):
    """The mean of the items so far.

    Args:
        width: D.
        dropout: dropout of inputs.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, items: Tensor) -> Tensor:
        count = torch.arange(1, items.shape[1] + 1, device=items.device)[:, None]
        mean: Tensor = self.norm(self.dropout(items * items.shape[-1] ** 0.5).cumsum(dim=1) / count)
        return mean


class TargetAttention(nn.Module):
    """Attention of each candidate over the history (DIN, Zhou et al. 2018), in the scaled form of Vaswani et al. 2017.

    ``score = c · norm(sum_j softmax_j(Wq c · Wk h_j / sqrt(D)) h_j)``; DIN does not normalise the weights.

    Args:
        width: D.
        dropout: dropout of the history.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, history: Tensor, there: Tensor, candidates: Tensor) -> Tensor:
        """Return the scores (U, C) of candidates (C, D) or (U, C, D).

        Args:
            history: (U, L, D).
            there: (U, L) bool, False on padding.
        """
        history = self.dropout(history * history.shape[-1] ** 0.5)
        query = self.query(candidates * candidates.shape[-1] ** 0.5)
        equation = "cd,uld->ucl" if query.ndim == 2 else "ucd,uld->ucl"
        weight = torch.einsum(equation, query, self.key(history)) / history.shape[-1] ** 0.5
        weight = weight.masked_fill(~there[:, None], torch.finfo(weight.dtype).min).softmax(dim=-1)
        interest = self.norm(weight @ history)  # (U, C, D)
        return (interest * candidates).sum(dim=-1)
