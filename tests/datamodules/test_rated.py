"""Held-out interactions to be judged: which, with what label, behind what."""

from __future__ import annotations

import numpy as np

from datamodules._rated import Rated
from tests.datamodules.test_examples import ONE, split

LATE = [(0, 5.0, "t"), (1, 2.0, "v"), (2, 4.0, "T"), (3, 1.0, "T"), (0, None, "T")]


def test_the_parts_interactions_are_judged_by_time_with_their_labels() -> None:
    rated = Rated(split(ONE, LATE), 2, at_test=True)
    found = rated.of(np.asarray([1, 0]))
    assert found.row.tolist() == [0, 0, 0, 1]
    assert found.item.tolist() == [2, 3, 0, 5]
    assert found.liked.tolist() == [True, False, True, True]  # no rating is no dislike
    assert found.stop.tolist() == [2, 3, 4, 5]
    assert Rated(split(ONE, LATE), 2, at_test=False).of(np.asarray([0])).item.tolist() == [4]


def liked_before(rated: Rated, users: np.ndarray) -> list[list[int]]:
    judged = rated.of(users)
    row, item = rated.liked_before(users, judged)
    return [sorted(item[row == number].tolist()) for number in range(len(judged.row))]


def test_before_an_interaction_stands_what_its_user_liked_earlier_alone() -> None:
    rated = Rated(split(ONE, LATE), 2, at_test=True)
    users = np.asarray([1, 0])
    before = liked_before(rated, users)
    # 1 and 3 were disliked; 2 was liked in test, before what follows it.
    assert before == [[0], [0, 2], [0, 2], [0, 2, 3]]


def test_validation_sees_no_test_row_that_lies_before_it_in_time() -> None:
    mixed = [(0, 5.0, "t"), (2, 5.0, "T"), (3, 5.0, "v"), (4, 4.0, "T")]
    users = np.asarray([0])
    seen = {}
    for at_test in (False, True):
        rated = Rated(split(mixed), 1, at_test=at_test)
        seen[at_test] = liked_before(rated, users)
    assert seen == {False: [[0]], True: [[0], [0, 2, 3]]}
