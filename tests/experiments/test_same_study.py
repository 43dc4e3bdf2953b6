"""What may join a study's folder, and what is refused before hours are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import failure_of, record_of
from typer.testing import CliRunner

from experiments import load_runs
from experiments.cli.app import app
from experiments.records.record import run_folder, write_record
from experiments.records.versions import versions
from experiments.study.same_study import check_same_study, differences
from recpeft.errors import RecpeftError


def finished(config: Any, out: Path, **changes: Any) -> Path:
    folder = run_folder(out, config.study, config.run_id)
    write_record(folder, record_of(config, **changes))
    return folder.path


def test_differences_are_of_leaves_and_of_what_one_side_lacks() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "same": 0, "gone": None, "left": 3}
    new = {"a": {"b": 2, "c": [1, 2]}, "same": 0, "new": {"d": 4}}
    assert differences(old, new) == {"a.b": (1, 2), "left": (3, None), "new": (None, {"d": 4})}


def test_more_methods_and_seeds_may_join(study_file: Path, tmp_path: Path) -> None:
    finished(load_runs(study_file)[0], tmp_path)
    check_same_study(load_runs(study_file, ["adapter.rank=2", "seeds=[3, 4]"]), tmp_path)


@pytest.mark.parametrize(
    ("override", "key"),
    [("data.split={kind: random_ratio}", "data.split"), ("evaluation.mask_seen=false", "evaluation.mask_seen")],
)
def test_another_split_or_evaluation_may_not(override: str, key: str, study_file: Path, tmp_path: Path) -> None:
    folder = finished(load_runs(study_file)[0], tmp_path)
    with pytest.raises(RecpeftError, match="was made from another config") as caught:
        check_same_study(load_runs(study_file, [override]), tmp_path)
    assert str(caught.value).startswith(f"{folder} ")
    assert key in str(caught.value)


def test_a_folder_of_another_schema_is_refused(study_file: Path, tmp_path: Path) -> None:
    finished(load_runs(study_file)[0], tmp_path, schema=1)
    with pytest.raises(RecpeftError, match="is of schema 1"):
        check_same_study(load_runs(study_file, ["adapter.rank=2"]), tmp_path)


def test_a_grid_over_splits_is_one_study(study_file: Path, tmp_path: Path) -> None:
    both = load_runs(study_file, ["grid={evaluation.mask_seen: [true, false]}"])
    finished(both[0], tmp_path)
    check_same_study(both, tmp_path)


def test_runs_of_other_versions_are_refused_unless_asked_for(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(study_file)
    finished(configs[0], tmp_path, versions=versions() | {"torch": "1.0"})
    with pytest.raises(RecpeftError, match=r"torch was '1.0' and is '2"):
        check_same_study(configs, tmp_path)
    check_same_study(configs, tmp_path, mixed_versions=True)
    write_record(run_folder(tmp_path, configs[0].study, configs[0].run_id), failure_of(configs[0]))
    check_same_study(configs, tmp_path)  # a failed one is run again


def test_the_command_refuses_before_anything_is_written(study_file: Path, tmp_path: Path) -> None:
    finished(load_runs(study_file)[0], tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["run", str(study_file), "--out", str(tmp_path), "--set", "evaluation.mask_seen=false"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, RecpeftError)
    assert "mask_seen was True and is False" in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before
