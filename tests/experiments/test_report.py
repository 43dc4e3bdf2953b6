"""The table: from records alone, in a fixed order, with intervals that are right."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments.report import interval, write_report
from experiments.results import run_folder, write_record
from recpeft.errors import RecpeftError

SPLIT = {
    "kind": "per_user_temporal",
    "train": 12,
    "validation": 4,
    "test": 4,
    "hash": "abc",
    "audit": {"test_rows_before_train_end": 3},
}


def put(out: Path, run_id: str, method: str, values: list[float], **fields: Any) -> None:
    """A record as a run leaves it, with the least that a table needs."""
    folder = run_folder(out, "study", run_id)
    config: dict[str, Any] = {"evaluation": {"monitor": "ndcg@10", "mask_seen": True}}
    record: dict[str, Any] = {
        "schema": 1,
        "status": "done",
        "run_id": run_id,
        "method": method,
        "width": "–",
        "reference": method in ("popularity", "ease"),
        "config": config,
        "data": {
            "name": "tiny",
            "users": 4,
            "items": 1234,
            "interactions": 20,
            "hash": "data",
            "split": SPLIT,
        },
        "test": {"ndcg@10": float(np.nanmean(values)), "users": 4, "gini@10": 0.5, "recall@5": 0.25},
        "versions": {"torch": "1"},
        "device": "cpu",
        "trace": [],
        "costs": {"wall_seconds": 1.0, "peak_memory_bytes": 2**20},
    }
    write_record(folder, record | fields)
    pl.DataFrame({"raw_id": list("abcd"), "ndcg@10": values}).write_parquet(folder.per_user)


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).random(400) ** 3
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert interval(values) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert interval(values) == interval(values)


def test_the_interval_leaves_users_without_a_value_out() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0])
    assert interval(np.append(values, np.nan)) == interval(values)
    assert all(np.isnan(interval(np.array([np.nan]))))


def test_references_come_first_and_the_csv_has_every_number_in_full(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1, 0.2, 0.3, 0.4 + 1e-9])
    put(tmp_path, "2", "ease", [0.5, 0.5, 0.5, 0.5], chosen={"l2": 200.0})
    put(tmp_path, "3", "popularity", [0.1, 0.1, 0.1, 0.1])
    write_report(tmp_path / "study")
    with (tmp_path / "study" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["popularity", "ease (λ=200)", "lora"]
    assert float(rows[2]["ndcg@10"]) == pytest.approx(0.25 + 2.5e-10, abs=1e-12)
    assert float(rows[1]["ndcg@10 95% low"]) == 0.5
    table = (tmp_path / "study" / "report.md").read_text()
    assert "4 users, 1,234 items, 20 interactions" in table
    assert "| ease (λ=200) | – | 0.5000 [0.500, 0.500] |" in table


def test_runs_with_different_splits_are_called_not_comparable(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    put(tmp_path, "2", "lora", [0.1] * 4)
    write_report(tmp_path / "study")
    assert "NOT COMPARABLE" not in (tmp_path / "study" / "report.md").read_text()
    other = {"name": "tiny", "users": 4, "items": 9, "interactions": 20, "hash": "other"}
    put(tmp_path, "2", "lora", [0.1] * 4, data=other | {"split": SPLIT | {"hash": "def"}}, device="cuda")
    write_report(tmp_path / "study")
    table = (tmp_path / "study/report.md").read_text()
    assert "NOT COMPARABLE: the runs have 2 different splits: abc, def" in table
    assert "CAREFUL: the runs have 2 different data" in table
    assert "CAREFUL: the runs have 2 different devices" in table
    assert "different versions" not in table


def test_a_split_that_lets_the_future_in_is_said(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    write_report(tmp_path / "study")
    assert "3 of 4 test rows are older than the last train row" in (tmp_path / "study/report.md").read_text()


def test_labels_of_grid_cells_survive_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id, rank in (("1", 4), ("2", 8)):
        config = {"evaluation": {"monitor": "ndcg@10", "mask_seen": True}, "adapter": {"rank": rank}}
        put(tmp_path, run_id, "lora", [0.1] * 4, config=config)
    write_report(tmp_path / "study")
    printed = capsys.readouterr().out
    assert "lora [rank=4]" in printed
    assert "lora [rank=8]" in printed


def test_runs_monitored_by_different_metrics_need_studies_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    config = {"evaluation": {"monitor": "recall@5", "mask_seen": True}}
    put(tmp_path, "2", "lora", [0.1] * 4, config=config)
    with pytest.raises(RecpeftError, match=r"different evaluation\.monitor: ndcg@10, recall@5"):
        write_report(tmp_path / "study")


def test_a_cell_is_compared_with_ease_user_by_user(tmp_path: Path) -> None:
    """Every user gains 0.1, so the paired interval is a point, wide as either row's own interval is."""
    ease, gains = [0.0, 0.4, 0.8, 0.2], [0.1, 0.5, 0.9, 0.3]
    put(tmp_path, "1", "lora", gains)
    put(tmp_path, "2", "ease", ease)
    put(tmp_path, "3", "popularity", ease)
    write_report(tmp_path / "study")
    table = (tmp_path / "study" / "report.md").read_text()
    assert "ndcg@10 of lora, width –, less ease: +0.1000 [+0.1000, +0.1000] over the same users" in table
    assert "less popularity" not in table


def test_a_study_of_failed_runs_says_the_first_error(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4, status="failed", error="it broke")
    with pytest.raises(RecpeftError, match="no finished run; 1 failed, the first with: it broke"):
        write_report(tmp_path / "study")
