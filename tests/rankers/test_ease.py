from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ranker_data import options, scores, train_data

from rankers import ease
from rankers._base import Ranker
from recpeft.errors import LeftOut, RecpeftError

GENERATOR = torch.Generator().manual_seed(2)
TRAIN = (torch.rand(60, 12, generator=GENERATOR) < 0.3).float()
TRAIN[:, 4] = 0  # an item without train users


def fit(*l2: float) -> ease.Ease:
    return fit_by(lambda ranker: 0.0, *l2)


def fit_by(validate: Callable[[Ranker], float], *l2: float) -> ease.Ease:
    return ease.fit(train_data(TRAIN), ease.Config(name="ease", l2=l2), options(validate))


@pytest.mark.parametrize("l2", [0.5, 10.0, 500.0])
def test_weights_are_the_papers_closed_form(l2: float) -> None:
    x = TRAIN.numpy().astype(np.float64)
    p = np.linalg.inv(x.T @ x + l2 * np.eye(12))
    expected = np.eye(12) - p @ np.diag(1 / np.diag(p))
    np.testing.assert_allclose(fit(l2).weight.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(scores(fit(l2), TRAIN[:5]).numpy(), x[:5] @ expected, atol=1e-5)


@pytest.mark.parametrize("l2", [0.5, 10.0, 500.0])
def test_weights_minimise_the_penalised_error_under_a_zero_diagonal(l2: float) -> None:
    """Each column is the ridge regression of its item on all others, solved one by one."""
    x = TRAIN.numpy().astype(np.float64)
    weight = fit(l2).weight.numpy()
    assert (np.diag(weight) == 0).all()
    for j in range(12):
        others = [i for i in range(12) if i != j]
        rows = np.vstack([x[:, others], np.sqrt(l2) * np.eye(11)])
        solution = np.linalg.lstsq(rows, np.concatenate([x[:, j], np.zeros(11)]), rcond=None)[0]
        np.testing.assert_allclose(weight[others, j], solution, atol=1e-6)


def test_validation_chooses_and_the_record_says_what_it_saw() -> None:
    values = iter([0.1, 0.4, 0.2])
    ranker = fit_by(lambda ranker: next(values), 100, 1, 10)
    assert ranker.details == {
        "l2": 10,
        "validation_l2=1.0": 0.1,
        "validation_l2=10.0": 0.4,
        "validation_l2=100.0": 0.2,
    }
    assert torch.equal(ranker.weight, fit(10).weight)
    assert not torch.equal(ranker.weight, fit(1).weight)


def test_each_candidate_is_validated_with_its_own_weights() -> None:
    seen: list[tuple[float, torch.Tensor]] = []

    def validate(ranker: Ranker) -> float:
        seen.append((ranker.details["l2"], scores(ranker, torch.eye(12))))
        return 0.0

    fit_by(validate, 1, 10)
    assert [l2 for l2, _ in seen] == [1, 10]
    for l2, found in seen:
        assert torch.equal(found, fit(l2).weight)


def test_equal_validation_keeps_the_smaller_penalty() -> None:
    assert fit(100, 1, 10).details["l2"] == 1


def test_a_validation_of_zero_or_below_is_a_value() -> None:
    ranker = fit_by(lambda ranker: -3.0 + ranker.details["l2"] / 10, 1, 10)
    assert ranker.details["l2"] == 10


def test_a_penalty_whose_validation_is_nan_is_the_worst() -> None:
    values = iter([float("nan"), 0.1, float("nan"), 0.05])
    ranker = fit_by(lambda ranker: next(values), 1, 2, 3, 4)
    assert ranker.details["l2"] == 2
    assert np.isnan(ranker.details["validation_l2=1.0"])


def test_nan_for_every_penalty_is_refused() -> None:
    with pytest.raises(RecpeftError, match=r"ease is NaN for every l2"):
        fit_by(lambda ranker: float("nan"), 1, 2)


@pytest.mark.parametrize("l2", [(), (0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_empty_and_impossible_penalties_are_refused(l2: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="l2"):
        ease.Config(name="ease", l2=l2)


def test_matrices_that_do_not_fit_are_told_with_what_they_would_need() -> None:
    """36 bytes for each of 144 pairs of items."""
    config = ease.Config(name="ease")
    ease.fit(train_data(TRAIN), config, options(memory_bytes=5184))
    with pytest.raises(LeftOut, match=r"12 × 12 items, would need 0\.0 GB .* ranker\.memory_share allows"):
        ease.fit(train_data(TRAIN), config, options(memory_bytes=5183))
