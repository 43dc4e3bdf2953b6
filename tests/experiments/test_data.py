"""What is fitted before training is fitted on train alone, and what leaks is told in words."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer

from datamodules import TextPairDataModule
from datamodules._groups import GroupConfig, train_counts, user_index
from datamodules._negatives import NegativesConfig
from datamodules._splits import split
from experiments.cell.candidates import frozen_candidates
from experiments.cell.data import Prepared, audit_line, prepare, warnings
from experiments.cell.ranker import fit_ranker, run_ranker
from experiments.cell.suite import ranking_metrics
from experiments.cell.train import run, run_trial
from experiments.config.evaluation import CandidatesConfig, EvaluationConfig
from experiments.config.grid import load_runs
from experiments.config.run import RankerRun, TextRun, build_run
from experiments.records.record import RunFolder
from rankers.ease import Config as Ease
from rankers.popularity import Config as Popularity
from recpeft.config import plain
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin


def prepared(**options: Any) -> Prepared:
    sizes = {"source": "synthetic", "num_users": 60, "num_items": 80, "interactions_per_user": 10}
    source: Any = build_plugin("datamodules", "source", {**sizes, **options}, "data")
    return prepare(source)


EVALUATION = EvaluationConfig(
    k=(5,),
    monitor="ndcg@5",
    groups=(GroupConfig(column="activity"), GroupConfig(column="group")),
    item_groups=(GroupConfig(column="popularity"),),
    cold_below=7,
)


def changed_tests(of: Prepared) -> dict[str, Prepared]:
    """The same data with other test rows: permuted among users, of one item alone, of one user alone."""
    test = of.split.test
    first = test["user"][0]
    frames = {
        "permuted": test.with_columns(item=pl.col("item").reverse()),
        "one item": test.with_columns(item=pl.lit(3, pl.Int32)),
        "one user": test.filter(pl.col("user") == first),
    }
    others = of.dataset.interactions.join(test, on=["user", "item", "timestamp"], how="anti")
    return {
        name: dataclasses.replace(
            of,
            dataset=dataclasses.replace(of.dataset, interactions=pl.concat([others, frame], how="diagonal")),
            split=dataclasses.replace(of.split, test=frame),
        )
        for name, frame in frames.items()
    }


def fitted(of: Prepared, backbone: Path) -> dict[str, Any]:
    """Everything that is counted before or beside training, as plain lists."""
    metric = ranking_metrics(of, EVALUATION)
    negatives = NegativesConfig(uniform=3, popularity=5)
    data = TextPairDataModule(of.dataset, of.split, AutoTokenizer.from_pretrained(backbone), negatives=negatives)
    counts = train_counts(of.split.train, "user", of.dataset.num_users)
    ranker: Any = fit_ranker(Popularity(name="popularity"), of, EVALUATION)
    batch = data.train_batch(3)
    drawn = EVALUATION.model_copy(update={"candidates": CandidatesConfig(kind="popularity", size=9)})
    first = CandidatesConfig(kind="first_stage", size=9, ranker=Ease(name="ease"))
    found = [frozen_candidates(of, each, None) for each in (drawn, EVALUATION.model_copy(update={"candidates": first}))]
    return {
        "candidates and proposals": [each.validation.rows() for each in found if each is not None],
        "what EASE chooses, and by which values": dict(fit_ranker(Ease(name="ease"), of, drawn).details),
        "train_counts": metric.train_counts.tolist(),
        "num_train_users": metric.num_train_users,
        "groups and slices": metric.membership.tolist(),
        "item groups": metric.item_membership.tolist(),
        "log_q": data._log_q.tolist(),
        "popularity weights": data._negatives._popularity.tolist(),
        "balance": user_index(of.dataset, GroupConfig(column="activity"), counts, 7).tolist(),
        "popularity ranker": ranker.train_users.tolist(),
        "a batch": [batch.item.tolist(), batch.positive.tolist(), batch.excluded.tolist()],
    }


@pytest.mark.parametrize("split", ["per_user_temporal", "random_ratio", "global_temporal", "item_holdout"])
def test_no_statistic_moves_with_the_test_rows(split: str, tiny_backbone: Path) -> None:
    own = prepared(split=split)
    expected = fitted(own, tiny_backbone)
    for name, other in changed_tests(own).items():
        assert fitted(other, tiny_backbone) == expected, name
    # And the statistics are such that a row more would be seen.
    assert sum(expected["train_counts"]) == own.split.train.height
    with_test = dataclasses.replace(own.split, train=pl.concat([own.split.train, own.split.test]), places=None)
    leaky = fitted(dataclasses.replace(own, split=with_test), tiny_backbone)
    for name in ("train_counts", "log_q", "popularity weights", "popularity ranker"):
        assert leaky[name] != expected[name], name


def test_train_counts_are_users_of_each_item_by_a_plain_loop() -> None:
    own = prepared(split="random_ratio")
    metric = ranking_metrics(own, EVALUATION)
    users: dict[int, set[int]] = {}
    for user, item in own.split.train.select("user", "item").iter_rows():
        users.setdefault(item, set()).add(user)
    assert metric.train_counts.tolist() == [len(users.get(item, ())) for item in range(80)]
    rows = [own.split.train.filter(pl.col("user") == user).height for user in range(60)]
    assert list(metric.slices) == ["activity", "group"]
    assert metric.slices["activity"][0] == "cold"
    assert metric.membership[:, 0].tolist() == [count < 7 for count in rows]
    assert torch.equal(metric.item_membership[:, 0], metric.train_counts < 7)  # familiarity comes first


# The audit in words ------------------------------------------------------------------------------------


def test_the_audit_is_one_line_with_the_hashes_of_what_was_used() -> None:
    record = prepared().record
    line = audit_line(record, "c" * 16, "p" * 16)
    assert "\n" not in line
    assert line.startswith("audit: per_user_temporal: train ends ")
    for name, value in [("data", record["hash"]), ("split", record["split"]["hash"]), ("candidates", "c" * 16)]:
        assert f"{name} {value}" in line
    assert line.endswith(f"prompt {'p' * 16}")
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", line))) == 3
    assert "candidates full" in audit_line(record)
    assert "prompt" not in audit_line(record)


def test_the_audit_line_says_what_the_audit_counted() -> None:
    record = prepared(split="random_ratio").record
    audit = record["split"]["audit"] | {"train_max_time": 1_514_764_799, "test_min_time": 1_500_000_000}
    record = {**record, "split": {**record["split"], "audit": audit}}
    line = audit_line(record)
    assert "train ends 2017-12-31 23:59:59, test begins 2017-07-14 02:40:00" in line
    assert f"users out of order {audit['users_out_of_order']};" in line
    early, rows = audit["test_rows_before_train_end"], audit["test_rows"]
    assert f"test rows before the last train row {early:,} of {rows:,};" in line
    assert f"new in test {audit['users_new_in_test']} users, {audit['items_new_in_test']} items;" in line
    assert "duplicates across parts 0; statistics from train;" in line


def test_data_without_times_say_so(tmp_path: Path) -> None:
    rows = [f"{user},{item}" for user in range(30) for item in range(user % 7, user % 7 + 12)]
    (tmp_path / "rows.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *(f"{n},Film {n}" for n in range(20))]) + "\n")
    table = {"source": "tabular", "path": str(tmp_path), "interactions": "rows.csv", "items": "items.csv"}
    source: Any = build_plugin("datamodules", "source", {**table, "split": "random_ratio"}, "data")
    record = prepare(source).record
    assert "train ends without times, test begins without times" in audit_line(record)
    assert warnings(record, mask_seen=True) == []
    # Lists' order is each user's own, so that no row is older than another user's.
    lists = [f'{user},"{list(range(user % 7, user % 7 + 12))}"' for user in range(30)]
    (tmp_path / "lists.csv").write_text("\n".join(["user_id,item_id", *lists]) + "\n")
    ordered = {**table, "interactions": "lists.csv", "layout": "lists", "split": "leave_one_out"}
    source = build_plugin("datamodules", "source", ordered, "data")
    assert "train ends without times, test begins without times" in audit_line(prepare(source).record)
    assert warnings(prepare(source).record, mask_seen=True) == []
    with pytest.raises(RecpeftError, match="global_temporal compares times of users, but"):
        split(prepare(source).dataset, "global_temporal")
    for part, of in (("train", rows[:-30]), ("test", rows[-30:])):
        (tmp_path / f"{part}.csv").write_text("\n".join(["user,item", *of]) + "\n")
    files = {"kind": "fixed", "train": "train.csv", "test": "test.csv"}
    source = build_plugin("datamodules", "source", {**table, "split": files}, "data")
    assert warnings(prepare(source).record, mask_seen=True)[0].startswith("validation is carved out of train.csv: each")


def record_with(**audit: int) -> dict[str, Any]:
    clean = {"test_rows_before_train_end": 0, "users_out_of_order": 0, "duplicates_across_splits": 0}
    return {"split": {"test": 4321, "audit": {**clean, **audit}}}


@pytest.mark.parametrize(
    ("audit", "text"),
    [
        (
            {"users_out_of_order": 1200},
            "the split lets users' own future in: 1,200 users have train or validation rows later than rows they are "
            "tested on; split: per_user_temporal and global_temporal are free of that",
        ),
        (
            {"test_rows_before_train_end": 4000},
            "the split lets the future of other users in: 4,000 of 4,321 test rows are older than the last train row; "
            "split: global_temporal is free of that",
        ),
        (
            {"duplicates_across_splits": 2},
            "2 pairs of user and item stand in more than one part, and evaluation.mask_seen leaves out what was met "
            "before, so that they cannot be found in test; set it to false where users come back to an item",
        ),
    ],
)
def test_each_leak_has_its_warning(audit: dict[str, int], text: str) -> None:
    assert warnings(record_with(**audit), mask_seen=True) == [text]


def test_a_clean_split_has_no_warning_and_leaks_have_one_each() -> None:
    assert warnings(record_with(), mask_seen=True) == []
    leaks = {"test_rows_before_train_end": 1, "users_out_of_order": 1, "duplicates_across_splits": 1}
    assert len(warnings(record_with(**leaks), mask_seen=True)) == 3
    assert warnings(prepared(split="global_temporal").record, mask_seen=True) == []
    assert len(warnings(prepared(split="random_ratio").record, mask_seen=True)) == 2


# Through a record and back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split",
    [
        "leave_one_out",
        {"kind": "global_temporal", "validation_from": "2018-01-31", "test_from": "2018-03-01"},
        {"kind": "user_holdout", "held_out": 0.5, "seed": 3},
        {"kind": "item_holdout", "ratios": [0.6, 0.2, 0.2]},
        {"kind": "random_ratio", "few_shot": 30},
        {"kind": "fixed", "train": "a.csv", "validation": "b.csv", "test": "c.csv"},
    ],
)
def test_a_run_built_from_its_record_is_the_same_run(split: Any) -> None:
    data = {"source": "synthetic", "split": split, "filters": [{"since": "2017-08-01"}, {"k_core": 2}]}
    evaluation = {"candidates": {"kind": "first_stage", "size": 30, "ranker": {"name": "ease"}}, "groups": ["activity"]}
    run = build_run({"study": "s", "data": data, "evaluation": evaluation, "ranker": {"name": "popularity"}})
    again = build_run(run.model_dump(mode="json"))
    assert again == run
    assert again.run_id == run.run_id
    other = build_run(
        {"study": "s", "data": {**data, "filters": data["filters"][::-1]}, "ranker": {"name": "popularity"}}
    )
    assert other.run_id != run.run_id


def test_filters_are_recorded_in_the_order_they_were_applied() -> None:
    record = prepared(filters=[{"since": "2017-09-01"}, {"k_core": 3}]).record
    steps = record["filters"]
    assert [step["filter"] for step in steps] == [{"since": "2017-09-01"}, {"k_core": 3}]
    assert steps[0]["before"]["interactions"] == 600
    assert steps[0]["after"] == steps[1]["before"]
    assert steps[1]["after"]["interactions"] == record["interactions"]
    assert np.diff([steps[0]["before"]["interactions"], *(step["after"]["interactions"] for step in steps)]).max() < 0


@pytest.mark.parametrize(
    "override",
    [
        "formulation={name: two_stage, first: {name: ease}, size: 9, second: {name: two_tower, item_bias: true}}",
        "evaluation.candidates={kind: uniform, size: 9}",
    ],
)
def test_training_is_the_same_whatever_the_test_labels_are(
    override: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [override, "training.negatives={uniform: 2, hard: 1}", "training.early_stopping={patience: 2}"]
    (config,) = load_runs(study_file, [*overrides, "evaluation.groups=[gender, activity]"])
    assert isinstance(config, TextRun)
    own = prepare(config.data)
    records, trials, told = [], [], []
    for name, given in {"own": own, "permuted": changed_tests(own)["permuted"]}.items():
        monkeypatch.setattr("experiments.cell.train.prepare", lambda _, given=given: given)
        told.append([])
        trials.append(run_trial(config, tmp_path / name, lambda trace, _: told[-1].append(dict(trace[-1]))))
        records.append(run(config, tmp_path / name))  # from the trial's checkpoint
        assert records[-1]["costs"]["steps_run"] == 0
    assert plain(trials[0]) == plain(trials[1])
    assert plain(told[0]) == plain(told[1])
    assert len(told[0]) > 1
    for part in ("trace", "prompt"):
        assert records[0][part] == records[1][part]
    assert records[0]["training"] == records[1]["training"]
    assert records[0]["test"] != records[1]["test"]  # that is where labels count


def test_on_real_data_nothing_before_the_test_moves_with_its_labels(tmp_path: Path, ml100k_cache: Path) -> None:
    source: Any = build_plugin("datamodules", "source", {"source": "movielens", "path": str(ml100k_cache)}, "data")
    own = prepare(source)
    drawn = CandidatesConfig(kind="popularity", size=100)
    config = EvaluationConfig(
        k=(10,), groups=(GroupConfig(column="gender"),), candidates=drawn, test_users=50, metrics=("user_auc",)
    )
    found = []
    for name, given in {"own": own, "permuted": changed_tests(own)["permuted"]}.items():
        candidates = frozen_candidates(given, config, None)
        assert candidates is not None
        run = RankerRun(study="s", data=source, evaluation=config, ranker=Ease(name="ease", l2=(50.0, 500.0)))
        folder = RunFolder(tmp_path / name)
        found.append((candidates.validation, run_ranker(run, given, folder, candidates.frames)))
    assert found[0][0].equals(found[1][0])
    for part in ("chosen", "trace"):
        assert plain(found[0][1][part]) == plain(found[1][1][part])
    assert found[0][1]["test"] != found[1][1]["test"]


def test_nothing_is_said_of_masks_where_nothing_is_masked() -> None:
    assert len(warnings(record_with(duplicates_across_splits=3), mask_seen=True)) == 1
    assert warnings(record_with(duplicates_across_splits=3), mask_seen=False) == []
