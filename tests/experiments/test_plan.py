"""How a study stands: plan, retry and stop, from records and locks alone."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest
from records import failure_of, record_of
from typer.testing import CliRunner

from experiments import load_runs
from experiments.cli.app import app
from experiments.records.record import run_folder, write_record
from experiments.study.claims import claim, lock_path
from experiments.study.plan import PLAN_FILE, cells, recall, remember
from experiments.study.serial import run_study
from experiments.study.trials import JOURNAL
from recpeft import stopping
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")


def recorded(config: Any, out: Path, status: str, seconds: float = 1.0, error: str = "") -> None:
    record = failure_of(config, error) if status == "failed" else record_of(config, costs={"wall_seconds": seconds})
    write_record(run_folder(out, config.study, config.run_id), record)


def study(study_file: Path) -> list[Any]:
    return load_runs(study_file, ["seeds=[0, 1, 2, 3]", "references=[popularity]"])


def test_each_run_has_its_state_and_what_is_left_has_a_price(study_file: Path, tmp_path: Path) -> None:
    popular, one, two, three, four = study(study_file)
    recorded(one, tmp_path, "done", 10.0)
    recorded(two, tmp_path, "done", 14.0)
    recorded(three, tmp_path, "failed", error="no luck")
    with claim(run_folder(tmp_path, four.study, four.run_id)):
        found = cells([popular, one, two, three, four], tmp_path)
    assert [cell.state for cell in found] == ["waiting", "done", "done", "failed", "running"]
    assert [cell.seconds for cell in found] == [None, 10.0, 14.0, 12.0, 12.0]
    assert found[3].error == "no luck"


def test_a_dead_runners_lock_is_no_running_run(study_file: Path, tmp_path: Path) -> None:
    config = study(study_file)[1]
    folder = run_folder(tmp_path, config.study, config.run_id)
    folder.path.mkdir(parents=True)
    lock_path(folder).touch()  # left by a process that was killed
    assert cells([config], tmp_path)[0].state == "waiting"


def test_a_corrupt_record_is_named_and_the_others_stand(study_file: Path, tmp_path: Path) -> None:
    _, one, two, *_ = study(study_file)
    recorded(one, tmp_path, "done")
    broken = run_folder(tmp_path, two.study, two.run_id)
    broken.path.mkdir()
    broken.record.write_text('{"schema": 2, "sta')
    done, other = cells([one, two], tmp_path)
    assert (done.state, other.state) == ("done", "unreadable")
    assert f"{broken.record} is no JSON" in other.error


def test_plan_prints_the_runs_and_their_price(study_file: Path, tmp_path: Path) -> None:
    popular, one, two, *_ = study(study_file)
    recorded(one, tmp_path, "done", 10.0)
    recorded(two, tmp_path, "failed", error="[red]no luck[/red]")
    arguments = ["plan", str(study_file), "--set", "seeds=[0, 1, 2, 3]", "--set", "references=[popularity]"]
    text = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)]).output
    for config in (popular, one, two):
        assert config.run_id in text
    assert "5 runs: 3 waiting, 1 done, 1 failed; left: about 30 s" in text
    assert "[red]no luck[/red]" in text  # as it is, and not as markup


def test_status_tells_from_the_folder_alone_how_far_each_run_is(study_file: Path, tmp_path: Path) -> None:
    popular, one, two, *_ = configs = study(study_file)
    remember(configs, tmp_path)
    recorded(one, tmp_path, "done", 10.0)
    going = run_folder(tmp_path, two.study, two.run_id)
    going.path.mkdir()
    going.progress.write_text('{"step": 4, "of": 9, "val/ndcg@5": 0.25}')
    with claim(going):
        text = CliRunner().invoke(app, ["status", str(tmp_path / "tiny")]).output
    (line,) = [line for line in text.splitlines() if two.run_id in line]
    assert "running" in line
    assert "step 4 of 9, val/ndcg@5 0.2500" in line
    assert "5 runs: 3 waiting, 1 done, 1 running" in text
    assert popular.run_id in text
    (tmp_path / "tiny").rename(tmp_path / "other")
    with pytest.raises(RecpeftError, match="was tiny when"):
        recall(tmp_path / "other")


def test_status_of_a_folder_without_a_plan_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "there is no" in str(result.exception)
    assert isinstance(result.exception, RecpeftError)


def test_a_run_writes_down_the_study_and_how_far_it_is(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def write(path: Path, text: str) -> None:
        seen.append(json.loads(text))
        path.write_text(text)

    monkeypatch.setattr("experiments.cell.surroundings.write_text", write)
    configs = load_runs(study_file, ["references=[popularity]"])
    assert run_study(configs[1:], tmp_path, plan=configs) == 0
    assert [config.run_id for config in recall(tmp_path / "tiny")] == [config.run_id for config in configs]
    folder = run_folder(tmp_path, configs[1].study, configs[1].run_id)
    assert {3, 6, 9} <= {row["step"] for row in seen}  # after each validation
    assert {row["of"] for row in seen} == {9}
    assert not folder.progress.exists()


def test_retry_runs_what_failed_and_nothing_else(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = load_runs(study_file, ["references=[popularity]"])
    recorded(configs[0], tmp_path, "failed", error="no luck")
    arguments = ["retry", str(study_file), "--set", "references=[popularity]", "--out", str(tmp_path)]
    monkeypatch.setattr(stopping, "listen", lambda: None)  # of this process
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [path.parent.name for path in (tmp_path / "tiny").glob("*/result.json")] == [configs[0].run_id]
    assert json.loads(run_folder(tmp_path, "tiny", configs[0].run_id).record.read_text())["status"] == "done"
    assert "no run has failed" in CliRunner().invoke(app, arguments).output


def test_stop_asks_those_who_run_and_not_those_who_come_later(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(study_file, ["references=[popularity]"])
    remember(configs, tmp_path)
    done = CliRunner().invoke(app, ["stop", str(tmp_path / "tiny")])
    assert "recpeft run or slurm resubmit goes on from there" in done.output
    assert run_study(configs[:1], tmp_path) == 0  # asked before it began
    stopping.watch([tmp_path / "tiny" / stopping.STOP_FILE])
    assert stopping.asked() is None
    CliRunner().invoke(app, ["stop", str(tmp_path / "tiny")])
    assert stopping.asked() == "recpeft stop"
    stopping.watch([])
    missing = CliRunner().invoke(app, ["stop", str(tmp_path / "nowhere")])
    assert isinstance(missing.exception, RecpeftError)


@pytest.mark.parametrize("begun", [PLAN_FILE, JOURNAL, "slurm/001/job.sh", ".0123456789ab.lock", "a1/result.json"])
def test_stop_asks_a_study_however_it_was_begun_and_not_the_folder_of_studies(begun: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny" / begun
    path.parent.mkdir(parents=True)
    path.touch()
    refused = CliRunner().invoke(app, ["stop", str(tmp_path)])
    assert str(refused.exception) == f"{tmp_path} holds no study; give a study's own folder, such as runs/quickstart."
    assert not (tmp_path / stopping.STOP_FILE).exists()
    assert CliRunner().invoke(app, ["stop", str(tmp_path / "tiny")]).exit_code == 0
    assert (tmp_path / "tiny" / stopping.STOP_FILE).exists()


def test_a_study_of_somebody_else_s_is_not_stopped_and_that_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / PLAN_FILE).touch()
    monkeypatch.setattr(Path, "touch", refuse)  # root may write anywhere
    refused = CliRunner().invoke(app, ["stop", str(tmp_path)])
    assert isinstance(refused.exception, RecpeftError)
    assert str(refused.exception).endswith("may not be written (Permission denied); have the study's owner stop it.")


def test_a_stopped_study_leaves_no_failure_and_goes_on(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = load_runs(study_file)
    (config,) = configs
    since = time.monotonic()
    monkeypatch.setattr(stopping, "asked", lambda: "recpeft stop" if time.monotonic() - since > 0.5 else None)
    with pytest.raises(stopping.Interrupted, match="stopped by recpeft stop"):
        run_study(configs, tmp_path)
    assert not run_folder(tmp_path, "tiny", config.run_id).record.exists()
    monkeypatch.undo()
    assert run_study(configs, tmp_path) == 0
