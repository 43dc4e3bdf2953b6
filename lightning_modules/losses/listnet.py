"""ListNet: cross-entropy over the probability that each item is ranked first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from lightning_modules.losses._base import LossConfig, ScoredPairs, gains, gains_differ, mean_over_users

if TYPE_CHECKING:
    from torch import Tensor


class Config(LossConfig):
    name: str = "listnet"
    rating_gain: bool = True
    """Use a positive's rating, if it has one, as its gain; else the gain is 1."""
    gain_scale: PositiveFloat = 1.0
    """Factor of the gains; 1 is Cao et al.'s. Among hundreds of negatives a gain of 1 has a small share of the target:
    raise the factor to put more of the target on the positives."""


def loss(pairs: ScoredPairs, *, rating_gain: bool = True, gain_scale: float = 1.0) -> Tensor:
    """Cross-entropy between top-one probabilities by gain and by score (Cao et al. 2007, "Learning to rank: from
    pairwise approach to listwise approach").

    ``- mean_u sum_i softmax(gain_scale * g_u)_i log softmax(s_u)_i`` over the items that are not excluded; the gain
    ``g`` of a negative is 0. A user whose items all have the same gain contributes nothing.

    Args:
        pairs: (U, C); see ``ScoredPairs``.
    Returns:
        () float32.
    """
    from torch import finfo

    gain = gains(pairs, rating_gain)
    # The lowest finite number instead of -inf: its softmax is also 0, and a fully excluded row gives no NaN.
    lowest = finfo(gain.dtype).min
    target = (gain_scale * gain).masked_fill(pairs.excluded, lowest).softmax(dim=1)
    log_share = pairs.scores.masked_fill(pairs.excluded, lowest).log_softmax(dim=1)
    values = -(target * log_share.masked_fill(pairs.excluded, 0.0)).sum(dim=1)
    return mean_over_users(values, gains_differ(gain, pairs))
