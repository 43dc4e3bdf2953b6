"""Hinge loss: each positive above each negative by a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from lightning_modules.losses._base import (
    RatedConfig,
    ScoredPairs,
    differences,
    mean_over_negatives,
    mean_over_positives,
)

if TYPE_CHECKING:
    from torch import Tensor


class Config(RatedConfig):
    name: str = "margin"
    margin: PositiveFloat = 1.0
    """Margin of a positive's score above a negative's; 1 is the ranking SVM's, whose scores have no scale."""


def loss(pairs: ScoredPairs, *, margin: float = 1.0, rating_weight: bool = False) -> Tensor:
    """Pairwise hinge (Herbrich et al. 2000, "Large margin rank boundaries for ordinal regression").

    ``mean_u mean_{p in P_u, n in N_u} max(0, margin - (s_up - s_un))``. A user without positives or without negatives
    contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    row, column, difference = differences(pairs)
    values = (margin - difference).relu()
    return mean_over_positives(mean_over_negatives(values, row, column, pairs), pairs, rating_weight)
