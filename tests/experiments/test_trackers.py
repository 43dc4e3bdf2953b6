"""Trackers hold what the record holds, once, however often a run is killed, and never end one."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import recpeft
from pydantic import ValidationError
from records import written_record, written_records

from experiments import load_runs, run
from experiments.cell.tracking import Tracking, describe, summary
from experiments.records.record import RunFolder, run_folder, write_record
from experiments.study.serial import run_study
from experiments.trackers import wandb as wandb_tracker
from experiments.trackers._base import Tracker
from lightning_modules import RankingCallback
from recpeft.errors import RecpeftError

OUTSIDE = Path(__file__).parent
LOCAL = "trackers=[{name: wandb, mode: offline}, csv, tensorboard]"
EXAMPLE = {"user": "7", "history": ["a"], "recommended": ["b", "d"], "held_out": ["d"], "hits": [2]}
NOWHERE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "f" * 40}


@pytest.fixture(autouse=True, scope="module")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key, no network, and nothing left in the home folder."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patched.setenv(name, str(home))
        patched.setenv("NETRC", str(home / "netrc"))
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patched.delenv(name, raising=False)
        patched.syspath_prepend(str(OUTSIDE))
        yield


def offline(folder: RunFolder) -> Path:
    """The one offline run of W&B."""
    (found,) = folder.path.glob("wandb/offline-run-*/*.wandb")
    return found


def inspected(path: Path) -> list[dict[str, Any]]:
    """A W&B file's records, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def parts(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def wandb_history(folder: RunFolder) -> list[dict[str, float]]:
    """Rows without their times."""
    rows = [part["item"] for part in parts(inspected(offline(folder)), "history")]
    return [{name: value for name, value in row.items() if name not in ("_runtime", "_timestamp")} for row in rows]


def csv_history(folder: RunFolder) -> list[dict[str, float]]:
    with (folder.path / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def board_history(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.fixture(scope="module")
def tracked(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], RunFolder]:
    """A run of 9 steps in 3 epochs, mirrored by all three that write files, and a record with examples."""
    out = tmp_path_factory.mktemp("runs")
    (config,) = load_runs(study_file, [LOCAL])
    finish, examples = Tracking.finish, [EXAMPLE]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tracking, "finish", lambda self, record: finish(self, record | {"examples": examples}))
        record = run(config, out)
    return config, record, run_folder(out, config.study, config.run_id)


def test_trackers_are_no_part_of_what_a_run_is(tracked: Any, study_file: Path) -> None:
    config, record, _ = tracked
    (untracked,) = load_runs(study_file)
    assert config.run_id == untracked.run_id
    assert "trackers" not in record["config"]


def test_wandb_has_the_runs_id_group_job_type_and_tags(tracked: Any, study_file: Path) -> None:
    config, record, folder = tracked
    (started,) = parts(inspected(offline(folder)), "run")
    (other_seed,) = load_runs(study_file, ["seed=5"])
    assert other_seed.run_id_without_seed == started["run_group"]
    assert started["run_id"] == config.run_id != started["run_group"]
    assert started["project"] == "tiny"
    assert started["job_type"] == "train"
    assert started["tags"] == ["lora", "none", record["data"]["name"], "tiny"]


def test_wandb_has_every_column_and_the_whole_config(tracked: Any) -> None:
    config, record, folder = tracked
    found: dict[str, Any] = {}
    for part in parts(inspected(offline(folder)), "config"):
        found |= part["update"]
    columns = {
        "method": "lora",
        "width": "none",
        "rank": 4,
        "learning_rate": 5e-3,
        "backbone": config.backbone.name,
        "data_set": record["data"]["name"],
        "formulation": "two_tower",
        "loss": "listwise_softmax",
        "seed": 0,
    }
    assert {name: found[name] for name in columns} == columns
    assert found["config"]["training"]["max_steps"] == 9


def test_wandb_has_one_row_a_step_and_each_epochs_values_once(tracked: Any) -> None:
    _, record, folder = tracked
    *rows, table = wandb_history(folder)
    assert [row["trainer/global_step"] for row in rows] == list(range(1, 10))
    assert [row["_step"] for row in rows] == list(range(9))
    assert all("train/loss" in row for row in rows)
    epochs = [row for row in rows if "epoch" in row]
    assert [(row["epoch"], row["trainer/global_step"]) for row in epochs] == [(1, 3), (2, 6), (3, 9)]
    for row, epoch in zip(epochs, record["trace"], strict=True):
        measured = {name: value for name, value in epoch["validation"].items() if value is not None}
        assert {name[4:]: row[name] for name in row if name.startswith("val/")} == pytest.approx(measured)
        assert row["train/epoch_loss"] == pytest.approx(epoch["train_loss"])
    assert "trainer/global_step" not in table  # a row of its own, with no step of training


