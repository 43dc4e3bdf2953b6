"""What is drawn beside the positives, against counts of many draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from datamodules._negatives import Negatives, NegativesConfig

COUNTS = np.asarray([0, 1, 16, 81, 0, 256, 2, 3])


def draws(config: dict[str, Any], times: int = 4000) -> np.ndarray:
    """(times, I) bool: what each batch draws."""
    drawn = np.zeros((times, len(COUNTS)), bool)
    negatives = Negatives(COUNTS, NegativesConfig(**config))
    for row in range(times):
        items = negatives.draw(np.random.default_rng([7, row]))
        assert items.tolist() == sorted(set(items.tolist()))
        drawn[row, items] = True
    return drawn


def test_uniform_draws_each_item_of_the_catalogue_alike() -> None:
    drawn = draws({"uniform": 3})
    assert (drawn.sum(axis=1) == 3).all()
    # 1,500 of each expected, standard deviation 31.
    assert np.abs(drawn.sum(axis=0) - 1500).max() < 4 * 31
    assert draws({"uniform": 99}, 5).all()


@pytest.mark.parametrize(
    ("exponent", "weights"), [(0.75, [1, 8, 27, 64]), (0.5, [1, 4, 9, 16]), (1.0, [1, 16, 81, 256])]
)
def test_popularity_draws_by_a_power_of_the_train_counts(exponent: float, weights: list[int]) -> None:
    counts = np.asarray([0, 1, 16, 81, 0, 256])
    negatives = Negatives(counts, NegativesConfig(popularity=1, popularity_exponent=exponent))
    found = np.zeros(6)
    for row in range(4000):
        (item,) = negatives.draw(np.random.default_rng([3, row]))
        found[item] += 1
    shares = np.asarray([0, weights[0], weights[1], weights[2], 0, weights[3]]) / sum(weights)
    assert (np.abs(found - 4000 * shares) <= 4 * np.sqrt(4000 * shares * (1 - shares))).all()


def test_an_exponent_of_0_draws_what_has_train_rows_alike_and_nothing_else() -> None:
    drawn = draws({"popularity": 1, "popularity_exponent": 0.0})
    assert drawn[:, COUNTS == 0].sum() == 0
    assert np.abs(drawn.sum(axis=0)[COUNTS > 0] - 4000 / 6).max() < 4 * 24


def test_kinds_add_up_and_distinct_items_are_left() -> None:
    drawn = draws({"uniform": 2, "popularity": 3}, 200)
    assert drawn.sum(axis=1).min() >= 2
    assert drawn.sum(axis=1).max() <= 5


def test_the_default_draws_nothing_and_takes_no_number_of_the_generator() -> None:
    generator, other = np.random.default_rng(0), np.random.default_rng(0)
    assert Negatives(COUNTS, NegativesConfig()).draw(generator).tolist() == []
    assert generator.random() == other.random()


def test_too_small_a_pool_is_refused() -> None:
    with pytest.raises(ValidationError, match="hard_pool 8"):
        NegativesConfig(hard=9, hard_pool=8)


def test_nothing_drawn_has_nothing_to_correct() -> None:
    negatives = Negatives(np.ones(3, np.int64), NegativesConfig(in_batch=False, disliked=1))
    assert negatives.log_q(np.zeros(3), 0.0).tolist() == [0.0, 0.0, 0.0]


SHARES = np.asarray([0.0, 0.1, 0.2, 0.3, 0.0, 0.3, 0.05, 0.05])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # 10 positives a batch, then 2 uniform of 8 items, then 4 by popularity with exponent 1 (359 rows).
        ({}, SHARES),
        ({"uniform": 2}, (10 * SHARES + 2 / 8) / 12),
        ({"uniform": 2, "popularity": 4, "popularity_exponent": 1}, (10 * SHARES + 2 / 8 + 4 * COUNTS / 359) / 16),
        ({"uniform": 2, "in_batch": False}, np.full(8, 1 / 8)),
        ({"popularity": 4, "popularity_exponent": 1, "in_batch": False}, COUNTS / 359),
        ({"uniform": 99, "in_batch": False}, np.full(8, 1 / 8)),
        ({"hard": 1}, SHARES),
        ({"hard": 1, "in_batch": False}, SHARES),
    ],
)
def test_log_q_is_the_share_of_a_batchs_draws(config: dict[str, Any], expected: np.ndarray) -> None:
    found = np.exp(Negatives(COUNTS, NegativesConfig(**config)).log_q(SHARES, 10.0))
    drawn = expected > 0
    assert found[drawn] == pytest.approx(expected[drawn])


def test_an_item_that_no_draw_falls_on_is_corrected_as_the_rarest_that_is_drawn() -> None:
    # Hard negatives may be such: without a bound, log q would lift their score above all others'.
    found = Negatives(COUNTS, NegativesConfig(hard=2)).log_q(SHARES, 10.0)
    assert found[[0, 4]] == pytest.approx(np.log(0.05))
    assert found[[1, 2]] == pytest.approx(np.log([0.1, 0.2]))
