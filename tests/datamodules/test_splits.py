from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from datamodules import _splits, joint, synthetic
from datamodules._dataset import RecDataset
from datamodules._filters import Filter, apply
from datamodules._splits import Split
from datamodules.movielens import Config, load
from datamodules.splits import fixed
from recpeft import plugins
from recpeft.config import digest
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


MASK = 2**64 - 1


def mix(value):
    """splitmix64 in Python's unbounded integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def blake(text, seed):
    key = str(seed).encode()
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def drawn_part(text, seed, ratios=(0.8, 0.1, 0.1)):
    """0, 1 or 2: where the hash of an id falls."""
    place = mix(mix(blake(text, seed))) / 2**64
    return 0 if place < ratios[0] else 1 if place < ratios[0] + ratios[1] else 2


def within(count, n, share):
    """Whether a count of n draws is one that a share gives but for once in 15,000 times."""
    return abs(count - n * share) < 4 * math.sqrt(n * share * (1 - share))


def all_rows(result):
    """part -> rows, history included."""
    named = {"train": result.train, "validation": result.validation, "test": result.test, "history": result.history}
    return {part: frame.rows() for part, frame in named.items()}


def small(**options):
    settings = {"num_users": 120, "num_items": 96, "interactions_per_user": 10, "source": "synthetic", **options}
    return synthetic.load(synthetic.Config(**settings))


def two_domains():
    def of(seed, users):
        sizes = {"num_users": users, "num_items": 80, "interactions_per_user": 10}
        return {"source": "synthetic", "data_seed": seed, **sizes}

    return joint.load(joint.Config(source="joint", domains={"films": of(1, 50), "books": of(2, 30)}))


EVERY = [
    ("per_user_temporal", {}),
    ("leave_one_out", {}),
    ("global_temporal", {}),
    ("global_temporal", {"validation_from": date(2018, 3, 1), "test_from": date(2018, 5, 1)}),
    ("user_holdout", {}),
    ("item_holdout", {}),
    ("random_ratio", {}),
    ("cross_domain", {"test_domain": "books"}),
    ("per_user_temporal", {"few_shot": 25}),
    ("random_ratio", {"few_shot": 25}),
]


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
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of the published splitmix64 for seed 0
    result = split(make([(0, item, 50) for item in range(40)]), "per_user_temporal", 7)
    order = [item for part in parts(result) for item in part["item"]]
    assert order == sorted(range(40), key=lambda item: mix(mix(blake("user0", 7)) ^ blake(f"item{item}", 7)))


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


# --- the other kinds ---


def test_user_holdout_gives_whole_users_by_the_hash_of_their_id():
    result = split(make([(user, item, item) for user in range(3000) for item in range(4)]), "user_holdout", 3)
    found = all_rows(result)
    users = {part: {row[0] for row in rows} for part, rows in found.items()}
    for number, part in enumerate(("train", "validation", "test")):
        assert users[part] == {user for user in range(3000) if drawn_part(f"user{user}", 3) == number}
        assert within(len(users[part]), 3000, (0.8, 0.1, 0.1)[number])
    assert users["history"] == users["validation"] | users["test"]
    assert len(found["train"]) == 4 * len(users["train"])


@pytest.mark.parametrize(
    ("n", "held_out", "hidden"), [(2, 0.2, 1), (9, 0.2, 1), (10, 0.2, 2), (14, 0.2, 2), (2, 0.9, 1)]
)
def test_user_holdout_hides_the_last_share_and_shows_what_is_before(n, held_out, hidden):
    rows = [(user, item, 10 * item) for user in range(60) for item in range(n)]
    found = all_rows(split(make(rows), "user_holdout", 0, held_out=held_out))
    held = defaultdict(list)
    for part in ("validation", "test"):
        for user, item, _, _ in found[part]:
            held[user].append(item)
    shown = defaultdict(list)
    for user, item, _, _ in found["history"]:
        shown[user].append(item)
    assert held.keys() == shown.keys() != set()
    for user in held:
        assert shown[user] == list(range(n - hidden))
        assert held[user] == list(range(n - hidden, n))
        assert not any(row[0] == user for row in found["train"])


def test_user_holdout_shows_a_users_only_row():
    rows = [(user, item, item) for user in range(60) for item in range(1 if user % 2 else 5)]
    found = all_rows(split(make(rows), "user_holdout", 0))
    single = {user for user in range(1, 60, 2) if drawn_part(f"user{user}", 0)}
    assert single
    assert single <= {row[0] for row in found["history"]}
    assert not single & {row[0] for part in ("train", "validation", "test") for row in found[part]}


def test_item_holdout_keeps_every_row_of_an_item_in_one_part():
    data = small(num_items=400, num_users=300)
    result = split(data, "item_holdout", 5)
    raw = data.items["raw_id"].to_list()
    for number, part in enumerate(parts(result)):
        assert all(drawn_part(raw[item], 5) == number for item in part["item"])
    expected = Counter(drawn_part(raw[item], 5) for item in data.interactions["item"])
    assert [part.height for part in parts(result)] == [expected[0], expected[1], expected[2]]
    of_items = Counter(drawn_part(text, 5) for text in raw)
    assert all(within(of_items[number], 400, share) for number, share in enumerate((0.8, 0.1, 0.1)))
    audit = result.audit()
    assert audit["items_new_in_test"] == result.test["item"].n_unique()
    assert audit["duplicates_across_splits"] == 0


@pytest.mark.parametrize("kind", ["item_holdout", "random_ratio"])
def test_users_without_a_train_row_are_left_out_and_counted(kind):
    rows = [(user, item, item) for user in range(300) for item in (user % 40, (user * 7) % 40)]
    data = make(sorted(set(rows)))
    result = split(data, kind, 0)
    known = set(result.train["user"])
    missing = set(range(300)) - known
    assert missing
    assert set(result.validation["user"]) | set(result.test["user"]) <= known
    assert result.left_out == {"rows": sum(user in missing for user, _, _ in set(rows)), "users": len(missing)}


def test_random_ratio_gives_each_row_by_a_hash_of_its_user_and_item():
    data = make([(user, item, 5) for user in range(100) for item in range(30)])
    for seed in (0, 4):
        found = all_rows(split(data, "random_ratio", seed, ratios=(0.6, 0.3, 0.1)))
        for number, part in enumerate(("train", "validation", "test")):
            expected = set()
            for user in range(100):
                for item in range(30):
                    tie = mix(mix(blake(f"user{user}", seed)) ^ blake(f"item{item}", seed))
                    place = mix(tie ^ 0x5BD1E995) / 2**64
                    if (0 if place < 0.6 else 1 if place < 0.9 else 2) == number:
                        expected.add((user, item))
            assert {row[:2] for row in found[part]} == expected
            assert within(len(expected), 3000, (0.6, 0.3, 0.1)[number])


def test_random_ratio_by_user_gives_each_user_the_shares_rounded_down_as_recbole_does():
    rows = [(user, item, item) for user in range(60) for item in range(4 + user)]
    result = split(make(rows), "random_ratio", 0, ratios=(0.7, 0.2, 0.1), by_user=True)
    parts = [dict(part.group_by("user").len().iter_rows()) for part in (result.train, result.validation, result.test)]
    for user in range(60):
        count = 4 + user
        validation, test = count * 2 // 10, count // 10
        assert [part.get(user, 0) for part in parts] == [count - validation - test, validation, test]
    late = result.test.filter(pl.col("timestamp") >= (pl.col("user") + 4) / 2).height
    assert within(late, result.test.height, 0.5)  # whatever its time
    assert result.left_out == {}


def test_random_ratio_does_not_follow_the_order_of_ties():
    # Else a user's part would be a stretch of the history.
    result = split(make([(0, item, 5) for item in range(400)]), "random_ratio", 0)
    order = split(make([(0, item, 5) for item in range(400)]), "per_user_temporal", 0).train["item"].to_list()
    tested = set(result.test["item"])
    assert 5 < sum(item in tested for item in order[:160]) < 35  # 16 expected of half of the train rows


@pytest.mark.parametrize("kind", ["random_ratio", "item_holdout", "user_holdout"])
def test_a_draw_depends_neither_on_other_users_nor_on_the_dense_ids(kind):
    data = small()
    half, _ = apply(dataclasses.replace(data, interactions=data.interactions.filter(pl.col("user") % 2 == 0)), [])
    named = []
    for one in (data, half):
        result = split(one, kind, 0)
        named.append({part: {row for row in rows if row[0] % 2 == 0} for part, rows in all_rows(result).items()})
    assert named[0] == named[1]
    renumbered, _ = apply(half, [Filter(min_user_interactions=1)])
    assert renumbered.num_users == 60
    again = {part: {(2 * row[0], *row[2:]) for row in rows} for part, rows in all_rows(split(renumbered, kind)).items()}
    assert again == {part: {(row[0], *row[2:]) for row in rows} for part, rows in named[0].items()}


@pytest.mark.parametrize("kind", ["random_ratio", "item_holdout", "user_holdout"])
def test_another_seed_is_another_draw(kind):
    zero, one = (split(small(), kind, seed) for seed in (0, 1))
    shared = zero.test.join(one.test, on=["user", "item"]).height
    assert shared < 0.4 * zero.test.height  # a tenth is expected


def test_random_ratio_and_item_holdout_need_no_times_and_others_do():
    data = small()
    untimed = dataclasses.replace(data, interactions=data.interactions.with_columns(timestamp=pl.lit(None, pl.Int64)))
    for kind in ("random_ratio", "item_holdout"):
        audit = split(untimed, kind).audit()
        assert audit["train_max_time"] is audit["test_min_time"] is None
        assert audit["users_out_of_order"] == audit["test_rows_before_train_end"] == 0
    for kind in ("user_holdout", "per_user_temporal", "leave_one_out", "global_temporal"):
        with pytest.raises(RecpeftError, match=f"split: {kind} needs the time of every interaction, but 1200 of 1200"):
            split(untimed, kind)


def test_random_ratio_lets_the_future_in_and_the_audit_counts_it():
    data = small()
    result = split(data, "random_ratio")
    found = all_rows(result)
    late, last = 0, {}
    for part in ("train", "validation"):
        for user, _, _, time in found[part]:
            last.setdefault((part, user), []).append(time)
    users = set()
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for user, _, _, time in found[second]:
            if any(earlier > time for earlier in last.get((first, user), [])):
                users.add(user)
    end = max(row[3] for row in found["train"])
    late = sum(row[3] < end for row in found["test"])
    audit = result.audit()
    assert (audit["users_out_of_order"], audit["test_rows_before_train_end"]) == (len(users), late)
    assert len(users) > 60


def stamp(*day):
    return int(datetime(*day, tzinfo=UTC).timestamp())


def test_global_temporal_by_dates_cuts_at_midnight_utc():
    moments = [
        stamp(2018, 2, 27),
        stamp(2018, 2, 28, 23, 59, 59),
        stamp(2018, 3, 1),
        stamp(2018, 4, 30, 23, 59, 59),
        stamp(2018, 5, 1),
        stamp(2019, 1, 1),
    ]
    data = make([(0, item, time) for item, time in enumerate(moments)] + [(1, 0, stamp(2018, 6, 1))])
    result = split(data, "global_temporal", validation_from=date(2018, 3, 1), test_from=date(2018, 5, 1))
    assert [times(part, 0) for part in parts(result)] == [moments[:2], moments[2:4], moments[4:]]
    assert result.left_out == {"rows": 1, "users": 1}


def test_dates_of_global_temporal_come_together_and_in_order():
    cls = plugins.config_class("datamodules.splits", "global_temporal")
    with pytest.raises(ValueError, match="given together"):
        cls(validation_from=date(2018, 1, 1))
    with pytest.raises(ValueError, match="must be before test_from 2018-01-01"):
        cls(validation_from=date(2018, 1, 1), test_from=date(2018, 1, 1))
    config = cls(validation_from="2018-01-01", test_from="2018-02-01")
    dumped = config.model_dump(mode="json")
    assert dumped["validation_from"] == "2018-01-01"
    assert digest(cls.model_validate(dumped).model_dump(mode="json")) == digest(dumped)


def test_cross_domain_learns_and_chooses_by_the_other_domains_alone():
    data = two_domains()
    result = split(data, "cross_domain", test_domain="books")
    domain = data.users["domain"].to_list()
    assert {domain[user] for user in result.train["user"]} == {"films"}
    assert {domain[user] for user in result.validation["user"]} == {"films"}
    assert (
        {domain[user] for user in result.test["user"]} == {domain[user] for user in result.history["user"]} == {"books"}
    )
    # of ten rows the last is tested, the one before it validates; in the tested domain nine are shown
    assert [part.height for part in parts(result)] == [50 * 8, 50, 30]
    assert result.history.height == 30 * 9
    assert result.left_out == {"rows": 50, "users": 50}
    whole = split(data, "per_user_temporal")
    assert result.test.rows() == [row for row in whole.test.rows() if domain[row[0]] == "books"]
    assert result.train.rows() == [row for row in whole.train.rows() if domain[row[0]] == "films"]
    audit = result.audit()
    assert audit["users_new_in_test"] == 30
    assert audit["users_out_of_order"] == 0


def test_cross_domain_names_the_domains_or_the_source_it_needs():
    with pytest.raises(RecpeftError, match=r"test_domain is 'music'; choose one of books, films\."):
        split(two_domains(), "cross_domain", test_domain="music")
    with pytest.raises(RecpeftError, match=r"needs data\.source: joint"):
        split(small(), "cross_domain", test_domain="books")


# --- files ---


@pytest.fixture
def named(tmp_path):
    """Twelve interactions of three users, their ids, and a function that writes the three files and splits by them."""
    data = make([(user, item, 100 * user + item) for user in range(3) for item in range(4)])

    def by(train, validation, test, suffixes=("csv", "csv", "csv"), dataset=data, columns=("user", "item"), **options):
        files = {}
        parts = {"train": train, "validation": validation, "test": test, "history": options.pop("history", None)}
        for (part, rows), suffix in zip(parts.items(), (*suffixes, "csv"), strict=True):
            if rows is None:
                continue
            files[part] = tmp_path / f"{part}.{suffix}"
            frame = pl.DataFrame(rows, schema=list(columns), orient="row")
            frame.write_csv(files[part]) if suffix == "csv" else frame.write_parquet(files[part])
        return split(dataset, "fixed", **files, **options)

    return data, by


def ids(*pairs):
    return [(f"user{user}", f"item{item}") for user, item in pairs]


@pytest.mark.parametrize(
    "suffixes", [("csv", "csv", "csv"), ("parquet", "parquet", "parquet"), ("parquet", "csv", "csv")]
)
def test_fixed_takes_the_parts_of_files_and_counts_what_they_leave_out(named, suffixes):
    _, by = named
    result = by(ids((0, 3), (0, 0), (1, 1)), ids((0, 1)), ids((1, 0), (2, 2)), suffixes)
    assert result.train.select("user", "item").rows() == [(0, 0), (0, 3), (1, 1)]
    assert result.validation.select("user", "item").rows() == [(0, 1)]
    assert result.test.select("user", "item").rows() == [(1, 0), (2, 2)]
    assert result.left_out == {"rows": 6, "users": 3}
    audit = result.audit()
    assert (audit["users_out_of_order"], audit["users_new_in_test"]) == (2, 1)


def test_fixed_reads_ids_that_are_numbers_in_one_file_and_text_in_another(named):
    _, by = named
    rows = make([(user, item, item) for user in range(2) for item in range(3)])
    numbers = dataclasses.replace(
        rows,
        users=rows.users.with_columns(raw_id=pl.col("user").cast(pl.String)),
        items=rows.items.with_columns(raw_id=pl.col("item").cast(pl.String)),
    )
    result = by([(0, 0), (1, 0)], [(0, 1)], [(1, 2)], ("parquet", "csv", "parquet"), numbers)
    assert result.test.select("user", "item").rows() == [(1, 2)]


def test_fixed_names_pairs_that_stand_twice_and_counts_them(named):
    _, by = named
    twice = [(user, item) for user in range(3) for item in range(4)]
    with pytest.raises(RecpeftError, match=r"train\.csv and \S*test\.csv overlap in 1 interactions: user user0 and"):
        by(ids((0, 0), (0, 1)), ids((0, 2)), ids((0, 1)))
    with pytest.raises(RecpeftError, match=r"overlap in 12 interactions: user user0 and item item0.* and 2 more; name"):
        by(ids(*twice), ids((0, 2)), ids(*twice))
    repeat = (
        r"train\.csv names 1 interactions more than once: user user0 and item item0; .*set data\.split\.time_column"
    )
    with pytest.raises(RecpeftError, match=repeat):
        by(ids((0, 0), (0, 0)), ids((0, 2)), ids((0, 1)))


def test_fixed_shows_a_history_that_it_does_not_learn(named):
    _, by = named
    result = by(ids((0, 1), (1, 1)), ids((0, 2)), ids((0, 3)), history=ids((0, 0), (2, 0)))
    assert result.history.select("user", "item").rows() == [(0, 0), (2, 0)]
    assert result.train.select("user", "item").rows() == [(0, 1), (1, 1)]
    assert result.known(at_test=False).filter(pl.col("user") == 0)["item"].to_list() == [0, 1]
    with pytest.raises(RecpeftError, match=r"train\.csv and \S*history\.csv overlap in 1 interactions"):
        by(ids((0, 1)), ids((0, 2)), ids((0, 3)), history=ids((0, 1)))


def test_fixed_without_a_validation_file_carves_one_out_of_train(named):
    rows = [(user, item) for user, count in enumerate((21, 9, 2)) for item in range(count)]
    data = make([(user, item, 100 * user + item) for user, item in rows])
    test = ids((0, 20), (2, 1))
    train = [row for row in ids(*rows) if row not in test]
    _, by = named
    result = by(train, None, test, dataset=data)
    # A tenth of 20 rows is two, of nine less than one; who has one row keeps it.
    assert result.validation.select("user", "item").rows() == [(0, 18), (0, 19), (1, 8)]
    assert result.train.height == 18 + 8 + 1
    assert by(train, None, test, dataset=data, validation_share=0.5).validation.height == 10 + 4
    untimed = dataclasses.replace(data, interactions=data.interactions.with_columns(timestamp=pl.lit(None, pl.Int64)))
    drawn = [by(train, None, test, dataset=untimed, seed=seed).validation["item"].to_list() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    given = fixed.Config(train="a.csv", test="b.csv")
    assert "validation is carved out of a.csv: each user's last 0.1 of it" in given.remark
    assert fixed.Config(train="a.csv", validation="v.csv", test="b.csv").remark is None
    with pytest.raises(ValueError, match="validation_share is of train, but validation is a file"):
        fixed.Config(train="a.csv", validation="v.csv", test="b.csv", validation_share=0.2)


def test_files_of_fixed_may_be_lines_of_ids_or_have_no_header(named, tmp_path):
    data, _ = named
    for part, text in {"train": "user0 item0 item3\nuser1 item1\nuser2\n", "test": "user1 item0\n"}.items():
        (tmp_path / f"{part}.txt").write_text(text)
    lines = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    result = split(data, "fixed", **lines, layout="adjacency")
    assert result.train.select("user", "item").rows() == [(0, 0), (1, 1)]
    assert result.validation.select("user", "item").rows() == [(0, 3)]
    assert result.test.select("user", "item").rows() == [(1, 0)]
    for part, text in {"train": "1|user0|item0\n2|user0|item3\n", "test": "3|user1|item0\n"}.items():
        (tmp_path / f"{part}.txt").write_text(text)
    with pytest.raises(
        RecpeftError, match=r"train\.txt .*where its first row is data, name its columns in data\.split\.header"
    ):
        split(data, "fixed", **lines, separator="|")
    bare = split(data, "fixed", **lines, separator="|", header=("n", "user", "item"))
    assert bare.test.select("user", "item").rows() == [(1, 0)]


def test_files_of_fixed_are_sought_in_the_datas_folder_too(tmp_path):
    data = make([(0, item, item) for item in range(3)])
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(("train", "validation", "test")):
        (tmp_path / "parts" / f"{part}.csv").write_text(f"user,item\nuser0,item{number}\n")
    names = {part: Path("parts") / f"{part}.csv" for part in ("train", "validation", "test")}
    config = fixed.Config(kind="fixed", **names)
    assert _splits.split(data, config.below(tmp_path)).test["item"].to_list() == [2]
    with pytest.raises(RecpeftError, match=r"there is no file parts/train\.csv"):
        _splits.split(data, config.below(None))


def test_fixed_names_all_unknown_rows_of_a_file_at_once(named):
    data, by = named
    sparse = dataclasses.replace(
        data, interactions=data.interactions.filter((pl.col("user") != 1) | (pl.col("item") != 2))
    )
    wrong = [("user0", "item0"), ("userX", "item1"), ("user1", "itemY"), ("user1", "item2")]
    with pytest.raises(RecpeftError) as caught:
        by(wrong, ids((0, 2)), ids((0, 1)), dataset=sparse)
    text = str(caught.value)
    assert "train.csv: 3 problems: " in text
    assert "row 3: user userX is not in the data" in text
    assert "row 4: item itemY is not in the data" in text
    assert "row 5: user user1 and item item2 have no such interaction" in text
    assert "data.filters" in text


def test_fixed_names_a_column_that_is_missing(named):
    _, by = named
    with pytest.raises(
        RecpeftError, match=r"train\.csv has no column user, item; it has u, i; .*data\.split\.user_column"
    ):
        by(ids((0, 0)), ids((0, 2)), ids((0, 1)), columns=("u", "i"))
    result = by(ids((0, 0)), ids((0, 2)), ids((0, 1)), columns=("u", "i"), user_column="u", item_column="i")
    assert result.left_out == {"rows": 9, "users": 3}


def test_fixed_tells_repeated_pairs_apart_by_their_time(named):
    _, by = named
    data = make([(0, 0, 10), (0, 0, 20), (0, 0, 30), (0, 1, 40)])
    rows = [[("user0", "item0", 10)], [("user0", "item0", 30)], [("user0", "item1", 40)]]
    columns = ("user", "item", "when")
    result = by(*rows, dataset=data, columns=columns, time_column="when")
    assert [times(part, 0) for part in parts(result)] == [[10], [30], [40]]
    assert result.left_out == {"rows": 1, "users": 1}
    assert result.audit()["duplicates_across_splits"] == 1
    rows[1] = [("user0", "item0", 31)]
    with pytest.raises(
        RecpeftError, match=r"validation\.csv: row 2: user user0 and item item0 have no such interaction"
    ):
        by(*rows, dataset=data, columns=columns, time_column="when")


# --- few shots ---


@pytest.mark.parametrize(
    "kind", ["per_user_temporal", "global_temporal", "random_ratio", "item_holdout", "user_holdout"]
)
@pytest.mark.parametrize("count", [1, 17, 300])
def test_few_shot_learns_so_many_rows_and_shows_the_others(kind, count):
    whole, few = split(small(), kind), split(small(), kind, few_shot=count)
    assert few.train.height == count
    assert few.history.height == whole.history.height + whole.train.height - count
    assert set(few.train.rows()) | set(few.history.rows()) == set(whole.train.rows()) | set(whole.history.rows())
    assert few.validation.equals(whole.validation)
    assert few.test.equals(whole.test)
    known = few.known(at_test=False)
    assert known.select("user", "item").equals(whole.known(at_test=False).select("user", "item"))
    # Something of the user's is known before each learnt row.
    first = known.filter(pl.col("user").is_first_distinct())
    assert not first["learnt"].any()
    assert known["learnt"].sum() == count


def test_few_shot_has_a_row_before_each_learnt_one_where_all_times_are_equal():
    data = make([(user, item, 5) for user in range(40) for item in range(6)])
    few = split(data, "per_user_temporal", few_shot=60)
    known = few.known(at_test=False)
    assert known["learnt"].sum() == 60
    assert not known.filter(pl.col("user").is_first_distinct())["learnt"].any()
    # The order of ties is what it is without few_shot, train rows and others mixed.
    assert known.drop("learnt").equals(split(data, "per_user_temporal").known(at_test=False).drop("learnt"))
    assert few.known(at_test=True).height == 40 * 5


def test_few_shot_is_a_uniform_draw_of_the_seed():
    data = small(num_users=400)
    one, again = (split(data, "per_user_temporal", few_shot=700) for _ in range(2))
    assert one.hash() == again.hash()
    places = split(data, "per_user_temporal").train.with_columns(place=pl.int_range(pl.len()).over("user"))
    drawn = Counter(places.join(one.train, on=["user", "item"], how="semi")["place"])
    assert drawn[0] == 0
    assert all(within(drawn[place], 700, 1 / 7) for place in range(1, 8))  # eight train rows a user
    other = split(data, "per_user_temporal", seed=1, few_shot=700)
    assert within(one.train.join(other.train, on=["user", "item"]).height, 700, 700 / 2800)
    smaller = split(data, "per_user_temporal", few_shot=70)
    assert set(smaller.train.rows()) < set(one.train.rows())  # more shots keep the fewer


def test_few_shot_counts_rows_of_a_repeated_pair_one_by_one():
    data = make([(user, item % 2, 10 * item) for user in range(5) for item in range(12)])
    for count in (1, 2, 3, 7):
        assert split(data, "per_user_temporal", few_shot=count).train.height == count


def test_more_shots_than_there_are_rows_are_refused():
    with pytest.raises(RecpeftError, match="few_shot is 841, but only 840 train interactions have one before them"):
        split(small(), "per_user_temporal", few_shot=841)
    assert split(small(), "per_user_temporal", few_shot=840).train.height == 840


# --- the same everywhere ---


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_shuffled_rows_change_no_split(kind, options):
    data = two_domains()
    shuffled = dataclasses.replace(data, interactions=data.interactions.sample(fraction=1, shuffle=True, seed=3))
    assert not shuffled.interactions.equals(data.interactions)
    assert shuffled.hash() == data.hash()
    one, other = (split(each, kind, **options) for each in (data, shuffled))
    assert one.hash() == other.hash()
    assert one.known(at_test=True).equals(other.known(at_test=True))


def test_another_process_splits_the_same():
    script = """
