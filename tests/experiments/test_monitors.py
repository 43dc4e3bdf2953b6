"""What picks the best epoch, and what the record says of gaps, scores, judged pairs and distances."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, roc_auc_score  # type: ignore[import-untyped]

from experiments import load_runs, run
from experiments.cell.train import preflight
from experiments.config.evaluation import EvaluationConfig
from experiments.config.monitor import lower_is_better
from experiments.records.record import run_folder
from experiments.reporting import write_report
from lightning_modules import RankingCallback
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = "data={source: synthetic, num_users: 200, num_items: 80, interactions_per_user: 8}"
SUM = "0.5*ndcg@5 + ild_jaccard@5 - 2*gini@5"


# Monitors ----------------------------------------------------------------------------------------------


def test_a_weighted_sum_picks_the_epoch_and_stands_in_every_row(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file, [f"evaluation.monitor={SUM}", "training.learning_rate=0.05"])
    record = run(config, tmp_path)
    rows = [row["validation"] for row in record["trace"]]
    for row in [*rows, record["test"]]:
        assert row[SUM] == pytest.approx(0.5 * row["ndcg@5"] + row["ild_jaccard@5"] - 2 * row["gini@5"])
    best = max(rows, key=lambda row: float(row[SUM]))
    assert best is next(row["validation"] for row in record["trace"] if row["step"] == record["training"]["best_step"])
    assert len({row[SUM] for row in rows}) == 3
    write_report(tmp_path / config.study, page=False)
    assert f"{record['test'][SUM]:.4f} |" in (tmp_path / config.study / "report.md").read_text()  # gini has no users


def test_a_sum_of_means_over_users_has_users_values(study_file: Path, tmp_path: Path) -> None:
    monitor = "ndcg@5 + 0.1*ild_jaccard@5"
    (config,) = load_runs(study_file, [f"evaluation.monitor={monitor}", "training.max_steps=1"])
    record = run(config, tmp_path)
    users = pl.read_parquet(run_folder(tmp_path, config.study, config.run_id).per_user)
    assert users[monitor].mean() == pytest.approx(record["test"][monitor])


@pytest.mark.parametrize("monitor", ["item_coverage@5", "gini@5", "ndcg_gap_gender@5"])
def test_any_value_of_the_record_can_be_monitored_in_its_own_direction(
    study_file: Path, tmp_path: Path, monitor: str
) -> None:
    overrides = [f"evaluation.monitor={monitor}", "training.learning_rate=0.05", "evaluation.groups=[gender]"]
    (config,) = load_runs(study_file, overrides)
    record = run(config, tmp_path)
    found = {row["step"]: row["validation"][monitor] for row in record["trace"]}
    pick = max if monitor == "item_coverage@5" else min
    assert record["training"]["best_step"] == pick(found, key=lambda step: found[step])


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("ndcg@5", [math.nan, 0.5, 0.4], 1),
        ("ndcg@5", [math.nan, math.nan, 0.4], 2),
        ("gini@5", [math.nan, 0.4, 0.5], 1),  # less is better
        ("ndcg@5", [0.5, math.nan, 0.4], 0),
        ("ndcg@5", [math.nan, math.nan, math.nan], 0),
        ("ndcg@5", [0.4, 0.5, 0.5 + 1e-10], 2),  # equal in float32
    ],
)
def test_the_tested_weights_the_lists_and_the_record_are_one_epochs_and_nan_is_the_worst(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monitor: str, values: list[float], best: int
) -> None:
    (config,) = load_runs(study_file, [f"evaluation.monitor={monitor}", "training.learning_rate=0.05"])
    values_of = RankingCallback._values

    def run_with(planned: list[float], out: Path) -> tuple[dict[str, Any], pl.DataFrame]:
        def measured(self: RankingCallback) -> dict[str, float]:
            found = values_of(self)
            return found | {monitor: planned[len(self.trace)]} if len(self.trace) < len(planned) else found

        monkeypatch.setattr(RankingCallback, "_values", measured)
        record = run(config, out)
        return record, pl.read_parquet(run_folder(out, config.study, config.run_id).lists("validation"))

    clear = [0.0 if epoch == best else 1.0 for epoch in range(3)]
    if monitor == "ndcg@5":
        clear = [1 - value for value in clear]
    (record, lists), (expected, expected_lists) = run_with(values, tmp_path / "a"), run_with(clear, tmp_path / "b")
    assert record["training"]["best_step"] == expected["training"]["best_step"] == record["trace"][best]["step"]
    assert record["test"] == expected["test"]
    assert lists.equals(expected_lists)


@pytest.mark.parametrize(
    ("monitor", "sentence"),
    [
        ("ndcg@7", "monitor is 'ndcg@7'"),
        ("ndcg@5 + nonsense@5", "monitor has 'nonsense@5' in it"),
        ("ndcg@5 ild_jaccard@5", "choose one of"),
        ("ndcg@5 + ndcg@5", "choose one of"),
        ("", "choose one of"),
        ("ndcg_gap_gender@5", "choose one of"),
    ],
)
def test_what_is_not_measured_cannot_be_monitored(monitor: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EvaluationConfig(k=(5,), monitor=monitor)


def test_a_values_direction_is_the_same_with_the_candidates_stamp_behind_it() -> None:
    for name in ("rating_mae/rated", "calibration_js@5/uniform9", "nonparity_unfairness_gender/ease20", "gini@5"):
        assert lower_is_better(name), name
    for name in ("user_auc/uniform9", "ndcg@5/uniform9", SUM, "auc/rated"):
        assert not lower_is_better(name), name


# Gaps --------------------------------------------------------------------------------------------------


def test_each_gap_has_an_interval_and_its_groups_sizes(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file, [DATA, "evaluation.groups=[group]", "evaluation.metrics=[recall_std]"])
    record = run(config, tmp_path)
    for name in ("ndcg_gap_group@5", "recall_std_group@5"):
        found = record["intervals"][name]
        assert found["low"] <= record["test"][name] <= found["high"]
        assert found["low"] < found["high"]
        assert sum(found["users"].values()) == record["test"]["users_with_relevant"]
        assert min(found["users"].values()) > 0


# Scores ------------------------------------------------------------------------------------------------


def test_auc_of_scores_is_of_all_that_could_be_listed(tmp_path: Path) -> None:
    """Popularity's, against scikit-learn's over each user's unseen items."""
    from experiments.cell.data import prepare
    from experiments.config.grid import expand

    raw = {
        "study": "s",
        "data": {"source": "synthetic", "num_users": 60, "num_items": 80, "interactions_per_user": 8},
        "ranker": {"name": "popularity"},
        "evaluation": {"k": [5], "monitor": "user_auc", "metrics": ["user_auc", "gauc"]},
        "references": [],
    }
    (config,) = expand(raw)
    record = run(config, tmp_path)
    of = prepare(config.data)
    train, known, test = of.split.train, of.split.known(at_test=True), of.split.test
    counts = np.bincount(train.select("user", "item").unique()["item"].to_numpy(), minlength=80)
    values, weights = [], []
    for user in sorted(set(test["user"])):
        seen = set(known.filter(pl.col("user") == user)["item"])
        unseen = [item for item in range(80) if item not in seen]
        relevant = set(test.filter(pl.col("user") == user)["item"])
        label = [item in relevant for item in unseen]
        values.append(roc_auc_score(label, counts[unseen]))
        weights.append(sum(label))
    assert record["test"]["user_auc"] == pytest.approx(np.mean(values))
    assert record["test"]["gauc"] == pytest.approx(np.average(values, weights=weights))
    assert record["monitor"] == "user_auc"
    write_report(tmp_path / "s", page=False)


