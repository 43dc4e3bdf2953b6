from __future__ import annotations

import numpy as np
import pytest
from ranker_data import options, scores, train_data
from scipy.sparse import csr_array

from rankers import item_knn
from recpeft.errors import LeftOut

TRAIN = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]])


def test_similarities_are_the_shrunk_cosine_worked_out_by_hand() -> None:
    """Items 0, 1, 2, 3 have 3, 2, 2, 1 users; 0 and 1 share two, 0 and 2, 1 and 2, 2 and 3 one each."""
    found = item_knn.similarities(csr_array(TRAIN.astype(np.float32)), 4, 0.5).toarray()
    expected = np.zeros((4, 4))
    for (i, j), both, product in (((0, 1), 2, 6), ((0, 2), 1, 6), ((1, 2), 1, 4), ((2, 3), 1, 2)):
        expected[i, j] = expected[j, i] = both / (product**0.5 + 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_item_is_scored_by_its_own_nearest_neighbours_alone() -> None:
    """With one neighbour: 0's is 1, 1's is 0, 2's is 3 (1 / sqrt(2) against 1 / 2 and 1 / sqrt(6)), 3's is 2."""
    config = item_knn.Config(name="item_knn", neighbours=(1,), shrinkage=(0.0,))
    ranker = item_knn.fit(train_data(TRAIN), config, options())
    found = scores(ranker, np.array([[1, 0, 1, 0], [0, 1, 0, 1]]))
    one, half = 2 / 6**0.5, 1 / 2**0.5
    np.testing.assert_allclose(found, [[0, one, 0, half], [one, 0, half, 0]], rtol=1e-6)


def test_blocks_of_items_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = csr_array((np.random.default_rng(0).random((50, 23)) < 0.3).astype(np.float32))
    whole = item_knn.similarities(train, 5, 1.0).toarray()
    monkeypatch.setattr(item_knn, "_CELLS_AT_ONCE", 100)
    np.testing.assert_array_equal(item_knn.similarities(train, 5, 1.0).toarray(), whole)


def test_neighbours_that_do_not_fit_are_told() -> None:
    with pytest.raises(LeftOut, match="item_knn with 4 neighbours of 4 items would need"):
        item_knn.fit(train_data(TRAIN), item_knn.Config(name="item_knn"), options(memory_bytes=100))
