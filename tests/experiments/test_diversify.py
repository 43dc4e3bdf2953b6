"""Lists on disk, and the stage that reorders them: the run itself is trained once, and every value is of real lists."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from records import written_record

from experiments import load_runs, run
from experiments.cell.train import preflight
from experiments.config.grid import expand
from experiments.finished.judge import judge, read_lists
from experiments.records.record import RunFolder, run_folder
from experiments.reporting import write_report
from experiments.study.serial import run_study
from metrics.list_distance import damerau_levenshtein
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = {
    "mmr": "{method: mmr, strength: 0.7, depth: 20}",
    "calibrated": "{method: calibrated, strength: 0.7, depth: 20}",
    "exposure": "{method: exposure, strength: 0.9, depth: 20}",
}
DATA = "data={source: synthetic, num_users: 60, num_items: 80, interactions_per_user: 8}"
MEASURED = "evaluation.metrics=[ild_jaccard, calibration_kl, exposure_kl_catalogue, ndcg_linear, category_coverage]"
GROUPED = "evaluation={k: [1, 5], monitor: ndcg@5, groups: [group], item_groups: [popularity]}"


def values(record: dict[str, Any] | None, name: str) -> float:
    assert record is not None
    return float(record["test"][name])


# Lists -------------------------------------------------------------------------------------------------


def test_lists_on_disk_are_what_was_measured(study_file: Path, tmp_path: Path) -> None:
    """Read back by ``recpeft evaluate``, they have the record's values, at test and at the best of three epochs."""
    (config,) = load_runs(study_file, ["training.learning_rate=0.05", "evaluation.depth=9"])
    record = run(config, tmp_path)
    folder = run_folder(tmp_path, config.study, config.run_id)
    lists = read_lists(folder.lists("test"))
    assert lists.frame.group_by("user").len()["len"].max() == 9
    judged = judge(lists, config, tmp_path / "judged")
    for name, value in record["test"].items():
        if name != "tie_rate":
            assert judged["test"][name] == pytest.approx(value, nan_ok=True), name
    best = next(row for row in record["trace"] if row["step"] == record["training"]["best_step"])
    kept = pl.read_parquet(folder.lists("validation"))
    top = kept.filter(pl.col("rank") <= 5)
    assert top["item"].n_unique() / record["data"]["items"] == pytest.approx(best["validation"]["item_coverage@5"])
    assert len({row["validation"]["item_coverage@5"] for row in record["trace"]}) > 1
    assert (
        kept.sort("user", "rank").group_by("user", maintain_order=True).agg(pl.col("score").diff().max())["score"] <= 0
    ).all()


# Stages ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studied(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Records by stage, ``none`` being the run itself, of one study; its folder too."""
    out = tmp_path_factory.mktemp("diversified")
    include = ", ".join([f"{{diversify: {stage}}}" for stage in STAGES.values()])
    zero = "{diversify: {method: mmr, strength: 0.0, depth: 20}}"
    configs = load_runs(study_file, [DATA, GROUPED, MEASURED, f"include=[{include}, {zero}]"])
    assert [config.diversify is None for config in configs] == [True, *[False] * 4]  # once, and before its lists
    assert run_study(configs, out) == 0
    found: dict[str, dict[str, Any]] = {"out": {"path": out}}
    for config in configs:
        stage = config.diversify
        name = "none" if stage is None else stage.method if stage.strength else "zero"
        record = written_record(run_folder(out, config.study, config.run_id))
        assert record is not None
        found[name] = record
    return found


def test_strength_is_an_axis_of_a_grid(study_file: Path) -> None:
    stage = "diversify={method: mmr, strength: 0.5}"
    configs = load_runs(study_file, [stage, "grid={diversify.strength: [0.1, 0.2], adapter.rank: [2, 4]}"])
    strengths = [config.diversify.strength if config.diversify else None for config in configs]
    assert strengths == [None, 0.1, None, 0.1, 0.2, 0.2]  # each rank's own run, once, before the first of its lists


def test_strength_0_leaves_every_value_as_it_was(studied: dict[str, dict[str, Any]]) -> None:
    record = studied["zero"]
    for name, value in studied["none"]["test"].items():
        assert record["test"][name] == value, name
    assert record["test"]["list_distance@5"] == 0.0


@pytest.mark.parametrize(
    ("stage", "name", "sign"),
    [
        ("mmr", "ild_jaccard@5", 1),
        ("calibrated", "calibration_kl@5", -1),
    ],
)
def test_each_stage_gives_what_it_is_for(studied: dict[str, dict[str, Any]], stage: str, name: str, sign: int) -> None:
    before, after = values(studied["none"], name), values(studied[stage], name)
    assert sign * (after - before) > 0.01
    assert studied[stage]["trace"][0]["validation"][name] != studied["none"]["trace"][-1]["validation"][name]


def test_a_run_is_trained_once_for_all_strengths(studied: dict[str, dict[str, Any]]) -> None:
    base = studied["none"]
    for stage in STAGES:
        record = studied[stage]
        assert record["reordered"] == {"run_id": base["run_id"]}
        assert record["costs"]["train_seconds"] == base["costs"]["train_seconds"]
        assert record["parameters"] == base["parameters"]
        folder = RunFolder(studied["out"]["path"] / base["config"]["study"] / record["run_id"])
        assert not folder.adapter.exists()
        assert folder.per_user.exists()