def test_fairness_of_scores_is_of_text_models_and_not_of_rankers(study_file: Path, tmp_path: Path) -> None:
    names = "[value_unfairness, nonparity_unfairness, differential_fairness]"
    overrides = [DATA, f"evaluation.metrics={names}", "evaluation.groups=[group]", "references=[popularity]"]
    popular, config = load_runs(study_file, [*overrides, "training.max_steps=1"])
    found = run(config, tmp_path)["test"]
    for name in ("value_unfairness", "nonparity_unfairness", "differential_fairness"):
        assert 0 <= found[f"{name}_group"] < 5
    assert "nonparity_unfairness_group" not in run(popular, tmp_path)["test"]


# Judged pairs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pl.DataFrame]:
    """A verbalizer-like run (two towers, BCE) on rated candidates, and its pairs."""
    out = tmp_path_factory.mktemp("judged")
    (config,) = load_runs(study_file, [*RATED, "loss={name: bce}"])
    return run(config, out), pl.read_parquet(run_folder(out, config.study, config.run_id).per_pair)


RATED = [
    "data.liked_from=4",
    "evaluation={k: [1, 2], monitor: auc, candidates: rated, "
    "metrics: [rating_f1, rating_accuracy, rating_log_loss, rating_calibration_error, rating_mae, ctr]}",
]


