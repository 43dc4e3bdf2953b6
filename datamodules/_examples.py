"""Training examples: users at a moment of their history, or interactions after their own history."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from datamodules._histories import Histories
from datamodules._ragged import offsets_of
from datamodules._splits import Split
from recpeft.errors import RecpeftError

Kind = Literal["users", "interactions", "positions"]


@dataclass(frozen=True)
class Drawn:
    """U examples of a batch."""

    user: np.ndarray
    """(U,) dense ids."""
    moment: np.ndarray
    """(U,) number of the user's interactions before the moment."""
    positives: list[np.ndarray]
    """Positive items of each of the U users."""
    negatives: list[np.ndarray]
    """Disliked items of each of the U users."""


class Examples(Protocol):
    """A kind of examples."""

    per_pass: int
    """Number of batches in one pass over all examples."""

    def users(self, index: int) -> np.ndarray:
        """Return the users of the ``index``-th batch, (U,)."""

    def draw(self, index: int, generator: np.random.Generator) -> Drawn:
        """Draw the ``index``-th batch."""

    def expected(self, num_items: int) -> tuple[np.ndarray, float]:
        """Return each item's exact expected share of the drawn positives, (num_items,), and their number per batch."""


class UserExamples:
    """Examples at a moment of each user's train history: later likes are the positives, later dislikes the negatives.

    Args:
        known: interactions that are known when validation begins.
        split: says which of these are learnt, and which of those are liked.
        users_per_step: number of users per batch.
        positives_per_user, disliked_per_user: maximum numbers, drawn without replacement.
        positive_window: number of next likes from which positives are drawn; None is all.
        balance: (num_users,) group of each user, -1 for none; each group then has equally many users in a batch.
    Raises:
        RecpeftError: no user has two train interactions.
    """

    def __init__(
        self,
        known: Histories,
        split: Split,
        *,
        users_per_step: int,
        positives_per_user: int,
        positive_window: int | None,
        disliked_per_user: int,
        seed: int,
        balance: np.ndarray | None,
    ) -> None:
        self._known = known
        self._positives_per_user = positives_per_user
        self._positive_window = positive_window
        self._disliked_per_user = disliked_per_user
        self._targets, self._disliked = targets_of(split, len(known.offsets) - 1)
        # A target needs a history, so the first interaction is not a target.
        self._trainable = np.flatnonzero([len(places) > 0 and places[-1] >= 1 for places in self._targets])
        if not len(self._trainable):
            raise RecpeftError(
                "no user has two train interactions, one for the history and one to learn; lower data.filters or use "
                "another data.split."
            )
        self._passes = Passes(self._trainable, users_per_step, seed, balance)
        self.per_pass = max(1, len(self._trainable) // users_per_step)

    def users(self, index: int) -> np.ndarray:
        return self._passes.drawn(index)

    def draw(self, index: int, generator: np.random.Generator) -> Drawn:
        users = self.users(index)
        moments, positives, negatives = [], [], []
        for user in users:
            items, places = self._known.items(user), self._targets[user]
            moment = int(generator.integers(1, places[-1] + 1))
            later = items[places[np.searchsorted(places, moment) :]][: self._positive_window]
            moments.append(moment)
            positives.append(generator.choice(later, min(self._positives_per_user, len(later)), replace=False))
            disliked = self._disliked[user]
            bad = items[disliked[np.searchsorted(disliked, moment) :]] if self._disliked_per_user else later[:0]
            negatives.append(generator.choice(bad, min(self._disliked_per_user, len(bad)), replace=False))
        return Drawn(users, np.asarray(moments), positives, negatives)

    def expected(self, num_items: int) -> tuple[np.ndarray, float]:
        expected = np.zeros(num_items)
        chances = self._passes.chances()
        for user in self._trainable:
            items, places = self._known.items(user), self._targets[user]
            moments = np.arange(1, places[-1] + 1)
            first = np.searchsorted(places, moments)  # of the targets at or after each moment
            later = np.minimum(len(places) - first, self._positive_window or len(places))
            chance = np.minimum(self._positives_per_user, later) / later / len(moments) * chances[user]
            # A moment covers the targets from first to first + later: add at the start, subtract after the end.
            change = np.zeros(len(places) + 1)
            np.add.at(change, first, chance)
            np.add.at(change, first + later, -chance)
            np.add.at(expected, items[places], change.cumsum()[:-1])
        per_user = expected.sum() / chances.sum()
        return expected / expected.sum(), float(per_user * len(self.users(0)))


class InteractionExamples:
    """Examples of one train interaction each, with all earlier ones as history: a positive if liked, else a negative.

    Args:
        known, split: as for ``UserExamples``.
        per_step: number of interactions per batch.
        balance: as for ``UserExamples``; each group then has equally many interactions in a batch.
    Raises:
        RecpeftError: no train interaction has one before it.
    """

    def __init__(self, known: Histories, split: Split, *, per_step: int, seed: int, balance: np.ndarray | None) -> None:
        liked, disliked = targets_of(split, len(known.offsets) - 1)
        pairs = [
            (user, place, like)
            for like, places in ((True, liked), (False, disliked))
            for user, of_user in enumerate(places)
            for place in of_user
            if place >= 1
        ]
        if not pairs:
            raise RecpeftError(
                "no train interaction has one before it, to be its history; lower data.filters or use another "
                "data.split."
            )
        self._user, self._place, self._liked = (np.asarray(column) for column in zip(*sorted(pairs), strict=True))
        self._known = known
        rows = np.arange(len(self._user))
        self._passes = Passes(rows, per_step, seed, None if balance is None else balance[self._user])
        self.per_pass = max(1, len(rows) // per_step)

    def users(self, index: int) -> np.ndarray:
        return self._user[self._passes.drawn(index)]

    def draw(self, index: int, generator: np.random.Generator) -> Drawn:
        rows = self._passes.drawn(index)
        items = self._item(rows)[:, None]
        liked = self._liked[rows]
        return Drawn(
            self._user[rows],
            self._place[rows],
            [item[:like] for item, like in zip(items, liked.astype(int), strict=True)],
            [item[like:] for item, like in zip(items, liked.astype(int), strict=True)],
        )

    def expected(self, num_items: int) -> tuple[np.ndarray, float]:
        rows = np.arange(len(self._user))
        chances = self._passes.chances() * self._liked
        expected = np.bincount(self._item(rows), weights=chances, minlength=num_items)
        share = expected.sum() / self._passes.chances().sum()
        return expected / max(expected.sum(), 1e-12), float(share * len(self._passes.drawn(0)))

    def _item(self, rows: np.ndarray) -> np.ndarray:
        return self._known.item[self._known.offsets[self._user[rows]] + self._place[rows]]


class Passes:
    """Assignment of ``rows`` (users, interactions) to batches: passes over all rows, each in a new order.

    Args:
        balance: group of each row by its number; -1 is none, and never drawn. Each pass then has equally many rows of
            every group: the rows of a small group occur several times, those of a large one not in every pass.
    Raises:
        RecpeftError: no row is in a group.
    """

    def __init__(self, rows: np.ndarray, per_step: int, seed: int, balance: np.ndarray | None) -> None:
        self._size = int(rows.max()) + 1
        of_row = np.zeros(len(rows), np.int64) if balance is None else balance[rows]
        rows, of_row = rows[of_row >= 0], of_row[of_row >= 0]
        if not len(rows):
            raise RecpeftError("training.balance: no user with something to learn is in a group; leave it out.")
        self._count = len(rows)
        self._per_step = per_step
        self._seed = seed
        self._per_pass = max(1, len(rows) // per_step)
        self._groups = [rows[of_row == group] for group in np.unique(of_row)]

    def drawn(self, index: int) -> np.ndarray:
        """Return the rows of the ``index``-th batch, (n,)."""
        number, place = divmod(index, self._per_pass)
        return self._order(number)[place * self._per_step : (place + 1) * self._per_step]

    def chances(self) -> np.ndarray:
        """Return how often each row is drawn, relative to the mean of drawn rows, (largest row + 1,)."""
        chances = np.zeros(self._size)
        for group in self._groups:
            chances[group] = self._count / len(self._groups) / len(group)
        return chances

    def _order(self, number: int) -> np.ndarray:
        draw = np.random.default_rng([self._seed, 3, number])
        if len(self._groups) == 1:
            return draw.permutation(self._groups[0])
        share = -(-self._count // len(self._groups))
        rows = []
        for group in self._groups:
            passes = [draw.permutation(group) for _ in range(-(-share // len(group)))]
            rows.append(np.concatenate(passes)[:share])
        return np.stack(rows, axis=1).ravel()  # groups alternate, so that every batch is balanced


def targets_of(split: Split, num_users: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return, for each user, the indices of liked and of disliked train rows among rows known before validation."""
    rows = split.known(at_test=False)
    bounds = offsets_of(np.bincount(rows["user"].to_numpy(), minlength=num_users))
    learnt = rows["learnt"].to_numpy()
    liked = np.ones(len(learnt), bool)
    if split.liked_from is not None:
        liked = (rows["rating"] >= split.liked_from).fill_null(True).to_numpy()
    positive, negative = (
        [np.flatnonzero(part[a:b]) for a, b in itertools.pairwise(bounds.tolist())]
        for part in (learnt & liked, learnt & ~liked)
    )
    return positive, negative
