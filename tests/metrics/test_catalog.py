"""The catalogue of metrics: one file is all that a metric takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pydantic import ValidationError

import metrics
from datamodules._groups import GroupConfig
from experiments.config.evaluation import EvaluationConfig
from experiments.reporting._notes import _unmeasured
from metrics import catalog
from metrics._reference import reference
from recpeft.errors import RecpeftError

World = Any
FILE = '''"""Lengths: how long lists are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metrics._info import Derived, MetricInfo, PerUser, Reduced, Summed, same

if TYPE_CHECKING:
    from torch import Tensor

    from metrics import History, RankedLists
    from metrics.scores import ScoreBlock


def length(lists: RankedLists, k: int, had: Tensor) -> Tensor:
    """Length of the list over that of the user's history; of each user."""
    return lists.top(k).listed.sum(1) / had[lists.user]


def num_had(history: History) -> Tensor:
    """(num_users,) float64."""
    return history.offsets.diff().double()


def places(lists: RankedLists, k: int, num_items: int) -> Tensor:
    """() int64: places that hold an item."""
    return lists.top(k).listed.sum()


def total(sum: Tensor) -> Tensor:
    """Places that hold an item, of all users together."""
    return sum


def plain(lists: RankedLists, k: int) -> Tensor:
    """(U,) float64: length."""
    return lists.top(k).listed.sum(1).double()


def longest(means: Tensor) -> Tensor:
    """Mean length in the group that gets the longest lists."""
    return means.amax()


def in_group(sums: Tensor, membership: Tensor) -> Tensor:
    """Places over the group's number of items, of each group of items."""
    return sums / membership.sum(0)


def all_scores(block: ScoreBlock, groups: Tensor) -> Tensor:
    """(G,) float64: sum of the scores of each group's users."""
    return groups.double().T @ block.scores.double().sum(1)


def highest(sums: Tensor) -> Tensor:
    """Sum of the scores of the group with the highest."""
    return sums.amax()


_HAD = {"had": Derived(num_had, same("history"))}
_PLACES = Summed(places, same("num_items"))
METRICS = (
    MetricInfo("length", length, "-", "listed", inputs=_HAD, item_slices=True),
    MetricInfo("length_of_described", plain, "+", "all", inputs={}, also_needs=("grades",)),
    MetricInfo("total_length", total, "+", "all", "sums", {"sum": _PLACES}),
    MetricInfo("longest", longest, "-", "groups", "user_groups", {"means": Reduced(PerUser(plain), "mean")}),
    MetricInfo(
        "places", in_group, "0", "groups", "item_groups", {"sums": _PLACES, "membership": "item_groups"},
        per_group=True,
    ),
    MetricInfo(
        "highest", highest, "-", "all", "scores", {"sums": Summed(all_scores, same("groups"), by_group=True)}
    ),
)
'''


@pytest.fixture
def with_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file in the folder of metrics, and nothing else."""
    (tmp_path / "lengths.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    for name, info in catalog.collect().items():
        monkeypatch.setitem(catalog.METRICS, name, info)


NAMES = ["length", "length_gap", "length_worst", "length_cvar50", "total_length", "longest", "places"]


@pytest.mark.usefixtures("with_lengths")
def test_metrics_of_a_new_file_are_measured(world: World) -> None:
    measured = world.metrics(NAMES)
    measured.update(world.ranked)
    found = measured.compute()
    had = [len(history) for history in world.history_of]
    lengths = [len(listed[:5]) for listed in world.lists]
    values = [a / b if b else math.inf if a else math.nan for a, b in zip(lengths, had, strict=True)]
    columns = measured.per_user()["length@5"]
    assert [columns[user].item() for user in world.users] == pytest.approx(values, nan_ok=True)
    assert found["total_length@5"] == sum(lengths)
    gender = dict(enumerate(world.gender))
    means = [
        sum(of_group) / len(of_group)
        for group in (0, 1)
        if (of_group := [size for size, user in zip(lengths, world.users, strict=True) if gender[user] == group])
    ]
    assert found["longest_gender@5"] == pytest.approx(max(means))
    sizes = [world.item_group.count(group) for group in range(3)]
    assert [found[f"places_item_kind={label}@5"] for label in "xyz"] == pytest.approx(
        [sum(lengths) / size for size in sizes]
    )
    assert {"length_gap_gender@5", "length_worst_gender@5", "length_cvar50@5", "length_gender=F@5"} <= found.keys()
    assert "length_item_kind=x@5" in found  # of a part of the items


@pytest.mark.usefixtures("with_lengths")
def test_a_metric_of_scores_of_a_new_file_is_measured() -> None:
    scores, users = torch.arange(12.0).reshape(4, 3), torch.arange(4)
    measured = metrics.ScoreMetrics(3, {"gender": (torch.tensor([0, 1, -1, 1]), ["F", "M"])}, ["highest"])
    for part in users.split(2):
        measured.update(part, scores[part], None, (part[:0], part[:0]))
    assert measured.compute() == {"highest_gender": 3 + 4 + 5 + 9 + 10 + 11}


@pytest.mark.usefixtures("with_lengths")
def test_metrics_of_a_new_file_are_refused_or_noted_without_their_inputs(world: World) -> None:
    with pytest.raises(RecpeftError, match="the metric length needs history"):
        world.metrics(["length"], history=None)
    with pytest.raises(RecpeftError, match="the metric places needs item_groups"):
        world.metrics(["places"], item_groups={})
    record: Any = Mock(test={"length_of_described@5": None})
    record.config.evaluation.metrics = ["longest", "length_of_described"]
    assert _unmeasured([record]) == [
        "longest is not measured (–): it needs two groups of users",
        "length_of_described is not measured (–): it needs ratings",
    ]


@pytest.mark.usefixtures("with_lengths")
def test_metrics_of_a_new_file_are_monitored_in_their_direction() -> None:
    def monitored(monitor: str) -> EvaluationConfig:
        return EvaluationConfig(k=(5,), monitor=monitor, metrics=tuple(NAMES), groups=(GroupConfig(column="gender"),))

    assert monitored("length@5").lower_is_better
    assert not monitored("total_length@5").lower_is_better
    assert monitored("longest_gender@5").lower_is_better
    with pytest.raises(ValidationError, match="choose one of"):
        monitored("places_item_kind@5")  # it has a value for each group


@pytest.mark.usefixtures("with_lengths")
def test_metrics_of_a_new_file_are_documented() -> None:
    page = reference()
    assert "## lengths\n\nLengths: how long lists are." in page
    row = "| `length` | lower | users with a list | history |  |"
    assert f"{row}\n\nLength of the list over that of the user's history; of each user." in page
