"""LambdaRank: pairs are weighted by the change in NDCG if they are swapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from lightning_modules.losses._base import (
    LossConfig,
    ScoredPairs,
    differences,
    gains,
    gains_differ,
    mean_over_users,
    to_cells,
)

if TYPE_CHECKING:
    from torch import Tensor


class Config(LossConfig):
    name: str = "lambdarank"
    rating_gain: bool = False
    """Use a positive's rating, if it has one, as its gain, so that positives are ordered too; else the gain is 1, as in
    the reported NDCG."""
    sigma: PositiveFloat = 1.0
    """Steepness of the logistic function; 1 is Burges's."""


def loss(pairs: ScoredPairs, *, rating_gain: bool = False, sigma: float = 1.0) -> Tensor:
    """Logistic loss of each pair times its |ΔNDCG| (Burges et al. 2006, "Learning to rank with nonsmooth cost
    functions"; as a loss, Wang et al. 2018, "The LambdaLoss framework for ranking metric optimization").

    ``- mean_u sum_{i, j: g_i > g_j} |ΔNDCG_ij| log sigmoid(sigma (s_i - s_j))`` with
    ``|ΔNDCG_ij| = (g_i - g_j) |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / DCG_ideal``, ``r`` the rank by score, from 1,
    among the batch's items that are not excluded (equal scores by column). Gains are linear, as in ``metrics``; a
    negative's is 0. No gradient passes through the ranks. A user whose items all have the same gain contributes
    nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    import torch
    from torch.nn.functional import logsigmoid

    gain = gains(pairs, rating_gain)
    ranked = pairs.scores.masked_fill(pairs.excluded, float("-inf"))
    place = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (U, C), from 0
    discount = 1 / (place.to(gain.dtype) + 2).log2()
    by_place = 1 / torch.arange(2, gain.shape[1] + 2, dtype=gain.dtype, device=gain.device).log2()
    ideal = (gain.sort(dim=1, descending=True).values * by_place).sum(dim=1)

    row, column, difference = differences(pairs)  # non-positives have gain 0, so they rank above no item
    more = (gain[row, column].unsqueeze(1) - gain[row]).clamp(min=0.0).masked_fill(pairs.excluded[row], 0.0)
    swap = (discount[row, column].unsqueeze(1) - discount[row]).abs()
    delta = more * swap / ideal.masked_fill(ideal == 0, 1.0)[row].unsqueeze(1)  # (P, C)
    values = to_cells(-(delta * logsigmoid(sigma * difference)).sum(dim=1), row, column, pairs)
    return mean_over_users(values.sum(dim=1), gains_differ(gain, pairs))
