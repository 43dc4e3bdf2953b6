from __future__ import annotations

import dataclasses
import hashlib

import polars as pl
import pytest

from datamodules import _splits
from datamodules._dataset import RecDataset
from datamodules._filters import Filter, apply
from datamodules._splits import Split
from datamodules.movielens import Config, load
from recpeft import plugins
from recpeft.errors import RecpeftError

KINDS = ["per_user_temporal", "leave_one_out", "global_temporal"]
SCHEMA = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}


def make(rows):
    """A data set of (user, item, time); raw ids are the ids with a letter before them."""
    interactions = pl.DataFrame([(user, item, 3.0, time) for user, item, time in rows], schema=SCHEMA, orient="row")
    tables = {}
    for column, key in enumerate(("user", "item")):
        ids = range(max((row[column] for row in rows), default=0) + 1)
        tables[key] = pl.DataFrame(
            {key: ids, "raw_id": [f"{key}{number}" for number in ids]}, {key: pl.Int32, "raw_id": pl.String}
        )
    return RecDataset("made", interactions, tables["user"], tables["item"])


def split(dataset, kind, seed=0, **options):
    return _splits.split(dataset, plugins.config_class("datamodules.splits", kind)(seed=seed, **options))


def parts(result):
    return [result.train, result.validation, result.test]


def times(frame, user):
    return frame.filter(pl.col("user") == user)["timestamp"].to_list()


@pytest.fixture(scope="module")
def ml100k(ml100k_dir):
    return load(Config(source="movielens", path=ml100k_dir))


def one_user(n):
    return make([(0, item, 100 + item) for item in range(n)])


# --- who gets which row ---


def test_per_user_temporal_gives_the_last_tenths_to_test_and_validation():
    result = split(one_user(20), "per_user_temporal", 0)
    assert times(result.train, 0) == list(range(100, 116))
    assert times(result.validation, 0) == [116, 117]
    assert times(result.test, 0) == [118, 119]


@pytest.mark.parametrize(("n", "held"), [(3, 1), (9, 1), (19, 1), (20, 2), (29, 2), (30, 3), (70, 7), (737, 73)])
def test_per_user_temporal_holds_floor_of_a_tenth_but_at_least_one(n, held):
    result = split(one_user(n), "per_user_temporal", 0)
    assert [part.height for part in parts(result)] == [n - 2 * held, held, held]


@pytest.mark.parametrize("kind", ["per_user_temporal", "leave_one_out"])
def test_users_with_fewer_than_three_rows_are_train_only(kind):
    rows = [(0, item, item) for item in range(3)] + [(1, 0, 5), (1, 1, 6), (2, 0, 9)]
    result = split(make(rows), kind, 0)
    assert [times(part, 1) for part in parts(result)] == [[5, 6], [], []]
    assert [times(part, 2) for part in parts(result)] == [[9], [], []]
    assert [times(part, 0) for part in parts(result)] == [[0], [1], [2]]


def test_ratios_that_would_leave_no_train_row_leave_the_user_in_train():
    rows = [(0, item, item) for item in range(3)] + [(1, item, item) for item in range(10)]
    result = split(make(rows), "per_user_temporal", 0, ratios=(0.2, 0.1, 0.7))
    assert times(result.train, 0) == [0, 1, 2]
    assert [len(times(part, 1)) for part in parts(result)] == [2, 1, 7]


def test_shares_are_not_cut_by_rounding():
    assert 0.29 * 100 < 29  # in binary
    result = split(one_user(100), "per_user_temporal", 0, ratios=(0.42, 0.29, 0.29))
    assert [part.height for part in parts(result)] == [42, 29, 29]


def test_leave_one_out_tests_the_last_row():
    result = split(one_user(5), "leave_one_out", 0)
    assert [times(part, 0) for part in parts(result)] == [[100, 101, 102], [103], [104]]


