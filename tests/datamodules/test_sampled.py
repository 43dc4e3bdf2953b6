"""Frozen candidates: what is in them, by whose chance, and that nobody else changes them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest

from datamodules import RecDataset, Split, joint, split, synthetic
from datamodules._dataset import frame_hash
from datamodules._sampled import sampled
from recpeft.errors import RecpeftError

Sets = dict[int, set[int]]


def made(**options: Any) -> RecDataset:
    return synthetic.load(synthetic.Config(source="synthetic", **options))


def draw(data: RecDataset, parts: Split, **options: Any) -> pl.DataFrame:
    settings = {"size": 20, "seed": 0, "weighting": "uniform", **options}
    return sampled(data, parts, at_test=True, **settings)


def by_user(*frames: pl.DataFrame) -> Sets:
    found: Sets = defaultdict(set)
    for frame in frames:
        for user, item in frame.select("user", "item").iter_rows():
            found[user].add(item)
    return dict(found)


@pytest.mark.parametrize(
    "kind", ["per_user_temporal", "random_ratio", "user_holdout", "item_holdout", "global_temporal"]
)
@pytest.mark.parametrize("weighting", ["uniform", "popularity"])
def test_a_set_is_the_users_held_out_items_and_so_many_the_user_never_met(kind: str, weighting: str) -> None:
    data = made()
    parts = split(data, kind)
    known = [parts.train, parts.history, parts.validation]
    for held_out, at_test in ((parts.validation, False), (parts.test, True)):
        own = by_user(*known, *([parts.test] if at_test else []))
        frame = sampled(data, parts, at_test=at_test, size=20, seed=0, weighting=weighting)  # type: ignore[arg-type]
        assert frame.schema == {"user": pl.Int32, "item": pl.Int32}
        assert frame.rows() == sorted(set(frame.rows()))
        positives = by_user(held_out)
        found = by_user(frame)
        assert found.keys() == positives.keys()
        for user, items in found.items():
            assert positives[user] <= items
            others = items - positives[user]
            assert len(others) == 20
            assert not others & own[user]
            assert max(others) < data.num_items


def test_draws_are_those_of_every_process() -> None:
    code = """
from datamodules import split, synthetic
from datamodules._sampled import sampled
from datamodules._dataset import frame_hash
data = synthetic.load(synthetic.Config(source="synthetic"))
parts = split(data, "per_user_temporal")
for weighting in ("uniform", "popularity"):
    print(frame_hash(sampled(data, parts, at_test=True, size=20, seed=0, weighting=weighting)))
"""
    environment = os.environ | {"PYTHONHASHSEED": "9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    data = made()
    parts = split(data, "per_user_temporal")
    here = [frame_hash(draw(data, parts, weighting=weighting)) for weighting in ("uniform", "popularity")]
    assert done.stdout.split() == here


MASK = 2**64 - 1


def mix(value: int) -> int:
    """splitmix64 in Python's unbounded integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@pytest.mark.parametrize(("weighting", "seed"), [("uniform", 0), ("uniform", 4), ("popularity", 0)])
def test_draws_are_those_of_the_users_stream_of_hashes(weighting: str, seed: int) -> None:
    """An independent writing: the n-th number is a hash of n and the user's id; what came before is passed over."""
    data = made(num_users=30)
    parts = split(data, "per_user_temporal")
    own = by_user(parts.train, parts.validation, parts.test)
    weights = [1] * 160 if weighting == "uniform" else [0] * 160
    for item in parts.train["item"].to_list() if weighting == "popularity" else []:
        weights[item] += 1
    found = by_user(draw(data, parts, weighting=weighting, seed=seed))
    for user, held_out in by_user(parts.test).items():
        digest = hashlib.blake2b(data.users["raw_id"][user].encode(), digest_size=8, key=str(seed).encode()).digest()
        expected: set[int] = set()
        number = 0
        while len(expected) < 20:
            left = (mix(mix(number) ^ int.from_bytes(digest, "little")) >> 11) * 2.0**-53 * sum(weights)
            item = 0
            while left >= weights[item]:
                left -= weights[item]
                item += 1
            if item not in own[user]:
                expected.add(item)
            number += 1
        assert found[user] == expected | held_out


