from __future__ import annotations

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from datamodules._dataset import RecDataset
from datamodules._filters import Filter, apply
from datamodules.movielens import Config, load
from recpeft.errors import RecpeftError


def make(pairs, ratings=None):
    """A data set of (user, item) pairs; raw ids are u0, u1, … and i0, i1, …; one item is never touched."""
    users, items = max(user for user, _ in pairs) + 1, max(item for _, item in pairs) + 2
    interactions = pl.DataFrame(
        {
            "user": [user for user, _ in pairs],
            "item": [item for _, item in pairs],
            "rating": ratings or [3.0] * len(pairs),
            "timestamp": list(range(len(pairs))),
        },
        schema={"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64},
    )
    ids = pl.Int32
    return RecDataset(
        name="made",
        interactions=interactions,
        users=pl.DataFrame(
            {"user": range(users), "raw_id": [f"u{n}" for n in range(users)]},
            {"user": ids, "raw_id": pl.String},
        ),
        items=pl.DataFrame(
            {"item": range(items), "raw_id": [f"i{n}" for n in range(items)]},
            {"item": ids, "raw_id": pl.String},
        ),
    )


def raw(dataset):
    """The interactions by raw ids, which renumbering must not touch."""
    rows = dataset.interactions.join(dataset.users, on="user").join(dataset.items, on="item")
    return set(rows.select("raw_id", "raw_id_right").rows())


def steps(*written):
    return TypeAdapter(tuple[Filter, ...]).validate_python(written)


# A triangle u0, u1 × i0, i1 with a chain hanging on it: u2-i1, u2-i2, u3-i2.
CHAIN = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2)]


def test_k_core_is_repeated_until_stable():
    # Round 1 drops u3 (1 row); then i2 has 1; then u2 has 1; the square of u0, u1, i0, i1 is left.
    filtered, _ = apply(make(CHAIN), steps({"k_core": 2}))
    assert raw(filtered) == {("u0", "i0"), ("u0", "i1"), ("u1", "i0"), ("u1", "i1")}


def test_one_sided_filters_go_once():
    users, _ = apply(make(CHAIN), steps({"min_user_interactions": 2}))
    assert raw(users) == raw(make(CHAIN)) - {("u3", "i2")}
    items, _ = apply(make(CHAIN), steps({"min_item_interactions": 3}))
    assert raw(items) == {("u0", "i1"), ("u1", "i1"), ("u2", "i1")}


def test_min_rating_keeps_the_threshold_itself():
    filtered, _ = apply(make([(0, 0), (0, 1), (1, 1)], ratings=[3.0, 4.0, 5.0]), steps({"min_rating": 4}))
    assert raw(filtered) == {("u0", "i1"), ("u1", "i1")}


def test_order_of_filters_matters_and_is_recorded():
    dataset = make([(0, 0), (0, 1), (1, 0), (1, 1)], ratings=[5.0, 5.0, 5.0, 1.0])
    filtered, record = apply(dataset, steps({"min_user_interactions": 2}, {"min_rating": 4}))
    assert filtered.interactions.height == 3
    assert record == [
        {
            "filter": {"min_user_interactions": 2},
            "before": {"users": 2, "items": 3, "interactions": 4},
            "after": {"users": 2, "items": 2, "interactions": 4},
        },
        {
            "filter": {"min_rating": 4.0},
            "before": {"users": 2, "items": 2, "interactions": 4},
            "after": {"users": 2, "items": 2, "interactions": 3},
        },
    ]
    other, _ = apply(dataset, steps({"min_rating": 4}, {"min_user_interactions": 2}))
    assert other.interactions.height == 2


def test_ids_are_dense_and_keep_their_order_after_a_filter():
    filtered, _ = apply(make([(0, 0), (1, 3), (1, 1), (2, 3), (2, 1)]), steps({"k_core": 2}))
    assert filtered.users.rows() == [(0, "u1"), (1, "u2")]
    assert filtered.items.rows() == [(0, "i1"), (1, "i3")]
    assert filtered.interactions.select("user", "item").rows() == [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert filtered.interactions.schema["user"] == filtered.items.schema["item"] == pl.Int32


def test_without_filters_nothing_changes():
    dataset = make(CHAIN)
    filtered, record = apply(dataset, ())
    assert filtered is dataset
    assert record == []


def test_k_core_of_ml100k_is_that_of_a_plain_loop(ml100k_dir):
    dataset = load(Config(source="movielens", path=ml100k_dir))
    left = set(dataset.interactions.select("user", "item").rows())
    while True:
        users, items = {}, {}
        for user, item in left:
            users[user] = users.get(user, 0) + 1
            items[item] = items.get(item, 0) + 1
        smaller = {(user, item) for user, item in left if users[user] >= 25 and items[item] >= 25}
        if smaller == left:
            break
        left = smaller
    filtered, _ = apply(dataset, steps({"k_core": 25}))
    assert filtered.interactions.height == len(left)
    assert filtered.num_users == len({user for user, _ in left})
    assert filtered.num_items == len({item for _, item in left})


def test_a_filter_that_leaves_nothing_says_so():
    with pytest.raises(RecpeftError, match=r"filter \{k_core: 9\} leaves none of the 7 interactions of 4 users"):
        apply(make(CHAIN), steps({"k_core": 9}))


def test_min_rating_without_ratings_says_so():
    with pytest.raises(RecpeftError, match="1 of 2 have none; remove min_rating"):
        apply(make([(0, 0), (0, 1)], ratings=[3.0, None]), steps({"min_rating": 4}))


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"k_core": 5, "min_rating": 4},
        {"k_core": None},
        {"k_core": 0},
        {"k_kore": 5},
        {"min_rating": float("nan")},
    ],
)
def test_a_filter_has_exactly_one_valid_key(written):
    with pytest.raises(ValidationError):
        Filter.model_validate(written)


def test_a_filter_is_dumped_as_it_was_written():
    config = Config.model_validate({"source": "movielens", "filters": [{"min_rating": 4}, {"k_core": 5}]})
    assert config.model_dump(mode="json")["filters"] == [{"min_rating": 4.0}, {"k_core": 5}]
    assert Config.model_validate(config.model_dump()) == config