def test_global_temporal_never_divides_a_second():
    # Ten rows; the 80 % cut falls on row 8 (time 5), the 90 % cut on row 9 (time 6). Time 5 stands at rows
    # 6 to 8, so all of it goes to validation, the later part.
    rows = [(0, item, time) for item, time in enumerate([1, 2, 3, 4, 4, 4, 5, 5, 5, 6])]
    result = split(make(rows), "global_temporal", 0)
    assert [times(part, 0) for part in parts(result)] == [[1, 2, 3, 4, 4, 4], [5, 5, 5], [6]]


def test_global_temporal_leaves_out_users_without_train_rows_and_counts_them():
    rows = [(0, item, item) for item in range(7)] + [
        (1, 0, 0),
        (2, 0, 8),
        (0, 7, 8),
        (0, 8, 9),
        (2, 1, 9),
        (3, 1, 9),
    ]
    result = split(make(rows), "global_temporal", 0, ratios=(0.6, 0.2, 0.2))
    # 13 rows: the cuts are at rows 7 (time 6) and 10 (time 9).
    assert [times(part, 0) for part in parts(result)] == [[0, 1, 2, 3, 4, 5], [6, 8], [9]]
    assert set(result.validation["user"]) | set(result.test["user"]) == {0}
    assert result.left_out == {"users": 2, "rows": 3}
    assert result.audit()["left_out"] == result.left_out


# --- the order of equal times ---


def test_ties_are_ordered_by_the_documented_hash():
    """An independent writing of the hash, in Python's unbounded integers."""
    mask = 2**64 - 1

    def mix(value):
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of the published splitmix64 for seed 0

    def blake(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=b"7").digest(), "little")

    result = split(make([(0, item, 50) for item in range(40)]), "per_user_temporal", 7)
    order = [item for part in parts(result) for item in part["item"]]
    assert order == sorted(range(40), key=lambda item: mix(mix(blake("user0")) ^ blake(f"item{item}")))


def test_order_of_ties_is_the_same_forever(ml100k):
    # Recorded once. A change here changes every published number of a split: do not update it lightly.
    assert split(ml100k, "per_user_temporal", 0).hash() == "288355a2240d37fd"


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows_changes_nothing(ml100k, kind):
    shuffled = dataclasses.replace(ml100k, interactions=ml100k.interactions.sample(fraction=1, shuffle=True, seed=3))
    assert not shuffled.interactions.equals(ml100k.interactions)
    assert split(shuffled, kind, 0).hash() == split(ml100k, kind, 0).hash()


def test_renumbered_ids_change_nothing(ml100k):
    """A filter that drops others renumbers the ids; the users that stay keep their order of ties."""
    filtered, _ = apply(ml100k, [Filter(min_user_interactions=100)])
    assert filtered.num_users < ml100k.num_users

    def named(dataset):
        rows = split(dataset, "per_user_temporal", 0).test
        rows = rows.join(dataset.users.select("user", u="raw_id"), on="user", maintain_order="left")
        return rows.join(dataset.items.select("item", i="raw_id"), on="item", maintain_order="left").select("u", "i")

    whole = named(ml100k)
    kept = whole.filter(pl.col("u").is_in(filtered.users["raw_id"].implode()))
    assert kept.equals(named(filtered))


def test_another_seed_changes_the_order_of_ties_only(ml100k):
    zero, one = split(ml100k, "leave_one_out", 0), split(ml100k, "leave_one_out", 1)
    assert zero.hash() != one.hash()
    changed = (zero.test["item"] != one.test["item"]).sum()
    assert 0 < changed < ml100k.num_users
    for before, after in zip(parts(zero), parts(one), strict=True):
        assert before.select("user", "timestamp").equals(after.select("user", "timestamp"))
    untied = make([(user, item, 100 * user + item) for user in range(3) for item in range(10)])
    assert split(untied, "per_user_temporal", 0).hash() == split(untied, "per_user_temporal", 1).hash()


