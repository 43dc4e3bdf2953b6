"""A study as a job array: what is submitted, how it stands, and cells of recpeft on a real SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments import load_runs
from experiments.cluster import resubmit, run_cell, status, submit
from experiments.results import find_records, run_folder, write_record
from experiments.study import run_study
from recpeft.errors import RecpeftError
from slurm import find_manifests, read_manifest
from slurm.dev_cluster import cluster, missing, release

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = ["seeds=[0, 1, 2]", "references=[popularity]"]
STAGE = "include=[{diversify: {method: mmr, strength: 0.5, depth: 10}}, {adapter.rank: 2}]"


@pytest.fixture
def no_queue(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """sbatch takes everything, and nothing waits; the scripts submitted."""
    scripts: list[Path] = []

    def sbatch(script: Path, *_: Any) -> str:
        scripts.append(script)
        return str(100 + len(scripts))

    monkeypatch.setattr("slurm.submit", sbatch)
    monkeypatch.setattr("slurm.queue", lambda *_: {})
    return scripts


def test_what_is_not_done_is_submitted_and_reordered_lists_go_with_their_run(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    configs = load_runs(study_file, [*SEEDS[1:], STAGE])
    assert [config.diversify is None for config in configs] == [True, True, False, True]
    write_record(
        run_folder(tmp_path, "tiny", configs[0].run_id), {"schema": 2, "status": "done", "costs": {"wall_seconds": 1}}
    )
    text, script, job = submit(configs, tmp_path, None, {"time": "0:10:00", "max_parallel": 2}, dry_run=False)
    assert job == "101"
    assert script is not None
    assert "#SBATCH --array=0,2%2" in text  # the list's cell is its run's
    manifest = read_manifest(script.parent / "manifest.json")
    assert [cell.run_id for cell in manifest.cells] == [config.run_id for config in configs[1:]]
    assert [row.state for row in status(tmp_path / "tiny")[0]] == ["lost"] * 3  # no queue has them
    assert status(tmp_path / "tiny")[1] == "0,2%2"
    assert run_cell(script.parent / "manifest.json", 0) == 0
    assert [row.state for row in status(tmp_path / "tiny")[0]] == ["done", "done", "lost"]
    assert resubmit(tmp_path / "tiny", failed=False) == ("2%2", "102")


def test_a_dry_run_writes_nothing(study_file: Path, tmp_path: Path, no_queue: list[Path]) -> None:
    text, script, job = submit(load_runs(study_file), tmp_path, None, {}, dry_run=True)
    assert text.startswith("#!/bin/bash")
    assert (script, job, no_queue, list(tmp_path.iterdir())) == (None, None, [], [])


def test_what_sbatch_refuses_leaves_nothing_behind(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> str:
        raise RecpeftError("sbatch refused: no such partition.")

    monkeypatch.setattr("slurm.submit", refuse)
    with pytest.raises(RecpeftError, match="no such partition"):
        submit(load_runs(study_file), tmp_path, None, {}, dry_run=False)
    with pytest.raises(RecpeftError, match="was not submitted"):
        find_manifests(tmp_path / "tiny")


def test_a_study_that_is_done_is_not_submitted(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file)
    done = {"schema": 2, "status": "done", "costs": {"wall_seconds": 1}}
    write_record(run_folder(tmp_path, config.study, config.run_id), done)
    with pytest.raises(RecpeftError, match="all 1 runs of tiny are done"):
        submit([config], tmp_path, None, {}, dry_run=False)


# On a real SLURM ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if missing():
        reason = f"needs SLURM: {', '.join(missing())} not installed"
        pytest.fail(reason) if os.environ.get("RECPEFT_CI") else pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.mark.slurm
def test_cells_on_slurm_one_of_them_preempted_end_as_local_runs_do(
    slurm_cluster: dict[str, str], study_file: Path, tmp_path: Path
) -> None:
    """Three text runs and a ranker, two at a time; a job of the preempting partition takes a running one's place."""
    environment = os.environ | slurm_cluster

    def recpeft(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "experiments.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def squeue() -> list[tuple[str, str]]:
        command = ["squeue", "--noheader", "--array", "--format=%A %F_%K %T %r"]
        lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return [(line.split()[1], " ".join(line.split()[2:])) for line in lines.splitlines()]

    overrides = [part for override in SEEDS for part in ("--set", override)]
    out = tmp_path / "slurm"
    recpeft("slurm", "submit", study_file, *overrides, "--out", out, "--partition", "main", "--gres", "gpu:1")
    until = time.monotonic() + 240
    taken = False
    while squeue():
        assert time.monotonic() < until, recpeft("slurm", "status", out / "tiny")
        started = list((out / "tiny").glob("*/checkpoints"))
        if started and not taken:  # a text run is in the midst of it
            command = ["sbatch", "--partition=high", "--gres=gpu:2", "--wrap=sleep 2", "--output=/dev/null"]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            taken = True
        for task, state in squeue():
            if "BeginTime" in state or "JobHeld" in state:  # SLURM holds what it requeues for two minutes
                release(task, slurm_cluster)
        time.sleep(0.5)
    assert taken
    logs = "\n".join(path.read_text() for path in (out / "tiny").glob("slurm/*/logs/*.txt"))
    assert "start 2" in logs  # one was requeued
    assert "4 done" in recpeft("slurm", "status", out / "tiny")

    local = tmp_path / "local"
    assert run_study(load_runs(study_file, SEEDS), local) == 0
    for (folder, record), (own, expected) in zip(find_records(out / "tiny"), find_records(local / "tiny"), strict=True):
        assert record["test"] == expected["test"]
        assert record["trace"] == expected["trace"]
        if folder.adapter.exists():
            weights = [load_file(at.adapter / "adapter_model.safetensors") for at in (folder, own)]
            assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
