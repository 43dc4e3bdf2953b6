"""Losses against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.losses import listwise_softmax
from recpeft import plugins

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def case(seed: int, users: int = 5, items: int = 9, dtype: torch.dtype = torch.float64) -> Case:
    """Scores, positives (one to three a row), excluded cells, log q."""
    draw = np.random.default_rng(seed)
    positive = np.zeros((users, items), dtype=bool)
    excluded = np.zeros((users, items), dtype=bool)
    for user in range(users):
        order = draw.permutation(items)
        count = draw.integers(1, 4)
        positive[user, order[:count]] = True
        excluded[user, order[count : count + draw.integers(0, 4)]] = True
    scores = torch.tensor(draw.normal(0, 3, (users, items)), dtype=dtype)
    log_q = torch.tensor(np.log(draw.dirichlet(np.ones(items))), dtype=dtype)
    return scores, torch.tensor(positive), torch.tensor(excluded), log_q


def by_loop(scores: Tensor, positive: Tensor, excluded: Tensor, log_q: Tensor, logq: bool) -> float:
    total = 0.0
    for user in range(scores.shape[0]):
        value = [float(s) - (float(q) if logq else 0.0) for s, q in zip(scores[user], log_q, strict=True)]
        kept = [i for i in range(len(value)) if not excluded[user, i]]
        below = sum(math.exp(value[i]) for i in kept)
        own = [i for i in range(len(value)) if positive[user, i]]
        total += -sum(math.log(math.exp(value[i]) / below) for i in own) / len(own)
    return total / scores.shape[0]


@pytest.mark.parametrize("name", plugins.names("lightning_modules.losses"))
def test_every_loss_is_a_finite_scalar_with_finite_gradients(name: str) -> None:
    scores, *rest = case(0, dtype=torch.float32)
    scores.requires_grad_()
    loss = plugins.load("lightning_modules.losses", name).loss(scores, *rest)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.any()


def test_a_worked_example() -> None:
    # One user, scores 0: two positives of three items, shares 1/3 each, so the loss is log 3.
    zeros, positive = torch.zeros(1, 3), torch.tensor([[True, True, False]])
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    log_q = torch.tensor([0.5, 0.25, 0.25]).log()
    loss = listwise_softmax.loss(zeros, positive, nothing, log_q, logq=False)
    assert loss.item() == pytest.approx(math.log(3))
    # Divided by q the weights are 2, 4, 4: the positives' shares are 0.2 and 0.4.
    loss = listwise_softmax.loss(zeros, positive, nothing, log_q, logq=True)
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)


@pytest.mark.parametrize("logq", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_listwise_softmax_is_the_loops(seed: int, logq: bool) -> None:
    parts = case(seed)
    assert listwise_softmax.loss(*parts, logq=logq).item() == pytest.approx(by_loop(*parts, logq), rel=1e-12)


def test_logq_is_on_unless_switched_off() -> None:
    parts = case(3)
    assert listwise_softmax.loss(*parts).item() == pytest.approx(by_loop(*parts, True), rel=1e-12)
    assert listwise_softmax.Config().logq is True


def test_a_user_with_many_positives_weighs_as_much_as_one_with_few() -> None:
    # Both users have the same scores; the mean over users is of each one's own mean.
    scores = torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.float64)
    positive = torch.tensor([[True, True, False], [False, False, True]])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    share = scores[0].exp() / scores[0].exp().sum()
    expected = (-(share[0].log() + share[1].log()) / 2 - share[2].log()) / 2
    loss = listwise_softmax.loss(scores, positive, nothing, torch.zeros(3), logq=False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("logq", [True, False])
def test_excluded_cells_do_not_matter_and_get_no_gradient(logq: bool) -> None:
    scores, positive, excluded, log_q = case(1)
    assert excluded.any()
    scores.requires_grad_()
    loss = listwise_softmax.loss(scores, positive, excluded, log_q, logq=logq)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.isfinite().all()
    assert (gradient[excluded] == 0).all()
    assert (gradient[~excluded] != 0).all()
    moved = scores.detach().masked_fill(excluded, 1e4)
    assert listwise_softmax.loss(moved, positive, excluded, log_q, logq=logq).item() == loss.item()


def test_a_positive_that_is_the_only_candidate_costs_nothing() -> None:
    positive = torch.tensor([[True, False]])
    loss = listwise_softmax.loss(torch.tensor([[-5.0, 9.0]]), positive, ~positive, torch.zeros(2))
    assert loss.item() == 0


def test_large_scores_stay_finite() -> None:
    scores, positive, excluded, log_q = case(2, dtype=torch.float32)
    assert listwise_softmax.loss(scores * 1e4, positive, excluded, log_q).isfinite()


@pytest.mark.parametrize("logq", [True, False])
def test_listwise_softmax_has_the_gradient_of_its_differences(logq: bool) -> None:
    scores, positive, excluded, log_q = case(4)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: listwise_softmax.loss(s, positive, excluded, log_q, logq=logq), (scores,))
