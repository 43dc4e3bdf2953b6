"""Bayesian personalised ranking: each positive above each negative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_modules.losses._base import (
    ScoredPairs,
    SmoothedConfig,
    differences,
    mean_over_negatives,
    mean_over_positives,
)

if TYPE_CHECKING:
    from torch import Tensor


class Config(SmoothedConfig):
    name: str = "bpr"


def loss(pairs: ScoredPairs, *, label_smoothing: float = 0.0, rating_weight: bool = False) -> Tensor:
    """Negative log-likelihood of preferring positives to negatives (Rendle et al. 2009, "BPR: Bayesian personalized
    ranking from implicit feedback").

    ``- mean_u mean_{p in P_u, n in N_u} log sigmoid(s_up - s_un)``; with ``label_smoothing`` a, the reverse
    order has weight ``a/2``. A user without positives or without negatives contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    from torch.nn.functional import logsigmoid

    row, column, difference = differences(pairs)
    values = -logsigmoid(difference)
    if label_smoothing:
        values = values + label_smoothing / 2 * difference  # -log sigmoid(-d) = -log sigmoid(d) + d
    return mean_over_positives(mean_over_negatives(values, row, column, pairs), pairs, rating_weight)
