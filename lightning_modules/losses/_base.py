"""What the losses share: what they see, their configs' common fields, and means in which users weigh alike."""

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
"""What a logit says of a pair's rating: that it is this level, of all of them one (classes), or that it is at least
this level, for all levels but the lowest, which every rating reaches (labels)."""


@dataclass(frozen=True)
class LevelLogits:
    """The logits of the ratings' levels that a formulation gives losses beside scores."""

    kind: LevelKind
    count: int
    """How many a pair has."""


class LossConfig(Config):
    """Base of every loss's ``Config``."""

    POINTWISE: ClassVar[bool] = False
    """See ``pointwise``."""

    name: str
    """Which loss: the name of a file in lightning_modules/losses/, or a dotted module name."""

    def refusal(self, formulation: str, logits: LevelLogits | None) -> str | None:
        """Why this loss cannot teach ``formulation``, as a clause with the remedy; None where it can.

        Args:
            logits: what the formulation gives beside scores.
        """
        return None

    @property
    def user_groups(self) -> tuple[GroupConfig, ...]:
        """Groupings of users that the loss reads from ``ScoredPairs.groups``; none unless a loss says so."""
        return ()

    @property
    def pointwise(self) -> bool:
        """Whether it learns from one item of a user alone, not by setting items against each other."""
        return self.POINTWISE


class RatedConfig(LossConfig):
    """Of losses in which a positive can weigh by its rating."""

    rating_weight: bool = False
    """Weigh each positive by its rating, next to the batch's mean rating of a positive; one without a rating weighs
    1, and ratings below 0 weigh 0."""


class SmoothedConfig(RatedConfig):
    """Of losses that are a cross-entropy."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread evenly over its classes (Szegedy et al. 2016); 0 is off."""


class LevelsConfig(LossConfig):
    """Of losses that learn logits of the ratings' levels."""

    POINTWISE: ClassVar[bool] = True
    KIND: ClassVar[LevelKind]
    WEIGHTS: ClassVar[str]
    """The option that has a weight for each logit."""

    negative_weight: NonNegativeFloat = 1.0
    """Weight of a pair without rating that is no positive (a drawn negative), which has the lowest level; 0 leaves
    such pairs out."""

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
    """Users' scores of their candidates, and what is known of each pair: all that a loss sees."""

    scores: Tensor
    """(U, C) float32, higher is better; of excluded cells they do not matter."""
    positive: Tensor
    """(U, C) bool."""
    excluded: Tensor
    """(U, C) bool: neither target nor negative, such as a user's other known items, and padding; never positive."""
    log_q: Tensor
    """(C,) or (U, C): log of the share of draws that fall on the item."""
    rating: Tensor
    """(U, C) float32: the user's train rating of the item, NaN where there is none."""
    logits: Tensor | None = None
    """(U, C, O) float32: what the scores were made of, where that is logits of ``levels``; see ``LevelKind``."""
    levels: Tensor | None = None
    """(K,) float32, ascending: ratings that the logits tell apart. O is K for classes and K - 1 for labels."""
    user: Tensor | None = None
    """(U,) int64: dense ids of the users."""
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    """(U,) int64 for each of ``LossConfig.user_groups``, by its column: each user's group, -1 for none."""

    @classmethod
    def of(
        cls, scores: Tensor, batch: PairBatch, logits: Tensor | None = None, levels: Tensor | None = None
    ) -> ScoredPairs:
        """The scores (U, I) of a training batch; they become float32, which autocast may have halved."""
        known = (batch.positive, batch.excluded, batch.log_q, batch.rating)
        return cls(scores.float(), *known, logits, levels, batch.user, batch.groups)

    @property
    def negative(self) -> Tensor:
        """(U, C) bool: what is neither positive nor excluded."""
        return ~(self.positive | self.excluded)


# Each positive against others --------------------------------------------------------------------------


def contrast(logits: Tensor, pairs: ScoredPairs, label_smoothing: float, rating_weight: bool) -> Tensor:
    """Cross-entropy of each positive against the user's negatives, the user's other positives left out. ()

    ``- log( exp(z_p) / (exp(z_p) + sum_{n in N_u} exp(z_n)) )``, meant over a user's positives, then over users.

    Args:
        logits: (U, C), what the scores became.
    """
    from torch import finfo
    from torch.nn.functional import logsigmoid

    negative = pairs.negative
    logits = logits.masked_fill(pairs.excluded, 0.0)
    # The lowest number rather than -inf, so that no NaN arises on the way in a row without negatives.
    against = logits.masked_fill(~negative, finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)  # (U, 1)
    values = -logsigmoid(logits - against)
    if label_smoothing:
        below = logits.masked_fill(~negative, 0.0).sum(dim=1, keepdim=True)
        classes = 1 + negative.sum(dim=1, keepdim=True)
        values = values + label_smoothing * (logits - (logits + below) / classes)
    return mean_over_positives(values, pairs, rating_weight)


def differences(pairs: ScoredPairs) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) row and (P,) column of each positive, and (P, C) how far its score lies above each of its user's."""
    row, column = pairs.positive.nonzero(as_tuple=True)
    scores = pairs.scores.masked_fill(pairs.excluded, 0.0)
    return row, column, scores[row, column].unsqueeze(1) - scores[row]


