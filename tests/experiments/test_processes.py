"""Cells of several processes: the same numbers as of one, stopped together, and ended together."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import polars.testing
import pytest
import torch
from command_line import recpeft, start
from records import written_records
from safetensors.torch import load_file

from datamodules import TextPairDataModule
from datamodules._batching import TextBatch, UserBatch
from experiments import load_runs
from experiments.cell import launch
from experiments.records.record import RunFolder, is_done, run_folder
from experiments.study.claims import claim
from experiments.study.serial import run_study
from recpeft.errors import RecpeftError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes take two GPUs, or none"),
]

TWO = "distributed={devices: 2}"
BATCHES = "training.accumulate_batches=2"
MINED = "training.negatives={hard: 2, hard_refresh_epochs: 1}"
Run = tuple[RunFolder, dict[str, Any]]
ADALORA = "adapter={method: adalora, init_rank: 4, target_rank: 2}"


@pytest.fixture(scope="module")
def still(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone without its own dropout."""
    folder = tmp_path_factory.mktemp("still") / "backbone"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config | none))
    return folder


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def trained(study_file: Path, out: Path, *overrides: str) -> Run:
    """Run a cell with ``recpeft run``."""
    recpeft("run", study_file, "--out", out, *sets(BATCHES, *overrides))
    ((folder, record),) = written_records(out)
    return folder, record


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Every value of a part of a record, by where it stands."""
    if not isinstance(value, dict | list):
        return {place: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in parts for name, leaf in leaves(part, f"{place}/{key}").items()}


def assert_same(
    one: tuple[RunFolder, dict[str, Any]], other: tuple[RunFolder, dict[str, Any]], **within: float
) -> None:
    """Records, trained weights, and what is written of users; to the last bit unless ``within`` says otherwise."""
    parts = ("trace", "test", "training", "parameters", "intervals", "prompt", "backbone", "adapter", "monitor")
    assert set(one[1]) == set(other[1])
    for part in parts:
        expected = leaves(one[1][part])
        assert leaves(other[1][part]) == (pytest.approx(expected, **within) if within else expected), part
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        first, second = (load_file(folder.path / name) for folder, _ in (one, other))
        assert first.keys() == second.keys()
        for key in first:
            assert torch.allclose(first[key], second[key], rtol=0, atol=within.get("abs", 0)), key
    for name in ("per_user.parquet", "validation_lists.parquet", "test_lists.parquet"):
        first_frame, second_frame = (pl.read_parquet(folder.path / name) for folder, _ in (one, other))
        pl.testing.assert_frame_equal(first_frame, second_frame, abs_tol=within.get("abs", 0), rel_tol=0)


@pytest.mark.parametrize(
    ("users", "overrides"),
    [(260, ("adapter.dropout=0.0", MINED)), (40, ("backbone.width=nf4", ADALORA))],
    ids=["mined", "nf4-adalora"],
)
def test_two_processes_give_the_numbers_of_one(
    users: int, overrides: tuple[str, ...], study_file: Path, still: Path, larger_data: Path, tmp_path: Path
) -> None:
    """Without dropout. Of 260 users, in batches of 128, the first process has 132; of 40, in one, it has all."""
    data = (f"data.path={larger_data}",) if users == 260 else ()
    overrides = (f"backbone.name={still}", *data, *overrides)
    one = trained(study_file, tmp_path / "one", *overrides)
    two = trained(study_file, tmp_path / "two", *overrides, TWO)
    assert one[1]["run_id"] == two[1]["run_id"]
    assert two[1]["config"]["distributed"]["devices"] == 2
    assert [epoch["step"] for epoch in two[1]["trace"]] == [3, 6, 9]
    assert pl.read_parquet(two[0].per_user).height == users
    assert_same(one, two, abs=1e-5)


def test_two_processes_with_a_share_of_the_model_each_give_the_numbers_of_one(
    study_file: Path, still: Path, tmp_path: Path
) -> None:
    """FSDP, on two CPU processes; texts stand in one bucket, so that sums are of another order."""
    overrides = (f"backbone.name={still}", "adapter.dropout=0.0")
    one = trained(study_file, tmp_path / "one", *overrides)
    two = trained(study_file, tmp_path / "two", *overrides, "distributed={devices: 2, strategy: fsdp}")
    assert_same(one, two, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_give_the_numbers_of_one(strategy: str, study_file: Path, still: Path, tmp_path: Path) -> None:
    overrides = (f"backbone={{name: '{still}', compute_dtype: float32}}", "adapter.dropout=0.0")
    one = trained(study_file, tmp_path / "one", *overrides)
    two = trained(study_file, tmp_path / "two", *overrides, f"distributed={{devices: 2, strategy: {strategy}}}")
    assert_same(one, two, abs=1e-3)


def test_a_signal_ends_both_at_one_step_and_the_same_command_ends_as_if_it_had_not_been(
    study_file: Path, tmp_path: Path
) -> None:
    """With dropout, so that each process's own draws are gone on with; the signal comes in the fifth step."""
    whole = trained(study_file, tmp_path / "whole", TWO)
    loss = f"loss={{name: outside.asks_parent_to_stop, marker: '{tmp_path / 'asked'}', at_call: 5}}"
    command = ["run", study_file, "--out", tmp_path / "runs"]
    command += sets(BATCHES, TWO, loss, "training.checkpoint_every_steps=100")
    stopped = recpeft(*command, code=75)
    assert stopped.stderr.count("recpeft: stopped by ") == 1
    assert "step 5 is saved" in stopped.stderr
    assert not list((tmp_path / "runs").glob("**/result.json"))  # no failure
    recpeft(*command)
    ((folder, record),) = written_records(tmp_path / "runs")
    assert record["costs"]["steps_run"] == 4
    assert_same(whole, (folder, record))


