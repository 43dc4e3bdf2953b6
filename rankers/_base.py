"""The contract of ranker plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from pydantic import Field

from recpeft.config import Config
from recpeft.errors import LeftOut

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from scipy.sparse import csr_array
    from torch import Tensor


class RankerConfig(Config):
    """Base of each ranker's ``Config``."""

    STOCHASTIC: ClassVar[bool] = False
    """Whether ``fit`` draws: then the ranker is run once for each seed, like any other row."""

    HOW: ClassVar[frozenset[str]] = frozenset({"memory_share"})

    name: str
    """The plug-in: a file of ``rankers/``, or a dotted module name."""
    memory_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of this machine's memory that fitting may plan for; a ranker that needs more is left out of the
    table. No part of what the run is."""


class Ranker(Protocol):
    """A fitted ranker."""

    @property
    def details(self) -> dict[str, float]:
        """Values that ``fit`` chose, for the record; empty where there was nothing to choose."""

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        """Score the whole catalogue for some people, higher is better; the caller masks seen items.

        Args:
            users: (B,) int64 dense ids, -1 for a person who is no user of the data.
            history: (B, I) float32, 1 where the person is known to like the item; of a user it may hold more than
                train did.
        Returns:
            (B, I) float32, finite, on the CPU.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the plug-in's ``load`` needs beside its config and ``details``."""


Validate: TypeAlias = Callable[[Ranker], float]
"""The monitored validation metric of a ranker, higher is better."""


@dataclass(frozen=True)
class TrainingOptions:
    """What ``fit`` is given beside data and config."""

    validate: Validate
    """Chooses hyper-parameters and ends training; it takes seconds on large data."""
    folder: Path
    """For checkpoints; it may not exist yet, and is removed when the run is finished."""
    seed: int = 0
    """Seed of all draws; deterministic rankers ignore it."""
    device: str = "cpu"
    """``cuda`` where there is one; a ranker may stay on the CPU."""
    threads: int = 1
    """CPU threads: the same seed and number of threads give the same ranker, to the last bit."""
    memory_bytes: int | None = None
    """Largest memory that ``fit`` may plan for; None is no bound."""

    def reserve(self, needed_bytes: int, purpose: str) -> None:
        """Raise ``LeftOut`` where ``needed_bytes`` exceed ``memory_bytes``.

        Args:
            purpose: what needs them, as the subject of a sentence.
        """
        if self.memory_bytes is not None and needed_bytes > self.memory_bytes:
            raise LeftOut(
                f"{purpose} would need {needed_bytes / 1e9:,.1f} GB of memory, and ranker.memory_share allows "
                f"{self.memory_bytes / 1e9:,.1f} GB here; use a machine with more memory, raise ranker.memory_share, "
                "or keep fewer items by data.filters."
            )
