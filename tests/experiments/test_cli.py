"""The command line: it answers without heavy imports, in one sentence, and writes nothing after a mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).resolve().parents[2] / "experiments" / "configs" / "quickstart.yaml"
HEAVY = ["torch", "lightning", "transformers", "peft", "polars", "wandb"]


def recpeft(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which prints at its end which heavy packages it imported."""
    code = (
        "import atexit, sys; from experiments.cli import main;"
        f"atexit.register(lambda: print('imported:', *[n for n in {HEAVY} if n in sys.modules])); main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"RECPEFT_HOME": str(cwd / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["report", "--help"], ["data", "fetch", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = recpeft(tmp_path, *arguments)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainig.max_steps=3", ["unknown key trainig", "training"]),
        ("prompt.instruction='Watched: '", ["prompt.instruction", "white space"]),
        ("training.learning_rate=.inf", ["training.learning_rate", "inf", "finite"]),
        ("adapter.rank=eight", ["adapter.rank", "eight", "integer"]),
        ("adapter.method=lroa", ["lroa", "adalora", "bottleneck", "lora", "zero_shot"]),
        ("data.source=netflix", ["netflix", "movielens"]),
        ("backbone.name=package:no_such_package", ["backbone.name", "no_such_package", "pip install"]),
        ("backbone.name=./no/such/folder", ["backbone.name", "./no/such/folder", "no such folder"]),
        ("data.filters=[{k_cor: 5}]", ["k_cor", "k_core"]),
    ],
)
def test_a_mistake_in_a_config_is_answered_before_anything_heavy_is_imported(
    override: str, words: list[str], tmp_path: Path
) -> None:
    done = recpeft(tmp_path, "run", str(QUICKSTART), "--set", "include=[]", "--set", override)
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["imported:"]
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"recpeft: {QUICKSTART}: ")
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"data.path={'x' * 300}", ["xxx…xxx", "xxx: File name too long; give another path"]),
        ("data.path=no/such/folder", ["no/such/folder", "data.path", "recpeft data fetch ml-100k"]),
        ("evaluation.groups=[zodiac]", ["evaluation.groups", "zodiac", "gender"]),
        ("data.filters=[{min_rating: 4}, {k_core: 500}]", ["k_core", "500", "lower"]),
        ("prompt.item='{{ titel }}'", ["prompt.item", "titel", "title"]),
        ("prompt.item='{{ year }}'", ["item '267'", "no text"]),
        ("prompt.max_user_tokens=600", ["prompt.max_user_tokens", "600", "512"]),
        ("backbone.name=nobody/nothing", ["backbone.name", "nobody/nothing", "neither", "reachable"]),
    ],
)
def test_what_is_missing_or_empty_is_found_before_the_first_run(
    override: str, words: list[str], tmp_path: Path, ml100k_cache: Path
) -> None:
    arguments = ["run", str(QUICKSTART), "--set", override]
    if not override.startswith("data.path"):
        arguments += ["--set", f"data.path={ml100k_cache}"]
    done = recpeft(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "runs").exists()


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    done = recpeft(tmp_path, "run", "none.yaml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "there is no file none.yaml" in done.stderr.splitlines()[-1]


def test_a_report_without_records_says_so(tmp_path: Path) -> None:
    done = recpeft(tmp_path, "report", "nowhere")
    assert done.returncode == 2
    assert "there is no folder nowhere" in done.stderr
    (tmp_path / "empty").mkdir()
    assert "holds no record" in recpeft(tmp_path, "report", "empty").stderr


@pytest.mark.parametrize("arguments", [["certify"], ["export", "--merge", "--to", "there"]])
def test_a_run_that_is_not_there_is_told_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    done = recpeft(tmp_path, *arguments, "nowhere")
    assert done.returncode == 2
    assert "nowhere holds no record (result.json)" in done.stderr
    assert "torch" not in done.stdout


def test_data_from_a_wrong_path_is_refused_and_leaves_no_cache(tmp_path: Path) -> None:
    done = recpeft(tmp_path, "data", "fetch", "ml-100k", "--from", "nowhere.zip")
    assert done.returncode == 2
    assert "nowhere.zip" in done.stderr
    assert not (tmp_path / "home" / "data" / "ml-100k").exists()


@pytest.mark.parametrize("arguments", [["report", "runs/\x1b]0;owned\x07"], ["run", "--no-such\x1b[2J"], ["\x9b31m"]])
def test_an_argument_with_a_control_character_is_refused_and_escaped(arguments: list[str], tmp_path: Path) -> None:
    done = recpeft(tmp_path, *arguments)
    assert done.returncode == 2
    assert "has a control character, or bytes that are no UTF-8; write it without" in done.stderr
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stderr + done.stdout)
