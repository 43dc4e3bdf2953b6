"""Rows of unequal length in two flat arrays: texts as token ids, users as their histories."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Ragged array of R rows; row r is ``values[offsets[r] : offsets[r + 1]]``."""

    values: np.ndarray
    """(N,) integers."""
    offsets: np.ndarray
    """(R + 1,) int64, ascending from 0."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        """Build from a list of lists, as int32."""
        rows = list(rows)
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        values = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(values, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, (R,) int64."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Ragged:
        """Return the given rows, in the given order; a row may be taken more than once."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = offsets_of(lengths)
        return Ragged(self.values[ranges(self.offsets[rows], lengths)], offsets)

    def cut(self, length: int) -> Ragged:
        """Return each row's first ``length`` values."""
        lengths = np.minimum(self.lengths, length)
        return Ragged(self.values[ranges(self.offsets[:-1], lengths)], offsets_of(lengths))


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """Concatenate the rows of all parts."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), offsets_of(lengths))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Convert (R,) lengths to (R + 1,) int64 offsets."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``[s, s + 1, …, s + l - 1]`` over all starts s and lengths l."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
