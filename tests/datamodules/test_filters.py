from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from datamodules._dataset import RecDataset
from datamodules._filters import Filter, apply
from datamodules.movielens import Config, load
from recpeft.config import digest
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


def test_what_is_left_without_a_fraction_of_a_second_is_in_whole_seconds():
    dataset = make([(0, 0), (0, 1), (1, 1)], [5.0, 1.0, 5.0])
    fractional = dataset.interactions.with_columns(timestamp=pl.Series([0.0, 0.5, 2.0]))
    left, _ = apply(replace(dataset, interactions=fractional), steps({"min_rating": 4}))
    whole, _ = apply(dataset, steps({"min_rating": 4}))
    assert left.interactions["timestamp"].to_list() == whole.interactions["timestamp"].to_list() == [0, 2]
    assert left.hash() == whole.hash()


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


def moment(*day):
    return int(datetime(*day, tzinfo=UTC).timestamp())


# The last and first second of days, on either side of the year's end.
MOMENTS = [moment(2017, 12, 30, 23, 59, 59), moment(2017, 12, 31), moment(2017, 12, 31, 23, 59, 59), moment(2018, 1, 1)]


def timed(times=MOMENTS):
    """User n with item n at the n-th time."""
    dataset = make([(number, number) for number in range(len(times))])
    dataset.interactions.replace_column(3, pl.Series("timestamp", times, pl.Int64))
    return dataset


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"since": "2017-12-31"}, [1, 2, 3]),
        ({"until": "2017-12-31"}, [0, 1, 2]),
        ({"since": date(2018, 1, 1)}, [3]),
        ({"until": "2017-12-30"}, [0]),
    ],
)
def test_since_and_until_keep_whole_days_of_utc(written, kept):
    filtered, _ = apply(timed(), steps(written))
    assert raw(filtered) == {(f"u{number}", f"i{number}") for number in kept}


def test_since_and_until_of_one_day_keep_that_day():
    filtered, record = apply(timed(), steps({"since": "2017-12-31"}, {"until": "2017-12-31"}))
    assert raw(filtered) == {("u1", "i1"), ("u2", "i2")}
    assert [step["filter"] for step in record] == [{"since": "2017-12-31"}, {"until": "2017-12-31"}]
    assert [step["after"]["interactions"] for step in record] == [3, 2]


def test_a_date_that_leaves_nothing_or_meets_missing_times_is_told():
    with pytest.raises(RecpeftError, match=r"filter \{since: 2018-01-02\} leaves none of the 4 .*change since in data"):
        apply(timed(), steps({"since": "2018-01-02"}))
    with pytest.raises(RecpeftError, match="filter until needs the time of every interaction, but 1 of 4 have none"):
        apply(timed([*MOMENTS[:3], None]), steps({"until": "2018-01-02"}))


def test_a_core_before_a_date_is_another_data_set_than_after_it():
    # u0 has two rows, of which one is early: as a core of 2 it goes where the date is applied first.
    dataset = make([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])
    dataset.interactions.replace_column(3, pl.Series("timestamp", [MOMENTS[0], *[MOMENTS[3]] * 5], pl.Int64))
    first, record = apply(dataset, steps({"k_core": 2}, {"since": "2018-01-01"}))
    assert raw(first) == {(f"u{user}", f"i{item}") for user in range(3) for item in range(2)} - {("u0", "i0")}
    assert [(step["before"]["interactions"], step["after"]["interactions"]) for step in record] == [(6, 6), (6, 5)]
    last, record = apply(dataset, steps({"since": "2018-01-01"}, {"k_core": 2}))
    assert raw(last) == {(f"u{user}", f"i{item}") for user in (1, 2) for item in range(2)}
    assert [(step["before"]["users"], step["after"]["users"]) for step in record] == [(3, 3), (3, 2)]


@pytest.mark.parametrize("written", [{"since": "2018-13-01"}, {"since": 2018}, {"until": "yesterday"}, {"since": None}])
def test_what_is_no_day_is_refused(written):
    with pytest.raises(ValidationError):
        Filter.model_validate(written)


def test_filters_with_dates_go_through_a_record_and_back():
    written = {
        "source": "movielens",
        "filters": [{"since": date(2018, 1, 31)}, {"min_rating": 4}, {"until": "2018-03-01"}],
    }
    config = Config.model_validate(written)
    dumped = config.model_dump(mode="json")
    assert dumped["filters"] == [{"since": "2018-01-31"}, {"min_rating": 4.0}, {"until": "2018-03-01"}]
    again = Config.model_validate(dumped)
    assert again == config
    assert digest(again.model_dump(mode="json")) == digest(dumped)
    other = Config.model_validate({**dumped, "filters": dumped["filters"][::-1]})
    assert digest(other.model_dump(mode="json")) != digest(dumped)
