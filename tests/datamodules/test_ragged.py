"""Rows of unequal length, against plain lists."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from datamodules._batching import bucket
from datamodules._ragged import Ragged, concatenate, offsets_of, ranges

SHAPES = [(0, 0), (1, 0), (5, 0), (1, 1), (7, 3), (40, 12)]
"""(rows, longest row): nothing at all, empty rows alone, and rows of which some are empty."""


def random_rows(seed: int, count: int, longest: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 1000, draw.integers(0, longest + 1)).tolist() for _ in range(count)]


def lists(ragged: Ragged) -> list[list[int]]:
    """Row by row, by what the docstring of ``Ragged`` says."""
    offsets = ragged.offsets.tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(ragged.values)
    return [ragged.values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]


@pytest.fixture(params=[(seed, *shape) for seed in range(4) for shape in SHAPES], ids=str)
def rows(request: pytest.FixtureRequest) -> list[list[int]]:
    return random_rows(*request.param)


def test_rows_come_back_as_they_were(rows: list[list[int]]) -> None:
    ragged = Ragged.of(rows)
    assert lists(ragged) == rows
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert [ragged[place].tolist() for place in range(len(rows))] == rows
    assert (ragged.values.dtype, ragged.offsets.dtype) == (np.int32, np.int64)


def test_rows_may_come_from_an_iterator() -> None:
    assert lists(Ragged.of(iter([[1], [], [2, 3]]))) == [[1], [], [2, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_taken_rows_stand_in_the_order_asked_for(rows: list[list[int]], seed: int) -> None:
    # with repeats, and all rows left out where none is drawn
    wanted = np.random.default_rng(seed).integers(0, max(len(rows), 1), 3 * seed if rows else 0)
    assert lists(Ragged.of(rows).take(wanted)) == [rows[row] for row in wanted.tolist()]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100])
def test_a_cut_keeps_each_rows_first_values(rows: list[list[int]], length: int) -> None:
    assert lists(Ragged.of(rows).cut(length)) == [row[:length] for row in rows]


@pytest.mark.parametrize("others", [[], [(9, 3, 4)], [(9, 0, 0), (8, 5, 2), (7, 2, 0)]])
def test_parts_stand_one_behind_the_other(rows: list[list[int]], others: list[tuple[int, int, int]]) -> None:
    parts = [rows, *(random_rows(*other) for other in others)]
    assert lists(concatenate([Ragged.of(part) for part in parts])) == [row for part in parts for row in part]


@pytest.mark.parametrize("seed", range(10))
def test_ranges_are_pythons(seed: int) -> None:
    draw = np.random.default_rng(seed)
    starts, lengths = draw.integers(0, 50, seed), draw.integers(0, 5, seed)
    expected = [n for start, length in zip(starts, lengths, strict=True) for n in range(start, start + length)]
    assert ranges(starts, lengths).tolist() == expected


def test_offsets_are_running_sums() -> None:
    assert offsets_of(np.asarray([3, 0, 2])).tolist() == [0, 3, 3, 5]
    assert offsets_of(np.asarray([], np.int64)).tolist() == [0]
    assert offsets_of(np.asarray([2**31 - 1, 1], np.int32)).tolist() == [0, 2**31 - 1, 2**31]  # beyond int32


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_bucket_is_padded_as_its_lists_are(rows: list[list[int]], padding_side: str) -> None:
    batch = bucket(Ragged.of(rows), pad_id=-1, max_tokens=30, padding_side=padding_side)
    assert (batch.size, batch.num_tokens) == (len(rows), sum(map(len, rows)))
    assert sorted(row for part in batch.buckets for row in part.row.tolist()) == list(range(len(rows)))
    for part in batch.buckets:
        texts = [rows[row] for row in part.row.tolist()]
        longest = max(map(len, texts))
        padding = [[-1] * (longest - len(text)) for text in texts]
        right = padding_side == "right"
        assert part.input_ids.tolist() == [
            text + pad if right else pad + text for text, pad in zip(texts, padding, strict=True)
        ]
        assert part.attention_mask.tolist() == [
            [1] * len(text) + [0] * len(pad) if right else [0] * len(pad) + [1] * len(text)
            for text, pad in zip(texts, padding, strict=True)
        ]