def test_an_epochs_loss_is_the_mean_of_its_steps(tracked: Any) -> None:
    _, record, _ = tracked
    assert [len(epoch["step_losses"]) for epoch in record["trace"]] == [3, 3, 3]
    for epoch in record["trace"]:
        assert epoch["train_loss"] == pytest.approx(sum(epoch["step_losses"]) / 3)


def test_steps_of_accumulated_batches_are_counted_as_the_optimiser_counts(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file, ["trackers=[csv]", "training.accumulate_batches=2", "training.max_steps=4"])
    record = run(config, tmp_path)
    losses = [loss for epoch in record["trace"] for loss in epoch["step_losses"]]
    assert len(losses) == record["training"]["steps"] == 4
    rows = [row for row in csv_history(run_folder(tmp_path, "tiny", config.run_id)) if "train/loss" in row]
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        (n, pytest.approx(x)) for n, x in enumerate(losses, 1)
    ]


def test_wandbs_summary_is_the_records_scalars(tracked: Any) -> None:
    _, record, folder = tracked
    found: dict[str, Any] = {}
    records = inspected(offline(folder))
    for part in parts(records, "summary"):
        found |= part["update"]
    best = next(epoch for epoch in record["trace"] if epoch["step"] == record["training"]["best_step"])
    assert found["best/step"] == record["training"]["best_step"]
    for name in ("ndcg@5", "gini@5"):
        assert found[f"best/{name}"] == pytest.approx(best["validation"][name])
        assert found[f"test/{name}"] == pytest.approx(record["test"][name])
    assert found["cost/train_seconds"] == pytest.approx(record["costs"]["train_seconds"])
    assert found["cost/wall_seconds"] == pytest.approx(record["costs"]["wall_seconds"])
    assert found["params/adapter"] == record["parameters"]["adapter"]
    # W&B leaves val/* out of the summary, and draws it over the trainer's steps.
    (of_validation,) = [part for part in parts(records, "metric") if part.get("glob_name") == "val/*"]
    assert of_validation["summary"] == {"none": True}
    assert of_validation["step_metric"] == "trainer/global_step"


def test_wandb_has_the_adapter_as_an_artifact_and_a_table_of_examples(tracked: Any) -> None:
    _, record, folder = tracked
    artifacts = {part["type"]: part for part in parts(inspected(offline(folder)), "artifact")}
    model = artifacts["model"]
    assert model["name"] == f"tiny-{record['run_id']}"
    files = {file["path"]: file for file in model["manifest"]["contents"]}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "head.safetensors"} <= set(files)
    for name, file in files.items():
        assert int(file["size"]) == (folder.path / name).stat().st_size
    (table,) = offline(folder).parent.glob("files/media/table/examples*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["user", "history", "recommended", "held_out", "hits"],
        "data": [["7", "a", "b\nd", "d", "2"]],
    }


def test_csv_and_tensorboard_hold_the_same_history(tracked: Any) -> None:
    _, record, folder = tracked
    rows, board = csv_history(folder), board_history(folder)
    assert [row["step"] for row in rows] == [*range(1, 10), 9]  # the scalars come last
    for tag in ("train/loss", "val/ndcg@5", "val/gini@5", "epoch"):
        points = [(row["step"], row[tag]) for row in rows if tag in row]
        assert board[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]
    assert [value for _, value in board["val/ndcg@5"]] == pytest.approx(
        [epoch["validation"]["ndcg@5"] for epoch in record["trace"]], rel=1e-6
    )
    assert rows[-1]["test/ndcg@5"] == pytest.approx(record["test"]["ndcg@5"])
    for name in ("recall@5", record["monitor"]):
        assert board[f"test/{name}"] == [(9, pytest.approx(record["test"][name]))]