def test_processes_of_one_cell_wait_together_for_another_runner(study_file: Path, tmp_path: Path) -> None:
    """As torchrun starts them. The second process knows nothing of claims, and does what the first one finds."""
    overrides = (BATCHES, TWO, "references=[popularity]")
    ranker, _ = load_runs(study_file, overrides)
    command = ["run", study_file, "--out", tmp_path, *sets(*overrides)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with claim(run_folder(tmp_path, "tiny", ranker.run_id)):
        both = [
            start(
                *command,
                "--only",
                ranker.run_id,
                environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        until = time.monotonic() + 200
        while "waiting for them" not in both[0].printed:
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2)
        codes = [process.poll() for process in both]
    assert codes == [None, None]
    for process in both:
        process.ended()
    assert is_done(run_folder(tmp_path, "tiny", ranker.run_id))


def test_a_process_that_fails_ends_the_others_and_its_own_sentence_is_recorded(
    study_file: Path, tmp_path: Path
) -> None:
    overrides = sets(BATCHES, TWO, "loss={name: outside.fails_in_one}")
    recpeft("run", study_file, "--out", tmp_path, *overrides, code=1)
    ((_, record),) = written_records(tmp_path)
    assert record["status"] == "failed"
    assert record["error"] == "ArithmeticError: the loss is not a number"
    assert "fails_in_one.py" in record["traceback"]


def test_a_process_that_is_killed_is_named_and_the_other_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writes that it lost the connection, which is not why."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    lost = {"kind": "RuntimeError", "sentence": "connection closed by peer", "traceback": "", "time": 0.0}
    (tmp_path / "error-0.json").write_text(json.dumps(lost))
    running = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sh", "-c", "kill -9 $$"])]
    failed = launch._look_after(running, tmp_path)  # type: ignore[arg-type]
    running[0].kill()
    running[0].wait()
    assert failed == {1: -9}
    assert "process 1 was ended by SIGKILL" in str(launch._what_ended(tmp_path, failed))
    assert str(launch._what_ended(tmp_path, {0: 1})) == "connection closed by peer"


@pytest.mark.parametrize(("users", "processes"), [(128 * 3 + 1, 3), (300, 2), (5, 4)])
def test_each_user_is_one_process_s_and_all_have_equally_many_batches(users: int, processes: int) -> None:
    """By hand: batches of 128; of four batches the second and third of three processes have one, and it again."""
    everyone = torch.arange(users)
    nothing = (torch.empty(0), torch.empty(0))
    batches = [UserBatch(part, TextBatch([], 0, 0), nothing, nothing) for part in everyone.split(128)]
    data = TextPairDataModule.__new__(TextPairDataModule)
    shares = []
    for rank in range(processes):
        place = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=-1)))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=processes, **vars(place))  # type: ignore[assignment]
        shares.append(list(data._share(batches)))  # type: ignore[arg-type]
    assert len({len(share) for share in shares}) == 1
    assert not any(batch.repeated for share in shares for batch in share[:-1])
    served = [user for share in shares for batch in share if not batch.repeated for user in batch.user.tolist()]
    assert sorted(served) == everyone.tolist()


