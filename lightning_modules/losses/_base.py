"""Shared parts of the losses: their input, common config fields, and means with equal weight per user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from datamodules._groups import GroupConfig
from recpeft.config import Config
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules._batching import PairBatch


LevelKind = Literal["classes", "labels"]
"""Meaning of a logit for a pair's rating: it is exactly this level, one of all (classes), or it is at least this level,
for all levels except the lowest, which every rating reaches (labels)."""


@dataclass(frozen=True)
class LevelLogits:
    """Kind and number of the rating-level logits that a formulation gives to losses beside scores."""

    kind: LevelKind
    count: int
    """Number of logits per pair."""


class LossConfig(Config):
    """Base of every loss's ``Config``."""

    POINTWISE: ClassVar[bool] = False
    """Default of ``pointwise``."""

    name: str
    """Name of the loss: a file in lightning_modules/losses/, or a dotted module name."""

    def refusal(self, formulation: str, logits: LevelLogits | None) -> str | None:
        """Return the reason why this loss cannot train ``formulation``, with the remedy; None if it can.

        Args:
            logits: logits that the formulation gives beside scores.
        """
        return None

    @property
    def user_groups(self) -> tuple[GroupConfig, ...]:
        """Return the groupings of users that the loss reads from ``ScoredPairs.groups``; none by default."""
        return ()

    @property
    def pointwise(self) -> bool:
        """Return whether the loss trains on single items of a user, without comparing items."""
        return self.POINTWISE


class RatedConfig(LossConfig):
    """Base for losses in which positives can be weighted by rating."""

    rating_weight: bool = False
    """Weight each positive by its rating divided by the batch's mean rating of positives; unrated positives have weight
    1, and ratings below 0 have weight 0."""


class SmoothedConfig(RatedConfig):
    """Base for cross-entropy losses."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread evenly over its classes (Szegedy et al. 2016); 0 is off."""


class LevelsConfig(LossConfig):
    """Base for losses on the logits of rating levels."""

    POINTWISE: ClassVar[bool] = True
    KIND: ClassVar[LevelKind]
    WEIGHTS: ClassVar[str]
    """Name of the option with a weight for each logit."""

    negative_weight: NonNegativeFloat = 1.0
    """Weight of an unrated pair that is not positive (a sampled negative), which has the lowest level; 0 leaves such
    pairs out."""

    def refusal(self, formulation: str, logits: LevelLogits | None) -> str | None:
        if logits is None or logits.kind != self.KIND:
            given = "scores alone" if logits is None else f"those of {logits.kind}"
            return (
                f"loss {self.name} learns logits of {self.KIND} but formulation {formulation} gives {given}; use "
                f"formulation {{name: cross_encoder, output: {self.KIND}}}, or another loss"
            )
        weights = getattr(self, self.WEIGHTS)
        if weights is not None and len(weights) != logits.count:
            but = " but the lowest" if self.KIND == "labels" else ""
            return (
                f"loss.{self.WEIGHTS} of {self.name} are {len(weights)} but formulation {formulation} has "
                f"{logits.count} {self.KIND}; give one for each of its levels{but}"
            )
        return None


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Input of a loss: users' scores of their candidates, and the labels of each pair."""

    scores: Tensor
    """(U, C) float32, higher is better; ignored in excluded cells."""
    positive: Tensor
    """(U, C) bool."""
    excluded: Tensor
    """(U, C) bool: neither target nor negative, such as a user's other known items, and padding; never positive."""
    log_q: Tensor
    """(C,) or (U, C): log of the item's sampling probability."""
    rating: Tensor
    """(U, C) float32: the user's train rating of the item, NaN where there is none."""
    logits: Tensor | None = None
    """(U, C, O) float32: logits of ``levels`` behind the scores, if there are any; see ``LevelKind``."""
    levels: Tensor | None = None
    """(K,) float32, ascending: rating levels of the logits. O is K for classes and K - 1 for labels."""
    user: Tensor | None = None
    """(U,) int64: dense ids of the users."""
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    """(U,) int64 by column of each of ``LossConfig.user_groups``: each user's group, -1 for none."""

    @classmethod
    def of(
        cls, scores: Tensor, batch: PairBatch, logits: Tensor | None = None, levels: Tensor | None = None
    ) -> ScoredPairs:
        """Build from the scores (U, I) of a training batch, cast to float32, as autocast may give half precision."""
        known = (batch.positive, batch.excluded, batch.log_q, batch.rating)
        return cls(scores.float(), *known, logits, levels, batch.user, batch.groups)

    @property
    def negative(self) -> Tensor:
        """Return (U, C) bool: pairs that are neither positive nor excluded."""
        return ~(self.positive | self.excluded)