def mean_over_negatives(values: Tensor, row: Tensor, column: Tensor, pairs: ScoredPairs) -> Tensor:
    """(U, C) for each positive the mean of its ``values`` (P, C) over its user's negatives; 0 elsewhere."""
    negative = pairs.negative[row]
    means = values.masked_fill(~negative, 0.0).sum(dim=1) / negative.sum(dim=1).clamp(min=1)
    return to_cells(means, row, column, pairs)


def to_cells(values: Tensor, row: Tensor, column: Tensor, pairs: ScoredPairs) -> Tensor:
    """(U, C) with the positives' ``values`` (P,) where they belong; 0 elsewhere."""
    return pairs.scores.new_zeros(pairs.scores.shape).index_put((row, column), values)


# Means in which users weigh alike ----------------------------------------------------------------------


def mean_over_positives(
    values: Tensor, pairs: ScoredPairs, rating_weight: bool, needs_negatives: bool = True
) -> Tensor:
    """Mean of ``values`` (U, C) over each user's positives, then over users with positives (and negatives). ()"""
    if rating_weight:
        values = values * rating_weights(pairs)
    own = values.masked_fill(~pairs.positive, 0.0).sum(dim=1) / pairs.positive.sum(dim=1).clamp(min=1)
    there = pairs.positive.any(dim=1)
    return mean_over_users(own, there & pairs.negative.any(dim=1) if needs_negatives else there)


def mean_over_cells(
    values: Tensor, pairs: ScoredPairs, positive_weight: float, negative_weight: float, rating_weight: bool
) -> Tensor:
    """Mean of ``values`` (U, C) over each user's cells by the weight of their class, then over users with any. ()"""
    weight = (positive_weight * pairs.positive + negative_weight * pairs.negative).to(values.dtype)
    if rating_weight:
        values = values * rating_weights(pairs)
    return weighted_mean(values * weight, weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Each user's sum of ``values`` (U, C) by that of ``weight`` (U, C), meant over users with any weight. ()"""
    total = weight.sum(dim=1)
    own = values.sum(dim=1) / total.masked_fill(total == 0, 1.0)
    return mean_over_users(own, total > 0)


def mean_over_users(values: Tensor, there: Tensor) -> Tensor:
    """() mean of ``values`` (U,) over the users who are ``there`` (U,); 0 where nobody is."""
    return values.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)


# Levels ------------------------------------------------------------------------------------------------


def level_logits(pairs: ScoredPairs, loss: str, kind: LevelKind) -> Tensor:
    """(U, C, O) the pairs' logits of ``kind``, 0 where excluded.

    Raises:
        RecpeftError: the formulation gives none.
    """
    logits, levels = pairs.logits, pairs.levels
    if logits is None or levels is None or logits.shape[-1] != len(levels) - (kind == "labels"):
        raise RecpeftError(
            f"loss {loss} learns logits of {kind}, which the formulation does not give; use formulation "
            f"{{name: cross_encoder, output: {kind}}}, or another loss."
        )
    return logits.masked_fill(pairs.excluded.unsqueeze(-1), 0.0)


def level_places(pairs: ScoredPairs) -> Tensor:
    """(U, C) int64 which of ``levels`` each pair has, from 0: the highest that its rating reaches, or the lowest.

    Without a rating it is the highest for a positive and the lowest for all others.
    """
    from torch import searchsorted, where

    assert pairs.levels is not None
    # Both as float32, in which ratings come: 3.3 there lies below the 3.3 of float64.
    reached = searchsorted(pairs.levels.float(), pairs.rating.float().contiguous(), right=True) - 1
    unrated = where(pairs.positive, len(pairs.levels) - 1, 0)
    return where(pairs.rating.isnan(), unrated, reached.clamp(min=0))


def level_weights(pairs: ScoredPairs, negative_weight: float) -> Tensor:
    """(U, C) 1 for pairs that are rated or positive, ``negative_weight`` for the others, 0 for excluded ones."""
    known = pairs.positive | ~pairs.rating.isnan()
    weights = pairs.scores.new_full(pairs.scores.shape, negative_weight).masked_fill(known, 1.0)
    return weights.masked_fill(pairs.excluded, 0.0)


# Ratings -----------------------------------------------------------------------------------------------


def rating_weights(pairs: ScoredPairs) -> Tensor:
    """(U, C) weight of each positive, its rating by the batch's mean rating of a positive; 1 for all other cells."""
    rated = pairs.positive & ~pairs.rating.isnan()
    rating = pairs.rating.clamp(min=0.0).masked_fill(~rated, 0.0)
    mean = rating.sum() / rated.sum().clamp(min=1)
    # Where all are rated 0, they weigh alike.
    return (rating / mean.masked_fill(mean == 0, 1.0)).masked_fill(~rated | (mean == 0), 1.0)


def gains(pairs: ScoredPairs, rating_gain: bool) -> Tensor:
    """(U, C) how relevant each item is: a positive's rating (at least 0) with ``rating_gain``, 1 for a positive
    without or unrated, 0 for all others."""
    relevant = pairs.positive.to(pairs.scores.dtype)
    if not rating_gain:
        return relevant
    rated = pairs.positive & ~pairs.rating.isnan()
    return pairs.rating.clamp(min=0.0).to(relevant.dtype).where(rated, relevant)


def gains_differ(gain: Tensor, pairs: ScoredPairs) -> Tensor:
    """(U,) bool: whether some of the user's items are more relevant than others, so that there is an order."""
    highest = gain.masked_fill(pairs.excluded, -1.0).amax(dim=1)
    lowest = gain.masked_fill(pairs.excluded, float("inf")).amin(dim=1)
    return highest > lowest
