"""Calibrated recommendations: the list's category distribution approaches that of the user's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankers.diversify._base import DiversifyConfig, Given

if TYPE_CHECKING:
    from torch import Tensor

ALPHA = 0.01
"""Weight of p in q~, which keeps the divergence finite: Steck's value, and the metric's."""


class Config(DiversifyConfig):
    method: str = "calibrated"


def reorder(item: Tensor, score: Tensor, user: Tensor, k: int, config: Config, given: Given) -> Tensor:
    """Reorder by Steck 2018, "Calibrated recommendations".

    Each place takes the item with which the list so far has the highest

        (1 - strength) sum_i relevance(i) - strength KL(p || q~),   q~ = (1 - alpha) q + alpha p,

    KL(p || q~) = sum_g p(g) ln(p(g) / q~(g)), q(g) = mean_i 1[g in G_i] / |G_i| over the list's items that have a
    category and alpha 0.01, as in the metric ``calibration_kl``. Without any such item q is 0 and the divergence
    has its maximum, -ln alpha. A user without a profile keeps the order.

    Args:
        item: (U, N) int64, best first, -1 is padding at the end.
        score: (U, N) float32, descending.
        user: (U,) int64, rows of ``given.profile``.
        k: length of the new lists.
        given: ``categories`` and ``profile``, p.
    Returns:
        (U, min(k, N)) int64.
    Raises:
        ValueError: see the package.
    """
    import torch

    from rankers.diversify._greedy import Greedy

    greedy = Greedy(item, score, k, config.depth)
    share = given.categories[greedy.item.clamp(min=0)].double()  # (U, D, C)
    share /= share.sum(2, keepdim=True).clamp(min=1)
    counts = (share > 0).any(2).double()  # (U, D): 1 for items with a category
    p = given.profile[user].double().nan_to_num(0).unsqueeze(1)  # (U, 1, C)
    entropy = torch.xlogy(p, p).sum(2)  # (U, 1); a term with p = 0 is 0, whatever q
    total = torch.zeros_like(p)  # (U, 1, C), of the list so far
    number = counts.new_zeros(len(counts), 1)
    for _ in greedy.places:
        q = (total + share) / (number + counts).clamp(min=1).unsqueeze(2)  # (U, D, C), with each item
        divergence = entropy - torch.xlogy(p, (1 - ALPHA) * q + ALPHA * p).sum(2)
        # The relevance of the items so far does not depend on the next one.
        chosen = greedy.take((1 - config.strength) * greedy.relevance - config.strength * divergence)
        total = total + share[greedy.rows, chosen].unsqueeze(1)
        number = number + counts[greedy.rows, chosen].unsqueeze(1)
    return greedy.lists()
