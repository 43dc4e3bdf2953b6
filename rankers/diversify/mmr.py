"""Maximal marginal relevance: each next item is relevant and dissimilar to those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from rankers.diversify._base import DiversifyConfig, Given

if TYPE_CHECKING:
    from torch import Tensor


class Config(DiversifyConfig):
    method: str = "mmr"
    similarity: Literal["categories", "embeddings"] = "categories"
    """Similarity of two items: Jaccard of their sets of categories, or cosine of their embeddings."""


def reorder(item: Tensor, score: Tensor, user: Tensor, k: int, config: Config, given: Given) -> Tensor:
    """Reorder by Carbonell & Goldstein 1998, "The use of MMR, diversity-based reranking".

    The next item is argmax_i (1 - strength) relevance(i) - strength max_{j in the list so far} sim(i, j), with no
    similarity at the first place. The paper's λ is 1 - strength. ``categories``: sim = |G_i & G_j| / |G_i | G_j|, 0 for
    an item without categories, even with another one. ``embeddings``: the cosine in [-1, 1], so an item opposite
    to all items so far gains more than an unrelated one; 0 for an embedding of zeros.

    Args:
        item: (U, N) int64, best first, -1 is padding at the end.
        score: (U, N) float32, descending.
        user: (U,) int64; unused.
        k: length of the new lists.
        given: ``categories`` or ``embeddings``.
    Returns:
        (U, min(k, N)) int64.
    Raises:
        ValueError: see the package.
    """
    import torch

    from rankers.diversify._greedy import Greedy

    greedy = Greedy(item, score, k, config.depth)
    ids = greedy.item.clamp(min=0)
    similar_to = (
        _jaccard(given.categories[ids]) if config.similarity == "categories" else _cosine(given.embeddings[ids])
    )
    # The highest similarity so far, which a new item can only raise: (U, D) instead of all pairs' (U, D, D).
    highest = torch.zeros_like(greedy.relevance)
    for place in greedy.places:
        chosen = greedy.take((1 - config.strength) * greedy.relevance - config.strength * highest)
        similar = similar_to(chosen)
        highest = similar if place == 0 else torch.maximum(highest, similar)  # a cosine may be below 0
    return greedy.lists()


def _jaccard(categories: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from a column of each list (U,) to its Jaccard similarity to all columns (U, D).

    ``categories`` is (U, D, C) bool.
    """
    import torch

    sets = categories.double()
    size = sets.sum(2)
    rows = torch.arange(len(sets), device=sets.device)

    def similar_to(chosen: Tensor) -> Tensor:
        common = torch.einsum("udc,uc->ud", sets, sets[rows, chosen])
        union = size + size[rows, chosen].unsqueeze(1) - common
        return common / union.clamp(min=1)

    return similar_to


def _cosine(embeddings: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function of ``_jaccard`` for the cosine of embeddings (U, D, E)."""
    import torch

    vectors = embeddings.double()
    length = vectors.norm(dim=2, keepdim=True)
    unit = vectors / length.masked_fill(length == 0, 1)
    rows = torch.arange(len(unit), device=unit.device)
    return lambda chosen: torch.einsum("ude,ue->ud", unit, unit[rows, chosen])
