"""Parts of rankers that learn from pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranker_data import options, scores, train_data
from scipy.sparse import csr_array

from rankers import lightgcn
from rankers._pairwise import Graph, Triples, bpr_loss

TRAIN = (np.random.default_rng(1).random((20, 12)) < 0.4).astype(np.float32)
TRAIN[4] = 0


def test_an_epoch_has_each_train_pair_once_and_no_liked_item_as_a_negative() -> None:
    triples = Triples(csr_array(TRAIN), 7, seed=0)
    epochs = [[torch.cat(part).tolist() for part in zip(*triples.epoch(), strict=True)] for _ in range(2)]
    pairs = sorted(zip(*np.nonzero(TRAIN), strict=True))
    for user, liked, other in epochs:
        assert sorted(zip(user, liked, strict=True)) == pairs
        assert not TRAIN[user, other].any()
    assert epochs[0] != epochs[1]


def test_the_loss_is_minus_the_log_of_the_chance_of_the_right_order() -> None:
    """Of score differences 1 and 0."""
    user, liked, other = torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[1.0, 1], [3, 1]]), torch.tensor([0.0, 1])
    expected = (-np.log(1 / (1 + np.exp(-1.0))) - np.log(0.5)) / 2
    assert bpr_loss(user, liked, other).item() == pytest.approx(expected)


def test_layers_are_products_with_the_normalised_graph_and_gradients_go_through_it() -> None:
    joint = np.block([[np.zeros((20, 20)), TRAIN], [TRAIN.T, np.zeros((12, 12))]])
    scale = np.maximum(joint.sum(1), 1) ** -0.5
    joint = torch.from_numpy(scale[:, None] * joint * scale)
    user, item = (torch.randn(size, 3, requires_grad=True) for size in (20, 12))
    users, items = Graph(csr_array(TRAIN), "cpu").layers(user, item, 2)
    below = torch.cat([user, item]).double()
    expected = [below, joint @ below, joint @ joint @ below]
    for number, layer in enumerate(expected):
        torch.testing.assert_close(torch.cat([users[number], items[number]]).double(), layer, rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad(expected[2].square().sum(), (user, item))
    found = torch.autograd.grad(users[2].square().sum() + items[2].square().sum(), (user, item))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_new_person_is_scored_as_a_node_that_the_fitted_graph_gets() -> None:
    """Layer by layer, with nothing at layer 0 and the items' users counted without the new one."""
    config = lightgcn.Config(name="lightgcn", factors=4, layers=2, learning_rate=(0.01,), epochs=1)
    ranker = lightgcn.fit(train_data(TRAIN), config, options())
    of_item = np.maximum(TRAIN.sum(0), 1) ** -0.5
    history = np.zeros((1, 12))
    history[0, [1, 5, 6]] = 1
    found = scores(ranker, history, [-1])
    person = ranker.folded[[1, 5, 6]].sum(0) / 3**0.5
    torch.testing.assert_close(found[0], ranker.item @ person)
    # A user's own layers above 0 are the same sums over what the user has.
    data = csr_array(TRAIN)
    base_user, base_item = torch.randn(20, 4), torch.randn(12, 4)
    users, items = Graph(data, "cpu").layers(base_user, base_item, 2)
    folded = torch.stack(items[:-1]).sum(0) * torch.from_numpy(of_item).float()[:, None] / 3
    own = torch.from_numpy(data @ folded.numpy() / np.maximum(TRAIN.sum(1), 1)[:, None] ** 0.5)
    torch.testing.assert_close(own, torch.stack(users).mean(0) - base_user / 3)