def test_another_seed_draws_others_and_every_user_their_own() -> None:
    data = made()
    parts = split(data, "per_user_temporal")
    zero, one = (by_user(draw(data, parts, seed=seed)) for seed in (0, 1))
    shared = sum(len(zero[user] & one[user]) - 2 for user in zero)  # two are held out
    # 20 of 140 that a user never met: 20/7 in common are expected of each.
    assert shared / len(zero) == pytest.approx(20 / 7, abs=0.5)
    pairs = [len(zero[user] & zero[user + 1]) for user in range(0, 200, 2)]
    assert float(np.mean(pairs)) < 6


def test_a_users_draw_does_not_depend_on_the_others() -> None:
    data = made()
    parts = split(data, "per_user_temporal")
    whole = by_user(draw(data, parts))
    kept = [frame.filter(pl.col("user") % 2 == 0) for frame in (parts.train, parts.validation, parts.test)]
    half = Split(*kept)
    assert by_user(draw(data, half)) == {user: items for user, items in whole.items() if user % 2 == 0}
    # Renumbered, too: it is the raw id that draws.
    renumber = pl.col("user") // 2
    tables = [frame.with_columns(renumber.cast(pl.Int32)) for frame in kept]
    users = data.users.filter(pl.col("user") % 2 == 0).with_columns(renumber.cast(pl.Int32))
    other = dataclasses.replace(data, users=users)
    found = by_user(draw(other, Split(*tables)))
    assert {2 * user: items for user, items in found.items()} == {u: i for u, i in whole.items() if u % 2 == 0}


def test_validations_candidates_do_not_depend_on_test_rows_which_may_be_among_them() -> None:
    data = made()
    parts = split(data, "per_user_temporal")
    moved = dataclasses.replace(parts, test=parts.test.with_columns(item=pl.col("item").reverse()))
    for weighting in ("uniform", "popularity"):
        frames = [sampled(data, each, at_test=False, size=20, seed=0, weighting=weighting) for each in (parts, moved)]  # type: ignore[arg-type]
        assert frames[0].equals(frames[1])
    # 20 of about 147 items that were not met by then: a test item is as likely as any other.
    drawn, tested = by_user(frames[0]), by_user(parts.test)
    uniform = by_user(sampled(data, parts, at_test=False, size=20, seed=0, weighting="uniform"))
    shares = [len(uniform[user] & tested[user]) / len(tested[user]) for user in uniform]
    assert drawn.keys() == uniform.keys()
    assert float(np.mean(shares)) == pytest.approx(20 / 147, abs=0.04)


def wide(num_users: int, counts: list[int]) -> tuple[RecDataset, Split]:
    """Users with nothing but one test item 0; train rows of another user make items popular."""
    schema = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    rows = [(num_users, item, 1.0, time) for item, count in enumerate(counts) for time in range(count)]
    train = pl.DataFrame(rows, schema, orient="row")
    test = pl.DataFrame([(user, 0, 1.0, 99) for user in range(num_users)], schema, orient="row")
    users = pl.DataFrame({"user": range(num_users + 1), "raw_id": [str(n) for n in range(num_users + 1)]})
    items = pl.DataFrame({"item": range(len(counts)), "raw_id": [str(n) for n in range(len(counts))]})
    data = RecDataset("wide", pl.concat([train, test]), users, items)
    return data, Split(train, test.head(0), test)