def test_decisions_are_at_validations_threshold(judged: tuple[dict[str, Any], pl.DataFrame]) -> None:
    record, pairs = judged
    best = next(row["validation"] for row in record["trace"] if row["step"] == record["training"]["best_step"])
    threshold = best["threshold/rated"]
    assert record["test"]["threshold/rated"] == threshold
    decided = pairs["score"].to_numpy() >= np.float32(threshold)
    assert record["test"]["rating_f1/rated"] == pytest.approx(f1_score(pairs["liked"], decided))
    assert record["test"]["rating_accuracy/rated"] == pytest.approx((decided == pairs["liked"].to_numpy()).mean())


def test_chances_are_the_scores_sigmoid_and_no_ratings(judged: tuple[dict[str, Any], pl.DataFrame]) -> None:
    record, pairs = judged
    chance = 1 / (1 + np.exp(-pairs["score"].to_numpy().astype(np.float64)))
    assert record["test"]["rating_log_loss/rated"] == pytest.approx(log_loss(pairs["liked"], chance))
    assert 0 <= record["test"]["rating_calibration_error/rated"] <= 1
    assert "rating_mae/rated" not in record["test"]


def test_the_click_through_rate_is_of_what_was_rated(judged: tuple[dict[str, Any], pl.DataFrame]) -> None:
    record, pairs = judged
    first = pairs.sort("score", descending=True).group_by("user", maintain_order=True).first()
    assert record["test"]["ctr@1/rated"] == pytest.approx(first["liked"].mean(), abs=0.05)  # ties aside
    assert 0 < record["test"]["ctr@2/rated"] <= 1


def test_errors_are_of_predicted_ratings(study_file: Path, tmp_path: Path) -> None:
    overrides = [
        *RATED,
        "formulation={name: cross_encoder, output: rating}",
        "loss={name: mse}",
        "training.max_steps=2",
    ]
    (config,) = load_runs(study_file, overrides)
    record = run(config, tmp_path)
    pairs = pl.read_parquet(run_folder(tmp_path, config.study, config.run_id).per_pair)
    from experiments.cell.data import prepare

    of = prepare(config.data)
    users, items = of.dataset.users.select("raw_id", "user"), of.dataset.items.select("raw_id", "item")
    rows = pairs.rename({"user": "raw"}).join(users, left_on="raw", right_on="raw_id")
    rows = rows.rename({"item": "raw_item"}).join(items, left_on="raw_item", right_on="raw_id")
    rows = rows.join(of.split.test.select("user", "item", "rating"), on=["user", "item"])
    assert rows.height == pairs.height
    assert record["test"]["rating_mae/rated"] == pytest.approx(
        mean_absolute_error(rows["rating"], rows["score"]), rel=1e-5
    )
    assert "rating_log_loss/rated" not in record["test"]


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        ("metrics: [rating_f1]", "rating_f1, which needs pairs whose rating is known; set candidates to rated"),
        ("metrics: [ctr]", r"ctr, which needs what was shown \(impressions\)"),
        ("metrics: [valid_ratio]", "valid_ratio, which is of generated lists"),
        ("metrics: [nonparity_unfairness], groups: []", "nonparity_unfairness, which needs groups"),
        (
            "metrics: [differential_fairness], groups: [gender], candidates: {kind: uniform, size: 9}",
            "needs scores of the whole catalogue",
        ),
    ],
)
def test_a_metric_without_what_it_is_of_is_refused_when_read(study_file: Path, evaluation: str, sentence: str) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        load_runs(study_file, [f"evaluation={{k: [5], monitor: ndcg@5, {evaluation}}}"])


# Embeddings --------------------------------------------------------------------------------------------


def test_distances_are_of_one_untuned_backbone_whatever_is_trained(
    study_file: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    source = f"evaluation.embeddings={{name: '{tiny_backbone}'}}"
    overrides = ["evaluation.metrics=[ild_cosine]", "training.max_steps=1", "references=[popularity]"]
    popular, config = load_runs(study_file, [*overrides, source])
    one, other = run(popular, tmp_path), run(config, tmp_path)
    assert one["embeddings"] == other["embeddings"]
    assert one["embeddings"]["source"] == str(tiny_backbone)
    by_category, _ = load_runs(study_file, overrides)
    plain = run(by_category, tmp_path / "plain")
    assert plain["embeddings"] == {"source": "categories", "hash": None}
    assert plain["test"]["ild_cosine@5"] != one["test"]["ild_cosine@5"]
    preflight([config], tmp_path)
