"""The scripts of experiments/ablations on a small world, and docs/python.md's code."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import record_of, written_records

from experiments import load_results, load_runs, report, run, run_all
from experiments.ablations._script import QUICKSTART
from experiments.cell.assemble import make_data
from experiments.cell.data import prepare
from experiments.config.run import RunConfig, TextRun, build_run
from experiments.records.record import run_folder, write_record
from lightning_modules._backbone import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["training.max_steps=1", "prompt.max_user_tokens=48", "references=[popularity]"]
ADAPTERS = {  # parameters of LoRA beside a layer: rank x (inputs + outputs); the tiny BERT has two transformer layers
    "query, value": 4 * 2 * 2 * (64 + 64),
    "attention": 4 * 2 * 4 * (64 + 64),
    "all-linear": 4 * 2 * (4 * (64 + 64) + 2 * (64 + 128)),
}
HEAD = 30 + 1


def ablate(name: str, base: Path, out: Path, *more: str) -> Any:
    """The cells' rows, once the script's function has run them in this process."""
    script = importlib.import_module(f"experiments.ablations.{name}")
    assert getattr(script, name)(base, [*SHORT, *more], out, 1) == 0
    results = load_results(out / name)
    assert results["method"].to_list() == ["popularity"] + ["lora"] * (results.height - 1)
    return results[1:]


def test_the_rank_sweep_has_a_row_a_rank_at_one_scale(study_file: Path, tmp_path: Path) -> None:
    rows = ablate("rank_sweep", study_file, tmp_path)
    assert rows["adapter.rank"].to_list() == [2, 4, 8, 16, 32, 64]
    assert rows["adapter.alpha"].to_list() == [4, 8, 16, 32, 64, 128]
    assert rows["trainable"].to_list() == [rank * ADAPTERS["all-linear"] // 4 + HEAD for rank in (2, 4, 8, 16, 32, 64)]


def test_target_modules_has_a_row_a_choice_and_the_same_command_again_runs_none(
    study_file: Path, tmp_path: Path
) -> None:
    rows = ablate("target_modules", study_file, tmp_path, "adapter.dropout=0")
    assert rows["adapter.target_modules"].to_list() == ["query, value", "attention", "all-linear", "all-linear"]
    assert rows["adapter.last_layers"].to_list() == [None, None, None, 2]
    assert rows["trainable"].to_list()[:3] == [parameters + HEAD for parameters in ADAPTERS.values()]
    settings = [part for setting in (*SHORT, "adapter.dropout=0") for part in ("--set", setting)]
    again = command("target_modules", "--base", str(study_file), "--out", str(tmp_path), *settings)
    assert again.stdout.count("finished before") == 5
    assert again.stdout.count("query, value") == 1  # the last table's row; the report has the list
    assert again.returncode == 0


def test_width_has_a_row_a_width(study_file: Path, tmp_path: Path) -> None:
    rows = ablate("width", study_file, tmp_path)
    assert rows["width"].to_list() == ["none", "int8", "fp4", "nf4", "nf4"]
    assert rows["backbone.double_quantisation"].to_list() == [False] * 4 + [True]
    size = dict(zip(rows["width"], rows["linear_bytes"], strict=True))
    assert size["none"] > size["int8"] > size["fp4"]


def test_each_prompt_lacks_what_its_name_says(study_file: Path, tmp_path: Path) -> None:
    """The texts of the film "blue film 0", and of a user."""
    rows = ablate("prompt", study_file, tmp_path)
    films, users = {}, {}
    for _, record in written_records(tmp_path / "prompt"):
        run = build_run(record["config"])
        if isinstance(run, TextRun):
            data = make_data(run, prepare(run.data), load_tokenizer(**run.backbone.source), None)
            row = data.dataset.items["title"].to_list().index("blue film 0")
            films[run.variant] = data.prompt.item_texts[row]
            users[run.variant] = data.prompt.users(data.known_at_test, data.test_users[:1])[0].tolist()
    told = {
        "base": r"blue film 0 \(1990\), Action Drama",
        "no_categories": r"blue film 0 \(1990\)",
        "titles_only": "blue film 0",
        "categories_only": "Action Drama",
        "anonymous_titles": r"Item \d+ \(1990\), Action Drama",
        "numbers_only": r"Item \d+",
        "shuffled_titles": r"(?!blue film 0 )(red|blue) film \d+ \(1990\), Action Drama",
        "shuffled_history": r"blue film 0 \(1990\), Action Drama",
        "last_film_only": r"blue film 0 \(1990\), Action Drama",
    }
    assert rows["variant"].to_list() == list(told)
    assert [name for name, text in films.items() if not re.fullmatch(told[str(name)], text)] == []
    assert users["shuffled_history"] != users["base"]
    assert sorted(users["shuffled_history"]) == sorted(users["base"])
    films_named = {name: ids.count(5) for name, ids in users.items()}  # 5 is the semicolon behind each
    assert films_named == dict.fromkeys(told, 4) | {"last_film_only": 1}
    assert "lora [variant=titles_only] |" in (tmp_path / "prompt" / "report.md").read_text()


def test_diversity_reorders_one_trained_run(study_file: Path, tmp_path: Path) -> None:
    rows = ablate("diversity", study_file, tmp_path)
    assert rows["diversify.method"].to_list() == [None] + ["mmr"] * 5 + ["calibrated"] * 5
    assert rows["diversify.strength"].to_list() == [None] + [0.1, 0.3, 0.5, 0.7, 0.9] * 2
    assert rows["train_seconds"].n_unique() == 1
    # Steck's stage weighs nothing but this divergence at strength 1, and more of it with each step.
    kl = rows["calibration_kl@5"].to_list()
    assert kl[10] < kl[6] < kl[0]


@pytest.mark.parametrize("name", ["diversity", "prompt", "rank_sweep", "target_modules", "width"])
def test_a_script_shows_its_columns_where_one_run_alone_has_finished_in_a_study_of_another_name(
    name: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(f"experiments.ablations.{name}")
    monitor, shown = "0.8*ndcg@5 - gini@5", []

    def finishes_one(runs: list[RunConfig], out: Path, workers: int | None) -> int:
        done = runs[0]
        test = {monitor: 0.5, "ild_jaccard@5": 0.25, "users": 4}
        record = record_of(done, test=test, costs={"train_seconds": 2.0})
        write_record(run_folder(out, done.study, done.run_id), record)
        return len(runs) - 1

    monkeypatch.setattr(script, "run_all", finishes_one)
    monkeypatch.setattr(script, "str", lambda frame: shown.append(frame) or "", raising=False)
    settings = ["references=[]", "study=mine", f"evaluation.monitor={monitor}"]
    failed = getattr(script, name)(study_file, settings, tmp_path, 1)
    assert failed > 0
    (row,) = shown[0].to_dicts()
    assert row["method"] == "lora"
    assert row[monitor] == 0.5
    assert row.get("ild_jaccard@5") == (0.25 if name == "diversity" else None)
    assert row.get("adapter.rank") == (2 if name == "rank_sweep" else None)


def test_text_does_for_a_path_everywhere(study_file: Path, tmp_path: Path) -> None:
    ranker = load_runs(str(study_file), ["references=[popularity]"])[:1]
    assert run_all(ranker, str(tmp_path / "all")) == 0
    assert run(ranker[0], str(tmp_path / "one"))["method"] == "popularity"
    assert load_results(str(tmp_path / "all" / "tiny")).height == 1
    report(str(tmp_path / "all" / "tiny"), str(tmp_path / "one"), to=str(tmp_path / "both"), page=False)
    assert (tmp_path / "both" / "report.md").exists()


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.ablations.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_scripts_mistake_is_a_sentence_and_its_help_the_question() -> None:
    wrong = command("width", "--base", "nowhere.yaml")
    assert wrong.returncode == 2
    assert wrong.stderr == "recpeft: there is no file nowhere.yaml; give an experiment YAML.\n"
    assert "What does a narrower backbone cost" in command("width", "--help").stdout


def test_the_code_of_docs_python_runs(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where the small world is the quickstart."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    overrides = re.findall(r'"(training\.\w+=\d+)"', blocks[0])
    assert overrides
    load_runs(QUICKSTART, overrides)  # which the real one's methods allow too
    small = yaml.safe_load(study_file.read_text()) | {"study": "quickstart"}
    (tmp_path / "experiments" / "configs").mkdir(parents=True)
    (tmp_path / "experiments" / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102
