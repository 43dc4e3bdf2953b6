"""Batches of interactions and of users with dislikes: who is what, behind which history."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from datamodules._examples import InteractionExamples, UserExamples
from datamodules._histories import Histories
from datamodules._splits import SCHEMA, Split
from recpeft.errors import RecpeftError

LIKED_FROM = 4.0


def split(*users: list[tuple[int, float | None, str]], liked_from: float | None = LIKED_FROM) -> Split:
    """Users' (item, rating, part) in order of time; parts are t(rain), h(istory), v(alidation) and T(est)."""
    rows = [
        (user, item, rating, 100 * place, part)
        for user, of_user in enumerate(users)
        for place, (item, rating, part) in enumerate(of_user)
    ]
    table = pl.DataFrame(rows, {**SCHEMA, "part": pl.String}, orient="row").with_row_index("place")
    parts = {name: table.filter(pl.col("part") == name) for name in "thvT"}
    frames = {name: frame.select(list(SCHEMA)) for name, frame in parts.items()}
    places = tuple(parts[name]["place"].cast(pl.Int64) for name in "thvT")
    return Split(frames["t"], frames["v"], frames["T"], frames["h"], {}, places, liked_from)  # type: ignore[arg-type]


ONE = [(0, 5.0, "h"), (1, 2.0, "t"), (2, 4.0, "t"), (3, None, "t"), (4, 1.0, "v"), (5, 5.0, "T")]
TWO = [(6, 3.0, "t"), (7, 3.5, "t"), (8, 4.5, "t"), (1, 5.0, "t"), (9, 5.0, "T")]


def examples(parts: Split, kind: type, **options: Any) -> Any:
    known = Histories.of(parts.known(at_test=False), 2)
    return kind(known, parts, seed=0, balance=options.pop("balance", None), **options)


def test_each_train_interaction_is_learnt_behind_its_own_history_once_a_pass() -> None:
    made = examples(split(ONE, TWO), InteractionExamples, per_step=3)
    assert made.per_pass == 2
    found = []
    for index in range(2):
        drawn = made.draw(index, np.random.default_rng(0))
        for row in range(3):
            likes, dislikes = drawn.positives[row].tolist(), drawn.negatives[row].tolist()
            assert len(likes) + len(dislikes) == 1
            found.append((int(drawn.user[row]), int(drawn.moment[row]), likes, dislikes))
    # User 1's first row has nothing before it; a missing rating is no dislike.
    assert sorted(found) == [
        (0, 1, [], [1]),
        (0, 2, [2], []),
        (0, 3, [3], []),
        (1, 1, [], [7]),
        (1, 2, [8], []),
        (1, 3, [1], []),
    ]


def test_without_a_line_between_likes_and_dislikes_all_are_likes() -> None:
    made = examples(split(ONE, TWO, liked_from=None), InteractionExamples, per_step=6)
    drawn = made.draw(0, np.random.default_rng(0))
    assert sorted(item for part in drawn.positives for item in part.tolist()) == [1, 1, 2, 3, 7, 8]
    assert all(len(part) == 0 for part in drawn.negatives)


def test_passes_over_interactions_differ_and_repeat_with_the_seed() -> None:
    made = [examples(split(ONE, TWO), InteractionExamples, per_step=6) for _ in range(2)]
    orders = [made[0].draw(index, np.random.default_rng(0)).positives for index in range(4)]
    again = [made[1].draw(index, np.random.default_rng(0)).positives for index in range(4)]
    flat = [[part.tolist() for part in order] for order in orders]
    assert flat == [[part.tolist() for part in order] for order in again]
    assert len({str(order) for order in flat}) > 1


def test_balance_gives_a_batch_as_many_interactions_of_each_group() -> None:
    many = [(item, 5.0, "t") for item in range(10, 30)]
    made = examples(split(many, [*ONE]), InteractionExamples, per_step=4, balance=np.asarray([0, 1]))
    for index in range(made.per_pass):
        assert sorted(made.users(index).tolist()) == [0, 0, 1, 1]


def test_the_share_of_positives_is_that_of_liked_interactions() -> None:
    made = examples(split(ONE, TWO), InteractionExamples, per_step=6)
    share, per_batch = made.expected(10)
    assert share.tolist() == [0, 0.25, 0.25, 0.25, 0, 0, 0, 0, 0.25, 0]
    assert per_batch == 4


def test_a_split_without_an_interaction_that_has_one_before_it_is_refused() -> None:
    with pytest.raises(RecpeftError, match="no train interaction has one before it"):
        examples(split([(0, 5.0, "t")], [(1, 5.0, "t")]), InteractionExamples, per_step=1)


def test_dislikes_that_follow_the_moment_are_a_users_negatives_and_never_positives() -> None:
    options: dict[str, Any] = {"users_per_step": 2, "positives_per_user": 4, "positive_window": None}
    made = examples(split(ONE, TWO), UserExamples, disliked_per_user=2, **options)
    seen: set[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = set()
    for index in range(60):
        drawn = made.draw(index, np.random.default_rng(index))
        for user, moment, likes, dislikes in zip(
            drawn.user, drawn.moment, drawn.positives, drawn.negatives, strict=True
        ):
            seen.add((int(user), int(moment), tuple(sorted(likes.tolist())), tuple(sorted(dislikes.tolist()))))
    assert seen == {
        (0, 1, (2, 3), (1,)),
        (0, 2, (2, 3), ()),
        (0, 3, (3,), ()),
        (1, 1, (1, 8), (7,)),
        (1, 2, (1, 8), ()),
        (1, 3, (1,), ()),
    }
    none = examples(split(ONE, TWO), UserExamples, disliked_per_user=0, **options)
    assert all(len(part) == 0 for part in none.draw(0, np.random.default_rng(0)).negatives)
