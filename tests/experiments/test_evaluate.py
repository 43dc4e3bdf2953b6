"""Lists of other systems: judged as runs are, and whatever is wrong with them is said or refused, never passed over."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import experiments.finished.judge as module
from experiments import load_runs
from experiments.cell import allowed
from experiments.cell.allowed import known_matrix, liked_matrix
from experiments.cell.candidates import frozen_candidates
from experiments.cell.data import Prepared, prepare
from experiments.cell.ranker import fit_ranker
from experiments.cell.saved_run import finished
from experiments.cell.train import run
from experiments.cli.app import app
from experiments.config.run import RankerRun
from experiments.finished.judge import judge, read_lists
from experiments.records.record import RunFolder
from experiments.reporting import write_report
from metrics.catalog import METRICS
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

THREE_TO_FIND = "data.split={kind: per_user_temporal, ratios: [0.5, 0.25, 0.25]}"
"""Of the twelve items of each user the last three."""

Configured = Callable[..., RankerRun]


@pytest.fixture
def configured(study_file: Path) -> Configured:
    """The popularity run of the small world, with these overrides."""

    def make(*overrides: str) -> RankerRun:
        config = load_runs(study_file, ["references=[popularity]", *overrides])[0]
        assert isinstance(config, RankerRun)
        return config

    return make


def own_items(of: Prepared, user: str, part: str = "test") -> list[str]:
    """Raw ids of a user's items in a part of the split, by time; of a user unknown to the part none."""
    rows = getattr(of.split, part).sort("timestamp", maintain_order=True)
    number = of.dataset.users["raw_id"].to_list().index(user)
    return list(of.dataset.items["raw_id"].gather(rows.filter(pl.col("user") == number)["item"]))


def others(of: Prepared, user: str) -> list[str]:
    """Raw ids of items that are nothing to the user."""
    own = {item for part in ("train", "validation", "test") for item in own_items(of, user, part)}
    return [item for item in of.dataset.items["raw_id"] if item not in own]


def write(path: Path, rows: list[tuple[Any, ...]], by: str = "rank") -> Path:
    """``rows`` of user, item and rank or score, by the suffix."""
    frame = pl.DataFrame(rows, schema=["user", "item", by], orient="row", strict=False)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def ranked(user: str, items: list[str]) -> list[tuple[Any, ...]]:
    return [(user, item, place) for place, item in enumerate(items, 1)]


def judged(config: RankerRun, path: Path, name: str | None = None, out: str = "out") -> dict[str, Any]:
    return judge(read_lists(path, name), config, path.parent / out)


