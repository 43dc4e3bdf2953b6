"""Negatives: the items that a model learns to rank below a user's positives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from recpeft.config import Config, Drawn

if TYPE_CHECKING:
    import numpy as np


class NegativesConfig(Config):
    """Kinds of negatives, which add up: a batch has the users' positives and these draws, shared by all its users.

    An item that a user is known to like is never that user's negative. Training does not know the items of validation
    and test, so they may be drawn: leaving them out would leak which they are.
    """

    ADDED: ClassVar[Mapping[str, Any]] = {"catalogue": False}

    catalogue: bool = False
    """Use every item of the catalogue instead of draws, for an exact softmax. Suitable for some ten thousand items, and
    cheap if items are encoded once (formulation: sequence)."""
    in_batch: bool = True
    """Use other users' positives (Hidasi et al. 2016)."""
    uniform: Drawn = 0
    """Number of items per batch, drawn uniformly from the catalogue."""
    popularity: Drawn = 0
    """Number of draws per batch, with replacement as in word2vec, with probability proportional to an item's number of
    train interactions to the power of ``popularity_exponent``; an item drawn twice counts once."""
    popularity_exponent: NonNegativeFloat = 0.75
    """Exponent of the popularity; 0.75 is word2vec's (Mikolov et al. 2013)."""
    disliked: Drawn = 0
    """Number of items per user, from those after the history that are rated below data.liked_from."""
    hard: Drawn = 0
    """Number of items per user, from the ``hard_pool`` items that the model itself scores highest (Xiong et al.
    2021)."""
    hard_pool: PositiveInt = 100
    """Number of highest-scored items from which hard negatives are drawn."""
    hard_refresh_epochs: PositiveInt = 1
    """Number of epochs after which the model scores the catalogue again."""

    @property
    def there_are_some(self) -> bool:
        """True if any kind is used."""
        return bool(self.catalogue or self.in_batch or self.uniform or self.popularity or self.disliked or self.hard)

    @model_validator(mode="after")
    def _pool_is_large_enough(self) -> NegativesConfig:
        if self.hard > self.hard_pool:
            raise ValueError(f"hard is {self.hard}, more than hard_pool {self.hard_pool}; lower it")
        return self


class Negatives:
    """Sampler of a batch's shared negatives.

    Args:
        train_counts: (I,) number of train interactions of each item.
        config: kinds and numbers of negatives.
    """

    def __init__(self, train_counts: np.ndarray, config: NegativesConfig) -> None:
        import numpy as np

        self.config = config
        weight = train_counts.astype(np.float64) ** config.popularity_exponent
        weight[train_counts == 0] = 0.0  # 0 to the power of 0 is 1
        self._popularity = weight / weight.sum()

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw distinct items, ascending."""
        import numpy as np

        num_items = len(self._popularity)
        if self.config.catalogue:
            return np.arange(num_items)
        parts = [np.empty(0, np.int64)]
        if self.config.uniform:
            parts.append(generator.choice(num_items, min(self.config.uniform, num_items), replace=False))
        if self.config.popularity:
            parts.append(generator.choice(num_items, self.config.popularity, p=self._popularity))
        return np.unique(np.concatenate(parts))

    def log_q(self, positive_shares: np.ndarray, positives_per_batch: float) -> np.ndarray:
        """Return the log of each item's expected share of a batch's draws, (I,) float64.

        Positives count if they are also negatives. Hard and disliked negatives belong to a user and have no known
        probability, so they do not count; an item that is never drawn gets the smallest share of a drawn item.
        """
        import numpy as np

        config = self.config
        if config.catalogue:
            return np.zeros_like(positive_shares)  # every item is in every batch
        expected = positive_shares * positives_per_batch
        if not config.in_batch and (config.uniform or config.popularity):
            expected = np.zeros_like(positive_shares)
        uniform = min(config.uniform, len(positive_shares))
        expected = expected + uniform / len(positive_shares) + config.popularity * self._popularity
        if not expected.any():
            return np.zeros_like(expected)  # nothing is drawn, so nothing has to be corrected
        return np.log(np.maximum(expected, expected[expected > 0].min()) / expected.sum())
