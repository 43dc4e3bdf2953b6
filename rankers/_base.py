"""What a ranker plug-in holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from recpeft.config import Config

if TYPE_CHECKING:
    from torch import Tensor


class RankerConfig(Config):
    """Base of each ranker's ``Config``."""

    name: str
    """The plug-in: a file of ``rankers/``, or a dotted module name."""


class Ranker(Protocol):
    """A fitted ranker."""

    @property
    def details(self) -> dict[str, float]:
        """What ``fit`` chose, for the record; empty where there was nothing to choose."""

    def score(self, history: Tensor) -> Tensor:
        """Scores of the whole catalogue, higher is better; seen items are masked by the caller.

        Args:
            history: (B, I) float32, 1 where the user has interacted with the item, else 0; on the device
                of the training matrix.
        Returns:
            (B, I) float32.
        """


Validate: TypeAlias = Callable[[Ranker], float]
"""The monitored validation metric of a ranker, higher is better."""
