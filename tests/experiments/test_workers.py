"""Several runs at a time: shared threads, processes that die, other runners on the same folder."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command_line import output_of, start
from records import written_records
from safetensors.torch import load_file

from experiments import load_runs
from experiments.records.record import run_folder
from experiments.study import workers
from experiments.study.claims import claim
from experiments.study.serial import run_study
from experiments.study.worker import MARK
from experiments.study.workers import share_threads
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")

CELLS = ["seeds=[0, 1, 2, 3]", "references=[popularity]"]


def study(file: Path, out: Path, *overrides: str) -> list[str | Path]:
    return ["run", file, "--out", out, "--workers", "2", *(part for each in overrides for part in ("--set", each))]


def assert_same(out: Path, other: Path) -> None:
    """Each run is there once, and is the other folder's to the last bit, in values and in weights."""
    ours, theirs = written_records(out / "tiny"), written_records(other / "tiny")
    assert [record["run_id"] for _, record in ours] == [record["run_id"] for _, record in theirs]
    for (folder, record), (own, expected) in zip(ours, theirs, strict=True):
        for part in ("status", "test", "trace", "training", "parameters", "threads"):
            assert record.get(part) == expected.get(part)
        assert folder.per_user.read_bytes() == own.per_user.read_bytes()
        if own.adapter.exists():
            weights = [load_file(at.adapter / "adapter_model.safetensors") for at in (folder, own)]
            assert weights[0].keys() == weights[1].keys()
            assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.fixture(scope="module")
