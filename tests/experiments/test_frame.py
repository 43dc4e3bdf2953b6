"""Results as a data frame: which rows, which columns, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import failure_of, record_of

from experiments import load_results
from experiments.config.grid import expand
from experiments.records.record import run_folder, write_record
from experiments.study.plan import remember
from recpeft.errors import RecpeftError

BASE: dict[str, Any] = {
    "study": "study",
    "data": {"source": "movielens"},
    "backbone": {"name": "tiny"},
    "adapter": {"method": "lora"},
    "formulation": {"name": "two_tower"},
    "loss": {"name": "listwise_softmax"},
    "references": ["ease"],
}


def put(
    out: Path, grid: dict[str, list[Any]], planned: bool = True, failed: bool = False, option: Any = None
) -> list[str]:
    """Records of a study's runs; their ids, in the file's order."""
    runs = expand({**BASE, "grid": grid})
    if planned:
        remember(runs, out)
    for number, run in enumerate(runs):
        parts: dict[str, Any] = {
            "test": {"ndcg@10": number / 10, "auc": None, "users": 4},
            "costs": {"train_seconds": number},
            "parameters": {"trainable": number} if number else {},
        }
        record = failure_of(run) if failed else record_of(run, **parts)
        record["config"] |= {} if option is None else {"option": option}
        write_record(run_folder(out, "study", run.run_id), record)
    return [run.run_id for run in runs]


def test_a_row_is_a_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    run_ids = put(tmp_path, {"adapter.rank": [8, 4], "seed": [1, 0]})
    results = load_results(tmp_path / "study")
    assert results["run_id"].to_list() == run_ids
    assert results["method"].to_list() == ["ease"] + ["lora"] * 4
    assert results["reference"].to_list() == [True] + [False] * 4
    assert results["adapter.rank"].to_list() == [None, 8, 8, 4, 4]
    assert results["seed"].to_list() == [None, 1, 0, 1, 0]
    assert results["ndcg@10"].to_list() == [0, 0.1, 0.2, 0.3, 0.4]
    assert results["auc"].to_list() == [None] * 5
    assert results["trainable"].to_list() == [None, 1, 2, 3, 4]
    assert results["train_seconds"].to_list() == [0, 1, 2, 3, 4]


def test_without_a_plan_references_come_first_and_values_rise(tmp_path: Path) -> None:
    put(tmp_path, {"adapter.rank": [8, 16, 4]}, planned=False)
    assert load_results(tmp_path / "study")["adapter.rank"].to_list() == [None, 4, 8, 16]


def test_only_keys_that_differ_between_the_cells_are_columns(tmp_path: Path) -> None:
    """The reference differs from them in all keys of backbone, adapter and training."""
    put(tmp_path, {"training.max_steps": [3, 4]})
    dotted = [name for name in load_results(tmp_path / "study").columns if "." in name]
    assert dotted == ["training.max_steps"]


def test_columns_that_are_asked_for_are_there_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, {"adapter.rank": [8], "training.max_steps": [3, 4], "adapter.target_modules": [["query", "value"]]})
    asked = ("adapter.rank", "adapter.target_modules", "seed", "ndcg@10", "diversify.strength")
    results = load_results(tmp_path / "study", columns=asked)
    assert results["adapter.rank"].to_list() == [None, 8, 8]
    assert results["adapter.target_modules"].to_list() == [None, "query, value", "query, value"]
    assert results["diversify.strength"].to_list() == [None] * 3
    named = [name for name in results.columns if "." in name]
    assert named == ["training.max_steps", "adapter.rank", "adapter.target_modules", "diversify.strength"]


def test_lists_among_texts_are_text(tmp_path: Path) -> None:
    put(tmp_path, {"adapter.target_modules": [["query", "value"], "attention"]})
    column = load_results(tmp_path / "study")["adapter.target_modules"]
    assert column.to_list() == [None, "query, value", "attention"]


def test_values_of_several_types_are_text(tmp_path: Path) -> None:
    put(tmp_path, {"seed": [0]}, option=1)
    put(tmp_path, {"seed": [1]}, option="one")
    assert sorted(load_results(tmp_path / "study")["option"]) == ["1", "one", "one"]  # EASE is of both


def test_failed_runs_have_no_row_and_where_all_failed_it_is_said(tmp_path: Path) -> None:
    run_ids = put(tmp_path, {"adapter.rank": [4, 8]})
    put(tmp_path, {"adapter.rank": [8]}, failed=True)
    assert load_results(tmp_path / "study")["run_id"].to_list() == [run_ids[1]]
    put(tmp_path / "other", {}, failed=True)
    with pytest.raises(RecpeftError, match=r"other: no run is finished, 2 failed; recpeft report says why\."):
        load_results(tmp_path / "other")
