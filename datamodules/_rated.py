"""Held-out interactions to be judged as liked or not: users' rated candidates and the histories before them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules._histories import Histories
from datamodules._ragged import ranges
from datamodules._splits import Split
from datamodules.splits._base import TEST, VALIDATION


@dataclass(frozen=True)
class Judged:
    """R held-out interactions of some users, sorted by user and time."""

    row: np.ndarray
    """(R,) index of each interaction's user among the users."""
    item: np.ndarray
    """(R,) dense ids."""
    liked: np.ndarray
    """(R,) bool."""
    rating: np.ndarray
    """(R,) float32, NaN where there is none."""
    stop: np.ndarray
    """(R,) number of the user's known interactions before it."""


class Rated:
    """Interactions known at the end of validation or test, and the ones among them to be judged.

    Args:
        at_test: judge test; else validation, which sees no row of test, whatever the rows' order in time.
    """

    def __init__(self, split: Split, num_users: int, *, at_test: bool) -> None:
        rows = split.ordered(at_test=at_test)
        self._judged_part = TEST if at_test else VALIDATION
        self.histories = Histories.of(rows, num_users)
        """All interactions; ``Judged.stop`` excludes those after a judged one."""
        self._part = rows["part"].to_numpy()
        self._liked = np.ones(rows.height, bool)
        if split.liked_from is not None:
            self._liked = (rows["rating"] >= split.liked_from).fill_null(True).to_numpy()

    def liked_before(self, users: np.ndarray, judged: Judged) -> tuple[np.ndarray, np.ndarray]:
        """Return the index in ``judged`` and the item of all earlier likes of each judged one's user, (N,) each."""
        start = self.histories.offsets[users[judged.row]]
        place = ranges(start, judged.stop)
        row = np.repeat(np.arange(len(start)), judged.stop)
        liked = self._liked[place]
        return row[liked], self.histories.item[place[liked]]

    def of(self, users: np.ndarray) -> Judged:
        """Return the interactions of ``users`` (U,) to be judged."""
        start = self.histories.offsets[users]
        lengths = self.histories.offsets[users + 1] - start
        place = ranges(start, lengths)
        row = np.repeat(np.arange(len(users)), lengths)
        chosen = self._part[place] == self._judged_part
        place, row = place[chosen], row[chosen]
        rating = self.histories.rating[place]
        return Judged(row, self.histories.item[place], self._liked[place], rating, place - start[row])
