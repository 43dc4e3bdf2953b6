"""Squared error between score and rating."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from lightning_modules.losses._base import RatedConfig, ScoredPairs, mean_over_cells

if TYPE_CHECKING:
    from torch import Tensor


class Config(RatedConfig):
    POINTWISE: ClassVar[bool] = True

    name: str = "mse"
    target: Literal["rating", "label"] = "rating"
    """Target of a score. rating: the rating if there is one, else 1 for a positive and 0 for a negative; label: always
    1 or 0."""
    positive_weight: PositiveFloat = 1.0
    """Weight of a positive pair."""
    negative_weight: NonNegativeFloat = 1.0
    """Weight of a negative pair; 0 trains on positives only (Koren et al. 2009), and so orders only positives."""


def loss(
    pairs: ScoredPairs,
    *,
    target: str = "rating",
    rating_weight: bool = False,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
) -> Tensor:
    """Squared error of the score; without a rating the target is 1 for a positive and 0 for a negative (Hu et al.
    2008, "Collaborative filtering for implicit feedback datasets"; Cremonesi et al. 2010, "Performance of recommender
    algorithms on top-n recommendation tasks").

    ``mean_u sum_i w_ui (s_ui - t_ui)^2 / sum_i w_ui`` over the items that are not excluded; ``t`` is the target and
    ``w`` the weight of its class. A user whose items have no weight (all excluded) contributes nothing.
    ``rating_weight`` multiplies a positive's term but not the denominator.

    With ``target="label"`` the target is always 1 or 0. Ratings keep their own scale, so the formulation's scores must
    reach it: a cosine without a scale does not reach 5.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    scores = pairs.scores.masked_fill(pairs.excluded, 0.0)
    wanted = pairs.positive.to(scores.dtype)
    if target == "rating":
        wanted = pairs.rating.to(scores.dtype).where(~pairs.rating.isnan(), wanted)
    values = (scores - wanted).square()
    return mean_over_cells(values, pairs, positive_weight, negative_weight, rating_weight)
