"""What a model learns to rank below a user's positives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from recpeft.config import Config, Drawn

if TYPE_CHECKING:
    import numpy as np


class NegativesConfig(Config):
    """Kinds add up: the items of a batch are the users' positives and what is drawn here, shared by all its users.

    An item that a user is known to like is never that user's negative. Items of validation and test are not known
    to training, so they may be drawn: leaving them out would tell the model where they are.
    """

    ADDED: ClassVar[Mapping[str, Any]] = {"catalogue": False}

    catalogue: bool = False
    """Every item of the catalogue, in place of draws: the softmax is exact. For catalogues of some ten thousand items,
    and cheap where items are encoded once (formulation: sequence)."""
    in_batch: bool = True
    """Other users' positives (Hidasi et al. 2016)."""
    uniform: Drawn = 0
    """Items a batch, each of the catalogue equally likely."""
    popularity: Drawn = 0
    """Draws a batch, with replacement as word2vec's, likely as their train interactions to the power of
    ``popularity_exponent``; an item drawn twice counts once."""
    popularity_exponent: NonNegativeFloat = 0.75
    """0.75 is word2vec's (Mikolov et al. 2013)."""
    disliked: Drawn = 0
    """Items a user: of those that follow the history and are rated below data.liked_from."""
    hard: Drawn = 0
    """Items a user, out of the ``hard_pool`` that the model itself scores highest (Xiong et al. 2021)."""
    hard_pool: PositiveInt = 100
    """How many of the highest-scored items hard negatives are drawn from."""
    hard_refresh_epochs: PositiveInt = 1
    """Epochs after which the model scores the catalogue anew."""

    @property
    def there_are_some(self) -> bool:
        """Whether any kind is drawn."""
        return bool(self.catalogue or self.in_batch or self.uniform or self.popularity or self.disliked or self.hard)

    @model_validator(mode="after")
    def _pool_is_large_enough(self) -> NegativesConfig:
        if self.hard > self.hard_pool:
            raise ValueError(f"hard is {self.hard}, more than hard_pool {self.hard_pool}; lower it")
        return self


class Negatives:
    """Draws of a batch's shared negatives.

    Args:
        train_counts: (I,) train interactions of each item.
        config: what is drawn.
    """

    def __init__(self, train_counts: np.ndarray, config: NegativesConfig) -> None:
        import numpy as np

        self.config = config
        weight = train_counts.astype(np.float64) ** config.popularity_exponent
        weight[train_counts == 0] = 0.0  # 0 to the power of 0 is 1
        self._popularity = weight / weight.sum()

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Distinct items, ascending."""
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
        """(I,) float64 log of the share of a batch's draws that is expected to fall on each item.

        Positives count where they serve as negatives too. Hard and disliked negatives are a user's own, not drawn by
        a known chance, so they have no part in it; one that no draw falls on counts as the rarest that is drawn.
        """
        import numpy as np

        config = self.config
        if config.catalogue:
            return np.zeros_like(positive_shares)  # all are there each time
        expected = positive_shares * positives_per_batch
        if not config.in_batch and (config.uniform or config.popularity):
            expected = np.zeros_like(positive_shares)
        uniform = min(config.uniform, len(positive_shares))
        expected = expected + uniform / len(positive_shares) + config.popularity * self._popularity
        if not expected.any():
            return np.zeros_like(expected)  # nothing is drawn, so nothing has to be corrected
        return np.log(np.maximum(expected, expected[expected > 0].min()) / expected.sum())
