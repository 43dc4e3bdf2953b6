from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ranker_data import options, scores, train_data
from scipy.sparse import csr_array

from rankers import ials

DRAW = np.random.default_rng(3)
TRAIN = (DRAW.random((40, 15)) < 0.3).astype(np.float32)
TRAIN[7] = 0


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_factors_are_the_closed_form_of_each_user_solved_one_by_one(
    exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all items: weight 1 + α0 and target 1 / (1 + α0) where liked, α0 and 0 elsewhere."""
    monkeypatch.setattr(ials, "_NUMBERS_AT_ONCE", 300)  # several batches
    items, weight, l2 = DRAW.normal(size=(15, 6)), 0.3, 0.02
    found = ials.solve(torch.from_numpy(items), csr_array(TRAIN), weight, l2, exponent).numpy()
    for user, row in enumerate(TRAIN.astype(np.float64)):
        weights = weight + row
        penalty = l2 * (row.sum() + weight * 15) ** exponent
        expected = np.linalg.solve(items.T @ (weights[:, None] * items) + penalty * np.eye(6), items.T @ row)
        np.testing.assert_allclose(found[user], expected, atol=1e-10)


def test_an_epoch_lowers_the_loss_that_is_minimised() -> None:
    losses = []

    def validate(ranker: ials.Ials) -> float:
        user = ials.solve(ranker.item.double(), csr_array(TRAIN), 0.1, 0.003, 1.0).numpy()
        item = ranker.item.numpy()
        predicted = user @ item.T
        penalty = ((TRAIN.sum(1) + 0.1 * 15) * (user**2).sum(1)).sum() + (
            (TRAIN.sum(0) + 0.1 * 40) * (item**2).sum(1)
        ).sum()
        losses.append((TRAIN * (1 - predicted) ** 2).sum() + 0.1 * (predicted**2).sum() + 0.003 * penalty)
        return len(losses)

    config = ials.Config(name="ials", factors=4, unobserved_weight=(0.1,), l2=(0.003,), epochs=8)
    ranker = ials.fit(train_data(TRAIN), config, options(validate))
    assert len(losses) == 8
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(losses))
    assert scores(ranker, TRAIN)[7].abs().max() == 0  # nothing is known of the user
