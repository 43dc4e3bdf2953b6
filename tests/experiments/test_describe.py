"""``recpeft data describe`` says what the data are, by numbers worked out apart from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from datamodules import synthetic
from experiments.cell.data import prepare
from experiments.cli.app import app
from experiments.config.grid import load_runs
from experiments.finished.describe import _coverage, describe
from recpeft.errors import RecpeftError

SIZES = {"num_users": 60, "num_items": 80, "interactions_per_user": 10}


@pytest.fixture
def file(tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment file over synthetic data, whose items are named by their numbers."""
    monkeypatch.setenv("RECPEFT_HOME", str(tmp_path / "home"))
    path = tmp_path / "study.yaml"
    path.write_text(
        f"""
study: made
references: []
data: {{source: synthetic, num_users: 60, num_items: 80, interactions_per_user: 10}}
prompt: {{history: 3, item: "film {{{{ item }}}}", instruction: "watched:", max_user_tokens: 40}}
backbone: {{name: "{tiny_backbone}"}}
adapter: {{method: lora, rank: 2}}
formulation: {{name: two_tower}}
loss: {{name: listwise_softmax}}
evaluation: {{k: [5], monitor: ndcg@5, groups: [group], item_groups: [categories]}}
"""
    )
    return path


def shown(file: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    describe(file, list(overrides))
    return capsys.readouterr().out


def row(text: str, name: str) -> str:
    """A table's row, on as many lines as it takes."""
    lines = text.splitlines()
    (start,) = [number for number, line in enumerate(lines) if re.match(rf"│ {re.escape(name)} +│", line)]
    parts = [lines[start].split("│")[2].strip()]
    for line in lines[start + 1 :]:
        if not line.startswith("│  "):
            break
        parts.append(line.split("│")[2].strip())
    return " ".join(parts)


def test_counts_sparsity_and_times_are_the_datas(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(file, capsys)
    data = synthetic.load(synthetic.Config(source="synthetic", **SIZES))
    times: Any = data.interactions["timestamp"]
    assert row(text, "users, items, interactions") == "60, 80, 600"
    # 600 of 4,800 pairs
    assert row(text, "sparsity").startswith("87.5000% of user-item pairs")
    assert row(text, "interactions a user") == "10 to 10, median 10, 90 % up to 10"
    counts = np.sort(np.bincount(data.interactions["item"].to_numpy(), minlength=80))
    assert row(text, "interactions an item").startswith(f"{counts[0]} to {counts[-1]}, median {np.median(counts):g}")
    days = [str(np.datetime64(int(moment), "s").astype("datetime64[D]")) for moment in (times.min(), times.max())]
    assert row(text, "times (UTC)") == f"{days[0]} to {days[1]}"
    assert row(text, "split: per_user_temporal") == "480 train, 60 validation, 60 test"
    assert row(text, "users with a value") == "raw_id all, favourite all, group all"


def test_pairs_that_repeat_are_one_pair_of_the_sparsity(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{user},{item},{100 * item + time}" for user in range(5) for item in range(4) for time in range(3)]
    (tmp_path / "rows.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *(f"{n},Film {n}" for n in range(8))]) + "\n")
    files = f"path: '{tmp_path}', interactions: rows.csv, items: items.csv, columns: {{timestamp: timestamp}}"
    data = f"data={{source: tabular, {files}, duplicates: keep}}"
    text = shown(file, capsys, data, "evaluation.groups=[]", "evaluation.item_groups=[]")
    # 20 of 40 pairs, three times each
    assert row(text, "sparsity").startswith("50.0000%")
    assert "pairs of user and item stand in more than one part" in text


def test_lengths_and_groups_are_counted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(file, capsys)
    data = synthetic.load(synthetic.Config(source="synthetic", **SIZES))
    # "film" and a number of one or two words of this tokenizer, between two special tokens
    assert row(text, "items' texts").startswith("4 to 4, median 4")
    # watched : film n ; film n ; film n ; between two special tokens
    assert row(text, "test users' texts") == "13 to 13, median 13, 90 % up to 13; at most 40"
    members = data.users["group"].value_counts().sort("group")
    assert row(text, "users by group") == ", ".join(f"{name} {size}" for name, size in members.iter_rows())
    topics = data.items["categories"].list.first().value_counts().sort("categories")
    assert row(text, "items by categories") == ", ".join(f"{name} {size}" for name, size in topics.iter_rows())
    assert row(text, "users by activity") == "cold 0, warm 60, heavy 0"  # all have eight train rows
    train = prepare(load_runs(file)[0].data).split.train
    warm = (np.bincount(train["item"].to_numpy(), minlength=80) >= 5).sum()
    assert row(text, "items by familiarity") == f"cold {80 - warm}, warm {warm}"


def test_the_audit_and_its_warning_are_shown_each_on_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(file, capsys)
    record = prepare(load_runs(file)[0].data).record
    (audit,) = [line for line in text.splitlines() if line.startswith("audit: ")]
    assert f"data {record['hash']} split {record['split']['hash']} candidates full prompt " in audit
    (warning,) = [line for line in text.splitlines() if line.startswith("WARNING: ")]
    assert "of 60 test rows are older than the last train row" in warning
    assert "WARNING" not in shown(file, capsys, "data.split=global_temporal")


def test_three_prompts_are_those_of_the_first_test_users(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(file, capsys)
    lines = text.splitlines()
    start = lines.index("3 prompts of test users, and an item's text:")
    prompts, item = lines[start + 1 : start + 4], lines[start + 4]
    rows = synthetic.load(synthetic.Config(source="synthetic", **SIZES)).interactions
    for user, prompt in enumerate(prompts):
        # the last of ten is tested
        history = rows.filter(pl.col("user") == user).sort("timestamp")["item"].to_list()[:9]
        assert prompt.split() == ["[CLS]", "watched", ":"] + [
            word for number in history[-3:] for word in f"film {number} ;".split()
        ] + ["[SEP]"]
    assert item.split() == ["[CLS]", "film", "0", "[SEP]"]


def test_filters_and_what_is_left_out_are_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(file, capsys, "data.filters=[{min_rating: 4}]", "data.split={kind: user_holdout}")
    of = prepare(load_runs(file, ["data.filters=[{min_rating: 4}]", "data.split={kind: user_holdout}"])[0].data)
    step = of.record["filters"][0]
    assert row(text, "filter") == f"min_rating 4.0: 600 to {step['after']['interactions']} interactions"
    assert f"{of.split.history.height} history alone" in row(text, "split: user_holdout")


def test_a_data_set_is_shown_once_for_each_prompt_and_candidates(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(file, capsys, "grid={adapter.rank: [2, 4]}").count("audit: ") == 1
    assert shown(file, capsys, "grid={prompt.history: [2, 4]}").count("audit: ") == 2
    text = shown(file, capsys, "evaluation.candidates={kind: uniform, size: 20}")
    assert re.search(r"candidates [0-9a-f]{16} prompt", text)
    assert not list(file.parent.rglob("candidates-*.parquet"))


def test_the_command_prints_it_and_a_mistake_names_the_file(file: Path) -> None:
    done = CliRunner().invoke(app, ["data", "describe", str(file)])
    assert done.exit_code == 0, done.output
    assert "87.5000%" in done.output
    wrong = CliRunner().invoke(app, ["data", "describe", str(file), "--set", "data.filters=[{k_core: 99}]"])
    assert isinstance(wrong.exception, RecpeftError)
    assert str(wrong.exception).startswith(f"{file}: filter {{k_core: 99}} leaves none")


@pytest.mark.parametrize("of", ["ranker: {name: popularity}", "references: [popularity]"])
def test_a_file_of_rankers_is_described_without_prompts(
    of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rankers.yaml"
    path.write_text(
        f"study: made\ndata: {{source: synthetic, num_users: 60, num_items: 80, interactions_per_user: 10}}\n{of}\n"
    )
    text = shown(path, capsys, "evaluation.candidates={kind: uniform, size: 20}")
    assert text.count("audit: ") == 1
    assert "60, 80, " in row(text, "users, items, interactions")
    assert re.search(r"candidates [0-9a-f]{16}\n", text)
    assert "tokens" not in text
    assert "prompt" not in text


def test_a_field_that_few_items_have_is_told() -> None:
    items = pl.DataFrame(
        {"item": range(4), "title": ["a", "", None, " "], "facts": [["x"], [], None, ["y"]], "year": [1, 2, 3, 4]}
    )
    assert _coverage(items, "item") == "title 1 of 4, facts 2 of 4, year all"