from tests_of_splits import EVERY, split, two_domains
print(" ".join(split(two_domains(), kind, **options).hash() for kind, options in EVERY))
"""
    run = f"import importlib.util as u, sys; s = u.spec_from_file_location('tests_of_splits', {__file__!r}); "
    run += f"m = u.module_from_spec(s); sys.modules['tests_of_splits'] = m; s.loader.exec_module(m); exec({script!r})"
    expected = [split(two_domains(), kind, **options).hash() for kind, options in EVERY]
    for seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", run], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == expected
    assert len(set(expected)) == len(EVERY) - 1  # of ten rows, a tenth is one


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


LEAK = pl.Schema({"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64})


def frame_of(*rows):
    return pl.DataFrame([(user, item, 1.0, time) for user, item, time in rows], schema=LEAK, orient="row")


CLEAN = {
    "train": [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 2, 2), (2, 3, 2)],
    "validation": [(0, 2, 3), (1, 1, 3)],
    "test": [(0, 3, 4), (1, 3, 5)],
    "history": [(2, 1, 1)],
}


@pytest.mark.parametrize(
    ("part", "row", "changed"),
    [
        ("train", (0, 4, 9), {"users_out_of_order": 1, "test_rows_before_train_end": 2}),
        ("train", (2, 4, 5), {"test_rows_before_train_end": 1}),
        ("history", (1, 4, 9), {"users_out_of_order": 1}),
        ("validation", (1, 4, 6), {"users_out_of_order": 1}),
        ("test", (2, 4, 8), {"items_new_in_test": 1}),
        ("test", (3, 0, 8), {"users_new_in_test": 1}),
        ("test", (0, 1, 8), {"duplicates_across_splits": 1}),
        ("test", (2, 1, 8), {"duplicates_across_splits": 1}),
        ("validation", (0, 3, 3), {"duplicates_across_splits": 1}),
        ("history", (0, 1, 2), {}),
    ],
)
def test_each_planted_leak_changes_its_field_of_the_audit(part, row, changed):
    def audit(rows):
        found = Split(**{name: frame_of(*frame) for name, frame in rows.items()}).audit()
        watched = ["users_out_of_order", "test_rows_before_train_end", "users_new_in_test", "items_new_in_test"]
        return {name: found[name] for name in [*watched, "duplicates_across_splits"]}

    clean = audit(CLEAN)
    assert set(clean.values()) == {0}
    planted = audit({**CLEAN, part: [*CLEAN[part], row]})
    assert {name: value for name, value in planted.items() if value} == changed


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
