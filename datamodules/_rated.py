"""Held-out interactions to be judged, liked or not: what a user's rated candidates are and which texts they get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules._histories import Histories
from datamodules._ragged import ranges
from datamodules._splits import Split
from datamodules.splits._base import TEST, VALIDATION


@dataclass(frozen=True)
class Judged:
    """The R held-out interactions of some users, by user and time."""

    row: np.ndarray
    """(R,) which of the users each one is of."""
    item: np.ndarray
    """(R,)"""
    liked: np.ndarray
    """(R,) bool."""
    rating: np.ndarray
    """(R,) float32, NaN where there is none."""
    stop: np.ndarray
    """(R,) how many of the user's known interactions stand before it."""


class Rated:
    """The interactions that are known when validation, or test, has ended, and which of them are to be judged.

    Args:
        at_test: judge test, or validation, which sees no row of test, whatever the rows' order in time.
    """

    def __init__(self, split: Split, num_users: int, *, at_test: bool) -> None:
        rows = split.ordered(at_test=at_test)
        self._judged_part = TEST if at_test else VALIDATION
        self.histories = Histories.of(rows, num_users)
        """What stands behind an interaction is cut off by ``Judged.stop``."""
        self._part = rows["part"].to_numpy()
        self._liked = np.ones(rows.height, bool)
        if split.liked_from is not None:
            self._liked = (rows["rating"] >= split.liked_from).fill_null(True).to_numpy()

    def liked_before(self, users: np.ndarray, judged: Judged) -> tuple[np.ndarray, np.ndarray]:
        """Row of ``judged`` and item of what the user of each judged interaction liked before it, (N,) each."""
        start = self.histories.offsets[users[judged.row]]
        place = ranges(start, judged.stop)
        row = np.repeat(np.arange(len(start)), judged.stop)
        liked = self._liked[place]
        return row[liked], self.histories.item[place[liked]]

    def of(self, users: np.ndarray) -> Judged:
        """Return what is to be judged of ``users`` (U,)."""
        start = self.histories.offsets[users]
        lengths = self.histories.offsets[users + 1] - start
        place = ranges(start, lengths)
        row = np.repeat(np.arange(len(users)), lengths)
        chosen = self._part[place] == self._judged_part
        place, row = place[chosen], row[chosen]
        rating = self.histories.rating[place]
        return Judged(row, self.histories.item[place], self._liked[place], rating, place - start[row])