def per_user(config: RankerRun, record: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    frame = pl.read_parquet(RunFolder(out / config.study / record["run_id"]).per_user)
    return {row["raw_id"]: row for row in frame.to_dicts()}


# Numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_values_are_those_worked_by_hand(suffix: str, configured: Configured, tmp_path: Path) -> None:
    config = configured(THREE_TO_FIND, "evaluation.metrics=[precision, user_coverage]")
    of = prepare(config.data)
    first, second = own_items(of, "1"), own_items(of, "2")
    assert len(first) == len(second) == 3
    rows = [
        *ranked("1", [others(of, "1")[0], first[2], others(of, "1")[1], first[0]]),  # found at 2 and 4
        *ranked("2", [second[1]]),
    ]
    path = write(tmp_path / f"peer{suffix}", rows)
    record = judged(config, path)
    values = per_user(config, record, tmp_path / "out")
    assert len(values) == 40
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    expected = {
        "1": {"ndcg@5": (1 / math.log2(3) + 1 / math.log2(5)) / ideal, "recall@5": 2 / 3, "mrr@5": 1 / 2, "ndcg@1": 0},
        "2": {"ndcg@5": 1 / ideal, "recall@5": 1 / 3, "mrr@5": 1, "ndcg@1": 1},
        "3": {"ndcg@5": 0, "recall@5": 0, "mrr@5": 0, "ndcg@1": 0},
    }
    for user, row in expected.items():
        for metric, value in row.items():
            assert values[user][metric] == pytest.approx(value, abs=1e-9), (user, metric)
    test = record["test"]
    for metric in ("ndcg@5", "recall@5", "mrr@5", "ndcg@1"):
        assert test[metric] == pytest.approx(sum(row[metric] for row in expected.values()) / 40, abs=1e-9)
    assert test["precision@5"] == pytest.approx(3 / 5 / 40, abs=1e-9)
    assert test["users"] == 40
    assert test["user_coverage@5"] == 2 / 40
    assert test["item_coverage@5"] == len({item for _, item, _ in rows}) / 30
    assert record["recommendations"] | {"hash": ""} == {
        "file": path.name, "hash": "", "by": "rank", "rows": 5, "users": 2, "users_judged": 40,
        "users_without_list": 38, "unknown_users": 0, "users_not_tested": 0, "rows_beyond_k": 0, "places": 5,
        "out_of_catalogue": 0, "repeated": 0, "seen": 0, "no_candidate": 0, "empty_places": 0,
    }  # fmt: skip


EVERY_METRIC = [
    name
    for name, info in METRICS.items()
    if info.kind in ("per_user", "sums", "item_groups", "user_groups") and not {"grades", "impressions"} & {*info.needs}
]


@pytest.mark.parametrize("by", ["score", "rank"])
@pytest.mark.parametrize(
    "overrides",
    [
        [f"evaluation.metrics={json.dumps([*EVERY_METRIC, 'ndcg_std', 'ndcg_cvar50', 'recall_user_gini'])}"],
        ["evaluation.mask_seen=false"],
        ["evaluation.test_users=17", THREE_TO_FIND],
        ["evaluation.candidates={kind: uniform, size: 10}", THREE_TO_FIND],
        ["evaluation.candidates={kind: first_stage, size: 8, ranker: {name: ease, l2: [10.0]}}"],
        ["data.liked_from=4", THREE_TO_FIND],
    ],
    ids=["every_metric", "unmasked", "some_users", "uniform", "first_stage", "liked"],
)
def test_popularitys_own_lists_give_the_record_of_the_popularity_run(
    overrides: list[str], by: str, configured: Configured, tmp_path: Path
) -> None:
    config = configured(*overrides)
    expected = run(config, tmp_path / "runs")
    record = judged(
        config, own_lists(config, tmp_path / f"lists.{'parquet' if by == 'rank' else 'csv'}", by), out="runs"
    )
    if by == "rank":  # a file of ranks does not say what was tied
        assert expected["test"].pop("tie_rate") > 0
        assert record["test"].pop("tie_rate") == 0
    assert record["test"] == expected["test"]
    for field in ("monitor", "data", "candidates", "versions", "device", "threads", "audit", "schema", "status"):
        assert record[field] == expected[field], field
    frames = [
        pl.read_parquet(RunFolder(tmp_path / "runs" / config.study / of["run_id"]).per_user)
        for of in (record, expected)
    ]
    assert frames[0].equals(frames[1])
    unusable = ("out_of_catalogue", "repeated", "seen", "no_candidate", "empty_places", "users_without_list")
    assert [record["recommendations"][key] for key in unusable] == [0] * len(unusable)


def own_lists(config: RankerRun, path: Path, by: str) -> Path:
    """What the run's ranker recommends, in an order of rows that says nothing: all scores, or places among ties that
    ``rank`` drew (read off the metrics' input)."""
    of = prepare(config.data)
    evaluation = config.evaluation
    ranker = fit_ranker(config.ranker, of, evaluation)
    users, items = (table["raw_id"].to_list() for table in (of.dataset.users, of.dataset.items))
    scores = ranker.score(np.arange(len(users)), liked_matrix(of, True)).double()
    hidden = torch.from_numpy(known_matrix(of, True).toarray() > 0) & evaluation.mask_seen
    frozen = frozen_candidates(of, evaluation, None)
    if frozen is not None:
        listed = torch.zeros_like(hidden)
        listed[torch.tensor(frozen.test["user"].to_list()), torch.tensor(frozen.test["item"].to_list())] = True
        hidden |= ~listed
    rows = []
    if by == "score":
        for user, item in (~hidden).nonzero().tolist():
            rows.append((users[user], items[item], float(scores[user, item])))
    else:
        from metrics import rank

        none = torch.empty(0, dtype=torch.int64)
        lists = rank(scores, torch.arange(len(users)), hidden, (none, none), max(evaluation.k), 0)
        for user, row in enumerate(lists.item.tolist()):
            rows += [(users[user], items[item], place) for place, item in enumerate(row, 1) if item >= 0]
    shuffled = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    return write(path, shuffled, by)


def test_equal_scores_are_ordered_by_the_draw_and_not_by_the_file(configured: Configured, tmp_path: Path) -> None:
    """All equal: whatever the order of the rows, the same lists, at chance level and called tied."""
    config = configured("evaluation.mask_seen=false")
    of = prepare(config.data)
    rows = [(user, item, 0.5) for user in of.dataset.users["raw_id"] for item in of.dataset.items["raw_id"]]
    hits = {user: own_items(of, user) for user in of.dataset.users["raw_id"]}
    best_first = sorted(rows, key=lambda row: row[1] not in hits[row[0]])
    found = [
        judged(config, write(tmp_path / f"{name}.csv", order, "score"))["test"]
        for name, order in (("best", best_first), ("worst", best_first[::-1]))
    ]
    assert found[0] == found[1]
    assert found[0]["tie_rate"] == 1
    assert 0 < found[0]["hit_rate@5"] < 0.4  # 5 of 30 are 1/6


@pytest.mark.parametrize(
    ("scores", "tied"), [([3, 2, 1, 1], 0), ([3, 3, 1, 0], 1), ([2, 1, 1, 1], 1), ([3, 2, 2, 1], 1)]
)
def test_a_list_is_tied_where_equal_scores_touch_what_is_listed(
    scores: list[int], tied: int, configured: Configured, tmp_path: Path
) -> None:
    """Two places: the third score may be equal to the second, the fourth to the third may not matter."""
    config = configured("evaluation={k: [2], monitor: ndcg@2}")
    items = others(prepare(config.data), "1")
    rows = [("1", item, score) for item, score in zip(items, scores, strict=False)]
    assert judged(config, write(tmp_path / "a.csv", rows, "score"))["test"]["tie_rate"] == tied / 40


def test_what_is_no_item_takes_part_in_the_draw_by_its_own_text(configured: Configured, tmp_path: Path) -> None:
    config = configured("evaluation={k: [1], monitor: ndcg@1}")
    of = prepare(config.data)
    at_first = []
    for word in "abcdefgh":
        rows = [("1", own_items(of, "1")[0], 1.0), ("1", word, 1.0)]
        record = judged(config, write(tmp_path / "a.csv", rows, "score"))
        more = judged(config, write(tmp_path / "b.csv", [("2", "Z", 1.0), ("2", "A", 1.0), *rows], "score"))
        assert record["test"]["hit_rate@1"] == more["test"]["hit_rate@1"]
        at_first.append(record["test"]["hit_rate@1"] > 0)
    assert 0 < sum(at_first) < 8


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_that_float32_cannot_tell_apart_still_order_a_list(
    suffix: str, configured: Configured, tmp_path: Path
) -> None:
    config = configured()
    of = prepare(config.data)
    below = [("1", item, 1.0) for item in others(of, "1")[:4]]
    rows = [*below, ("1", own_items(of, "1")[0], 1.0 + 1e-12)]
    record = judged(config, write(tmp_path / f"a{suffix}", rows, "score"))
    assert record["test"]["mrr@1"] == 1 / 40


# What is not in order but can be judged ---------------------------------------------------------------


@pytest.mark.parametrize("by", ["rank", "score"])
@pytest.mark.parametrize("reason", ["out_of_catalogue", "repeated", "seen", "seen_at_validation", "no_candidate"])
def test_what_cannot_be_recommended_is_a_miss_at_its_place(
    reason: str, by: str, configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At place 2 of 3, so that a hit behind it would move up from 3 to 2 if it were dropped."""
    config = configured(*(["evaluation.candidates={kind: uniform, size: 5}"] if reason == "no_candidate" else []))
    of = prepare(config.data)
    free, hit, k = others(of, "1"), own_items(of, "1")[0], "5"
    if reason == "no_candidate":
        frozen = frozen_candidates(of, config.evaluation, None)
        assert frozen is not None
        of_user = {of.dataset.items["raw_id"][item] for user, item in frozen.test.iter_rows() if user == 0}
        free, bad = [item for item in free if item in of_user], next(item for item in free if item not in of_user)
        k = "5/uniform5"
    else:
        bad = {
            "out_of_catalogue": "no such item",
            "repeated": free[0],
            "seen": own_items(of, "1", "train")[0],
            "seen_at_validation": own_items(of, "1", "validation")[0],
        }[reason]
    rows = ranked("1", [free[0], bad, hit])
    if by == "score":
        rows = [(user, item, -place) for user, item, place in rows]
    record = judged(config, write(tmp_path / "peer.csv", rows, by))
    assert per_user(config, record, tmp_path / "out")["1"][f"mrr@{k}"] == pytest.approx(1 / 3)
    assert record["test"][f"item_coverage@{k}"] == 2 / 30
    key = reason.removesuffix("_at_validation")
    counts = {name: record["recommendations"][name] for name in module._UNUSABLE}
    assert counts == dict.fromkeys(counts, 0) | {key: 1}
    said = f"peer.csv: {module._UNUSABLE[key]}, counted as misses: 1, the first in row 3"
    assert capsys.readouterr().out.splitlines().count(said) == 1


def test_an_item_that_repeats_is_found_once(configured: Configured, tmp_path: Path) -> None:
    config = configured(THREE_TO_FIND)
    hit = own_items(prepare(config.data), "1")[0]
    record = judged(config, write(tmp_path / "peer.csv", ranked("1", [hit, hit, hit, "x", "x"])))
    values = per_user(config, record, tmp_path / "out")["1"]
    assert values["recall@5"] == pytest.approx(1 / 3)
    assert record["recommendations"]["repeated"] == 2
    assert record["recommendations"]["out_of_catalogue"] == 2


def test_seen_items_are_items_where_nothing_is_masked(configured: Configured, tmp_path: Path) -> None:
    config = configured("evaluation.mask_seen=false")
    seen = own_items(prepare(config.data), "1", "train")
    record = judged(config, write(tmp_path / "peer.csv", ranked("1", seen[:3])))
    assert record["recommendations"]["seen"] == 0
    assert record["test"]["item_coverage@5"] == 3 / 30


def test_items_of_another_domain_are_no_candidates(
    configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured()
    items = others(prepare(config.data), "1")
    elsewhere = prepare(config.data).dataset.items["raw_id"] == items[0]
    monkeypatch.setattr(allowed, "unavailable", lambda dataset, users: np.tile(elsewhere.to_numpy(), (len(users), 1)))
    record = judged(config, write(tmp_path / "peer.csv", ranked("1", items[:2])))
    assert record["recommendations"]["no_candidate"] == 1
    assert record["test"]["item_coverage@5"] == 1 / 30


def test_users_who_are_not_tested_are_left_out_and_counted(
    configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured("evaluation.test_users=10")
    of = prepare(config.data)
    everyone = of.dataset.users["raw_id"].to_list()
    rows = [row for user in [*everyone, "nobody", "no one"] for row in ranked(user, own_items_or_any(of, user))]
    record = judged(config, write(tmp_path / "peer.csv", rows))
    assert record["test"]["users"] == 10
    assert record["test"]["recall@1"] == 1
    counts = record["recommendations"]
    assert (counts["unknown_users"], counts["users_not_tested"], counts["users_without_list"]) == (2, 30, 0)
    assert counts["users"] == 42
    printed = capsys.readouterr().out
    assert "peer.csv: users that are not in the data, left out: 2\n" in printed
    assert "peer.csv: users that are not tested, left out: 30\n" in printed
    assert "without a list" not in printed


def own_items_or_any(of: Prepared, user: str) -> list[str]:
    return own_items(of, user) if user in of.dataset.users["raw_id"] else ["1"]


def test_lists_are_cut_at_the_largest_k_and_may_be_shorter(
    configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured()
    of = prepare(config.data)
    free = others(of, "1")
    long = [*free[:5], own_items(of, "1")[0], free[0], "x"]  # what is cut off is not looked at
    record = judged(config, write(tmp_path / "peer.csv", [*ranked("1", long), *ranked("2", own_items(of, "2"))]))
    values = per_user(config, record, tmp_path / "out")
    assert values["1"]["recall@5"] == 0
    assert values["2"]["recall@5"] == 1
    counts = record["recommendations"]
    assert (counts["rows_beyond_k"], counts["places"], counts["repeated"], counts["out_of_catalogue"]) == (3, 6, 0, 0)
    printed = capsys.readouterr().out
    assert "peer.csv: rows behind the largest of evaluation.k, cut off: 3\n" in printed
    assert "peer.csv: of the 40 test users those without a list, counted as empty: 38\n" in printed


def test_a_place_that_the_ranks_leave_out_stays_empty(
    configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured()
    of = prepare(config.data)
    rows = [("1", own_items(of, "1")[0], 4), ("1", others(of, "1")[0], 1)]
    record = judged(config, write(tmp_path / "peer.csv", rows))
    assert per_user(config, record, tmp_path / "out")["1"]["mrr@5"] == pytest.approx(1 / 4)
    assert record["recommendations"]["empty_places"] == 2
    assert "peer.csv: places that the ranks leave out, counted as misses: 2\n" in capsys.readouterr().out


def test_what_is_disliked_is_not_to_be_found(configured: Configured, tiny_data: Path, tmp_path: Path) -> None:
    """Of each user's last three items the first is rated 3, the others 4 and 5; from 4 on they are likes."""
    shutil.copytree(tiny_data, tmp_path / "data")
    file = tmp_path / "data" / "ml-100k.inter"
    header, *rows = file.read_text().splitlines()
    for n, row in enumerate(rows):
        user, item, _, time = row.split("\t")
        rows[n] = f"{user}\t{item}\t{3 + n % 3}\t{time}"
    file.write_text("\n".join([header, *rows]) + "\n")
    config = configured(f"data={{source: movielens, path: '{tmp_path / 'data'}', liked_from: 4}}", THREE_TO_FIND)
    of = prepare(config.data)
    lists = {user: own_items(of, user) for user in of.dataset.users["raw_id"]}
    assert {len(items) for items in lists.values()} == {3}
    record = judged(
        config, write(tmp_path / "peer.csv", [row for user in lists for row in ranked(user, lists[user][:2])])
    )
    test = record["test"]
    assert (test["users_with_relevant"], test["mrr@5"], test["recall@5"], test["recall@1"]) == (40, 1 / 2, 1 / 2, 0)
    config = configured("data.liked_from=4")  # a user's ratings are all alike
    of = prepare(config.data)
    found = [row for user in of.dataset.users["raw_id"] for row in ranked(user, own_items(of, user))]
    record = judged(config, write(tmp_path / "peer.csv", found))
    assert record["test"]["users"] == record["test"]["users_with_relevant"] == 26
    assert record["recommendations"]["users_not_tested"] == 14
    assert record["test"]["recall@1"] == 1


def test_the_rank_counts_where_both_are_there_and_numbers_are_ids(configured: Configured, tmp_path: Path) -> None:
    config = configured()
    of = prepare(config.data)
    hit, other = int(own_items(of, "1")[0]), int(others(of, "1")[0])
    frame = pl.DataFrame(
        {"score": [math.nan, 9.0], "rank": [1.0, 2.0], "item": [hit, other], "user": [1, 1], "model": "m"}
    )
    frame.write_parquet(tmp_path / "peer.parquet")
    record = judged(config, tmp_path / "peer.parquet")
    assert record["recommendations"]["by"] == "rank"
    assert record["test"]["mrr@1"] == 1 / 40


# What is refused --------------------------------------------------------------------------------------

BAD: dict[str, tuple[str, str]] = {
    "rank_zero": (
        "user,item,rank\n1,5,0\n",
        "row 2: rank is 0; number each user's list 1, 2, 3 and so on.",
    ),
    "rank_fraction": ("user,item,rank\n1,5,1\n1,6,1.5\n", "row 3: rank is 1.5; number each user's list 1, 2, 3"),
    "rank_text": ("user,item,rank\n1,5,first\n", "row 2: rank is first; number"),
    "rank_missing": ("user,item,rank\n1,5,\n", "row 2: rank is empty; number"),
    "rank_infinite": ("user,item,rank\n1,5,inf\n", "row 2: rank is inf; number"),
    "rank_twice": (
        "user,item,rank\n1,5,1\n2,5,1\n1,6,1\n",
        "row 4: rank 1 stands there a second time for user '1'; number",
    ),
    "all_at_once": (
        "user,item,rank\n1,5,0\n,5,1\n1,,-2\n",
        "4 problems: row 2: rank is 0; number each user's list 1, 2, 3 and so on; row 3: user is empty; "
        "give each row the id of its user; row 4: item is empty; give each row the id of its item; row 4: rank is -2;",
    ),
    "score_nan": (
        "user,item,score\n1,5,0.5\n1,6,NaN\n",
        "row 3: score is NaN; give a finite number, and leave out what is not recommended.",
    ),
    "score_infinite": ("user,item,score\n1,5,-inf\n", "row 2: score is -inf; give a finite number"),
    "score_missing": ("user,item,score\n1,5,\n", "row 2: score is empty; give a finite number"),
    "no_user": (
        "customer,item,rank\n1,5,1\n",
        "has no column user; it has customer, item, rank; name the columns user, item and rank or score.",
    ),
    "no_item": ("user,rank\n1,1\n", "has no column item; it has user, rank; name the columns"),
    "no_rank": (
        "user,item,place\n1,5,1\n",
        "has no column rank or score; it has user, item, place; name the columns user, item and rank or score.",
    ),
    "a_column_twice": ("user,item,rank,rank\n1,5,1,2\n", "has 2 columns named 'rank'; give each its own name."),
    "empty": ("", "is empty; give a file with rows."),
    "header_alone": ("user,item,rank\n", "is empty; give a file with rows."),
    "too_many_cells": ("user,item,rank\n1,Alien, The,1\n", "row 2: 4 cells, where there are 3 columns; mend it."),
    "a_quote": ('user,item,rank\n1,"5,1\n', 'row 2: a quote (") without its pair; mend it.'),
    "latin_1": ("user,item,rank\n1,é,1\n", "row 2: byte 3 is not UTF-8; save the file as UTF-8."),
}


@pytest.mark.parametrize("bad", list(BAD))
def test_a_file_that_cannot_be_judged_is_refused_with_a_sentence(bad: str, tmp_path: Path) -> None:
    content, expected = BAD[bad]
    path = tmp_path / "peer.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(RecpeftError) as error:
        read_lists(path)
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert "data." not in str(error.value)


def test_more_than_ten_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "peer.csv", [("1", str(n), 0) for n in range(25)])
    with pytest.raises(RecpeftError, match=r"25 problems: row 2: .*; row 11: [^;]*; [^;]*; and 15 more\.$"):
        read_lists(path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"user": [1.0], "item": ["5"], "rank": [1]},
            "column user is of type Float64; give the data's own ids as text",
        ),
        ({"user": ["1"], "item": [["5"]], "rank": [1]}, "column item is of type List(String); give the data's own ids"),
        ({"user": ["1"], "item": ["5"], "rank": [True]}, "column rank is of type Boolean; give numbers."),
        ({"user": ["1"], "item": ["5"], "score": [math.nan]}, "row 1: score is NaN; give a finite number"),
        ({"user": ["1"], "item": ["5"], "score": [None]}, "row 1: score is empty; give a finite number"),
        ({"user": ["1"] * 2, "item": ["5", "6"], "rank": [1, 1]}, "row 2: rank 1 stands there a second time for user"),
        ({"user": [], "item": [], "rank": []}, "is of type Null; give the data's own ids"),
    ],
)
def test_a_parquet_file_that_cannot_be_judged_is_refused(
    columns: dict[str, list[Any]], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "peer.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(RecpeftError, match=re.escape(words)) as error:
        read_lists(path)
    assert str(error.value).startswith(str(path))


def test_what_is_no_file_of_recommendations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"there is no file .*none\.csv; give a file of recommendations\.$"):
        read_lists(tmp_path / "none.csv")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(RecpeftError, match=r"there is no file .*folder\.parquet"):
        read_lists(tmp_path / "folder.parquet")
    with pytest.raises(RecpeftError, match=r"peer\.xlsx is of an unknown kind; .*\.csv, \.tsv, \.parquet"):
        read_lists(tmp_path / "peer.xlsx")
    (tmp_path / "noise.parquet").write_bytes(bytes(range(256)))
    with pytest.raises(RecpeftError, match=r"noise\.parquet could not be read \(.*\); give a whole Parquet file\."):
        read_lists(tmp_path / "noise.parquet")