def test_after_kill_9_and_resume_each_tracker_has_the_history_of_an_unbroken_run(
    tracked: Any, study_file: Path, tmp_path: Path
) -> None:
    loss = f"loss={{name: outside.kills_itself, marker: '{tmp_path / 'killed'}', at_call: 5}}"
    command = ["run", study_file, "--out", tmp_path / "runs", "--set", loss, "--set", LOCAL]
    recpeft(*command, code=-9)
    ((begun),) = (tmp_path / "runs" / "tiny").glob("*/wandb/offline-run-*")
    recpeft(*command)
    ((folder, record),) = written_records(tmp_path / "runs" / "tiny")
    assert record["costs"]["steps_run"] == 5  # from step 4, within the second epoch
    assert not begun.exists()
    whole = tracked[2]
    *history, table = wandb_history(folder)
    *expected, _ = wandb_history(whole)
    assert history == expected
    assert any(key.startswith("examples") for key in table)
    assert board_history(folder).keys() == board_history(whole).keys()
    assert board_history(folder)["val/ndcg@5"] == board_history(whole)["val/ndcg@5"]
    assert board_history(folder)["train/loss"] == board_history(whole)["train/loss"]
    assert csv_history(folder)[:-1] == csv_history(whole)[:-1]
    assert parts(inspected(offline(folder)), "exit")[0].get("exit_code", 0) == 0


class Behind(Tracker):
    """One that has the first rows of an interrupted run already, as W&B has online."""

    def __init__(self, rows_before: int) -> None:
        self.rows_before = rows_before
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        pass