def test_uniform_draws_are_alike_for_all_items() -> None:
    data, parts = wide(6000, [1] * 41)
    frame = draw(data, parts, size=10).filter(pl.col("item") > 0)
    counts = np.bincount(frame["item"].to_numpy(), minlength=41)[1:]
    assert counts.sum() == 60_000
    # Draws without replacement vary less than a chi-square of 39 degrees of freedom, whose 99.9 % quantile is 72.
    assert ((counts - 1500) ** 2 / 1500).sum() < 72
    pairs = frame.group_by("user").agg("item")["item"].to_list()
    together = sum(1 in items and 2 in items for items in pairs)
    expected = 6000 * (10 / 40) * (9 / 39)
    assert abs(together - expected) < 4 * expected**0.5


def test_the_first_popularity_draw_is_proportional_to_train_rows() -> None:
    counts = [50, 1, 2, 4, 8, 0, 16, 32, 64]
    data, parts = wide(6000, counts)
    frame = draw(data, parts, size=1, weighting="popularity").filter(pl.col("item") > 0)
    found = np.bincount(frame["item"].to_numpy(), minlength=9)[1:]
    shares = np.asarray(counts[1:]) / 127  # item 0 is every user's own
    assert (np.abs(found - 6000 * shares) <= 4 * np.sqrt(6000 * shares * (1 - shares))).all()


def test_the_second_popularity_draw_is_proportional_among_what_is_left() -> None:
    counts = [0, 1, 2, 5]
    data, parts = wide(6000, counts)
    frame = draw(data, parts, size=2, weighting="popularity").filter(pl.col("item") > 0)
    missing = 6 - frame.group_by("user").agg(pl.col("item").sum())["item"].to_numpy()
    # Item 1 is left out where 2 and 3 come in any order: 2/8 * 5/6 + 5/8 * 2/3.
    expected = {1: 2 / 8 * 5 / 6 + 5 / 8 * 2 / 3, 2: 1 / 8 * 5 / 7 + 5 / 8 * 1 / 3, 3: 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6}
    for item, share in expected.items():
        assert abs((missing == item).sum() - 6000 * share) < 4 * (6000 * share * (1 - share)) ** 0.5


def test_weights_however_uneven_still_give_every_item() -> None:
    data, parts = wide(3, [1, 1, 2_000_000, 1])
    assert by_user(draw(data, parts, size=3, weighting="popularity")) == {user: {0, 1, 2, 3} for user in range(3)}


def test_too_few_items_are_told_with_a_count_and_an_example() -> None:
    data, parts = wide(4, [1] * 11)
    assert len(by_user(draw(data, parts, size=10))[0]) == 11
    with pytest.raises(
        RecpeftError, match=r"size is 11, but 4 of 4 users have fewer .* such as user '0' with 10; lower"
    ):
        draw(data, parts, size=11)
    data, parts = wide(4, [1, 1, 1, 0, 0])
    with pytest.raises(
        RecpeftError, match=r"size is 3, but 4 of 4 users .* with 2; lower size or use candidates: full"
    ):
        draw(data, parts, size=3, weighting="popularity")


def test_candidates_are_of_the_users_own_domain() -> None:
    sizes = {"source": "synthetic", "num_users": 20, "num_items": 64, "interactions_per_user": 6}
    domains = {"films": {**sizes, "data_seed": 1}, "books": {**sizes, "data_seed": 2}}
    data = joint.load(joint.Config.model_validate({"source": "joint", "domains": domains}))
    for weighting in ("uniform", "popularity"):
        for user, items in by_user(draw(data, split(data, "per_user_temporal"), weighting=weighting)).items():
            assert {data.items["domain"][item] for item in items} == {data.users["domain"][user]}
            assert len(items) == 21
    cross = split(data, joint_split())
    assert len(by_user(draw(data, cross))) == 20
    with pytest.raises(RecpeftError, match="20 of 20 users have fewer items to draw from"):
        draw(data, cross, weighting="popularity")  # nothing of the tested domain is in train


def joint_split() -> Any:
    from datamodules.splits.cross_domain import Config

    return Config(test_domain="books")