def test_a_file_without_a_test_user_is_refused_and_writes_nothing(configured: Configured, tmp_path: Path) -> None:
    config = configured("evaluation.candidates={kind: uniform, size: 5}")
    path = write(tmp_path / "peer.csv", [("user_1", "5", 1)])
    words = "peer.csv: column user holds none of the 40 test users: in row 2 it is 'user_1', where a test user is '1'; "
    with pytest.raises(RecpeftError, match=re.escape(words)):
        judged(config, path)
    assert not (tmp_path / "out").exists()


def test_without_anything_to_find_nothing_is_judged(configured: Configured, tmp_path: Path) -> None:
    config = configured("data.liked_from=6")
    with pytest.raises(RecpeftError, match=r"test holds nothing that is liked.*lower data\.liked_from"):
        judged(config, write(tmp_path / "peer.csv", [("1", "5", 1)]))


def test_judgements_of_pairs_cannot_be_read_off_lists(configured: Configured, tmp_path: Path) -> None:
    config = configured("data.liked_from=4", "evaluation={k: [1], monitor: auc, candidates: rated}")
    with pytest.raises(
        RecpeftError, match=r"kind is rated.*lists hold no judgement of pairs; set evaluation\.candidates"
    ):
        judged(config, write(tmp_path / "peer.csv", [("1", "5", 1)]))