def test_rows_that_a_tracker_has_are_not_sent_again(
    tracked: Any, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record, _ = tracked
    behind = Behind(rows_before=4)
    monkeypatch.setattr("experiments.trackers.csv.start", lambda *_: behind)
    (config,) = load_runs(study_file, ["trackers=[csv]"])
    with Tracking(config, "data", RunFolder(tmp_path)) as tracking:
        # The checkpoint behind step 4, where W&B stopped.
        tracking.catch_up(record["trace"][:1], lambda after: [0.5][after:])
        assert behind.rows == []
        tracking.catch_up(record["trace"][:1], lambda after: [0.5, 0.25][after:])
        assert behind.rows == [(5, {"train/loss": 0.25})]
        tracking.finish(record)
    assert [step for step, _ in behind.rows] == [5, 6, 7, 8, 9]
    assert behind.rows[1][1]["val/ndcg@5"] == record["trace"][1]["validation"]["ndcg@5"]


def test_a_step_asks_for_the_losses_that_are_not_logged_alone(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a long epoch's at each of its steps would be a time that grows with its square."""
    asked: list[int] = []
    step_losses = RankingCallback.step_losses

    def counted(*arguments: Any) -> list[float]:
        losses = step_losses(*arguments)
        asked.append(len(losses))
        return losses

    monkeypatch.setattr(RankingCallback, "step_losses", counted)
    settings = ["trackers=[csv]", "training.steps_per_epoch=9", "training.accumulate_batches=2"]
    (config,) = load_runs(study_file, [*settings, "training.max_steps=4"])
    run(config, tmp_path)
    # A batch's own step, done or half done, and behind a half done one the step before, which is logged then.
    assert asked == [1, 1, 2, 1, 2, 1, 2, 1]
    assert [row["step"] for row in csv_history(run_folder(tmp_path, "tiny", config.run_id))] == [1, 2, 3, 4, 4]


def test_a_logger_by_its_dotted_name_gets_options_history_and_end(study_file: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    name = f"{{name: outside.loggers.Lines, path: '{lines}', title: 'of {{study}} in {{folder}}'}}"
    (config,) = load_runs(study_file, [f"trackers=[{name}]", "training.max_steps=3"])
    record = run(config, tmp_path)
    title, hyperparameters, *rows, scalars, end = [json.loads(line) for line in lines.read_text().splitlines()]
    assert title == {"title": f"of tiny in {tmp_path / 'tiny' / config.run_id}"}
    assert hyperparameters["hyperparameters"]["method"] == "lora"
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["val/ndcg@5"] == record["trace"][0]["validation"]["ndcg@5"]
    assert scalars["test/ndcg@5"] == record["test"]["ndcg@5"]
    assert end == {"status": "success"}


def test_a_tracker_that_fails_is_dropped_with_one_sentence_and_the_record_misses_nothing(
    tracked: Any, study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines"
    (config,) = load_runs(study_file, [f"trackers=[csv, {{name: outside.loggers.Fails, path: '{path}'}}]"])
    assert run_study([config], tmp_path) == 0
    folder = run_folder(tmp_path, "tiny", config.run_id)
    record = written_record(folder) or {}
    assert (record["trace"], record["test"]) == (tracked[1]["trace"], tracked[1]["test"])
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING: the tracker")]
    assert "outside.loggers.Fails is off" in warning
    assert "the tracker's server is gone" in warning
    assert [json.loads(line).get("step") for line in path.read_text().splitlines()] == [None, None, 1, 2]
    assert len(csv_history(folder)) == 10  # the other one goes on


@pytest.mark.parametrize(
    ("env", "words"),
    [(NOWHERE, "127.0.0.1:9"), ({}, "there is no key of W&B")],
    ids=["no network", "no key"],
)
def test_wandb_without_network_or_key_does_not_stop_a_run(
    env: dict[str, str],
    words: str,
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    trackers = "trackers=[{name: wandb, mode: online, timeout_seconds: 2}]"
    (config,) = load_runs(study_file, [trackers, "training.max_steps=3"])
    assert run_study([config], tmp_path) == 0
    record = written_record(run_folder(tmp_path, "tiny", config.run_id)) or {}
    assert [epoch["step"] for epoch in record["trace"]] == [3]
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "wandb" in line.lower()]
    assert warning.startswith(f"WARNING: the tracker wandb is off for {record['run_id']}: ")
    assert words in warning
    assert "wandb login" in warning
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert NOWHERE["WANDB_API_KEY"].encode() not in written


def test_a_failed_run_is_ended_as_failed(study_file: Path, tmp_path: Path) -> None:
    name = f"{{name: outside.loggers.Lines, path: '{tmp_path / 'lines'}'}}"
    configs = load_runs(
        study_file, [f"trackers=[{name}, {{name: wandb, mode: offline}}]", "loss={name: outside.fails}"]
    )
    assert run_study(configs, tmp_path) == 1
    assert json.loads((tmp_path / "lines").read_text().splitlines()[-1]) == {"status": "failed"}
    folder = run_folder(tmp_path, "tiny", configs[0].run_id)
    assert parts(inspected(offline(folder)), "exit")[0]["exit_code"] == 1
    assert "trackers" not in (written_record(folder) or {})["config"]


def test_each_run_of_a_study_has_a_wandb_run_of_its_own(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(
        study_file, ["trackers=[{name: wandb, mode: offline}]", "references=[popularity]", "training.max_steps=3"]
    )
    assert run_study(configs, tmp_path) == 0
    for config in configs:
        folder = run_folder(tmp_path, "tiny", config.run_id)
        records = inspected(offline(folder))
        assert parts(records, "run")[0]["run_id"] == config.run_id
        found = {name: value for part in parts(records, "config") for name, value in part["update"].items()}
        assert (found["method"], "rank" in found, "seed" in found) == (config.method, True, True)
        assert parts(records, "run")[0]["job_type"] == ("reference" if config.method == "popularity" else "train")


def test_rankers_and_reordered_lists_have_scalars_too(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(
        study_file,
        ["trackers=[csv]", "references=[popularity]", "training.max_steps=3", "diversify={method: mmr, strength: 0.3}"],
    )
    assert run_study(configs, tmp_path) == 0
    for config in configs:
        folder = run_folder(tmp_path, "tiny", config.run_id)
        record = written_record(folder) or {}
        assert csv_history(folder)[-1]["test/ndcg@5"] == pytest.approx(record["test"]["ndcg@5"])
        assert csv_history(folder)[-1]["best/ndcg@5"] == pytest.approx(record["trace"][-1]["validation"]["ndcg@5"])
    assert [len(config.trackers) for config in configs] == [1, 1, 1]


def test_a_value_that_is_no_number_is_left_out() -> None:
    record = {
        "trace": [{"step": 0, "validation": {"ndcg@5": 0.5, "auc": None}}],
        "test": {"ndcg@5": 0.25, "auc": math.nan},
        "costs": {"train_seconds": 1.5, "finished": "2026-01-01T00:00:00Z"},
    }
    assert summary(record) == {"best/step": 0, "best/ndcg@5": 0.5, "test/ndcg@5": 0.25, "cost/train_seconds": 1.5}


@pytest.mark.parametrize(
    ("trackers", "words"),
    [
        ("wandb", ["trackers", "'wandb'", "[wandb]"]),
        ("[wanb]", ["trackers.name", "'wanb'", "csv, tensorboard, wandb"]),
        ("[{name: wandb, projekt: x}]", ["trackers.projekt", "did you mean project?"]),
        ("[{name: wandb, mode: onlin}]", ["trackers.mode", "onlin", "'offline'"]),
        ("[wandb, {name: wandb, mode: offline}]", ["trackers", "twice"]),
        ("[{name: lightning.pytorch.loggers.CometLogger, api_key: abc}]", ["trackers", "api_key", "environment"]),
    ],
)
def test_a_mistake_in_trackers_is_a_sentence(trackers: str, words: list[str], study_file: Path) -> None:
    with pytest.raises(RecpeftError) as raised:
        load_runs(study_file, [f"trackers={trackers}"])
    assert all(word in str(raised.value) for word in words)
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("no_such_package.Logger", "there is no module no_such_package"), ("lightning.pytorch.Trainer", "no class of a")],
)
def test_a_name_that_is_no_logger_is_told_before_the_first_run(
    name: str, words: str, study_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecpeftError, match=words):
        run_study(load_runs(study_file, [f"trackers=[{name}]"]), tmp_path)
    assert not list(tmp_path.iterdir())


def study_of(folder: RunFolder, record: dict[str, Any], out: Path) -> Path:
    """A study with one finished run and its offline run."""
    copied = run_folder(out, "tiny", record["run_id"])
    write_record(copied, record)
    target = copied.path / "wandb" / offline(folder).parent.name
    target.mkdir(parents=True)
    (target / offline(folder).name).write_bytes(offline(folder).read_bytes())
    return out / "tiny"


@pytest.mark.parametrize(
    ("env", "timeout", "words"),
    [(NOWHERE, 3, "within 3 s"), ({"WANDB_BASE_URL": NOWHERE["WANDB_BASE_URL"]}, 60, "No API key configured")],
    ids=["no network", "no key"],
)
def test_push_without_network_or_key_is_one_sentence_and_code_2(
    env: dict[str, str], timeout: int, words: str, tracked: Any, tmp_path: Path
) -> None:
    _, record, folder = tracked
    study = study_of(folder, record, tmp_path / "runs")
    start = time.perf_counter()
    done = recpeft("wandb", "push", study, "--timeout", str(timeout), code=2, cwd=tmp_path, environment=env)
    assert time.perf_counter() - start < timeout + 60  # W&B alone tries without end
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("recpeft: ")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # W&B's logs are not where the user stands


def test_push_sends_finished_offline_runs_and_each_once(
    tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record, folder = tracked
    study = study_of(folder, record, tmp_path)
    study_of(folder, record | {"run_id": "unfinished", "status": "failed"}, tmp_path)
    asked: list[list[str]] = []

    def sync(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        (file,) = Path(command[-1]).glob("*.wandb")
        file.with_name(f"{file.name}.synced").touch()  # as wandb sync does
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", sync)
    sent, before = wandb_tracker.push(study, 60)
    assert [path.parents[1].name for path in sent] == [record["run_id"]]
    assert before == 0
    assert asked == [["-P", "-m", "wandb", "sync", str(sent[0])]]
    assert wandb_tracker.push(study, 60) == ([], 1)
    assert len(asked) == 1


def test_push_where_nothing_is_offline_says_so(study_file: Path, tmp_path: Path) -> None:
    (config, _) = load_runs(study_file, ["references=[popularity]"])
    run(config, tmp_path)
    with pytest.raises(RecpeftError, match="holds no finished run that W&B has offline"):
        wandb_tracker.push(tmp_path / "tiny", 1)


def test_wandb_takes_the_names_of_a_study_whose_name_is_long(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb  # the last test of this file: what it starts without a run leaves W&B's own settings behind

    config, record, folder = tracked
    long = describe(config.model_copy(update={"study": "s" * 200}), record["data"]["name"], folder)
    assert wandb.Artifact(wandb_tracker.artifact_name(long), "model").name.startswith("sss")
    assert wandb_tracker.artifact_name(long).endswith(f"s-{long.run_id}")
    given: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **options: given.update(options))
    wandb_tracker._start(wandb_tracker.Config(mode="offline"), replace(long, folder=RunFolder(Path("nowhere"))))
    wandb.Settings(project=given["project"], run_name=given["name"])  # raises where a name is too long
    assert len(given["name"]) <= 128
    for project in ("p" * 129, "a/b"):
        with pytest.raises(ValidationError, match="project"):
            wandb_tracker.Config(project=project)
