"""A small world in plain Python, for oracles that loop over it, and the same world as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metrics import History, RankingMetrics, match

NUM_ITEMS, NUM_CATEGORIES, NUM_LABELS, LENGTH, NUM_USERS = 30, 5, 4, 12, 70


class World:
    """Lists of 0 to 12 items, 0 to 20 relevant items, histories of 0 to 15; items with 0 to 5 categories.

    Row u of the lists is not user u. Items of the history may be listed or relevant too: metrics must not
    take for granted that they were masked.
    """

    def __init__(self, seed: int, full: bool = False) -> None:
        draw = np.random.default_rng(seed)
        lengths = draw.integers(0, LENGTH + 1, NUM_USERS)
        lengths[:20] = LENGTH
        lengths[20:24] = [0, 1, 2, 0]
        if full:
            lengths[:] = LENGTH
        self.users = draw.permutation(NUM_USERS).tolist()
        self.lists = [draw.permutation(NUM_ITEMS)[:length].tolist() for length in lengths]
        sizes = draw.integers(0, 21, NUM_USERS)
        sizes[[0, 1, 2, 21, 23]] = [0, 0, 1, 3, 0]
        sizes[20] = 4
        self.grades = [
            dict(zip(draw.permutation(NUM_ITEMS)[:size].tolist(), draw.integers(1, 5, size).tolist(), strict=True))
            for size in sizes
        ]
        # Popular items stand in more histories, and some counts are the same.
        weight = 1 / (1 + np.arange(NUM_ITEMS - 2))
        lengths = draw.integers(1, 16, NUM_USERS)
        lengths[[5, 24]] = 0
        self.history_of = [
            set(draw.choice(NUM_ITEMS - 2, size, replace=False, p=weight / weight.sum()).tolist()) for size in lengths
        ]  # by row; items 28 and 29 are in none
        self.counts = [sum(item in history for history in self.history_of) for item in range(NUM_ITEMS)]
        self.num_train_users = sum(bool(history) for history in self.history_of)
        bits = draw.random((NUM_ITEMS, NUM_CATEGORIES)) < 0.3
        bits[4] = False
        self.genres = [set(np.flatnonzero(row).tolist()) for row in bits]
        self.labels = draw.integers(0, NUM_LABELS, NUM_ITEMS).tolist()
        self.labels[3] = -1  # none
        self.embeddings = draw.normal(size=(NUM_ITEMS, 6)) * draw.integers(1, 50, (NUM_ITEMS, 1))
        self.embeddings[7] = 0
        self.embeddings[9] = 3 * self.embeddings[8]
        self.gender = draw.integers(-1, 2, NUM_USERS).tolist()  # by user
        self.age = draw.integers(0, 4, NUM_USERS).tolist()
        self.item_group = draw.integers(0, 3, NUM_ITEMS).tolist()

        self.history = History.of(
            torch.tensor([self.users[row] for row, items in enumerate(self.history_of) for _ in items]),
            torch.tensor([item for items in self.history_of for item in items]),
            NUM_USERS,
            NUM_ITEMS,
        )
        pairs = [(row, item) for row, graded in enumerate(self.grades) for item in graded]
        relevant = torch.tensor([row for row, _ in pairs]), torch.tensor([item for _, item in pairs])
        self.ranked = match(
            torch.tensor(self.users),
            torch.tensor([row + [-1] * (LENGTH - len(row)) for row in self.lists]),
            relevant,
            NUM_ITEMS,
        ).graded(relevant, torch.tensor([self.grades[row][item] for row, item in pairs]))
        self.categories = torch.from_numpy(bits)
        self.train_counts = torch.tensor(self.counts)
        self.item_membership = torch.tensor(self.item_group)[:, None] == torch.arange(3)

    def metrics(self, names: list[str], **options: Any) -> RankingMetrics:
        return RankingMetrics(
            **{
                "ks": [1, 5, 12],
                "categories": self.categories,
                "train_counts": self.train_counts,
                "num_train_users": self.num_train_users,
                "groups": {
                    "gender": (torch.tensor(self.gender), ["F", "M"]),
                    "age": (torch.tensor(self.age), ["a", "b", "c", "d"]),
                },
                "item_groups": {"item_kind": (self.item_membership, ["x", "y", "z"])},
                "embeddings": torch.from_numpy(self.embeddings),
                "history": self.history,
                "main_category": torch.tensor(self.labels),
                "keep_users": True,
                "names": names,
                **options,
            }
        )


@pytest.fixture(params=[0, 1, 2], ids=["seed0", "seed1", "seed2"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def full_world() -> World:
    """All lists have 12 items."""
    return World(3, full=True)
