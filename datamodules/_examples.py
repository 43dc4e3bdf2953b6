"""What a training batch is drawn from: users at a moment of their history, or interactions behind their own."""

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
    """(U,)"""
    moment: np.ndarray
    """(U,) how many of the user's interactions are past."""
    positives: list[np.ndarray]
    """U times the items to be learnt."""
    negatives: list[np.ndarray]
    """U times the items that this user dislikes."""


class Examples(Protocol):
    """A kind of examples."""

    per_pass: int
    """Batches of one pass over all that there is."""

    def users(self, index: int) -> np.ndarray:
        """(U,) the users of the ``index``-th batch."""

    def draw(self, index: int, generator: np.random.Generator) -> Drawn:
        """The ``index``-th batch."""

    def expected(self, num_items: int) -> tuple[np.ndarray, float]:
        """(num_items,) share of all drawn positives that falls on each item, exactly, and how many a batch has."""


class UserExamples:
    """A moment of each user's train history; likes that follow are the positives, dislikes that follow the negatives.

    Args:
        known: what is known of the users when validation begins.
        split: which of it is learnt, and what of that is liked.
        users_per_step: of a batch.
        positives_per_user, disliked_per_user: drawn without replacement, at most.
        positive_window: positives are drawn from so many likes that follow; None is all.
        balance: (num_users,) group of each user, -1 for none; groups then give a batch equally many users.
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
        # A target needs something before it: the first of a history is none.
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
            # A moment reaches the targets first to first + later: add at the one, take off behind the other.
            change = np.zeros(len(places) + 1)
            np.add.at(change, first, chance)
            np.add.at(change, first + later, -chance)
            np.add.at(expected, items[places], change.cumsum()[:-1])
        per_user = expected.sum() / chances.sum()
        return expected / expected.sum(), float(per_user * len(self.users(0)))


class InteractionExamples:
    """Train interactions, each right behind its user's history: a positive where it is liked, else a negative.

    Args:
        known, split: as for ``UserExamples``.
        per_step: interactions of a batch.
        balance: as for ``UserExamples``; groups then give a batch equally many interactions.
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
    """Which of the ``rows`` (users, interactions) a batch has: passes over all of them, each in an order of its own.

    Args:
        balance: group of each row by its number; -1 is none, and never drawn. Each pass then has equally many rows
            of every group: the rows of a small group come several times, those of a large one not in every pass.
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
        """(n,) of the ``index``-th batch."""
        number, place = divmod(index, self._per_pass)
        return self._order(number)[place * self._per_step : (place + 1) * self._per_step]

    def chances(self) -> np.ndarray:
        """(largest row + 1,) how often a row is drawn, next to the mean of those that are."""
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
        return np.stack(rows, axis=1).ravel()  # in turn, so that every batch is balanced


def targets_of(split: Split, num_users: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each user, the places in what is known before validation that are train rows: the liked, the disliked."""
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
