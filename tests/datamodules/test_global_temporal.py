"""The latest rows of a global temporal split, and rows that need a history: older rows are shown and never learnt."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest

from datamodules import _splits
from datamodules._dataset import RecDataset
from datamodules._examples import InteractionExamples
from datamodules._histories import Histories
from datamodules._rated import Rated
from datamodules._splits import Split
from datamodules.splits.global_temporal import Config
from recpeft.errors import RecpeftError

SCHEMA = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
Row = tuple[int, int, int]


def made(rows: list[Row]) -> RecDataset:
    """A data set of (user, item, time)."""
    interactions = pl.DataFrame([(user, item, 3.0, time) for user, item, time in rows], SCHEMA, orient="row")
    tables = {}
    for column, key in enumerate(("user", "item")):
        ids = range(max(row[column] for row in rows) + 1)
        columns = {key: ids, "raw_id": [f"{key}{number}" for number in ids]}
        tables[key] = pl.DataFrame(columns, {key: pl.Int32, "raw_id": pl.String})
    return RecDataset("made", interactions, tables["user"], tables["item"])


def split(rows: list[Row], **options: Any) -> Split:
    return _splits.split(made(rows), Config(**options))


def times(part: pl.DataFrame) -> list[int]:
    return sorted(part["timestamp"].to_list())


def all_times(found: Split) -> dict[str, list[int]]:
    return {name: times(getattr(found, name)) for name in ("history", "train", "validation", "test")}


IN_TURN = [(place % 4, place % 7, place) for place in range(40)]
"""Four users in turn, a row a second."""


def test_rows_older_than_the_latest_are_history_and_the_ratios_are_of_the_others() -> None:
    found = all_times(split(IN_TURN, latest=20, ratios=(0.5, 0.3, 0.2)))
    assert found == {
        "history": list(range(20)),
        "train": list(range(20, 30)),
        "validation": list(range(30, 36)),
        "test": list(range(36, 40)),
    }


def test_the_latest_of_a_second_that_is_cut_are_all_of_that_second() -> None:
    twice = [(place % 4, place % 7, place // 2) for place in range(40)]  # two rows a second
    found = all_times(split(twice, latest=19, ratios=(0.5, 0.3, 0.2)))
    assert found["history"] == sorted([*range(10), *range(10)])
    assert found["train"][:2] == [10, 10]


def test_more_than_there_are_cut_all() -> None:
    whole = split(IN_TURN)
    for latest in (40, 1000):
        assert split(IN_TURN, latest=latest).hash() == whole.hash()
    assert whole.history.is_empty()


@pytest.mark.parametrize("least", [1, 3])
def test_a_row_with_too_few_of_its_users_before_it_is_history(least: int) -> None:
    found = all_times(split(IN_TURN, min_history=least, ratios=(0.5, 0.25, 0.25)))
    cut = list(range(4 * least, 40))  # each user's first rows are the first of all
    first, second = cut[len(cut) // 2], cut[len(cut) * 3 // 4]
    assert found["history"] == list(range(4 * least))
    assert found["train"] == [time for time in cut if time < first]
    assert found["validation"] == [time for time in cut if first <= time < second]
    assert found["test"] == [time for time in cut if time >= second]


def test_a_newcomers_first_rows_are_history_in_the_time_of_test_too() -> None:
    late = [(4, item, 100 + item) for item in range(6)]
    found = split([*IN_TURN, *late], min_history=3, ratios=(0.6, 0.3, 0.1))
    assert found.history.filter(pl.col("user") == 4)["timestamp"].to_list() == [100, 101, 102]
    # 28 rows of the others have 3 before them and 3 of the newcomer's: 27 of 31 are learnt or chosen by.
    assert found.test["timestamp"].to_list() == [39, 103, 104, 105]
    # Without, nothing is known of the newcomer before, who is left out.
    whole = split([*IN_TURN, *late], ratios=(0.6, 0.2, 0.2))
    assert 4 not in whole.test["user"].to_list()
    assert whole.left_out == {"rows": 6, "users": 1}


def test_latest_counts_rows_that_have_a_history() -> None:
    late = [(4, item, 100 + item) for item in range(6)]
    found = split([*IN_TURN, *late], latest=10, min_history=3, ratios=(0.5, 0.3, 0.2))
    held = [*found.train.rows(), *found.validation.rows(), *found.test.rows()]
    assert sorted(row[3] for row in held) == [33, 34, 35, 36, 37, 38, 39, 103, 104, 105]


def world(seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [(int(draw.integers(12)), item, int(draw.integers(120))) for item in range(300)]


@pytest.mark.parametrize("options", [{"latest": 150}, {"min_history": 4}, {"latest": 120, "min_history": 6}])
def test_parts_are_those_of_a_loop_over_all_rows(options: dict[str, Any]) -> None:
    rows = world()
    found = split(rows, **options)
    order = {item: place for place, item in enumerate(found.ordered()["item"].to_list())}  # ties by the hash
    told = []
    for user, item, time in rows:
        before = [other for other in rows if other[0] == user and order[other[1]] < order[item]]
        assert all(other[2] <= time for other in before)
        if len(before) >= options.get("min_history", 0):
            told.append((time, item))
    told.sort()
    start = told[max(len(told) - options.get("latest", len(told)), 0)][0]
    cut = [row for row in told if row[0] >= start]
    first, second = (cut[int(share * len(cut) + 1e-9)][0] for share in (0.8, 0.9))
    inside = {item for _, item in cut}
    for name, low, high in (("train", 0, first), ("validation", first, second), ("test", second, 1000)):
        assert set(getattr(found, name)["item"]) == {item for time, item in cut if low <= time < high}
    assert set(found.history["item"]) == {item for _, item, _ in rows} - inside


@pytest.mark.parametrize("options", [{"latest": 150}, {"min_history": 4}, {"latest": 120, "min_history": 6}])
def test_no_history_that_is_shown_holds_a_row_of_the_future(options: dict[str, Any]) -> None:
    rows = world()
    time_of = {item: time for _, item, time in rows}
    found = split(rows, **options)
    learnt, known = set(found.train["item"]), Histories.of(found.known(at_test=False), 12)
    drawn = InteractionExamples(known, found, per_step=7, seed=0, balance=None)
    targets = set()
    for index in range(drawn.per_pass):
        made = drawn.draw(index, np.random.default_rng(0))
        for user, moment, (item,) in zip(made.user, made.moment, made.positives, strict=True):
            before = known.items(user)[:moment].tolist()
            assert all(time_of[other] <= time_of[item] for other in before)
            assert len(before) >= options.get("min_history", 1)
            targets.add(item)
    assert targets <= learnt
    rated = Rated(found, 12, at_test=True)
    users = found.test["user"].unique().sort().to_numpy()
    judged = rated.of(users)
    assert set(judged.item.tolist()) == set(found.test["item"])
    for row, item, stop in zip(judged.row, judged.item, judged.stop, strict=True):
        before = rated.histories.items(users[row])[:stop].tolist()
        mine = sorted(time for user, _, time in rows if user == users[row] and time < time_of[item])
        assert sorted(time_of[other] for other in before)[: len(mine)] == mine
        assert all(time_of[other] <= time_of[item] for other in before)
    assert found.audit()["users_out_of_order"] == 0


def test_few_shot_takes_from_the_rows_that_were_cut() -> None:
    whole = split(world(), latest=150, min_history=2)
    few = split(world(), latest=150, min_history=2, few_shot=20)
    assert few.train.height == 20
    assert set(few.train["item"]) < set(whole.train["item"])
    assert set(few.history["item"]) == set(whole.history["item"]) | (set(whole.train["item"]) - set(few.train["item"]))
    assert few.test.equals(whole.test)
    assert few.validation.equals(whole.validation)


def test_dates_cut_the_latest_rows_too() -> None:
    day = 86_400
    rows = [(place % 3, place, place * day) for place in range(30)]  # from 1 January 1970 on
    dates = {"validation_from": date(1970, 1, 21), "test_from": date(1970, 1, 26)}
    found = all_times(split(rows, latest=15, **dates))
    assert found == {
        "history": [place * day for place in range(15)],
        "train": [place * day for place in range(15, 20)],
        "validation": [place * day for place in range(20, 25)],
        "test": [place * day for place in range(25, 30)],
    }
    with pytest.raises(RecpeftError, match="leaves no train interactions"):
        split(rows, latest=10, **dates)


def test_a_history_that_nobody_has_is_refused() -> None:
    with pytest.raises(
        RecpeftError, match=r"data\.split\.min_history is 10, and no user of made has more rows; lower it"
    ):
        split(IN_TURN, min_history=10)
    with pytest.raises(ValueError, match="latest"):
        Config.model_validate({"latest": 0})