@pytest.mark.parametrize(("name", "words"), [("", "''"), ("a\nb", "printed"), ("frozen", "a study's control")])
def test_a_name_that_a_table_cannot_show_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"^--name is .*" + words):
        read_lists(write(tmp_path / "peer.csv", [("1", "5", 1)]), name)


# The record --------------------------------------------------------------------------------------------


def test_the_run_id_is_of_content_name_data_and_evaluation(configured: Configured, tmp_path: Path) -> None:
    lists = read_lists(write(tmp_path / "a.csv", [("1", "5", 1)]), "peer")
    same = read_lists(write(tmp_path / "b.csv", [("1", "5", 1)]), "peer")
    base = judge(lists, configured(), tmp_path)["run_id"]
    assert re.fullmatch(r"[0-9a-f]{12}", base)
    assert judge(same, configured("study=other"), tmp_path)["run_id"] == base
    changed = [
        judge(read_lists(write(tmp_path / "c.csv", [("1", "6", 1)]), "peer"), configured(), tmp_path),
        judge(read_lists(tmp_path / "a.csv", "other"), configured(), tmp_path),
        judge(lists, configured("evaluation.mask_seen=false"), tmp_path),
        judge(lists, configured(THREE_TO_FIND), tmp_path),
    ]
    assert len({base, *(record["run_id"] for record in changed)}) == 5