def test_ties_follow_neither_item_ids_nor_one_order_for_all_users():
    tied = split(make([(user, item, 5) for user in range(200) for item in range(10)]), "leave_one_out", 0)
    counts = tied.test["item"].value_counts()["count"]
    # Uniform: 20 expected of each of the 10 items, standard deviation 4.2
    assert len(counts) == 10
    assert counts.min() > 5
    assert counts.max() < 40


# --- leaks ---


@pytest.mark.parametrize("kind", KINDS)
def test_no_user_is_tested_before_their_training_ends(ml100k, kind):
    result = split(ml100k, kind, 0)
    train, validation, test = (part.rows() for part in parts(result))
    last = {}
    for earlier, later in ((train, validation), (validation, test)):
        for user, _, _, time in earlier:
            last[user] = max(last.get(user, 0), time)
        assert all(last.get(user, 0) <= time for user, _, _, time in later)
    everything = [(user, item) for rows in (train, validation, test) for user, item, _, _ in rows]
    assert len(everything) == len(set(everything))
    assert len(everything) + result.left_out.get("rows", 0) == 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_audit_of_our_splits_finds_no_overlap(ml100k, kind):
    audit = split(ml100k, kind, 0).audit()
    assert audit["users_out_of_order"] == audit["duplicates_across_splits"] == audit["users_new_in_test"] == 0
    # Only the global split keeps everybody's future out of train.
    assert (audit["test_rows_before_train_end"] == 0) == (kind == "global_temporal")
    assert (audit["train_max_time"] < audit["test_min_time"]) == (kind == "global_temporal")


def test_audit_finds_a_leak():
    def frame(*rows):
        return pl.DataFrame([(user, item, 1.0, time) for user, item, time in rows], schema=SCHEMA, orient="row")

    # User 0: train at 9 after test at 5. User 1: validation at 8 after test at 7, (1, 2) twice. User 2: new.
    # User 3: train at 6 after validation at 4.
    leaky = Split(
        train=frame((0, 0, 9), (1, 1, 3), (3, 0, 6)),
        validation=frame((1, 2, 8), (3, 1, 4)),
        test=frame((0, 3, 5), (1, 2, 7), (2, 0, 10)),
    )
    audit = leaky.audit()
    assert audit["users_out_of_order"] == 3
    assert audit["duplicates_across_splits"] == 1
    assert audit["users_new_in_test"] == 1
    assert audit["items_new_in_test"] == 2
    assert audit["test_rows_before_train_end"] == 2
    assert (audit["train_max_time"], audit["test_min_time"]) == (9, 5)


# --- bad input ---


@pytest.mark.parametrize("kind", KINDS)
def test_missing_times_name_the_split(kind):
    with pytest.raises(RecpeftError, match=f"split: {kind} needs the time of every interaction, but 1 of 3"):
        split(make([(0, 0, 1), (0, 1, None), (0, 2, 3)]), kind, 0)


@pytest.mark.parametrize(
    ("kind", "rows", "part"),
    [
        ("per_user_temporal", [(0, 0, 1), (1, 0, 2)], "validation"),
        ("leave_one_out", [(0, 0, 1), (1, 0, 2)], "validation"),
        ("global_temporal", [(0, 0, 1), (0, 1, 1)], "train"),
        ("global_temporal", [(0, item, 1) for item in range(9)] + [(1, 0, 9)], "train"),
        ("global_temporal", [(0, item, item) for item in range(9)] + [(1, 0, 9)], "test"),
    ],
)
def test_an_empty_part_is_named(kind, rows, part):
    with pytest.raises(RecpeftError, match=f"split: {kind} leaves no {part} interactions of {len(rows)} by"):
        split(make(rows), kind, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_interactions_at_all_are_refused(kind):
    with pytest.raises(RecpeftError, match="finds no interactions"):
        split(make([]), kind, 0)


@pytest.mark.parametrize("ratios", [(0.9, 0.1, 0.0), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_ratios_must_be_shares(ratios):
    with pytest.raises(ValueError, match=r"sum to 1\.1; give shares whose sum is 1|greater than 0"):
        split(one_user(20), "per_user_temporal", 0, ratios=ratios)