def test_the_distance_is_of_the_lists_on_disk(studied: dict[str, dict[str, Any]]) -> None:
    base, record = studied["none"], studied["mmr"]
    folder = studied["out"]["path"] / base["config"]["study"]

    def lists(run_id: str) -> torch.Tensor:
        frame = pl.read_parquet(folder / run_id / "test_lists.parquet").filter(pl.col("rank") <= 5).sort("user", "rank")
        return torch.tensor(frame["item"].str.strip_prefix("i").cast(pl.Int64).to_list()).view(-1, 5)

    distance = damerau_levenshtein(lists(base["run_id"]), lists(record["run_id"]), 5)
    assert values(record, "list_distance@5") == pytest.approx(float(distance.mean()))
    assert values(record, "list_distance@5") > 0.1


def test_the_report_holds_each_against_its_own_lists(studied: dict[str, dict[str, Any]]) -> None:
    folder = studied["out"]["path"] / studied["none"]["config"]["study"]
    write_report(folder, page=False)
    text = (folder / "report.md").read_text()
    assert text.count("minus its lists as they were") == 4
    assert "diversify=mmr" in text
    assert "test users behind each gap between groups" in text


@pytest.mark.parametrize(
    ("stage", "name", "sign"),
    [("mmr", "ild_jaccard@5", 1), ("exposure", "exposure_ratio_item_popularity@5", 1)],
)
def test_a_ranker_is_reordered_too_and_made_where_it_is_not(tmp_path: Path, stage: str, name: str, sign: int) -> None:
    raw = {
        "study": "s",
        "data": {"source": "synthetic", "num_users": 60, "num_items": 80, "interactions_per_user": 8},
        "ranker": {"name": "popularity"},
        "evaluation": {
            "k": [5],
            "monitor": "ndcg@5",
            "depth": 60,
            "metrics": ["exposure_ratio"],
            "item_groups": ["popularity"],
        },
        "references": [],
        "diversify": {"method": stage, "strength": 0.9, "depth": 60},
    }
    base, config = expand(raw)
    record = run(config, tmp_path)
    alone = written_record(run_folder(tmp_path, "s", base.run_id))
    assert sign * (values(record, name) - values(alone, name)) > 0.05


def test_a_user_whose_list_is_empty_counts_as_before(tmp_path: Path) -> None:
    raw = {
        "study": "s",
        "data": {"source": "synthetic", "num_users": 60, "num_items": 80, "interactions_per_user": 8},
        "ranker": {"name": "popularity"},
        "evaluation": {"k": [1], "monitor": "ndcg@1", "metrics": ["user_coverage"]},
        "references": [],
        "diversify": {"method": "mmr", "strength": 0.0, "depth": 20},
    }
    base, config = expand(raw)
    alone = run(base, tmp_path)
    folder = run_folder(tmp_path, "s", base.run_id)
    lists = pl.read_parquet(folder.lists("test"))
    gone = lists["user"].unique().sort()[:20]  # as if their lists had been empty
    lists.filter(~pl.col("user").is_in(gone.implode())).write_parquet(folder.lists("test"))
    with pytest.raises(RecpeftError, match=r"test_lists\.parquet cannot be read \(it has changed since its record was"):
        run(config, tmp_path)
    folder.record.write_text(json.dumps(alone | {"certificate": {}}))
    record = run(config, tmp_path)
    assert alone["test"]["user_coverage@1"] == 1.0
    assert record["test"]["users"] == alone["test"]["users"]
    assert record["test"]["user_coverage@1"] == pytest.approx(1 - 20 / alone["test"]["users"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("diversify={method: mmr, strength: 1.5}", r"diversify\.strength is 1\.5"),
        ("diversify={method: mrr, strength: 0.5}", r"diversify\.method.*mmr"),
        (
            "diversify={method: mmr, strength: 0.5, depth: 101}",
            r"diversify\.depth is 101.*at most evaluation\.depth, 100",
        ),
        ("diversify={method: mmr, strength: 0.5, depth: 2}", r"diversify\.depth is 2; it must be at least"),
        ("diversify=mmr", "diversify is 'mmr'; give a mapping"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_when_read(study_file: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecpeftError, match=sentence):
        load_runs(study_file, [override])


def test_an_unknown_group_of_items_is_refused_before_anything_runs(study_file: Path, tmp_path: Path) -> None:
    stage = "diversify={method: exposure, strength: 0.5, group: colour}"
    with pytest.raises(RecpeftError, match="colour"):
        preflight(load_runs(study_file, [stage]), tmp_path)


# Distance ----------------------------------------------------------------------------------------------


def test_the_distance_counts_swaps_of_neighbours_once() -> None:
    first = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 4]])
    second = torch.tensor([[2, 1, 3, 4], [5, 6, 7, 8], [1, 2, 3, -1], [-1, -1, -1, -1], [2, 3, 4, 5]])
    found = damerau_levenshtein(first, second, 4).tolist()
    assert found == pytest.approx([1 / 4, 1.0, 1 / 3, 0.0, 2 / 4])
    assert damerau_levenshtein(first, second, 2).tolist() == pytest.approx([1 / 2, 1.0, 0.0, 0.0, 1.0])
    assert not math.isnan(found[3])