def one_by_one(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker and four text runs, run in this process one after another."""
    out = tmp_path_factory.mktemp("one_by_one")
    assert run_study(load_runs(study_file, CELLS), out) == 0
    return out


def test_two_workers_give_what_one_process_gives(study_file: Path, tmp_path: Path, one_by_one: Path) -> None:
    text = output_of(*study(study_file, tmp_path, *CELLS))
    assert_same(tmp_path, one_by_one)
    for config in load_runs(study_file, CELLS):
        assert text.count(f"{config.run_id} {config.method}, width {config.width}") >= 2  # it began, and it ended
    assert "| lora" in text or "lora" in text.rsplit("test ndcg@5", 1)[-1]  # the table
    again = output_of(*study(study_file, tmp_path, *CELLS))
    assert "step " not in again  # all are finished


def test_threads_are_shared_out(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = load_runs(study_file, ["threads=6"])
    monkeypatch.setattr("experiments.study.workers._cores", lambda: set(range(8)))
    assert [share_threads(config, workers).threads for workers in (1, 2, 3, 16)] == [6, 4, 2, 1]
    assert share_threads(config, 2).run_id == config.run_id


def test_a_process_that_dies_is_replaced_and_its_run_goes_on(
    study_file: Path, tmp_path: Path, one_by_one: Path
) -> None:
    loss = f"loss={{name: outside.kills_itself, marker: '{tmp_path / 'killed'}', at_call: 5}}"
    text = output_of(*study(study_file, tmp_path / "runs", *CELLS, loss))
    assert text.count("its process ended by SIGKILL; another goes on with it") == 1
    records = [record for _, record in written_records(tmp_path / "runs" / "tiny") if record["method"] == "lora"]
    expected = [record for _, record in written_records(one_by_one / "tiny") if record["method"] == "lora"]
    by_seed = {record["config"]["seed"]: record for record in records}
    assert len(records) == 4
    for record in expected:
        assert by_seed[record["config"]["seed"]]["test"] == record["test"]
    assert sorted(record["costs"]["steps_run"] for record in records) == [5, 9, 9, 9]


def test_a_run_that_kills_every_process_has_failed_and_the_others_go_on(study_file: Path, tmp_path: Path) -> None:
    overrides = ["references=[popularity]", "loss={name: outside.always_kills_itself}"]
    text = output_of(*study(study_file, tmp_path, *overrides), code=1)
    assert text.count("another goes on with it") == 2
    records = {record["method"]: record for _, record in written_records(tmp_path / "tiny")}
    assert records["popularity"]["status"] == "done"
    assert "its process ended by SIGKILL, 3 times in a row" in records["lora"]["error"]


def test_a_run_that_fails_is_recorded_and_is_tried_once(study_file: Path, tmp_path: Path) -> None:
    overrides = ["references=[popularity]", "loss={name: outside.fails}", "seeds=[0, 1]"]
    text = output_of(*study(study_file, tmp_path, *overrides), code=1)
    assert text.count("failed: ArithmeticError: the loss is not a number") >= 2
    assert sorted(r["status"] for _, r in written_records(tmp_path / "tiny")) == ["done", "failed", "failed"]


def test_data_that_are_missing_stop_the_study_before_it_begins(study_file: Path, tmp_path: Path) -> None:
    text = output_of(*study(study_file, tmp_path / "runs", *CELLS, "data.path=/nowhere"), code=2)
    assert "/nowhere" in text.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_processes_that_die_while_all_is_checked_are_not_started_for_ever(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    code = f'print({MARK!r} + \'{{"what": "ready"}}\', flush=True); input(); raise SystemExit(9)'

    def dies(*_: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=-1, text=True))
        return started[-1]

    monkeypatch.setattr(workers, "start_process", dies)
    with pytest.raises(
        RecpeftError, match="10 processes in a row ended before they had a run, the last by exit code 9"
    ):
        workers.run_in_processes(load_runs(study_file, CELLS), tmp_path, 1)
    assert len(started) == workers.MOST_STARTS


def test_what_another_runner_has_is_waited_for_and_taken_over(
    study_file: Path, tmp_path: Path, one_by_one: Path
) -> None:
    config = load_runs(study_file, CELLS)[2]
    with claim(run_folder(tmp_path, config.study, config.run_id)) as claimed:
        assert claimed
        process = start(*study(study_file, tmp_path, *CELLS))
        until = time.monotonic() + 200
        while len(list((tmp_path / "tiny").glob("*/result.json"))) < 4:
            assert time.monotonic() < until
            time.sleep(0.2)
        time.sleep(1)
        assert process.poll() is None  # it waits
    process.ended()
    assert_same(tmp_path, one_by_one)


def test_a_stage_that_reorders_lists_waits_for_its_run(study_file: Path, tmp_path: Path) -> None:
    stage = "{{diversify: {{method: mmr, strength: {}, depth: 10}}}}".format
    stages = f"include=[{stage(0.5)}, {stage(0.2)}]"
    text = output_of(*study(study_file, tmp_path, stages, "references=[popularity]"))
    assert len(written_records(tmp_path / "tiny")) == 4
    assert text.count(" step 9: ") == 1  # trained once


def test_ctrl_c_saves_and_the_same_command_goes_on(study_file: Path, tmp_path: Path, one_by_one: Path) -> None:
    process = start(*study(study_file, tmp_path, *CELLS), reserve=2)
    until = time.monotonic() + 200
    while not list((tmp_path / "tiny").glob("*/checkpoints/last.ckpt")):
        assert time.monotonic() < until
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    assert "stopped by SIGINT" in process.ended(75).stdout
    assert not [worker for worker in workers if worker.is_running()]
    assert not [record for _, record in records(tmp_path) if record["status"] == "failed"]
    output_of(*study(study_file, tmp_path, *CELLS))
    assert_same(tmp_path, one_by_one)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.thorough)])
def test_kills_at_random_moments_lose_nothing_and_change_nothing(
    kills: int, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kill -9`` of the runner, of one of its workers, or of all at once."""
    steps, every = 40, 2
    counter = tmp_path / "steps"
    monkeypatch.setenv("STEPS_FILE", str(counter))
    overrides = [
        *CELLS,
        "loss={name: outside.counts_steps}",
        f"training={{max_steps: {steps}, steps_per_epoch: 10, users_per_step: 8, checkpoint_every_steps: {every}}}",
    ]
    output_of(*study(study_file, tmp_path / "whole", *overrides))
    assert steps_in(counter) == 4 * steps

    draw = random.Random(0)  # noqa: S311 (no cryptography)
    moments = rounds = 0
    while moments < kills:
        rounds += 1
        counter.unlink(missing_ok=True)
        out, victims = tmp_path / f"killed-{rounds}", 0
        process = start(*study(study_file, out, *overrides), reserve=2)
        while moments < kills:
            if draw.random() < 0.25:  # whatever they are at, such as starting
                time.sleep(draw.uniform(0, 10))
            else:  # in the midst of training
                until = steps_in(counter) + draw.randint(1, 12)
                while process.poll() is None and steps_in(counter) < until:
                    time.sleep(0.01)
            if process.poll() is not None:
                break
            workers = [child.pid for child in psutil.Process(process.pid).children()]
            chosen = draw.choice([[process.pid], workers, workers[:1], workers[1:], [process.pid, *workers]])
            for pid in chosen:
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(pid, signal.SIGKILL)
            moments += bool(chosen)
            victims += len(set(chosen) & set(workers)) or len(workers)
            if process.pid in chosen:
                process.ended(-9)
                process = start(*study(study_file, out, *overrides), reserve=2)
        process.ended()
        assert_same(out, tmp_path / "whole")
        repeated = steps_in(counter) - 4 * steps
        print(f"study {rounds}: {victims} processes killed, {repeated} of {4 * steps} steps run again")
        assert repeated <= victims * (every + 1)  # and a whole run has 40


def steps_in(counter: Path) -> int:
    """How many steps ``outside.counts_steps`` has counted."""
    return counter.stat().st_size if counter.exists() else 0


def records(out: Path) -> list[tuple[Any, dict[str, Any]]]:
    return written_records(out / "tiny") if list((out / "tiny").glob("*/result.json")) else []
