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
    """True if ``fit`` makes random draws; the ranker is then run once for each seed, like any other row."""

    HOW: ClassVar[frozenset[str]] = frozenset({"memory_share"})

    name: str
    """Plug-in: a file of ``rankers/``, or a dotted module name."""
    memory_share: float = Field(default=0.5, gt=0, le=1)
    """Maximum share of this machine's memory that fitting may plan for; a ranker that needs more is left out of the
    table. It is not part of the run's id."""


class Ranker(Protocol):
    """A fitted ranker."""

    @property
    def details(self) -> dict[str, float]:
        """Return the values that ``fit`` chose, for the record; empty if there was nothing to choose."""

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        """Score the whole catalogue for B people, higher is better; the caller masks seen items.

        Args:
            users: (B,) int64 dense ids, -1 for a person who is not a user of the data.
            history: (B, I) float32, 1 where the person is known to like the item; a user's row may hold more items
                than train did.
        Returns:
            (B, I) float32, finite, on the CPU.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the plug-in's ``load`` needs besides its config and ``details``."""


Validate: TypeAlias = Callable[[Ranker], float]
"""Function that returns a ranker's monitored validation metric, higher is better."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of ``fit`` besides data and config."""

    validate: Validate
    """Validation metric, which chooses hyper-parameters and ends training; a call takes seconds on large data."""
    folder: Path
    """Folder for checkpoints; it may not exist yet, and is removed when the run is finished."""
    seed: int = 0
    """Seed of all draws; deterministic rankers ignore it."""
    device: str = "cpu"
    """``cuda`` where there is a GPU; a ranker may stay on the CPU."""
    threads: int = 1
    """Number of CPU threads; the same seed and number of threads give a bitwise identical ranker."""
    memory_bytes: int | None = None
    """Maximum memory that ``fit`` may plan for; None is no bound."""

    def reserve(self, needed_bytes: int, purpose: str) -> None:
        """Raise ``LeftOut`` if ``needed_bytes`` exceed ``memory_bytes``.

        Args:
            purpose: subject of the error sentence, the thing that needs the memory.
        """
        if self.memory_bytes is not None and needed_bytes > self.memory_bytes:
            raise LeftOut(
                f"{purpose} would need {needed_bytes / 1e9:,.1f} GB of memory, and ranker.memory_share allows "
                f"{self.memory_bytes / 1e9:,.1f} GB here; use a machine with more memory, raise ranker.memory_share, "
                "or keep fewer items by data.filters."
            )
