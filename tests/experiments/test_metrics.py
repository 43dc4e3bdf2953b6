"""Metrics that an experiment file asks for: measured, monitored in their own direction, or refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from datamodules._groups import GroupConfig
from datamodules.synthetic import Config
from experiments import load_runs, run
from experiments.cell.candidates import frozen_candidates
from experiments.cell.data import Prepared, prepare
from experiments.cell.ranker import _measure, fit_ranker
from experiments.cell.suite import main_categories, make_suite
from experiments.cell.train import preflight
from experiments.config.evaluation import CandidatesConfig, EvaluationConfig
from metrics.catalog import METRICS
from metrics.per_item import CANDIDATES
from rankers._base import Ranker
from rankers.popularity import Config as ByPopularity
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin

MORE = [
    "ndcg_exp2",
    "map",
    "calibration_js",
    "epc",
    "serendipity_cosine",
    "ndcg_std",
    "ndcg_cvar50",
    "eo_gap",
    "rsp",
    "pop_lift",
]


def prepared() -> Prepared:
    return prepare(Config(source="synthetic", num_users=60, num_items=80, interactions_per_user=8))


def test_what_is_asked_for_stands_beside_what_is_always_measured(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(
        study_file, [f"evaluation.metrics=[{', '.join(MORE)}]", "evaluation.item_groups=[popularity]"]
    )
    record = run(config, tmp_path)
    for values in (record["test"], record["trace"][-1]["validation"]):
        for name in ("ndcg", "map", "calibration_js", "epc", "serendipity_cosine", "ndcg_std_gender", "ndcg_cvar50"):
            assert math.isfinite(values[f"{name}@5"]), name
        for name in ("eo_gap_gender", "rsp_item_popularity", "pop_lift"):
            assert f"{name}@5" in values
    assert record["test"]["ndcg_cvar50@5"] < record["test"]["ndcg@5"]


@pytest.mark.parametrize("at_test", [False, True])
@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("candidates", [{}, {"kind": "uniform", "size": 20}])
def test_the_most_popular_items_that_lists_can_hold_are_never_unexpected(
    at_test: bool, mask_seen: bool, candidates: dict[str, Any]
) -> None:
    """Lists by popularity, ties by lowest id as the metric has them: neither takes what was met by then."""
    of = prepared()
    counts = torch.tensor(np.bincount(of.split.train["item"], minlength=80))

    class Popularity(Ranker):
        def score(self, users: np.ndarray, history: Any) -> torch.Tensor:
            return (counts - torch.arange(80) / 100).expand(len(users), -1)

    evaluation = EvaluationConfig(
        k=(5,),
        monitor="ndcg@5",
        mask_seen=mask_seen,
        metrics=("unexpectedness", "serendipity", "rsp"),
        item_groups=(GroupConfig(column="popularity"),),
        candidates=CandidatesConfig(**candidates),
    )
    frozen = frozen_candidates(of, evaluation, None)
    held_out = of.split.test if at_test else of.split.validation
    frame = frozen.frames[at_test] if frozen else None
    suite = make_suite(of, evaluation)
    found = _measure(suite, Popularity(), of, evaluation, at_test, held_out, frame)
    stamp = evaluation.candidates.stamp
    assert found[f"unexpectedness@5{stamp}"] == 0
    assert found[f"serendipity@5{stamp}"] == 0
    known = of.split.known(at_test=at_test) if mask_seen else of.split.train.clear()
    ranked = frame if frame is not None else of.dataset.users.join(of.dataset.items, how="cross")
    ranked = ranked.filter(pl.col("user").is_in(held_out["user"].unique().implode()))
    ranked = ranked.select("user", "item").join(known, on=["user", "item"], how="anti")
    expected = np.bincount(ranked["item"], minlength=80)
    assert suite.ranking._source(CANDIDATES).tolist() == expected.tolist()


def test_the_best_epoch_by_a_metric_of_which_less_is_better_has_the_least(study_file: Path, tmp_path: Path) -> None:
    overrides = [
        "evaluation.metrics=[calibration_js]",
        "evaluation.monitor=calibration_js@5",
        "training.learning_rate=0.05",
    ]
    (config,) = load_runs(study_file, overrides)
    record = run(config, tmp_path)
    values = {row["step"]: row["validation"]["calibration_js@5"] for row in record["trace"]}
    assert len(set(values.values())) == 3
    assert record["training"]["best_step"] == min(values, key=lambda step: values[step])


def test_ease_takes_the_regularisation_with_the_least_of_it_too() -> None:
    of = prepared()
    evaluation = EvaluationConfig(k=(5,), monitor="calibration_js@5", metrics=("calibration_js", "ndcg_cvar50"))
    grid = [0.1, 10.0, 1000.0, 100_000.0]

    def value(l2: list[float]) -> tuple[float, float]:
        config: Any = build_plugin("rankers", "name", {"name": "ease", "l2": l2}, "ranker")
        ranker = fit_ranker(config, of, evaluation)
        metric = make_suite(of, evaluation)
        found = _measure(metric, ranker, of, evaluation, False, of.split.validation, None)
        return found["calibration_js@5"], ranker.details["l2"]

    alone = {l2: value([l2])[0] for l2 in grid}
    assert len(set(alone.values())) > 1
    assert value(grid)[1] == min(grid, key=lambda l2: alone[l2])


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ("ndgc", "unknown metric 'ndgc'"),
        ("rating_mae", "rating_mae"),
    ],
)
def test_a_metric_that_is_none_or_needs_what_lists_have_not_is_refused_before_anything_runs(
    study_file: Path, tmp_path: Path, metrics: str, sentence: str
) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        preflight(load_runs(study_file, [f"evaluation.metrics=[{metrics}]"]), tmp_path)


def test_a_list_longer_than_the_catalogue_is_refused() -> None:
    with pytest.raises(RecpeftError, match=r"evaluation\.k names 81, but synthetic has 80 items; lower it"):
        make_suite(prepared(), EvaluationConfig(k=(5, 81), monitor="ndcg@5"))


def test_nothing_to_be_found_is_a_sentence_before_anything_runs(study_file: Path, tmp_path: Path) -> None:
    data = "data={source: synthetic, num_users: 60, num_items: 80, interactions_per_user: 8, liked_from: 5.5}"
    config = load_runs(study_file, [data, "evaluation.groups=[group]"])
    with pytest.raises(RecpeftError, match=r"train holds nothing that is liked, .*; lower data\.liked_from"):
        preflight(config, tmp_path)


def test_a_metric_of_grades_takes_held_out_ratings_and_is_refused_without() -> None:
    of = prepared()
    evaluation = EvaluationConfig(k=(5,), monitor="ndcg@5", metrics=("ndcg_linear",))
    config: Any = build_plugin("rankers", "name", {"name": "popularity"}, "ranker")

    def measured(split: Any) -> dict[str, float]:
        world = replace(of, split=split)
        ranker = fit_ranker(config, world, evaluation)
        return _measure(make_suite(world, evaluation), ranker, world, evaluation, True, split.test, None)

    rated = replace(of.split, test=of.split.test.with_columns(rating=pl.lit(3.0, pl.Float32)))
    values = measured(rated)
    assert values["ndcg_linear@5"] == pytest.approx(values["ndcg@5"])  # one grade for all cancels out
    uneven = pl.when(pl.int_range(pl.len()) % 2 == 0).then(5.0).otherwise(1.0).cast(pl.Float32)
    mixed = of.split.test.with_columns(rating=uneven)
    extra = mixed.with_columns(item=(pl.col("item") + 1) % 80, rating=6.0 - pl.col("rating"))
    values = measured(replace(of.split, test=pl.concat([mixed, extra]).sort("user")))
    assert values["ndcg_linear@5"] != pytest.approx(values["ndcg@5"], abs=1e-4)
    with pytest.raises(RecpeftError, match="ndcg_linear, which needs a rating"):
        measured(replace(of.split, test=of.split.test.with_columns(rating=pl.lit(None, pl.Float32))))


def test_a_monitor_that_is_not_measured_is_refused_with_those_that_are(study_file: Path) -> None:
    with pytest.raises(RecpeftError, match=r"monitor is 'epc@5'; choose one of ndcg@1, ndcg@5, .*ild_jaccard@5"):
        load_runs(study_file, ["evaluation.monitor=epc@5"])
    load_runs(study_file, ["evaluation.monitor=epc@5", "evaluation.metrics=[epc]"])


def test_the_main_category_is_the_first_that_the_data_name() -> None:
    items = pl.DataFrame({"item": range(4), "categories": [["Toys", "Action"], ["Action"], [], None]})
    assert main_categories(items).tolist() == [1, 0, -1, -1]  # columns are in alphabetical order
    assert main_categories(items.drop("categories")).tolist() == [-1] * 4
    assert main_categories(items.with_columns(categories=pl.Series(["b", "a", None, "b"]))).tolist() == [1, 0, -1, 1]


def test_what_needs_categories_is_not_measured_where_there_are_none() -> None:
    of = prepared()
    bare = replace(of, dataset=replace(of.dataset, items=of.dataset.items.drop("categories")))
    names = [name for name, info in METRICS.items() if {"categories", "main_category", "embeddings"} & set(info.needs)]
    names = [name for name in names if METRICS[name].kind in ("per_user", "sums", "user_groups")]
    groups = (GroupConfig(column="group"),)
    evaluation = EvaluationConfig(k=(5,), monitor="ndcg@5", metrics=tuple(names), groups=groups)
    ranker = fit_ranker(ByPopularity(name="popularity"), bare, evaluation)
    measured = _measure(make_suite(bare, evaluation), ranker, bare, evaluation, True, bare.split.test, None)
    assert len(names) > 10
    for name in names:
        values = [value for key, value in measured.items() if key.startswith((f"{name}@", f"{name}_group"))]
        assert values, name
        assert np.isnan(values).all(), name


def test_popularity_is_unexpected_nowhere_on_real_data(ml100k_cache: Path) -> None:
    """With the metric's ties; else the 376 of both the 10th and the 11th item make .05 of lists that mask nothing."""
    of = prepare(build_plugin("datamodules", "source", {"source": "movielens", "path": str(ml100k_cache)}, "data"))
    size = of.dataset.num_items
    counts = torch.tensor(np.bincount(of.split.train["item"], minlength=size)).double()

    class Popularity(Ranker):
        def score(self, users: np.ndarray, history: Any) -> torch.Tensor:
            return (counts - torch.arange(size) / (10 * size)).expand(len(users), -1)

    for mask_seen in (True, False):
        evaluation = EvaluationConfig(k=(10,), monitor="ndcg@10", mask_seen=mask_seen, metrics=("unexpectedness",))
        for at_test, rows in ((False, of.split.validation), (True, of.split.test)):
            found = _measure(make_suite(of, evaluation), Popularity(), of, evaluation, at_test, rows, None)
            assert found["unexpectedness@10"] == 0