def test_a_report_shows_lists_beside_a_run(
    configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured()
    out = tmp_path / "runs"
    expected = run(config, out)["test"]
    path = own_lists(config, tmp_path / "peer.csv", "score")
    judge(read_lists(path), config, out)
    judge(read_lists(path, "popularity"), config, out)  # the name of a run
    hits = {user: own_items(prepare(config.data), user) for user in ("1", "2")}
    for user, items in hits.items():  # two files of one name
        judge(read_lists(write(tmp_path / f"{user}.csv", ranked(user, items)), "two"), config, out)
    capsys.readouterr()
    write_report(out / config.study, page=False)
    rows = [line.strip("| ").split(" | ") for line in (out / config.study / "report.md").read_text().splitlines()]
    rows = [row for row in rows if len(row) > 5][2:]
    assert len(rows) == 5
    names = [row[0] for row in rows]
    assert [re.sub(r"hash=\w{16}", "hash=…", name) for name in names] == [
        "popularity [ranker=popularity]",
        "popularity [recommendations=popularity, hash=…]",
        "peer",
        "two [hash=…]",
        "two [hash=…]",
    ]
    assert len(set(names)) == 5
    peer = rows[2]
    assert peer[1] == "–"
    assert peer[2].startswith(f"{expected['ndcg@5']:.4f} [")
    assert peer[2:11] == rows[0][2:11] == rows[1][2:11]
    for row in rows[3:]:
        assert row[2].startswith(f"{1 / 40:.4f} [")
    notes = (out / config.study / "report.md").read_text()
    assert "CAREFUL" not in notes
    assert "NOT COMPARABLE" not in notes
    assert "two [hash=" in capsys.readouterr().out


def test_lists_have_no_model_to_be_exported(configured: Configured, tmp_path: Path) -> None:
    config = configured()
    of = prepare(config.data)
    user = str(of.dataset.users["raw_id"][0])
    record = judged(config, write(tmp_path / "mine.csv", ranked(user, others(of, user)[:3])))
    with pytest.raises(RecpeftError, match=r"holds judged lists \(recpeft evaluate\), which have no text model"):
        finished(tmp_path / "out" / config.study / record["run_id"])


def test_a_cell_is_not_taken_to_be_compared_with_lists_that_are_called_ease(
    configured: Configured, tmp_path: Path
) -> None:
    config = configured()
    record = judge(read_lists(write(tmp_path / "ease.csv", [("1", "5", 1)])), config, tmp_path)
    study = tmp_path / config.study
    cell = study / "cell"
    shutil.copytree(study / record["run_id"], cell)
    sections = {key: value for key, value in record["config"].items() if key != "recommendations"}
    of_cell = {"run_id": "cell", "method": "lora", "width": "none", "reference": False}
    of_cell["config"] = {**sections, "seed": 0, "adapter": {"method": "lora"}}
    (cell / "result.json").write_text(json.dumps(record | of_cell))
    write_report(study, page=False)
    report = (study / "report.md").read_text()
    assert [line.split(" | ")[0] for line in report.splitlines() if line.startswith("|")][2:] == ["| ease", "| lora"]
    assert " minus " not in report


# The command line --------------------------------------------------------------------------------------


def recpeft(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import atexit, sys; from experiments.cli import main;"
        "atexit.register(lambda: print('torch' in sys.modules, 'polars' in sys.modules)); main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"RECPEFT_HOME": str(cwd / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_and_a_mistake_in_the_experiment_file_wait_for_nothing_heavy(tmp_path: Path) -> None:
    done = recpeft(tmp_path, "evaluate", "--help")
    assert done.returncode == 0
    assert "--recommendations" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"
    done = recpeft(tmp_path, "evaluate", "--recommendations", "peer.csv", "--data", "none.yaml")
    assert done.returncode == 2
    assert done.stderr == "recpeft: there is no file none.yaml; give an experiment YAML.\n"
    assert done.stdout.splitlines()[-1] == "False False"


def test_the_command_writes_the_record_that_the_function_writes(
    study_file: Path, configured: Configured, tmp_path: Path
) -> None:
    config = configured("study=peers")
    path = write(tmp_path / "peer.csv", [*ranked("1", own_items(prepare(config.data), "1")), ("x", "1", 1)])
    expected = judged(config, path, "Peer 1.0")
    arguments = ["evaluate", "--recommendations", str(path), "--data", str(study_file), "--set", "study=peers"]
    done = recpeft(
        tmp_path,
        *arguments,
        "--set",
        "grid={evaluation.mask_seen: [true, false]}",
        "--name",
        "Peer 1.0",
        "--out",
        "new",
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "new" / "peers" / expected["run_id"]
    record = json.loads((folder / "result.json").read_text())
    record["costs"] = expected["costs"]
    assert record == expected
    assert (folder / "per_user.parquet").exists()
    lines = done.stdout.splitlines()
    assert (
        lines[0] == f"{study_file}: runs differ in data or evaluation; those of the first are taken, --set gives others"
    )
    assert "peer.csv: users that are not in the data, left out: 1" in lines
    assert lines[-2] == f"Peer 1.0: test ndcg@5 0.0250, in {Path('new') / 'peers' / expected['run_id']}"


def test_a_refusal_names_the_file_that_is_to_be_mended(study_file: Path, tmp_path: Path) -> None:
    """The lists' alone for what they hold, both for what does not fit."""
    path = tmp_path / "peer.csv"
    arguments = ["evaluate", "--recommendations", str(path), "--data", str(study_file), "--out", str(tmp_path / "out")]
    for content, words in {
        "user,item,rank\n1,5,0\n": f"{path}: row 2: rank is 0; number each user's list 1, 2, 3 and so on.",
        "user,item,rank\nx,5,1\n": f"{study_file}: {path}: column user holds none of the 40 test users: ",
    }.items():
        path.write_text(content)
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, RecpeftError)
        assert str(done.exception).startswith(words)
    assert not (tmp_path / "out").exists()