# Each positive against others --------------------------------------------------------------------------


def contrast(logits: Tensor, pairs: ScoredPairs, label_smoothing: float, rating_weight: bool) -> Tensor:
    """Return the cross-entropy () of each positive against the user's negatives, without the other positives.

    ``- log( exp(z_p) / (exp(z_p) + sum_{n in N_u} exp(z_n)) )``, averaged over a user's positives, then over users.

    Args:
        logits: (U, C), transformed scores.
    """
    from torch import finfo
    from torch.nn.functional import logsigmoid

    negative = pairs.negative
    logits = logits.masked_fill(pairs.excluded, 0.0)
    # The lowest finite number instead of -inf avoids NaN in a row without negatives.
    against = logits.masked_fill(~negative, finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)  # (U, 1)
    values = -logsigmoid(logits - against)
    if label_smoothing:
        below = logits.masked_fill(~negative, 0.0).sum(dim=1, keepdim=True)
        classes = 1 + negative.sum(dim=1, keepdim=True)
        values = values + label_smoothing * (logits - (logits + below) / classes)
    return mean_over_positives(values, pairs, rating_weight)


def differences(pairs: ScoredPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return row (P,) and column (P,) of each positive, and its score minus each of its user's scores (P, C)."""
    row, column = pairs.positive.nonzero(as_tuple=True)
    scores = pairs.scores.masked_fill(pairs.excluded, 0.0)
    return row, column, scores[row, column].unsqueeze(1) - scores[row]


def mean_over_negatives(values: Tensor, row: Tensor, column: Tensor, pairs: ScoredPairs) -> Tensor:
    """Return (U, C): at each positive the mean of its ``values`` (P, C) over its user's negatives; 0 elsewhere."""
    negative = pairs.negative[row]
    means = values.masked_fill(~negative, 0.0).sum(dim=1) / negative.sum(dim=1).clamp(min=1)
    return to_cells(means, row, column, pairs)


def to_cells(values: Tensor, row: Tensor, column: Tensor, pairs: ScoredPairs) -> Tensor:
    """Return (U, C) with the positives' ``values`` (P,) in their cells; 0 elsewhere."""
    return pairs.scores.new_zeros(pairs.scores.shape).index_put((row, column), values)


# Means with equal weight per user ----------------------------------------------------------------------


def mean_over_positives(
    values: Tensor, pairs: ScoredPairs, rating_weight: bool, needs_negatives: bool = True
) -> Tensor:
    """Return the mean () of ``values`` (U, C) over each user's positives, then over users with any (and negatives)."""
    if rating_weight:
        values = values * rating_weights(pairs)
    own = values.masked_fill(~pairs.positive, 0.0).sum(dim=1) / pairs.positive.sum(dim=1).clamp(min=1)
    there = pairs.positive.any(dim=1)
    return mean_over_users(own, there & pairs.negative.any(dim=1) if needs_negatives else there)


def mean_over_cells(
    values: Tensor, pairs: ScoredPairs, positive_weight: float, negative_weight: float, rating_weight: bool
) -> Tensor:
    """Return the class-weighted mean () of ``values`` (U, C) over each user's cells, then over users with weight."""
    weight = (positive_weight * pairs.positive + negative_weight * pairs.negative).to(values.dtype)
    if rating_weight:
        values = values * rating_weights(pairs)
    return weighted_mean(values * weight, weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean () over users with weight of their sum of ``values`` (U, C) / sum of ``weight`` (U, C)."""
    total = weight.sum(dim=1)
    own = values.sum(dim=1) / total.masked_fill(total == 0, 1.0)
    return mean_over_users(own, total > 0)


def mean_over_users(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean () of ``values`` (U,) over the users with ``there`` (U,); 0 if there are none."""
    return values.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)


# Levels ------------------------------------------------------------------------------------------------


def level_logits(pairs: ScoredPairs, loss: str, kind: LevelKind) -> Tensor:
    """Return the pairs' logits (U, C, O) of ``kind``, 0 in excluded cells.

    Raises:
        RecpeftError: the formulation gives no such logits.
    """
    logits, levels = pairs.logits, pairs.levels
    if logits is None or levels is None or logits.shape[-1] != len(levels) - (kind == "labels"):
        raise RecpeftError(
            f"loss {loss} learns logits of {kind}, which the formulation does not give; use formulation "
            f"{{name: cross_encoder, output: {kind}}}, or another loss."
        )
    return logits.masked_fill(pairs.excluded.unsqueeze(-1), 0.0)


def level_places(pairs: ScoredPairs) -> Tensor:
    """Return (U, C) int64 index in ``levels`` of each pair: the highest level that its rating reaches, or the lowest.

    Unrated positives have the highest level, and all other unrated pairs the lowest.
    """
    from torch import searchsorted, where

    assert pairs.levels is not None
    # Compare both as float32, the dtype of ratings: float32 3.3 is below float64 3.3.
    reached = searchsorted(pairs.levels.float(), pairs.rating.float().contiguous(), right=True) - 1
    unrated = where(pairs.positive, len(pairs.levels) - 1, 0)
    return where(pairs.rating.isnan(), unrated, reached.clamp(min=0))


def level_weights(pairs: ScoredPairs, negative_weight: float) -> Tensor:
    """Return (U, C): 1 for rated or positive pairs, ``negative_weight`` for the others, 0 for excluded ones."""
    known = pairs.positive | ~pairs.rating.isnan()
    weights = pairs.scores.new_full(pairs.scores.shape, negative_weight).masked_fill(known, 1.0)
    return weights.masked_fill(pairs.excluded, 0.0)


# Ratings -----------------------------------------------------------------------------------------------


def rating_weights(pairs: ScoredPairs) -> Tensor:
    """Return (U, C): each positive's rating divided by the batch's mean over positives; 1 for all other cells."""
    rated = pairs.positive & ~pairs.rating.isnan()
    rating = pairs.rating.clamp(min=0.0).masked_fill(~rated, 0.0)
    mean = rating.sum() / rated.sum().clamp(min=1)
    # If all ratings are 0, weights are equal.
    return (rating / mean.masked_fill(mean == 0, 1.0)).masked_fill(~rated | (mean == 0), 1.0)


def gains(pairs: ScoredPairs, rating_gain: bool) -> Tensor:
    """Return the gain (U, C) of each item: a positive's rating (at least 0) with ``rating_gain`` or, if it is unrated
    or without ``rating_gain``, 1; 0 for all other items."""
    relevant = pairs.positive.to(pairs.scores.dtype)
    if not rating_gain:
        return relevant
    rated = pairs.positive & ~pairs.rating.isnan()
    return pairs.rating.clamp(min=0.0).to(relevant.dtype).where(rated, relevant)


def gains_differ(gain: Tensor, pairs: ScoredPairs) -> Tensor:
    """Return (U,) bool: True if the gains of the user's items differ, so that they define an order."""
    highest = gain.masked_fill(pairs.excluded, -1.0).amax(dim=1)
    lowest = gain.masked_fill(pairs.excluded, float("inf")).amin(dim=1)
    return highest > lowest
