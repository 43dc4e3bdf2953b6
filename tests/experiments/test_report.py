"""The table: from records alone, in a fixed order, with intervals that are right."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from experiments.config.evaluation import EvaluationConfig
from experiments.config.grid import expand, is_reference
from experiments.records.record import run_folder, write_record
from experiments.reporting import make_report, write_report
from experiments.reporting._runs import read
from experiments.reporting._table import _better
from experiments.reporting.statistics import intervals
from recpeft.errors import RecpeftError

SPLIT = {
    "kind": "per_user_temporal",
    "train": 12,
    "validation": 4,
    "test": 4,
    "hash": "abc",
    "audit": {"test_rows_before_train_end": 3, "users_out_of_order": 0, "duplicates_across_splits": 0},
}


SMALL = {"name": "tiny", "users": 4, "items": 1234, "interactions": 20, "hash": "data"}


def put(out: Path, run_id: str, method: str, values: list[float], **fields: Any) -> None:
    """A record as a run leaves it, with the least that a table needs."""
    folder = run_folder(out, "study", run_id)
    is_ranker = method in ("popularity", "ease")
    config: dict[str, Any] = {"ranker": {"name": method}} if is_ranker else {"seed": 0, "adapter": {"method": method}}
    config["threads"] = 1
    config["evaluation"] = {"monitor": "ndcg@10", "mask_seen": True, "candidates": {"kind": "full", "size": 100}}
    record: dict[str, Any] = {
        "schema": 2,
        "status": "done",
        "run_id": run_id,
        "method": method,
        "width": "–",
        "reference": is_ranker,
        "config": config,
        "monitor": "ndcg@10",
        "candidates": {"kind": "full", "hash": None},
        "data": SMALL | {"split": SPLIT},
        "test": {"ndcg@10": float(np.nanmean(values)), "users": 4, "gini@10": 0.5, "recall@5": 0.25},
        "versions": {"torch": "1"},
        "device": "cpu",
        "trace": [],
        "costs": {"wall_seconds": 1.0, "peak_memory_bytes": 2**20},
    }
    write_record(folder, record | fields)
    users = [f"user {number}" for number in range(len(values))]
    pl.DataFrame({"raw_id": users, "ndcg@10": values}).write_parquet(folder.per_user)


def put_study(
    out: Path, grid: dict[str, list[Any]], values: Callable[[dict[str, Any]], list[float]], **fields: Any
) -> None:
    """The runs of a grid with EASE and the controls; ``values`` of a config, as a record holds it, are its users'."""
    base = {
        "study": "study",
        "data": {"source": "movielens"},
        "backbone": {"name": "tiny"},
        "adapter": {"method": "lora"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "listwise_softmax"},
        "references": ["ease", "frozen"],
    }
    for run in expand({**base, "grid": grid}):
        config = run.model_dump(mode="json")
        own = {"width": run.width, "reference": is_reference(run), "config": config}
        put(out, run.run_id, run.method, values(config), **own, **fields)


def text_config(adapter: dict[str, Any], **sections: Any) -> dict[str, Any]:
    candidates = {"kind": "full", "size": 100}
    evaluation = {"monitor": "ndcg@10", "mask_seen": True, "candidates": candidates}
    return {"threads": 1, "evaluation": evaluation, "seed": 0, "adapter": adapter, **sections}


def table(out: Path) -> list[dict[str, str]]:
    """The rows of report.md."""
    return tables(out)[0]


def tables(out: Path) -> list[list[dict[str, str]]]:
    """The rows of each table of report.md, the second of which are the differences."""
    parts = [part.splitlines() for part in (out / "study" / "report.md").read_text().split("\n\n")]
    found = [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in part] for part in parts]
    return [
        [dict(zip(header, row, strict=True)) for row in rows]
        for part, (header, *rows) in zip(parts, found, strict=True)
        if part[0].startswith("|") and rows.pop(0)
    ]


def differences(out: Path) -> list[str]:
    rows = tables(out)[1] if len(tables(out)) > 1 else []
    return [f"{row['compared']}: {row['difference of ndcg@10']} {row['95% interval']}" for row in rows]


def names(out: Path) -> list[tuple[str, str]]:
    return [(row["method"], row["width"]) for row in table(out)]


def test_a_value_that_is_no_number_is_nothing_that_can_be_sorted(tmp_path: Path) -> None:
    """Our own records have null, and other tools write NaN."""
    for method, gini in {"popularity": float("nan"), "ease": 0.5}.items():
        put(tmp_path, method, method, [0.0, 1.0], test={"ndcg@10": 0.5, "users": 2, "gini@10": gini})
    path = run_folder(tmp_path, "study", "ease").record
    path.write_text(path.read_text().replace('"gini@10": 0.5', '"gini@10": NaN'))
    report = make_report(*read([tmp_path / "study"]))
    (gini,) = (column for column in report.quality if column.header == "gini")
    assert [tuple(cell) for cell in gini.cells] == [("–", None), ("–", None)]


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).random(400) ** 3
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert intervals(values[:, None])[0] == pytest.approx((expected.low, expected.high), abs=0.002)
    assert (intervals(values[:, None]) == intervals(values[:, None])).all()


def test_each_column_has_the_interval_it_has_alone_and_leaves_out_users_without_a_value() -> None:
    full, some = np.array([0.0, 1.0, 1.0, 0.0, 1.0]), np.array([0.0, np.nan, 1.0, 0.0, 1.0])
    ends = intervals(np.stack([full, some, 2 * full, np.full(5, np.nan)], axis=1))
    assert ends[0].tolist() == intervals(full[:, None])[0].tolist()
    assert ends[1].tolist() == intervals(some[[0, 2, 3, 4], None])[0].tolist()
    assert ends[2].tolist() == (2 * ends[0]).tolist()
    assert np.isnan(ends[3]).all()


