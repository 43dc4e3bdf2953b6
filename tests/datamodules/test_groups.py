"""Groups of users and items, each kind by hand."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from datamodules._dataset import RecDataset
from datamodules._groups import GroupConfig, membership, train_counts, user_index
from recpeft.errors import RecpeftError


def table(kind: str = "user", **columns: Any) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    return pl.DataFrame({kind: range(size), "raw_id": [f"r{n}" for n in range(size)], **columns})


def groups(column: Any, bins: tuple[float, ...] | None = None, dtype: Any = None) -> dict[str, list[int]]:
    """Group -> rows, of a user table with this one attribute."""
    rows = table(x=pl.Series(column, dtype=dtype))
    found, names = membership(rows, "user", GroupConfig(column="x", bins=bins), np.zeros(rows.height, int), 5)
    assert found.shape == (rows.height, len(names))
    assert found.dtype == bool
    return {name: np.flatnonzero(column).tolist() for name, column in zip(names, found.T, strict=True)}


def by_counts(kind: str, column: str, counts: list[int], cold_below: int = 5) -> list[str]:
    """The group of each row."""
    found, names = membership(table(kind, x=counts), kind, GroupConfig(column=column), np.asarray(counts), cold_below)
    assert (found.sum(axis=1) == 1).all()
    return [names[place] for place in found.argmax(axis=1)]


def test_values_of_a_text_column_are_groups_in_alphabetical_order_and_null_is_none() -> None:
    found = groups(["M", "F", None, "M", "X"])
    assert found == {"F": [1], "M": [0, 3], "X": [4]}
    assert list(found) == ["F", "M", "X"]


def test_rows_with_lists_are_in_each_group_of_theirs() -> None:
    found = groups([["Drama", "War"], [], None, ["War"], ["Drama", None]], dtype=pl.List(pl.String))
    assert found == {"Drama": [0, 4], "War": [0, 3]}


def test_a_cut_belongs_to_the_bin_above_it() -> None:
    found = groups([17, 18, 24, 25, 90, None], (18, 25))
    assert found == {"<18": [0], "18-25": [1, 2], ">=25": [3, 4]}
    assert list(groups([0.5, 1.0, float("nan"), None], (1,))) == ["<1", ">=1"]
    assert groups([0.5, 1.0, float("nan"), None], (1,)) == {"<1": [0], ">=1": [1]}


def test_bins_without_anybody_are_groups_too() -> None:
    assert groups([30, 31], (18, 25, 99.5)) == {"<18": [], "18-25": [], "25-99.5": [0, 1], ">=99.5": []}


def test_numbers_without_bins_are_groups_in_their_own_order() -> None:
    assert list(groups([10, 9, 2, 10, None])) == ["2", "9", "10"]
    assert groups([True, False, True]) == {"false": [1], "true": [0, 2]}


@pytest.mark.parametrize("bins", [(), (2, 1), (1, 1), (1, float("nan"))])
def test_bins_ascend(bins: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match=r"ascend|finite"):
        GroupConfig(column="age", bins=bins)


@pytest.mark.parametrize("column", [["a", "b"], [date(2018, 1, 1), date(2018, 1, 2)], [["a"], ["b"]]])
def test_bins_of_what_is_no_number_are_refused(column: list[Any]) -> None:
    with pytest.raises(RecpeftError, match=r"evaluation\.groups: x is no number, so bins do not apply"):
        groups(column, (1,))


def test_a_column_without_values_makes_no_groups() -> None:
    with pytest.raises(RecpeftError, match=r"evaluation\.groups: x has a value for no user, so it makes no groups"):
        groups([None, None])


def test_more_than_fifty_values_are_no_groups() -> None:
    assert len(groups(list(range(50)))) == 50
    with pytest.raises(RecpeftError, match=r"x has 51 different values, and at most 50 can be groups; give bins"):
        groups(list(range(51)))
    assert len(groups(list(range(51)), (25,))) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("user", r"evaluation\.groups names 'zodiac', which is no attribute of the users; choose from age, activity\."),
        (
            "item",
            r"evaluation\.item_groups names 'zodiac', which is no attribute of the items; "
            r"choose from age, popularity, familiarity\.",
        ),
    ],
)
def test_an_unknown_column_lists_the_choices(kind: str, message: str) -> None:
    with pytest.raises(RecpeftError, match=message):
        membership(table(kind, age=[1]), kind, GroupConfig(column="zodiac"), np.zeros(1, int), 5)


@pytest.mark.parametrize("column", ["raw_id", "user"])
def test_ids_are_no_groups(column: str) -> None:
    with pytest.raises(RecpeftError, match="no attribute of the users"):
        membership(table(age=[1]), "user", GroupConfig(column=column), np.zeros(1, int), 5)


def test_activity_is_cold_below_the_threshold_and_heavy_in_the_highest_fifth_of_the_others() -> None:
    # Ten users with 5 to 14 rows: the two with most are the fifth.
    counts = [*range(5, 15), 0, 4]
    assert by_counts("user", "activity", counts) == [*["warm"] * 8, "heavy", "heavy", "cold", "cold"]
    assert by_counts("user", "activity", [1, 2, 3, 4]) == ["cold"] * 4
    assert by_counts("user", "activity", [1, 2, 3, 4, 5], 1) == [*["warm"] * 4, "heavy"]


def test_popularity_gives_a_fifth_of_the_interactions_to_head_and_tail() -> None:
    # 100 interactions: 30 | 25 20 10 | 8 4 2 1. Before them stand 0 | 30 55 75 | 85 93 97 99.
    counts = [1, 25, 8, 30, 4, 20, 2, 10]
    names = ["tail", "mid", "tail", "head", "tail", "mid", "tail", "mid"]
    assert by_counts("item", "popularity", counts) == names
    # Ten items alike: the first two have a fifth, the last two what is behind 80 %.
    assert by_counts("item", "popularity", [3] * 10) == [*["head"] * 2, *["mid"] * 6, *["tail"] * 2]
    assert by_counts("item", "popularity", [5, 0, 5, 0])[1::2] == ["tail"] * 2  # without a train row


def test_familiarity_divides_items_at_the_threshold() -> None:
    assert by_counts("item", "familiarity", [0, 4, 5, 99]) == ["cold", "cold", "warm", "warm"]
    assert by_counts("item", "familiarity", [0, 4], 1) == ["cold", "warm"]


def test_a_column_of_the_data_goes_before_a_built_in_group_of_its_name() -> None:
    rows = table(activity=["often", "never"])
    assert membership(rows, "user", GroupConfig(column="activity"), np.zeros(2, int), 5)[1] == ["never", "often"]


def test_train_counts_are_rows_of_each_id() -> None:
    frame = pl.DataFrame({"item": [3, 1, 3, 3]}, {"item": pl.Int32})
    assert train_counts(frame, "item", 5).tolist() == [0, 1, 0, 3, 0]


def test_user_index_has_one_group_a_user_and_refuses_several() -> None:
    empty = pl.DataFrame()

    def index(column: Any) -> list[int]:
        return user_index(
            RecDataset("x", empty, table(x=column), empty), GroupConfig(column="x"), np.zeros(3), 5
        ).tolist()

    assert index(["b", None, "a"]) == [1, -1, 0]
    assert index([["b"], [], ["a"]]) == [1, -1, 0]
    with pytest.raises(RecpeftError, match="x has several values for one user"):
        index([["b", "a"], [], ["a"]])
