"""Users as sequences of items: windows of their histories, and what is to be predicted at each place of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules._batching import NO_ITEM, START, ItemSequences
from datamodules._examples import Passes, targets_of
from datamodules._histories import Histories
from datamodules._splits import Split
from recpeft.errors import RecpeftError


class SequenceMaker:
    """Makes padded sequences of histories.

    Args:
        length: L, the most interactions of a sequence: the latest.
        liked_from: interactions that are rated lower are left out; None leaves none out.
    """

    def __init__(self, length: int, liked_from: float | None) -> None:
        self.length = length
        self._liked_from = -np.inf if liked_from is None else liked_from

    def kept(self, histories: Histories, user: int | np.integer, stop: int | None = None) -> np.ndarray:
        """(n,) places in ``histories`` of what stands in the user's sequence, however long, oldest first.

        Args:
            stop: how many of the user's interactions are past; None is all.
        """
        begin = int(histories.offsets[user])
        end = int(histories.offsets[user + 1]) if stop is None else begin + stop
        places = np.arange(begin, end)
        return places[~(histories.rating[begin:end] < self._liked_from)]  # a missing rating is no dislike

    def of(self, histories: Histories, users: np.ndarray, stop: np.ndarray | None = None) -> ItemSequences:
        """The latest of ``users`` (n,) before a moment each.

        Args:
            stop: (n,) how many of the user's interactions are past; None is all.
        """
        kept = [self.kept(histories, user, None if stop is None else int(stop[row])) for row, user in enumerate(users)]
        return self.padded(histories, [places[-self.length :] for places in kept], [len(k) for k in kept])

    def padded(self, histories: Histories, windows: Sequence[np.ndarray], before: Sequence[int]) -> ItemSequences:
        """Sequences of ``windows``, places in ``histories``.

        Args:
            before: how many interactions of the user there are up to each window's end: where all of them are in the
                window, ``START`` stands before it.
        """
        whole = [len(window) == count for window, count in zip(windows, before, strict=True)]
        width = max((len(window) + start for window, start in zip(windows, whole, strict=True)), default=0)
        item = np.full((len(windows), width), NO_ITEM, np.int64)
        rating = np.full((len(windows), width), np.nan, np.float32)
        for row, (window, start) in enumerate(zip(windows, whole, strict=True)):
            if start:
                item[row, 0] = START
            item[row, start : start + len(window)] = histories.item[window]
            rating[row, start : start + len(window)] = histories.rating[window]
        return ItemSequences(torch.from_numpy(item), torch.from_numpy(rating))


@dataclass(frozen=True)
class DrawnPositions:
    """U windows of a batch, and what follows at P places of them."""

    user: np.ndarray
    """(U,)"""
    sequences: ItemSequences
    row: np.ndarray
    """(P,) the window."""
    place: np.ndarray
    """(P,) the last column of the window that the prediction sees."""
    positives: np.ndarray
    """(P, W) the items to be predicted, -1 where there are fewer."""


class PositionExamples:
    """Users' train histories, learnt at every place at once: the next item, or the next ones (Kang & McAuley 2018).

    Of a history longer than a sequence a window is drawn, each as likely as another.

    Args:
        known: what is known of the users when validation begins.
        split: which of it is learnt, and what of that is liked.
        maker: makes the sequences.
        next_items: W, how many of the items that follow a place are its positives.
        users_per_step, seed, balance: as for ``UserExamples``.
    Raises:
        RecpeftError: no user has two train interactions.
    """

    def __init__(
        self,
        known: Histories,
        split: Split,
        maker: SequenceMaker,
        *,
        next_items: int,
        users_per_step: int,
        seed: int,
        balance: np.ndarray | None,
    ) -> None:
        self._known, self._maker, self._next = known, maker, next_items
        learnt = np.zeros(len(known.item), bool)
        for user, places in enumerate(targets_of(split, len(known))[0]):
            learnt[known.offsets[user] + places] = True
        self._kept = [maker.kept(known, user) for user in range(len(known))]
        self._learnt = [learnt[places] for places in self._kept]
        trainable = np.flatnonzero([own[1:].any() for own in self._learnt])
        if not len(trainable):
            raise RecpeftError(
                "no user has two train interactions, one for the history and one to learn; lower data.filters or use "
                "another data.split."
            )
        self._trainable = trainable
        self._passes = Passes(trainable, users_per_step, seed, balance)
        self.per_pass = max(1, len(trainable) // users_per_step)

    def users(self, index: int) -> np.ndarray:
        """(U,) the users of the ``index``-th batch."""
        return self._passes.drawn(index)

    def draw(self, index: int, generator: np.random.Generator) -> DrawnPositions:
        """The ``index``-th batch."""
        users = self.users(index)
        length = self._maker.length
        windows, ends, rows, columns, positives = [], [], [], [], []
        for row, user in enumerate(users):
            kept, learnt = self._kept[user], self._learnt[user]
            last = len(kept) - 1  # nothing follows the last
            end = last if last <= length else int(generator.integers(length, last + 1))
            begin = max(0, end - length)
            windows.append(kept[begin:end])
            ends.append(end)
            # Column c sees the window up to its place; where START is there, column 0 sees nothing.
            first = begin - (begin == 0)
            seen = np.arange(first, end)  # the place of the last item that is seen; -1 is none
            following = seen[:, None] + 1 + np.arange(self._next)  # (n, W)
            there = (following <= last) & learnt[np.minimum(following, last)]
            items = np.where(there, self._known.item[kept[np.minimum(following, last)]], -1)
            some = there.any(axis=1)
            rows.append(np.full(int(some.sum()), row))
            columns.append(np.flatnonzero(some))
            positives.append(items[some])
        sequences = self._maker.padded(self._known, windows, ends)
        parts = (np.concatenate(part) for part in (rows, columns, positives))
        return DrawnPositions(users, sequences, *parts)

    def expected(self, num_items: int) -> tuple[np.ndarray, float]:
        """As ``Examples.expected``, each item counted as often as it is a positive."""
        expected = np.zeros(num_items)
        chances = self._passes.chances()
        length = self._maker.length
        for user in self._trainable:
            kept, learnt = self._kept[user], self._learnt[user]
            last = len(kept) - 1
            place = np.arange(len(kept))
            times = np.zeros(len(kept))
            for ahead in range(1, self._next + 1):
                seen = place - ahead  # it is a positive of this place, if that is in the window
                if last <= length:
                    times += (seen >= -1) & (seen < last)
                else:  # ends from length to last, each as likely; a window begins at its end - length
                    lowest, highest = np.maximum(seen + 1, length), np.minimum(seen + length, last)
                    times += (seen >= 0) * np.maximum(highest - lowest + 1, 0) / (last - length + 1)
                    times += (seen == -1) / (last - length + 1)  # START is there in the first window alone
            np.add.at(expected, self._known.item[kept], times * learnt * chances[user])
        per_user = expected.sum() / chances.sum()
        return expected / expected.sum(), float(per_user * len(self.users(0)))
