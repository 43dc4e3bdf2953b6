"""Rankers that learn find a planted preference, which popularity cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranker_data import options, scores, train_data

from rankers._base import Ranker
from recpeft import plugins

USERS, ITEMS, GROUPS = 90, 60, 3
LEARNING = [name for name in plugins.names("rankers") if name != "popularity"]


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Train, and one held-out item a user: users like items of their own group alone, all of them equally often."""
    draw = np.random.default_rng(5)
    train, held_out = np.zeros((USERS, ITEMS)), np.zeros(USERS, int)
    for user in range(USERS):
        own = draw.permutation([item for item in range(ITEMS) if item % GROUPS == user % GROUPS])[:11]
        train[user, own[1:]] = 1
        held_out[user] = own[0]
    return train, held_out


TRAIN, HELD_OUT = planted()


def auc(ranker: Ranker, users: Any = None) -> float:
    """Share of unseen items that are scored below the held-out one, ties by half."""
    found = scores(ranker, TRAIN, users).masked_fill(torch.from_numpy(TRAIN > 0), torch.nan)
    own = found[torch.arange(USERS), torch.from_numpy(HELD_OUT)][:, None]
    unseen = ~found.isnan()
    above = (own > found).double() + 0.5 * (own == found).double() - 0.5 * torch.eye(ITEMS)[HELD_OUT]
    return float(above[unseen].sum() / (unseen.sum() - USERS))


def fitted(name: str) -> Ranker:
    module = plugins.load("rankers", name)
    faster: Any = {"learning_rate": (0.05,)} if name == "bpr" else {}  # its default is for more than a batch an epoch
    found: Ranker = module.fit(train_data(TRAIN), module.Config(name=name, **faster), options(auc))
    return found


@pytest.mark.parametrize("name", LEARNING)
def test_a_planted_preference_is_found_in_users_and_in_people_with_the_same_history(name: str) -> None:
    assert auc(fitted("popularity")) < 0.6
    ranker = fitted(name)
    # 40 of the about 50 unseen items are of other groups.
    assert auc(ranker) > 0.85
    assert auc(ranker, np.full(USERS, -1)) > 0.85


@pytest.mark.parametrize("name", ["bpr", "ials", "lightgcn"])
def test_the_epoch_that_validates_best_is_kept(name: str) -> None:
    """Epochs 2 and 5 are the best two of those before patience ends; NaN is no value."""
    module = plugins.load("rankers", name)
    values = [0.1, 0.3, float("nan"), 0.2, 0.4, 0.4, 0.0, 0.0, 0.9]
    seen: list[torch.Tensor] = []

    def validate(ranker: Ranker) -> float:
        seen.append(scores(ranker, TRAIN))
        return values[len(seen) - 1]

    lists = {key: value[:1] for key, value in module.Config(name=name).model_dump().items() if isinstance(value, tuple)}
    config = module.Config(name=name, epochs=20, patience=3, **lists)
    ranker = module.fit(train_data(TRAIN), config, options(validate))
    assert len(seen) == 8
    assert ranker.details["epochs"] == 5
    assert torch.equal(scores(ranker, TRAIN), seen[4])
