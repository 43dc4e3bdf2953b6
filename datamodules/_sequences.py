"""Users as sequences of items: windows of their histories, with prediction targets at each position."""

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
        length: L, the maximum number of interactions in a sequence; the latest are kept.
        liked_from: lowest rating of interactions that are kept; None keeps all.
    """

    def __init__(self, length: int, liked_from: float | None) -> None:
        self.length = length
        self._liked_from = -np.inf if liked_from is None else liked_from

    def kept(self, histories: Histories, user: int | np.integer, stop: int | None = None) -> np.ndarray:
        """Return the indices in ``histories`` of the user's untruncated sequence, (n,) oldest first.

        Args:
            stop: number of the user's interactions before the moment; None is all.
        """
        begin = int(histories.offsets[user])
        end = int(histories.offsets[user + 1]) if stop is None else begin + stop
        places = np.arange(begin, end)
        return places[~(histories.rating[begin:end] < self._liked_from)]  # a missing rating is not a dislike

    def of(self, histories: Histories, users: np.ndarray, stop: np.ndarray | None = None) -> ItemSequences:
        """Return the latest sequences of ``users`` (n,), each before a moment.

        Args:
            stop: (n,) number of the user's interactions before the moment; None is all.
        """
        kept = [self.kept(histories, user, None if stop is None else int(stop[row])) for row, user in enumerate(users)]
        return self.padded(histories, [places[-self.length :] for places in kept], [len(k) for k in kept])

    def padded(self, histories: Histories, windows: Sequence[np.ndarray], before: Sequence[int]) -> ItemSequences:
        """Return padded sequences of ``windows``, which are indices in ``histories``.

        Args:
            before: number of the user's interactions up to each window's end; if the window has all of them, ``START``
                precedes it.
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
    """U windows of a batch, and the following items at P positions in them."""

    user: np.ndarray
    """(U,) dense ids."""
    sequences: ItemSequences
    row: np.ndarray
    """(P,) index of the window."""
    place: np.ndarray
    """(P,) last column of the window that the prediction sees."""
    positives: np.ndarray
    """(P, W) items to be predicted, -1 where there are fewer."""


class PositionExamples:
    """Examples at every position of users' train histories: the next item, or the next W (Kang & McAuley 2018).

    If a history is longer than a sequence, a window is drawn uniformly.

    Args:
        known: interactions that are known when validation begins.
        split: says which of these are learnt, and which of those are liked.
        maker: makes the sequences.
        next_items: W, the number of items after a position that are its positives.
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
        """Return the users of the ``index``-th batch, (U,)."""
        return self._passes.drawn(index)

    def draw(self, index: int, generator: np.random.Generator) -> DrawnPositions:
        """Draw the ``index``-th batch."""
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
            # Column c sees the window up to its position; with START, column 0 sees nothing.
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
        """Return the values of ``Examples.expected``; an item counts as often as it is a positive."""
        expected = np.zeros(num_items)
        chances = self._passes.chances()
        length = self._maker.length
        for user in self._trainable:
            kept, learnt = self._kept[user], self._learnt[user]
            last = len(kept) - 1
            place = np.arange(len(kept))
            times = np.zeros(len(kept))
            for ahead in range(1, self._next + 1):
                seen = place - ahead  # the item is a positive of this position, if the window has it
                if last <= length:
                    times += (seen >= -1) & (seen < last)
                else:  # ends are uniform from length to last; a window begins at its end - length
                    lowest, highest = np.maximum(seen + 1, length), np.minimum(seen + length, last)
                    times += (seen >= 0) * np.maximum(highest - lowest + 1, 0) / (last - length + 1)
                    times += (seen == -1) / (last - length + 1)  # only the first window has START
            np.add.at(expected, self._known.item[kept], times * learnt * chances[user])
        per_user = expected.sum() / chances.sum()
        return expected / expected.sum(), float(per_user * len(self.users(0)))