def test_references_come_first_and_the_csv_has_every_number_in_full(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1, 0.2, 0.3, 0.4 + 1e-9])
    put(tmp_path, "2", "ease", [0.5, 0.5, 0.5, 0.5], chosen={"l2": 200.0})
    put(tmp_path, "3", "popularity", [0.1, 0.1, 0.1, 0.1])
    write_report(tmp_path / "study", page=False)
    with (tmp_path / "study" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["popularity", "ease (λ=200)", "lora"]
    assert float(rows[2]["ndcg@10"]) == pytest.approx(0.25 + 2.5e-10, abs=1e-12)
    assert float(rows[1]["ndcg@10 95% low"]) == 0.5
    table = (tmp_path / "study" / "report.md").read_text()
    assert "4 users, 1,234 items, 20 interactions" in table
    assert "| ease (λ=200) | – | 0.5000 [0.500, 0.500] |" in table


def test_runs_with_different_splits_are_called_not_comparable(tmp_path: Path) -> None:
    put(tmp_path, "1", "ease", [0.1] * 4)
    put(tmp_path, "2", "lora", [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    assert len(differences(tmp_path)) == 1
    assert "NOT COMPARABLE" not in (tmp_path / "study" / "report.md").read_text()
    other = {"name": "tiny", "users": 4, "items": 9, "interactions": 20, "hash": "other"}
    put(tmp_path, "2", "lora", [0.1] * 4, data=other | {"split": SPLIT | {"hash": "def"}}, device="cuda")
    write_report(tmp_path / "study", page=False)
    assert differences(tmp_path) == []
    table = (tmp_path / "study/report.md").read_text()
    assert "NOT COMPARABLE: the runs have 2 different splits: abc, def" in table
    assert "CAREFUL: the runs have 2 different data" in table
    assert "CAREFUL: the runs have 2 different devices" in table
    assert "different versions" not in table


def test_runs_that_learn_from_different_parts_but_share_their_test_are_comparable(tmp_path: Path) -> None:
    data = {"name": "tiny", "users": 4, "items": 9, "interactions": 20, "hash": "one"}
    for run, train in (("1", "abc"), ("2", "def")):
        put(tmp_path, run, "lora", [0.1] * 4, data=data | {"split": SPLIT | {"hash": train, "test_hash": "same"}})
    write_report(tmp_path / "study", page=False)
    report = (tmp_path / "study/report.md").read_text()
    assert "NOT COMPARABLE" not in report
    assert "tested on the same interactions but learn from 2 different parts of train" in report


def test_records_from_before_test_had_its_own_hash_are_compared_by_the_splits(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    put(tmp_path, "2", "lora", [0.1] * 4, data=SMALL | {"split": SPLIT | {"test_hash": "own"}})
    write_report(tmp_path / "study", page=False)
    assert "NOT COMPARABLE" not in (tmp_path / "study/report.md").read_text()
    put(tmp_path, "2", "lora", [0.1] * 4, data=SMALL | {"split": SPLIT | {"hash": "def", "test_hash": "own"}})
    write_report(tmp_path / "study", page=False)
    assert "NOT COMPARABLE: the runs have 2 different splits: abc, def" in (tmp_path / "study/report.md").read_text()


def test_a_split_that_lets_the_future_in_is_said(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    assert "3 of 4 test rows are older than the last train row" in (tmp_path / "study/report.md").read_text()


def test_labels_of_grid_cells_survive_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id, rank in (("1", 4), ("2", 8)):
        put(tmp_path, run_id, "lora", [0.1] * 4, config=text_config({"method": "lora", "rank": rank}))
    write_report(tmp_path / "study", page=False)
    printed = capsys.readouterr().out
    assert "lora [rank=4]" in printed
    assert "lora [rank=8]" in printed


def test_runs_monitored_by_different_metrics_need_studies_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    config = text_config({"method": "lora"})
    config["evaluation"] |= {"monitor": "recall@5"}
    put(tmp_path, "2", "lora", [0.1] * 4, config=config, monitor="recall@5")
    with pytest.raises(RecpeftError, match=r"different evaluation\.monitor: ndcg@10, recall@5"):
        write_report(tmp_path / "study", page=False)


def test_a_cell_is_compared_with_ease_user_by_user(tmp_path: Path) -> None:
    """Every user gains 0.1, so the paired interval is a point, wide as either row's own interval is."""
    ease, gains = [0.0, 0.4, 0.8, 0.2], [0.1, 0.5, 0.9, 0.3]
    put(tmp_path, "1", "lora", gains)
    put(tmp_path, "2", "ease", ease)
    put(tmp_path, "3", "popularity", ease)
    write_report(tmp_path / "study", page=False)
    assert differences(tmp_path) == ["lora minus ease: +0.1000 [+0.1000, +0.1000]"]


def test_cells_are_compared_with_one_another_where_that_is_asked_for(tmp_path: Path) -> None:
    """Three methods with EASE and a control: 6 sentences of each less these, and 3 of one less another."""
    worth = {"lora": 0.3, "bottleneck": 0.2, "ia3": 0.1, "frozen": 0.0}
    methods = [{"method": name} for name in list(worth)[:3]]
    put_study(
        tmp_path,
        {"adapter": methods},
        lambda config: [worth.get((config.get("adapter") or {"method": ""})["method"], 0.0)] * 4,
    )
    write_report(tmp_path / "study", page=False)
    first = differences(tmp_path)
    assert len(first) == 6
    write_report(tmp_path / "study", page=False, compare="all", correction="bh")
    others = [line for line in differences(tmp_path) if line not in first]
    assert sorted(others) == [
        "bottleneck, none minus ia3, none: +0.1000 [+0.1000, +0.1000]",
        "bottleneck, none minus lora, none: -0.1000 [-0.1000, -0.1000]",
        "ia3, none minus lora, none: -0.2000 [-0.2000, -0.2000]",
    ]
    text = (tmp_path / "study" / "report.md").read_text()
    assert "corrected over all 9 that stand here (Benjamini-Hochberg)" in text


def test_numbers_of_threads_tell_no_rows_apart(tmp_path: Path) -> None:
    """The references ran with two threads, then the study went on with one a run: seeds fold, and pairs are found."""
    put_study(tmp_path, {"seed": [0, 1]}, lambda config: [0.5] * 4)
    for path in (tmp_path / "study").glob("*/result.json"):
        record = json.loads(path.read_text())
        record["config"]["threads"] = 2 if record["reference"] or record["config"]["seed"] else 1
        path.write_text(json.dumps(record))
    write_report(tmp_path / "study", page=False)
    assert names(tmp_path) == [("ease", "–"), ("control (frozen)", "none"), ("lora", "none")]
    assert len(differences(tmp_path)) == 2
    text = (tmp_path / "study" / "report.md").read_text()
    assert "CAREFUL: the runs have 2 different numbers of threads" in text
    assert "numbers of processes" not in text


def test_differences_stand_in_a_table_the_largest_first_with_what_is_shown_and_what_could_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA is 0.1 above EASE for each of 40 users; IA3 is above for half of them, below for the others."""
    draw = np.random.default_rng(0)
    ease = draw.uniform(0, 0.5, 40)
    swings = 0.1 * np.tile([1.0, -1.0], 20)
    noise = draw.normal(0, 0.02, 40)
    put(tmp_path, "1", "ease", ease.tolist())
    put(tmp_path, "2", "lora", (ease + 0.1 + noise).tolist())
    put(tmp_path, "3", "ia3", (ease + swings).tolist())
    write_report(tmp_path / "study", page=False)
    lora, ia3 = tables(tmp_path)[1]
    assert lora["compared"] == "lora minus ease"
    assert [lora[header] for header in ("p (Holm)", "result", "could show")] == ["< 0.001", "shown: better", "–"]
    assert float(lora["Cohen's d"]) == pytest.approx(np.mean(0.1 + noise) / np.std(noise, ddof=1), abs=0.01)
    assert ia3["difference of ndcg@10"] == "+0.0000"
    # By the t-test's power: (2.33 + 0.86) standard errors at 0.05 / 2 two-sided, of 0.1 / sqrt(39) each.
    assert (ia3["result"], float(ia3["could show"])) == ("not shown", pytest.approx(0.051, abs=0.001))
    printed = capsys.readouterr().out
    assert re.search(r"lora minus ease +\+0\.\d{4} +\[\+0\.\d{4}, \+0\.\d{4}\] +< 0\.001 +shown: better +–", printed)


def put_priced(out: Path, count: int) -> None:
    """EASE and ``count`` cells of long names with all that the printed table may hold, of 400 users and of 120."""
    for number in range(count + 1):
        adapter = {"method": "lora", "rank": 2**number, "dropout": number / 100}
        config = {} if number == 0 else {"config": text_config(adapter), "width": "none"}
        costs = {"peak_memory_bytes": 5 * 2**30, "train_seconds": 12345.6, "wall_seconds": 20000.1}
        test = {"users": 400, "ndcg@10": 0.5, "gini@10": 0.9, "novelty@10": 5.4321, "recall@5": 0.25}
        test |= {"item_coverage@10": 0.123456, "ild_jaccard@10": 0.6}
        fields = {"costs": costs, "test": test, "parameters": {"trainable": 123_456_789}}
        values = [0.0, 1.0] * 200 if number else [0.0, 1.0] * 60 + [np.nan] * 280
        put(out, str(number), "lora" if number else "ease", values, **fields, **config)


def test_the_printed_table_has_eight_columns_on_a_screen_and_the_digits_that_intervals_carry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_priced(tmp_path, 6)
    write_report(tmp_path / "study", page=False)
    printed = capsys.readouterr().out.splitlines()
    rules = [place for place, line in enumerate(printed) if line.strip().startswith("───")]
    assert max(len(line) for rule in rules for line in printed[rule - 2 : rule + 8]) <= 100
    header = sorted(" ".join(printed[rules[0] - 2 : rules[0]]).split())
    assert " ".join(header) == "95% MB coverage ild item jaccard method ndcg@10 peak s train trainable width ±"
    # Standard errors of 0, 1, 0, 1, … are 0.5 / sqrt(400) and 0.5 / sqrt(120); 1.96 of them are 0.049 and 0.089.
    assert re.search(r"^ ease +– +0\.500 ± 0\.0(8[789]|9[012]) +0\.123 +0\.600", "\n".join(printed), re.MULTILINE)
    lora = next(line for line in printed if "rank=4" in line)
    assert re.search(r"0\.500 ± 0\.0(4[89]|50) +0\.123 +0\.600 +123,456,789 +5,120 +12,346 *$", lora)


def test_printed_columns_are_chosen_by_name_and_the_files_keep_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_priced(tmp_path, 1)
    names = ["recall@5", "novelty", "total s", "wall_seconds", "adapter.rank", "seeds"]
    write_report(tmp_path / "study", page=False, columns=names)
    ease, lora = (line.split() for line in capsys.readouterr().out.splitlines() if re.match(" (ease|lora) ", line))
    assert ease == ["ease", "–", "0.250", "5.432", "20,000", "20,000", "–", "–"]
    assert lora == ["lora", "none", "0.250", "5.432", "20,000", "20,000", "2", "1"]
    assert {"gini", "trainable"} <= {*table(tmp_path)[0]}


def test_a_column_that_no_record_has_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    put_priced(tmp_path, 1)
    with pytest.raises(
        RecpeftError, match=r"--columns: 'noveltie' is no value .*, did you mean novelty\? Allowed"
    ) as told:
        write_report(tmp_path / "study", page=False, columns=["noveltie"])
    assert all(name in str(told.value) for name in ("item_coverage", "trainable", "peak_memory_bytes", "report.csv"))
    assert not (tmp_path / "study" / "report.md").exists()


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    """Every user's mean over the seeds is 0.25, so the interval is a point, though either seed's is not."""

    def values(config: dict[str, Any]) -> list[float]:
        if "ranker" in config:
            return [0.1] * 4
        if config["adapter"]["method"] == "frozen":
            return [0.2 if config["seed"] else 0.1] * 4
        return [0.5, 0.1, 0.5, 0.1] if config["seed"] else [0.0, 0.4, 0.0, 0.4]

    put_study(tmp_path, {"seed": [0, 1]}, values)
    write_report(tmp_path / "study", page=False)
    rows = table(tmp_path)
    assert [(row["method"], row["seeds"]) for row in rows] == [("ease", "–"), ("control (frozen)", "2"), ("lora", "2")]
    # 0.1 apart, so that the sample standard deviation is 0.1 / sqrt(2).
    assert [row["ndcg@10 [95%]"] for row in rows] == [
        "0.1000 [0.100, 0.100]",
        "0.1500 ± 0.0707 [0.150, 0.150]",
        "0.2500 ± 0.0707 [0.250, 0.250]",
    ]
    assert [sentence.partition(" [")[0] for sentence in differences(tmp_path)] == [
        "lora, none minus ease: +0.1500",
        "lora, none minus control (frozen): +0.1000",
    ]
    assert "its interval is over users" in (tmp_path / "study" / "report.md").read_text()


def test_runs_on_different_splits_are_not_folded(tmp_path: Path) -> None:
    """As where a data set's files were replaced between two seeds."""
    data = {"name": "tiny", "users": 4, "items": 9, "interactions": 20, "hash": "other"}
    put(tmp_path, "1", "lora", [0.1] * 4)
    put(tmp_path, "2", "lora", [0.3] * 4, config=text_config({"method": "lora"}) | {"seed": 1})
    write_report(tmp_path / "study", page=False)
    assert len(table(tmp_path)) == 1
    put(tmp_path, "1", "lora", [0.1] * 4, data=data | {"split": SPLIT | {"hash": "def"}})
    write_report(tmp_path / "study", page=False)
    assert [row["ndcg@10 [95%]"][:6] for row in table(tmp_path)] == ["0.1000", "0.3000"]


def test_the_csv_has_a_line_for_every_seed(tmp_path: Path) -> None:
    put_study(tmp_path, {"seed": [2, 0, 1]}, lambda config: [0.1 * config.get("seed", 5)] * 4)
    write_report(tmp_path / "study", page=False)
    with (tmp_path / "study" / "report.csv").open() as file:
        rows = [(row["method"], row["seed"], row["ndcg@10"]) for row in csv.DictReader(file)]
    seeds = [("0", "0.0"), ("1", "0.1"), ("2", "0.2")]
    assert rows == [("ease", "", "0.5"), *[(name, *seed) for name in ("control (frozen)", "lora") for seed in seeds]]


def test_the_notes_name_every_seed(tmp_path: Path) -> None:
    fields = {"training": {"validation_users": 4}, "backbone": {"compute_dtype": "float32"}}
    put_study(tmp_path, {"seed": [3, 7]}, lambda config: [0.1] * 4, **fields)
    write_report(tmp_path / "study", page=False)
    assert "backbone tiny in float32, 2 threads, seeds 3, 7" in (tmp_path / "study" / "report.md").read_text()


def test_the_note_on_a_weighted_sum_names_each_part(tmp_path: Path) -> None:
    fields = {"training": {"validation_users": 4}, "backbone": {"compute_dtype": "float32"}}
    parts = [{"loss": {"name": "margin", "margin": 2.0}}, {"weight": 0.3, "loss": {"name": "listnet"}}]
    put_study(tmp_path, {"loss": [{"name": "weighted_sum", "parts": parts}]}, lambda config: [0.1] * 4, **fields)
    write_report(tmp_path / "study", page=False)
    expected = (
        ", weighted_sum (1 × margin (rating_weight False, margin 2.0) + 0.3 × listnet (rating_gain True, "
        "gain_scale 1.0)); backbone tiny"
    )
    assert expected in (tmp_path / "study" / "report.md").read_text()


def test_scores_that_move_with_the_batch_are_said_and_those_that_hold_are_not(tmp_path: Path) -> None:
    fields = {"training": {"validation_users": 4}, "backbone": {"compute_dtype": "float32"}}
    still = {"batch": 2e-6, "padding": 9e-5, "standard_deviation": 0.4}
    for found, said in ((still, False), (still | {"batch": 0.012}, True), (still | {"whole_text": 2e-4}, True)):
        put_study(tmp_path, {}, lambda config: [0.1] * 4, diagnostics=found, **fields)
        write_report(tmp_path / "study", page=False)
        report = (tmp_path / "study" / "report.md").read_text()
        assert ("CAREFUL: scores of" in report) is said
    assert "batch 2.0e-06, padding 9.0e-05, whole_text 2.0e-04; their standard deviation is 0.4" in report
    order = {"lists": 4, "best_changes": 0.25, "kendall_tau": 0.613}
    put_study(tmp_path, {}, lambda config: [0.1] * 4, diagnostics=still | {"order": order}, **fields)
    write_report(tmp_path / "study", page=False)
    report = (tmp_path / "study" / "report.md").read_text()
    assert "changes in 25% of 4 lists; Kendall's tau 0.61" in report


def test_a_saved_model_that_scores_otherwise_is_said(tmp_path: Path) -> None:
    fields = {"training": {"validation_users": 4}, "backbone": {"compute_dtype": "float32"}}
    for off, said in ((2e-6, False), (0.03, True), (None, False)):
        reload = {"reload": {"largest_difference_in_score_sd": off}}
        put_study(tmp_path, {}, lambda config: [0.1] * 4, certificate=reload, **fields)
        write_report(tmp_path / "study")
        assert ("up to 3.0e-02 of" in (tmp_path / "study" / "report.md").read_text()) is said


def test_one_seed_needs_no_column_for_seeds(tmp_path: Path) -> None:
    put_study(tmp_path, {"backbone.width": ["none", "nf4"]}, lambda config: [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    assert not [header for header in table(tmp_path)[0] if "seed" in header]
    assert "mean over its seeds" not in (tmp_path / "study" / "report.md").read_text()


def test_seconds_are_the_mean_over_seeds_and_bytes_the_largest(tmp_path: Path) -> None:
    for seed, seconds, megabytes in ((0, 100, 250), (1, 200, 150)):
        costs = {
            "train_seconds": seconds,
            "train_tokens_per_second": 10 * seconds,
            "test_tokens_per_second": 4 * seconds,
            "wall_seconds": 1.0,
            "peak_memory_bytes": megabytes * 2**20,
            "adapter_bytes": 2**19,
            "optimizer_bytes": 3 * 2**20,
        }
        fields = {"parameters": {"trainable": 1234}, "backbone": {"compute_dtype": "float32", "bytes": 43 * 2**20}}
        config = text_config({"method": "lora"}) | {"seed": seed}
        put(tmp_path, str(seed), "lora", [0.1] * 4, config=config, costs=costs, **fields)
    write_report(tmp_path / "study", page=False)
    (row,) = table(tmp_path)
    expected = {
        "trainable": "1,234",
        "adapter MB": "0.5",
        "optimiser MB": "3",
        "backbone MB": "43",
        "peak MB": "250",
        "train s": "150",
        "train tokens/s": "1,500",
        "test tokens/s": "600",
        "total s": "1",
    }
    assert {header: row[header] for header in expected} == expected


def test_costs_that_a_record_lacks_are_dashes(tmp_path: Path) -> None:
    put(tmp_path, "1", "popularity", [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    (row,) = table(tmp_path)
    assert (row["trainable"], row["backbone MB"], row["train tokens/s"], row["peak MB"]) == ("–", "–", "–", "1")


def test_a_cell_is_compared_with_the_control_that_was_trained_as_it_was(tmp_path: Path) -> None:
    """Control 0.1 and cell 0.4 at the one learning rate, 0.2 and 0.7 at the other."""

    def values(config: dict[str, Any]) -> list[float]:
        if "ranker" in config:
            return [0.0] * 4
        fast = config["training"]["learning_rate"] == 0.01
        if config["adapter"]["method"] == "frozen":
            return [0.2 if fast else 0.1] * 4
        return [0.7 if fast else 0.4] * 4

    put_study(tmp_path, {"training.learning_rate": [0.001, 0.01]}, values)
    write_report(tmp_path / "study", page=False)
    found = [re.sub(r" \[[+-][^]]*\]", "", sentence) for sentence in differences(tmp_path)]
    assert found == [
        "lora [learning_rate=0.01], none minus ease: +0.7000",
        "lora [learning_rate=0.01], none minus control (frozen) [learning_rate=0.01]: +0.5000",
        "lora [learning_rate=0.001], none minus ease: +0.4000",
        "lora [learning_rate=0.001], none minus control (frozen) [learning_rate=0.001]: +0.3000",
    ]


def test_seeds_that_only_one_of_two_rows_has_do_not_enter_their_difference(tmp_path: Path) -> None:
    """The control's seed 1 is missing: 0.3 - 0.1 over seed 0, where the cell's mean over both is 0.4."""

    def values(config: dict[str, Any]) -> list[float]:
        return [0.1 if config["adapter"]["method"] == "frozen" else 0.3 + 0.2 * config["seed"]] * 4

    put_study(tmp_path, {"seed": [0, 1]}, lambda config: [0.0] * 4 if "ranker" in config else values(config))
    for path in (tmp_path / "study").glob("*/result.json"):
        if '"method": "frozen"' in path.read_text() and '"seed": 1' in path.read_text():
            path.unlink()
    write_report(tmp_path / "study", page=False)
    assert [sentence.partition(" [")[0] for sentence in differences(tmp_path)] == [
        "lora, none minus ease: +0.4000",
        "lora, none minus control (frozen), over seed 0 alone: +0.2000",
    ]


def test_what_quantisation_costs_is_said_for_each_adapter(tmp_path: Path) -> None:
    def values(config: dict[str, Any]) -> list[float]:
        if "ranker" in config or config["adapter"]["method"] == "frozen":
            return [0.0] * 4
        lost = {"none": 0.0, "nf4": 0.02}[config["backbone"]["width"]]
        return [0.1 * config["adapter"]["rank"] - lost * config["adapter"]["rank"]] * 4

    put_study(tmp_path, {"adapter.rank": [1, 2], "backbone.width": ["nf4", "none"]}, values)
    for compare, number in (
        ("references", 10),
        ("all", 14),
    ):  # 4 cells less EASE and control, and 2 widths; all 6 pairs
        write_report(tmp_path / "study", page=False, compare=compare)
        said = differences(tmp_path)
        assert len(said) == number
        assert [sentence for sentence in said if "itself" in sentence] == [
            "lora [rank=2], nf4 minus itself at width none: -0.0400 [-0.0400, -0.0400]",
            "lora [rank=1], nf4 minus itself at width none: -0.0200 [-0.0200, -0.0200]",
        ]


def test_rows_are_ordered_by_method_then_options_then_width(tmp_path: Path) -> None:
    widths = ["fp4", "nf4", "int8", "none"]
    put_study(tmp_path, {"adapter.rank": [16, 4], "backbone.width": widths}, lambda config: [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    assert names(tmp_path) == [
        ("ease", "–"),
        ("control (frozen)", "none"),
        *[(f"lora [rank={rank}]", width) for rank in (4, 16) for width in ("none", "int8", "nf4", "fp4")],
    ]


def test_a_name_has_the_options_that_differ_within_its_method_and_none_of_another(tmp_path: Path) -> None:
    adapters = [
        {"method": "lora", "rank": 4, "dropout": 0.0},
        {"method": "lora", "rank": 8, "dropout": 0.0},
        {"method": "bottleneck", "bottleneck_dim": 64, "dropout": 0.1},
    ]
    for number, adapter in enumerate(adapters):
        put(tmp_path, str(number), adapter["method"], [0.1] * 4, config=text_config(adapter), width="none")
    write_report(tmp_path / "study", page=False)
    assert names(tmp_path) == [("bottleneck", "none"), ("lora [rank=4]", "none"), ("lora [rank=8]", "none")]


def test_a_name_has_the_shared_options_that_differ_between_methods(tmp_path: Path) -> None:
    """Zero-shot is not trained, so the defaults that stand in its config are nobody's difference."""
    runs = {
        "zero_shot": ({"learning_rate": 1.0}, {"name": "softmax", "logq": True}),
        "frozen": ({"learning_rate": 0.1}, {"name": "softmax", "logq": False}),
        "lora": ({"learning_rate": 0.1}, {"name": "softmax", "logq": False}),
        "bottleneck": ({"learning_rate": 0.2}, {"name": "bpr", "margin": 1}),
    }
    for method, (training, loss) in runs.items():
        config = text_config({"method": method}, loss=loss, training=training)
        put(tmp_path, method, method, [0.1] * 4, config=config, reference=method in ("zero_shot", "frozen"))
    write_report(tmp_path / "study", page=False)
    assert [name for name, _ in names(tmp_path)] == [
        "zero_shot",
        "control (frozen) [loss=softmax, learning_rate=0.1]",
        "bottleneck [loss=bpr, learning_rate=0.2]",
        "lora [loss=softmax, learning_rate=0.1]",
    ]


def test_options_that_share_their_last_part_are_named_in_full(tmp_path: Path) -> None:
    for number, (inner, outer) in enumerate([(0.1, 0.3), (0.2, 0.4)]):
        adapter, training = {"method": "lora", "learning_rate": inner}, {"learning_rate": outer}
        put(tmp_path, str(number), "lora", [0.1] * 4, config=text_config(adapter, training=training))
    write_report(tmp_path / "study", page=False)
    assert names(tmp_path)[0][0] == "lora [adapter.learning_rate=0.1, training.learning_rate=0.3]"


def test_a_record_from_before_an_option_was_there_has_a_name_of_its_own(tmp_path: Path) -> None:
    for number, training in enumerate([{"max_steps": 60}, {"max_steps": 60, "optimizer": "adamw"}]):
        put(tmp_path, str(number), "lora", [0.1] * 4, config=text_config({"method": "lora"}, training=training))
    write_report(tmp_path / "study", page=False)
    assert sorted(name for name, _ in names(tmp_path)) == ["lora", "lora [optimizer=adamw]"]


def test_an_option_that_comes_with_the_width_is_shown_only_where_it_differs_at_that_width(tmp_path: Path) -> None:
    for number, (width, double) in enumerate([("none", False), ("nf4", True), ("fp4", False), ("fp4", True)]):
        config = text_config({"method": "lora"}, backbone={"width": width, "double_quantisation": double})
        put(tmp_path, str(number), "lora", [0.1] * 4, config=config, width=width)
    write_report(tmp_path / "study", page=False)
    assert names(tmp_path) == [
        ("lora", "none"),
        ("lora", "nf4"),
        ("lora [double_quantisation=False]", "fp4"),
        ("lora [double_quantisation=True]", "fp4"),
    ]


def test_a_study_of_failed_runs_says_the_first_error(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4, status="failed", error="it broke")
    with pytest.raises(RecpeftError, match="no finished run; 1 failed, 1 with: it broke"):
        write_report(tmp_path / "study", page=False)


# Several studies ---------------------------------------------------------------------------------------


def move(out: Path, name: str, **fields: Any) -> Path:
    """The study as a study of another name, its records changed."""
    for path in (out / "study").glob("*/result.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"config": record["config"] | {"study": name}} | fields))
    return (out / "study").rename(out / name)


def rank_study(out: Path, name: str, rank: int, references: bool = True, **fields: Any) -> Path:
    def values(config: dict[str, Any]) -> list[float]:
        if "ranker" in config:
            return [0.1] * 4
        return [0.2] * 4 if config["adapter"]["method"] == "frozen" else [0.1 * rank] * 4

    put_study(out, {"adapter.rank": [rank]}, values)
    for path in (out / "study").glob("*/result.json"):
        if not references and json.loads(path.read_text())["reference"]:
            path.unlink()
    return move(out, name, **fields)


def test_several_studies_stand_in_one_table_under_their_names(tmp_path: Path) -> None:
    folders = [rank_study(tmp_path, name, rank) for name, rank in (("small", 4), ("large", 8))]
    write_report(*folders, to=tmp_path / "study", page=False)
    assert [(row["study"], row["method"]) for row in table(tmp_path)] == [
        ("large", "ease"),
        ("large", "control (frozen)"),
        ("large", "lora [rank=8]"),
        ("small", "ease"),
        ("small", "control (frozen)"),
        ("small", "lora [rank=4]"),
    ]
    # Each with its own study's references, once.
    assert [sentence.partition(" [+")[0] for sentence in differences(tmp_path)] == [
        "large: lora [rank=8], none minus large: ease: +0.7000",
        "large: lora [rank=8], none minus large: control (frozen): +0.6000",
        "small: lora [rank=4], none minus small: ease: +0.3000",
        "small: lora [rank=4], none minus small: control (frozen): +0.2000",
    ]
    with (tmp_path / "study" / "report.csv").open() as file:
        assert [row["study"] for row in csv.DictReader(file)] == ["large"] * 3 + ["small"] * 3
    assert not (folders[0] / "report.md").exists()


def test_what_a_study_measures_beside_stands_in_no_name(tmp_path: Path) -> None:
    folders = [rank_study(tmp_path, name, 4) for name in ("small", "large")]
    for path in folders[0].glob("*/result.json"):
        record = json.loads(path.read_text())
        record["config"]["evaluation"] |= {"k": [10], "metrics": ["arp", "gini"], "groups": [{"column": "age"}]}
        path.write_text(json.dumps(record))
    write_report(*folders, to=tmp_path / "study", page=False)
    assert {row["method"] for row in table(tmp_path)} == {"ease", "control (frozen)", "lora"}
    assert "different evaluations" in (tmp_path / "study" / "report.md").read_text()


def test_a_study_without_references_is_compared_with_those_of_another(tmp_path: Path) -> None:
    folders = [rank_study(tmp_path, "bare", 4, references=False), rank_study(tmp_path, "whole", 8)]
    write_report(*folders, to=tmp_path / "study", page=False)
    found = [sentence.partition(": +")[0] for sentence in differences(tmp_path)]
    assert found[2:] == [
        "bare: lora [rank=4], none minus whole: ease",
        "bare: lora [rank=4], none minus whole: control (frozen)",
    ]
    assert len(found) == 4


def test_studies_on_other_splits_or_candidates_are_not_compared(tmp_path: Path) -> None:
    bare, whole = rank_study(tmp_path, "bare", 4, references=False), rank_study(tmp_path, "whole", 8)
    for fields, said in (
        (
            {"data": SMALL | {"split": SPLIT | {"hash": "def"}}},
            "NOT COMPARABLE: the runs have 2 different splits: abc, def",
        ),
        ({"candidates": {"kind": "uniform", "hash": "123"}}, "CAREFUL: the runs have 2 different candidate sets"),
    ):
        for path in bare.glob("*/result.json"):
            kept = {"data": SMALL | {"split": SPLIT}, "candidates": {"kind": "full", "hash": None}}
            path.write_text(json.dumps(json.loads(path.read_text()) | kept | fields))
        write_report(bare, whole, to=tmp_path / "study", page=False)
        assert [sentence for sentence in differences(tmp_path) if "bare" in sentence] == []
        assert said in (tmp_path / "study" / "report.md").read_text()


def test_two_studies_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    first, second = (rank_study(tmp_path / place, "same", 4) for place in ("one", "two"))
    write_report(first, second, to=tmp_path / "study", page=False)
    assert {row["study"] for row in table(tmp_path)} == {str(first), str(second)}


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    folder = rank_study(tmp_path, "small", 4)
    write_report(folder, tmp_path, to=tmp_path / "study", page=False)
    assert len(table(tmp_path)) == 3
    assert "study" not in table(tmp_path)[0]


def test_several_folders_need_one_for_the_report(tmp_path: Path) -> None:
    folders = [rank_study(tmp_path, name, 4) for name in ("small", "large")]
    with pytest.raises(RecpeftError, match="2 folders are reported together and --to is missing"):
        write_report(*folders)


# What cannot be reported -------------------------------------------------------------------------------


def recpeft_report(*arguments: Path | str) -> tuple[int, str]:
    """Exit code and what stands on standard error."""
    command = [sys.executable, "-m", "experiments.cli", "report", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def test_a_record_of_another_schema_ends_with_code_2_and_is_named(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    put(tmp_path, "2", "ease", [0.1] * 4, schema=1, versions={"recpeft": "0.0.9"})
    code, said = recpeft_report(tmp_path / "study")
    assert code == 2
    assert "study/2/result.json is of schema 1 (recpeft 0.0.9), older than schema 2, which this recpeft" in said
    assert "reads; use the version that wrote it, or move it away and run the study again" in said
    assert "Traceback" not in said
    (tmp_path / "study" / "2" / "result.json").write_text("[]")


def test_an_empty_study_and_one_of_failed_runs_end_with_code_2(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    code, said = recpeft_report(tmp_path / "study")
    assert (code, said.count("\n")) == (2, 1)
    assert "study holds no record (result.json); run the study first." in said
    for run_id, error in (("1", "it broke"), ("2", "out of\nmemory."), ("3", "it broke")):
        put(tmp_path, run_id, "lora", [0.1] * 4, status="failed", error=error)
    code, said = recpeft_report(tmp_path / "study")
    assert code == 2
    assert "no finished run; 3 failed, 2 with: it broke; 1 with: out of memory: mend that" in said.replace("\n", " ")


def test_failed_runs_are_listed_with_their_errors_beside_the_others(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    put(tmp_path, "2", "lora", [0.1] * 4, status="failed", error="first line\nsecond line", width="nf4")
    write_report(tmp_path / "study", page=False)
    assert "- failed: 2 lora, width nf4: first line second line" in (tmp_path / "study" / "report.md").read_text()


def test_a_record_without_its_users_says_so(tmp_path: Path) -> None:
    put(tmp_path, "1", "lora", [0.1] * 4)
    path = tmp_path / "study" / "1" / "per_user.parquet"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RecpeftError, match=r"per_user\.parquet cannot be read .*; remove .* and run it again"):
        write_report(tmp_path / "study")
    (tmp_path / "study" / "1" / "per_user.parquet").unlink()
    with pytest.raises(RecpeftError, match=r"there is no .*per_user\.parquet, which stands beside a record; remove"):
        write_report(tmp_path / "study")


# Other formats -----------------------------------------------------------------------------------------


def test_means_and_deviations_over_seeds_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Of 0.1, 0.2 and 0.6 the mean is 0.3 and the squares of what is left sum to 0.14, so sd is 0.07 ** 0.5."""
    seeds = {0: 0.1, 1: 0.2, 2: 0.6}
    put_study(tmp_path, {"seed": [0, 1, 2]}, lambda config: [seeds[config.get("seed", 1)]] * 4)
    write_report(tmp_path / "study", page=False)
    with (tmp_path / "study" / "report_means.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["value"] == "ndcg@10"]
    assert [(row["method"], row["n"]) for row in rows] == [("ease", "1"), ("control (frozen)", "3"), ("lora", "3")]
    assert rows[0]["sd"] == ""
    assert float(rows[2]["mean"]) == pytest.approx(0.3)
    assert float(rows[2]["sd"]) == pytest.approx(0.07**0.5)
    assert table(tmp_path)[2]["ndcg@10 [95%]"] == "0.3000 ± 0.2646 [0.300, 0.300]"


def test_latex_prints_what_it_takes_for_commands(tmp_path: Path) -> None:
    put(tmp_path, "1", "my_method 50% & #1 $x$ {a} ~^\\<", [0.1] * 4)
    for seed in (0, 1):
        put(tmp_path, f"2{seed}", "lora", [0.1 * seed] * 4, config=text_config({"method": "lora"}) | {"seed": seed})
    write_report(tmp_path / "study", page=False)
    text = (tmp_path / "study" / "report.tex").read_text()
    name = r"my\_method 50\% \& \#1 \$x\$ \{a\} \textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}"
    assert f"{name} & -- & 0.1000 [0.100, 0.100]" in text
    assert r"0.0500 $\pm$ 0.0707 [0.050, 0.050]" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = [len(re.findall(r"(?<!\\)&", row)) for row in rows]
    assert columns == [columns[0]] * 3 + [columns[3]] * 3
    assert r"\begin{tabular}{ll" + "r" * (columns[0] - 1) + "}" in text


def test_markdown_does_not_take_a_name_for_markup(tmp_path: Path) -> None:
    put(tmp_path, "1", "<script>alert(1)</script>|x", [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    text = (tmp_path / "study" / "report.md").read_text()
    assert r"| \<script>alert(1)\</script>\|x |" in text


def test_a_name_of_several_lines_or_with_a_backslash_stays_in_its_cell(tmp_path: Path) -> None:
    put(tmp_path, "1", "one\ntwo \\| three", [0.1] * 4)
    write_report(tmp_path / "study", page=False)
    assert "| one two \\\\\\| three |" in (tmp_path / "study" / "report.md").read_text()


def test_what_is_neither_better_nor_worse_has_no_arrow_and_is_no_monitor() -> None:
    assert [_better(name) for name in ("pop_lift@10", "gini@10", "ndcg@10")] == ["", "lower", "higher"]
    with pytest.raises(ValidationError, match="neither more nor less is better"):
        EvaluationConfig(metrics=("pop_lift",), monitor="pop_lift@10")


def test_a_variant_is_named_by_its_name_and_its_control_by_what_it_changes(tmp_path: Path) -> None:
    base = {
        "study": "study",
        "data": {"source": "movielens"},
        "backbone": {"name": "tiny"},
        "adapter": {"method": "lora"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "listwise_softmax"},
        "references": ["frozen"],
    }
    variants = {"short": {"prompt.history": 2}}
    for run in expand({**base, "grid": {"adapter.rank": [2, 4]}, "variants": variants}):
        own = {"width": run.width, "reference": is_reference(run), "config": run.model_dump(mode="json")}
        put(tmp_path, run.run_id, run.method, [0.5, 0.25], **own)
    write_report(tmp_path / "study", page=False)
    assert {row["method"] for row in table(tmp_path)} == {
        "control (frozen) [history=10]",
        "control (frozen) [history=2]",
        "lora [variant=base, rank=2]",
        "lora [variant=base, rank=4]",
        "lora [variant=short, rank=2]",
        "lora [variant=short, rank=4]",
    }


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("=1+1", "@SUM(A1)", "-2+3", "a=b", "\x1b[31mred")):
        put(tmp_path, f"{number}" * 12, name, [0.1, 0.2], config=text_config({"method": name}, study="study"))
    write_report(tmp_path / "study", page=False)
    for file in ("report.csv", "report_means.csv"):
        with (tmp_path / "study" / file).open(newline="") as table:
            assert {row["method"] for row in csv.DictReader(table)} >= {"'=1+1", "'@SUM(A1)", "'-2+3", "a=b"}
    assert "\x1b" not in capsys.readouterr().out


def test_what_makes_a_row_mean_less_is_said(tmp_path: Path) -> None:
    tried = {"validation_l2=50.0": 0.1, "validation_l2=100.0": 0.2, "validation_l2=200.0": 0.3}
    put(tmp_path, "b" * 12, "lora", [0.1, 0.2], config=text_config({"method": "lora"}, study="study"))
    told = []
    for chosen in (
        {"l2": 200.0, **tried},
        {"l2": 50.0, **dict.fromkeys(tried, 0.0)},
        {"l2": 100.0, **tried, "validation_l2=100.0": 0.4},
    ):
        put(tmp_path, "a" * 12, "ease", [0.1, 0.2], chosen=chosen)
        write_report(tmp_path / "study", page=False)
        told.append((tmp_path / "study" / "report.md").read_text())
    assert "ease's l2: 200 is the largest that was tried; widen ranker.l2" in told[0]
    assert "ease's l2: all 3 values validate alike, so the choice of 50 says nothing" in told[1]
    assert "ease's l2" not in told[2]


def test_an_epoch_chosen_among_values_that_are_all_alike_is_told(tmp_path: Path) -> None:
    for number, values in enumerate(([0.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.2])):
        trace = [
            {"step": step, "train_loss": 1.0, "validation": {"ndcg@10": value}} for step, value in enumerate(values)
        ]
        method = f"method{number}"
        put(tmp_path, f"{number}" * 12, method, [0.1, 0.2], config=text_config({"method": method}), trace=trace)
    write_report(tmp_path / "study", page=False)
    report = (tmp_path / "study" / "report.md").read_text()
    assert "method0 (000000000000): all 3 validations have ndcg@10 0, so the choice of an epoch says nothing" in report
    assert report.count("so the choice of an epoch") == 1


def test_a_metric_that_some_rows_lack_is_told_of_them_alone_with_what_of_theirs_it_needs(tmp_path: Path) -> None:
    wanted = {"metrics": ["differential_fairness", "user_auc", "eo_gap"]}
    has = {"differential_fairness_gender": 0.1, "user_auc": 0.5}
    rows = (("lora", has), ("dora", {"user_auc": 0.5}), ("lora", {"user_auc": 0.5}))
    for number, (method, test) in enumerate(rows):
        config = text_config({"method": method}, study="study", width=number)
        config["evaluation"] |= wanted
        put(tmp_path, f"{number}" * 12, method, [0.1, 0.2], config=config, test={"ndcg@10": 0.1, "users": 4, **test})
    write_report(tmp_path / "study", page=False)
    report = (tmp_path / "study" / "report.md").read_text()
    needs = "is not measured (–): it needs scores that are logits, scores of the whole catalogue\n"
    assert f"differential_fairness of dora, lora (222222222222) {needs}" in report
    assert "eo_gap is not measured (–): it needs two groups of users\n" in report  # groups are none of the model's
    assert "user_auc is not" not in report


def test_a_metric_without_its_input_is_told_with_what_it_needs(tmp_path: Path) -> None:
    config = text_config({"method": "lora"}, study="study")
    config["evaluation"] = config["evaluation"] | {"metrics": ["user_auc"]}
    test = {"ndcg@10": 0.1, "users": 4, "ild_jaccard@10": None}
    put(tmp_path, "b" * 12, "lora", [0.1, 0.2], config=config, test=test)
    write_report(tmp_path / "study", page=False)
    report = (tmp_path / "study" / "report.md").read_text()
    assert "ild_jaccard is not measured (–): it needs categories of the items" in report
    assert "user_auc is not measured (–): it needs scores of the whole catalogue" in report