def test_batches_of_a_step_that_cannot_be_shared_evenly_are_refused(study_file: Path) -> None:
    with pytest.raises(RecpeftError, match=r"accumulate_batches is 3, .* 2 processes .* a multiple of 2"):
        load_runs(study_file, ["training.accumulate_batches=3", TWO])


def test_batches_of_an_epoch_that_cannot_be_shared_evenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.check_shares(5)
    monkeypatch.setattr("recpeft.processes.count", lambda: 2)
    launch.check_shares(6)
    with pytest.raises(RecpeftError, match=r"an epoch has 5 batches, .* 2 processes .* set training.steps_per_epoch"):
        launch.check_shares(5)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("backbone.width=nf4", r"backbone\.width is nf4, .* set it to none, or use ddp"),
        (
            "formulation={name: cross_encoder}",
            r"formulation\.name is cross_encoder, .* to two_tower, or use ddp",
        ),
        ("training.gradient_clip=1.0", r"training\.gradient_clip is 1\.0, .* set it to null, or use ddp"),
        (MINED, r"training\.negatives\.hard is 2, .* set it to 0, or use ddp"),
    ],
)
def test_what_a_sharded_model_is_not_known_to_do_is_refused(override: str, sentence: str, study_file: Path) -> None:
    fsdp = "distributed={devices: 2, strategy: fsdp}"
    loss = "loss={name: bce}" if "cross" in override else "loss={name: listwise_softmax}"
    load_runs(study_file, [BATCHES, TWO, override, loss])
    load_runs(study_file, [BATCHES, "distributed={strategy: fsdp}", override, loss])  # of one process there are none
    with pytest.raises(RecpeftError, match=sentence):
        load_runs(study_file, [BATCHES, fsdp, override, loss])


def test_an_adapter_that_reads_gradients_is_refused_where_they_are_in_shares(study_file: Path) -> None:
    (config,) = load_runs(study_file, [BATCHES, ADALORA, "distributed={devices: 2, strategy: fsdp}"])
    with pytest.raises(RecpeftError, match=r"adapter\.method adalora reads the gradients of whole matrices"):
        launch.check(config)


def test_several_machines_are_not_started_from_one(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(study_file, [BATCHES, "distributed={num_nodes: 2}"])
    with pytest.raises(RecpeftError, match="num_nodes is 2, but recpeft run starts processes on one machine alone"):
        run_study(configs, tmp_path)


def test_who_one_is_comes_from_the_starter_and_a_batch_script_s_tasks_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launch.place() == launch.Place(0, 1, 0, "nobody")
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launch.place() == launch.Place(3, 4, 1, "slurm")
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert launch.place() == launch.Place(5, 8, 2, "torchrun")


def test_more_gpus_than_there_are_is_refused(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = load_runs(study_file, [BATCHES, TWO])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(RecpeftError, match=r"distributed\.devices is 2, but there are 1 CUDA devices"):
        launch.check(config)
