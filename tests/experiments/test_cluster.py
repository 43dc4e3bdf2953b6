"""A study as a job array: what is submitted, how it stands, and cells of recpeft on a real SLURM."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from command_line import recpeft, start
from records import record_of, written_record, written_records
from safetensors.torch import load_file
from typer.testing import CliRunner

from experiments import load_runs
from experiments.cli.app import app
from experiments.config.search import load_search
from experiments.records.record import run_folder, write_record
from experiments.study.claims import claim
from experiments.study.cluster import resubmit, run_cell, status, submit
from experiments.study.search_cluster import submit as submit_search
from experiments.study.serial import run_study
from recpeft import trust
from recpeft.errors import RecpeftError
from recpeft.stopping import Interrupted
from slurm import QueueState, cancel, cell_command, find_manifests, queue, read_manifest
from slurm.dev_cluster import cluster, missing, release

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = ["seeds=[0, 1, 2]", "references=[popularity]"]
MISFIT = {"formulation.score": "attention", "formulation.attention_heads": 3}
"""A cell that is seen to be impossible only beside its backbone, of hidden size 64."""
OUTSIDE = Path(__file__).parent  # holds the plug-in outside.asks_to_stop
STAGE = "include=[{diversify: {method: mmr, strength: 0.5, depth: 10}}, {adapter.rank: 2}]"


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-ins of ``outside`` may be run from manifests, as ``--trust`` would have it."""
    names = [f"outside.{path.stem}" for path in (OUTSIDE / "outside").glob("*.py")]
    monkeypatch.setenv("RECPEFT_TRUST", "")
    trust.allow(names)


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
    write_record(run_folder(tmp_path, "tiny", configs[0].run_id), record_of(configs[0]))
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


def test_a_manifests_own_lines_of_bash_run_again_only_where_they_are_trusted_or_the_sites(
    study_file: Path, tmp_path: Path, no_queue: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("setup: [module load cuda]\nextra: [--constraint=a100]\n")
    submit(load_runs(study_file, SEEDS[1:]), tmp_path, site, {}, dry_run=False)
    with pytest.raises(
        RecpeftError, match=r"manifest\.json asks to run 'module load cuda' in each job, .*--trust setup"
    ):
        resubmit(tmp_path / "tiny", failed=False)
    assert len(no_queue) == 1
    monkeypatch.setenv("RECPEFT_SLURM", str(site))
    assert resubmit(tmp_path / "tiny", failed=False) == ("0-1", "102")
    site.write_text("setup: [module load cuda]\n")
    with pytest.raises(RecpeftError, match="asks to run '--constraint=a100' in each job"):
        resubmit(tmp_path / "tiny", failed=False)
    trust.allow(["setup"])
    assert resubmit(tmp_path / "tiny", failed=False) == ("0-1", "103")


def test_status_repeats_no_escape_sequence_of_a_manifest_or_record(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    _, script, _ = submit(load_runs(study_file, SEEDS[1:]), tmp_path, None, {}, dry_run=False)
    assert script is not None
    manifest = script.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"label": "', '"label": "\\u001b[2J'))
    done = CliRunner().invoke(app, ["slurm", "status", str(tmp_path / "tiny")])
    assert done.exit_code == 0, done.output
    assert r"\x1b[2J" in done.output
    assert "\x1b" not in done.output


def test_an_array_is_no_longer_than_the_cluster_takes_and_the_rest_is_told(
    study_file: Path, tmp_path: Path, no_queue: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The same command again has what is not in SLURM, and tasks from 0: an index is what SLURM bounds."""
    monkeypatch.setattr("slurm.most_tasks", lambda: 2)
    configs = load_runs(study_file, ["seeds=[0, 1, 2]"])
    submitted: list[str] = []
    for array, told in (("0-1", True), ("0", False)):
        text, script, _ = submit(configs, tmp_path, None, {}, dry_run=False)
        assert f"#SBATCH --array={array}\n" in text
        assert ("(SLURM's MaxArraySize), so the first 2 of 3 runs are submitted" in capsys.readouterr().err) == told
        assert script is not None
        submitted += [cell.run_id for cell in read_manifest(script.parent / "manifest.json").cells]
        in_slurm = {index: QueueState("PENDING", "None", "101") for index in (0, 1)}
        monkeypatch.setattr("slurm.queue", lambda jobs, found=in_slurm: found if jobs == ("101",) else {})
    assert submitted == [config.run_id for config in configs]


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
    monkeypatch.setattr("slurm.submit", lambda *_: "101")
    assert submit(load_runs(study_file), tmp_path, None, {}, dry_run=False)[2] == "101"


def test_a_study_that_is_done_is_not_submitted(study_file: Path, tmp_path: Path) -> None:
    (config,) = load_runs(study_file)
    write_record(run_folder(tmp_path, config.study, config.run_id), record_of(config))
    with pytest.raises(RecpeftError, match="all 1 runs of tiny are done"):
        submit([config], tmp_path, None, {}, dry_run=False)


def test_what_is_in_slurm_is_not_submitted_again(
    study_file: Path,
    tmp_path: Path,
    no_queue: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = load_runs(study_file, SEEDS)
    submit(ours[:2], tmp_path, None, {}, dry_run=False)
    waits = {0: QueueState("RUNNING", "None", "101"), 1: QueueState("PENDING", "Priority", "101")}
    monkeypatch.setattr("slurm.queue", lambda jobs, *_: waits if "101" in jobs else {})
    with pytest.raises(RecpeftError, match="all 2 runs of tiny are done, running or in SLURM;"):
        submit(ours[:2], tmp_path, None, {}, dry_run=False)
    assert len(no_queue) == 1
    _, script, _ = submit(ours, tmp_path, None, {}, dry_run=False)
    assert "2 of 4 runs are in SLURM already and left out" in capsys.readouterr().err
    assert script is not None
    assert [cell.run_id for cell in read_manifest(script.parent / "manifest.json").cells] == [
        config.run_id for config in ours[2:]
    ]
    # The first of three submissions is still asked for.
    with pytest.raises(RecpeftError, match="all 1 runs"):
        submit(ours[:1], tmp_path, None, {}, dry_run=False)


def test_lists_of_a_run_that_slurm_has_are_left_to_a_later_submission(
    study_file: Path, tmp_path: Path, no_queue: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    popularity, base, lists, other = load_runs(study_file, [*SEEDS[1:], STAGE])
    submit([popularity, base], tmp_path, None, {}, dry_run=False)
    monkeypatch.setattr("slurm.queue", lambda jobs, *_: {1: QueueState("RUNNING", "None", "101")})
    _, script, _ = submit([base, lists, other], tmp_path, None, {}, dry_run=False)
    assert script is not None
    assert [cell.run_id for cell in read_manifest(script.parent / "manifest.json").cells] == [other.run_id]


def test_what_a_cell_lacks_before_it_begins_is_its_error(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    _, script, _ = submit(load_runs(study_file, [includes([MISFIT])]), tmp_path, None, {}, dry_run=False)
    assert script is not None
    with pytest.raises(RecpeftError, match="attention_heads is 3"):
        run_cell(script.parent / "manifest.json", 0)
    ((row,), array) = status(tmp_path / "tiny")
    assert (row.state, array) == ("failed", "0")
    assert row.detail.startswith("formulation.attention_heads is 3, which does not divide")
    assert resubmit(tmp_path / "tiny", failed=False) is None


def test_a_lost_cells_log_is_named(study_file: Path, tmp_path: Path, no_queue: list[Path]) -> None:
    _, script, _ = submit(load_runs(study_file, SEEDS), tmp_path, None, {}, dry_run=False)
    assert script is not None
    (script.parent / "logs" / "1.txt").write_text("out of memory")
    details = [row.detail for row in status(tmp_path / "tiny")[0]]
    assert details == ["", f"see {script.parent / 'logs' / '1.txt'}", "", ""]  # the others have not begun


def test_a_stopped_study_stays_stopped_until_somebody_goes_on_with_it(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    file = tmp_path / "tiny" / ".stop"
    # The loss asks as recpeft stop does, by the file, and SLURM's signal comes in the midst of it.
    loss = f"loss={{name: outside.asks_to_stop, marker: '{file}', at_call: 2, signal: SIGUSR1}}"
    submit(runs_from_outside(study_file, loss), tmp_path, None, {"max_parallel": 1}, dry_run=False)
    (manifest,) = find_manifests(tmp_path / "tiny")
    stopped = recpeft("slurm", "cell", manifest, "0", code=3)
    assert "step 2 is saved" in stopped.stderr
    queued = recpeft("slurm", "cell", manifest, "1", code=3)  # it waited in the queue
    assert "stopped by recpeft stop; cell 1 did not begin" in queued.stderr
    with pytest.raises(Interrupted):
        run_cell(manifest, 1)
    assert [row.state for row in status(tmp_path / "tiny")[0]] == ["stopped", "stopped"]
    assert file.exists()
    assert resubmit(tmp_path / "tiny", failed=False) == ("0-1%1", "102")
    assert not file.exists()


def test_what_sbatch_refuses_leaves_a_stopped_study_stopped(
    study_file: Path, tmp_path: Path, no_queue: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each way to submit; while sbatch is asked the file is gone, for a task may start at once."""
    file = tmp_path / "tiny" / ".stop"
    runs = load_runs(study_file)
    submit(runs, tmp_path, None, {}, dry_run=False)

    def refuse(*_: Any) -> str:
        assert not file.exists()
        raise RecpeftError("sbatch refused: no such partition.")

    monkeypatch.setattr("slurm.submit", refuse)
    search = load_search(study_file, ["search={trials: 2, space: {adapter.rank: [2, 4]}}"])
    assert search is not None
    for again in (
        lambda: submit(runs, tmp_path, None, {}, dry_run=False),
        lambda: resubmit(tmp_path / "tiny", failed=False),
        lambda: submit_search(search, tmp_path, None, {"max_parallel": 2}, dry_run=False),
    ):
        file.write_text("who asked")
        with pytest.raises(RecpeftError, match="no such partition"):
            again()
        assert file.read_text() == "who asked"


def test_where_there_is_nothing_to_submit_a_study_stays_stopped(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    (config,) = load_runs(study_file)
    submit([config], tmp_path, None, {}, dry_run=False)
    write_record(run_folder(tmp_path, config.study, config.run_id), record_of(config))
    file = tmp_path / "tiny" / ".stop"
    file.touch()
    with pytest.raises(RecpeftError, match="all 1 runs of tiny are done"):
        submit([config], tmp_path, None, {}, dry_run=False)
    assert resubmit(tmp_path / "tiny", failed=True) is None
    assert file.exists()


def test_two_who_submit_at_the_same_moment_submit_a_cell_once(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Path] = []

    def sbatch(script: Path, *_: Any) -> str:
        time.sleep(0.5)  # in which the other one looks at the queue
        submitted.append(script)
        return "101"

    monkeypatch.setattr("slurm.submit", sbatch)
    monkeypatch.setattr("slurm.queue", lambda jobs, *_: {0: QueueState("PENDING", "None", "101")} if jobs else {})
    runs = load_runs(study_file)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(submit, runs, tmp_path, None, {}, dry_run=False) for _ in range(2)]
    errors = [str(one.exception()) for one in both if one.exception()]
    assert errors == ["all 1 runs of tiny are done, running or in SLURM; there is nothing to submit."]
    assert len(submitted) == 1


def test_a_study_of_other_versions_is_submitted_to_where_that_is_asked_for(
    study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    seen, _ = load_runs(study_file, ["seeds=[0, 1]"])
    write_record(run_folder(tmp_path, "tiny", seen.run_id), record_of(seen, versions={"torch": "0.1"}))
    searched = ["--set", "search={trials: 2, space: {adapter.rank: [2, 4]}}", "--max-parallel", "2"]
    for more in (["--set", "seeds=[0, 1]"], ["--set", "seed=0", *searched]):
        arguments = ["slurm", "submit", str(study_file), "--out", str(tmp_path), *more]
        refused = CliRunner().invoke(app, arguments)
        assert "was made by other versions" in str(refused.exception)
        done = CliRunner().invoke(app, [*arguments, "--mixed-versions"])
        assert "job 10" in done.output, done.exception
    assert len(no_queue) == 2


def test_a_cell_that_another_process_has_is_no_success(
    study_file: Path, tmp_path: Path, no_queue: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = load_runs(study_file)
    _, script, _ = submit([config], tmp_path, None, {}, dry_run=False)
    assert script is not None
    with claim(run_folder(tmp_path, "tiny", config.run_id)):
        assert run_cell(script.parent / "manifest.json", 0) == 1
    assert "another process has it, so that it is not done here" in capsys.readouterr().err


@pytest.mark.parametrize("dry_run", [True, False])
def test_submitting_goes_on_with_a_stopped_study_and_a_dry_run_does_not(
    dry_run: bool, study_file: Path, tmp_path: Path, no_queue: list[Path]
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / ".stop").touch()
    submit(load_runs(study_file), tmp_path, None, {}, dry_run)
    assert (tmp_path / "tiny" / ".stop").exists() == dry_run


def runs_from_outside(study_file: Path, *overrides: str) -> list[Any]:
    """Two seeds, with the plug-ins of ``outside`` in reach."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(OUTSIDE)
        return load_runs(study_file, ["seeds=[0, 1]", *overrides])


def test_status_where_there_is_no_slurm_and_of_half_a_manifest_is_a_sentence(
    study_file: Path, tmp_path: Path, no_queue: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecpeftError, match="was not submitted to SLURM"):
        status(tmp_path / "tiny")
    submit(load_runs(study_file), tmp_path, None, {}, dry_run=False)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecpeftError, match="there is no squeue on PATH; run this on a machine of a SLURM cluster"):
        status(tmp_path / "tiny")
    (path,) = find_manifests(tmp_path / "tiny")
    path.write_text(path.read_text()[:100])
    for command in (
        lambda: status(tmp_path / "tiny"),
        lambda: submit(load_runs(study_file), tmp_path, None, {}, dry_run=False),
    ):
        with pytest.raises(RecpeftError, match=r"manifest\.json is no JSON .*; move its folder away"):
            command()


def test_a_cell_s_processes_are_the_script_s_tasks(study_file: Path, tmp_path: Path) -> None:
    overrides = ["training.accumulate_batches=8", "distributed={devices: 4, num_nodes: 2}", "references=[popularity]"]
    text = submit(load_runs(study_file, overrides), tmp_path, None, {}, dry_run=True)[0]
    assert "#SBATCH --nodes=2\n" in text
    assert "#SBATCH --ntasks-per-node=4\n" in text


def test_cells_of_different_sizes_are_not_submitted_as_one_array(study_file: Path, tmp_path: Path) -> None:
    cells = ["grid={adapter.rank: [4]}", "include=[{adapter.rank: 2, distributed.devices: 2}]"]
    configs = load_runs(study_file, ["training.accumulate_batches=2", *cells])
    with pytest.raises(RecpeftError, match=r"1 devices on 1 nodes and 2 devices on 1 nodes .* submit them apart"):
        submit(configs, tmp_path, None, {}, dry_run=True)


def test_a_site_s_other_number_of_tasks_is_refused(study_file: Path, tmp_path: Path) -> None:
    configs = load_runs(study_file, ["training.accumulate_batches=2", "distributed={devices: 2}"])
    with pytest.raises(RecpeftError, match="ntasks_per_node is 4, but distributed asks for 2; leave ntasks_per_node"):
        submit(configs, tmp_path, None, {"ntasks_per_node": 4}, dry_run=True)


# On a real SLURM ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if missing():
        reason = f"needs SLURM: {', '.join(missing())} not installed"
        pytest.fail(reason) if os.environ.get("RECPEFT_CI") else pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def preempted(slurm_cluster: dict[str, str], study_file: Path, out: Path, overrides: list[str], gres: str) -> str:
    """Submit a study, preempt a text run in the midst of it, wait for all to end; what its status then says."""
    environment = os.environ | slurm_cluster

    def squeue() -> list[tuple[str, str]]:
        command = ["squeue", "--noheader", "--array", "--format=%A %F_%K %T %r"]
        lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return [(line.split()[1], " ".join(line.split()[2:])) for line in lines.splitlines()]

    sets = [part for override in overrides for part in ("--set", override)]
    where = ["--partition", "main", "--gres", gres]
    recpeft("slurm", "submit", study_file, *sets, "--out", out, *where, environment=slurm_cluster)
    until = time.monotonic() + 480
    taken = False
    while squeue():
        assert time.monotonic() < until, squeue()
        if list((out / "tiny").glob("*/checkpoints/last.ckpt")) and not taken:
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
    return recpeft("slurm", "status", out / "tiny", environment=slurm_cluster).stdout


@pytest.mark.slurm
def test_a_cell_of_two_tasks_is_preempted_and_ends_as_two_processes_here_do(
    slurm_cluster: dict[str, str], study_file: Path, tmp_path: Path
) -> None:
    """srun starts both; the ranker beside it is the first task's alone."""
    overrides = ["references=[popularity]", "training.accumulate_batches=2", "distributed={devices: 2}"]
    assert "2 done" in preempted(slurm_cluster, study_file, tmp_path / "slurm", overrides, "gpu:2")
    assert run_study(load_runs(study_file, overrides), tmp_path / "local") == 0
    for (_, record), (_, expected) in zip(
        written_records(tmp_path / "slurm" / "tiny"), written_records(tmp_path / "local" / "tiny"), strict=True
    ):
        assert record["test"] == expected["test"]
        assert record.get("trace") == expected.get("trace")


SIGNAL_MINUTES = 25
"""So long before the time limit SLURM tells a cell; a limit of as much has it do so as soon as it looks."""


class Submitted:
    """A study of the command line's on the development cluster, and how many of its cells ran at a time."""

    def __init__(self, environment: dict[str, str], study_file: Path, out: Path, cells: list[Any], *said: str) -> None:
        self.environment = environment
        self.study = out / "tiny"
        site = out.with_suffix(".yaml")
        site.write_text(f"signal_seconds: {SIGNAL_MINUTES * 60}\n")
        self.recpeft("slurm", "submit", study_file, "--set", includes(cells), "--out", out, "--site", site, *said)
        self.most = 0
        self.frozen: dict[int, int] = {}

    def recpeft(self, *arguments: str | Path) -> str:
        return recpeft(*arguments, environment=self.environment).stdout

    @property
    def manifest(self) -> Any:
        return read_manifest(find_manifests(self.study)[-1])

    def task(self, index: int) -> str:
        return f"{self.manifest.job_ids[-1]}_{index}"

    def log(self, index: int) -> str:
        return (find_manifests(self.study)[-1].parent / "logs" / f"{index}.txt").read_text()

    def trains(self, index: int) -> bool:
        return (self.study / self.manifest.cells[index].run_id / "checkpoints" / "last.ckpt").exists()

    def update(self, index: int, *changes: str) -> None:
        command = ["scontrol", "update", f"jobid={self.task(index)}", *changes]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def freeze(self, index: int) -> bool:
        """Once the cell trains, halt its process where it is; whether it is halted. SLURM's signals let it go on."""
        command = [*cell_command(sys.executable, find_manifests(self.study)[-1].resolve()), str(index)]
        if index not in self.frozen and self.trains(index):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if (process / "cmdline").read_bytes() == "".join(f"{part}\0" for part in command).encode():
                        os.kill(int(process.name), signal.SIGSTOP)
                        self.frozen[index] = int(process.name)
        return index in self.frozen

    def wait(self, ready: Callable[[dict[int, str]], bool], seconds: float = 300) -> None:
        """Until ``ready`` of the tasks in the queue: by index their state, or why they wait."""
        until = time.monotonic() + seconds
        while True:
            found = queue(self.manifest.job_ids, self.environment)
            states = {index: job.reason if job.state == "PENDING" else job.state for index, job in found.items()}
            self.most = max(self.most, list(states.values()).count("RUNNING"))
            if ready(states):
                return
            assert time.monotonic() < until, (states, self.recpeft("slurm", "status", self.study))
            time.sleep(0.2)


def includes(cells: list[Any]) -> str:
    return f"include={json.dumps(cells)}"


def steps(number: int) -> dict[str, int]:
    return {"training.max_steps": number, "training.steps_per_epoch": 50}


@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_eight_cells_of_which_two_meet_the_time_limit_one_is_preempted_and_one_fails_end_as_a_local_run(
    slurm_cluster: dict[str, str], study_file: Path, tmp_path: Path
) -> None:
    """Seven records as of a local run, bit by bit, and a failure with its error. About a minute and a half.

    SLURM looks at time limits every half minute. Cells that are to meet it are frozen until then, rather than train
    for as long; so is the one that is to be preempted.
    """
    long = [{"seed": seed, **steps(150)} for seed in (0, 1, 2)]
    short = [{"adapter": {"method": method}, "seed": seed} for method in ("lora", "bitfit") for seed in (0, 1)]
    cells = [*long[:2], *short, MISFIT, long[2]]
    first, second, misfit, last = 0, 1, 6, 7
    configs = load_runs(study_file, [includes(cells)])
    sound = [config for index, config in enumerate(configs) if index != misfit]
    local = tmp_path / "local"
    named = [part for config in sound for part in ("--only", config.run_id)]
    running = start("run", study_file, "--set", includes(cells), "--out", local, *named)

    options = ["--partition", "main", "--gres", "gpu:1", "--time", "60", "--max-parallel", "2"]
    study = Submitted(slurm_cluster, study_file, tmp_path / "slurm", cells, *options)
    study.wait(lambda _: all([study.freeze(first), study.freeze(second)]))
    for index in (first, second):  # theirs alone, so that on a busy machine no short cell meets it as well
        study.update(index, f"TimeLimit={SIGNAL_MINUTES}")
    study.wait(lambda states: states.get(first) == states.get(second) == "BeginTime")
    for index in (first, second):  # which SLURM holds for two minutes, and we until there is room for the preemption
        study.update(index, "TimeLimit=60", "StartTime=now+1hour")
    study.wait(lambda states: study.freeze(last) and list(states.values()).count("RUNNING") == 1)
    high = ["sbatch", "--partition=high", "--gres=gpu:2", "--wrap=sleep 1", "--output=/dev/null"]
    subprocess.run(high, env=slurm_cluster, check=True, capture_output=True)
    study.wait(lambda states: states.get(last) == "BeginTime")
    for index in (first, second, last):
        release(study.task(index), slurm_cluster)
    study.wait(lambda states: not states)
    assert study.most == 2

    stopped_by = {first: "SIGUSR1", second: "SIGUSR1", last: "SIGTERM"}
    for index in range(8):
        starts = [f"start {number}," in study.log(index) for number in (1, 2, 3)]
        assert starts == [True, index in stopped_by, False], study.log(index)
        said = [name for name in ("SIGUSR1", "SIGTERM") if f"stopped by {name}; " in study.log(index)]
        # Of a preempted job srun may end before what its cell says has come through.
        allowed = [[stopped_by[index]], []][: 1 + (index == last)] if index in stopped_by else [[]]
        assert said in allowed, study.log(index)
    running.ended()
    for config in sound:
        assert_equal_to_the_bit(*(run_folder(out, "tiny", config.run_id) for out in (local, tmp_path / "slurm")))

    for index in stopped_by:  # it went on from where it was
        record = written_record(run_folder(tmp_path / "slurm", "tiny", configs[index].run_id)) or {}
        assert record["costs"]["steps_run"] < 150

    with pytest.raises(RecpeftError) as error:
        run_study([configs[misfit]], local)
    shown = study.recpeft("slurm", "status", study.study)
    assert f"   6 {configs[misfit].run_id} failed  lora none: {error.value}\n" in shown
    assert "\n7 done, 1 failed\n" in shown
    assert study.recpeft("slurm", "resubmit", study.study) == "there is nothing to submit again\n"
    assert "--array=6%2" in study.recpeft("slurm", "resubmit", study.study, "--failed")
    study.wait(lambda states: not states)
    assert [study.log(index).count("start 1,") for index in range(8)] == [1, 1, 1, 1, 1, 1, 2, 1]
    assert "\n7 done, 1 failed\n" in study.recpeft("slurm", "status", study.study)


def assert_equal_to_the_bit(one: Any, other: Any) -> None:
    """Records but for what the run cost, values and lists of each user, weights."""
    records = [
        {key: value for key, value in (written_record(at) or {}).items() if key != "costs"} for at in (one, other)
    ]
    assert records[0]["status"] == "done"
    assert records[0] == records[1]
    tables = sorted(path.name for path in one.path.glob("*.parquet"))
    assert one.per_user.name in tables
    for name in tables:
        assert pl.read_parquet(one.path / name).equals(pl.read_parquet(other.path / name)), name
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        weights = [load_file(at.path / name) for at in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.slurm
def test_a_study_that_is_stopped_on_slurm_is_not_requeued_and_what_waits_does_not_train(
    slurm_cluster: dict[str, str], study_file: Path, tmp_path: Path
) -> None:
    cells = [{"seed": seed, **steps(100_000)} for seed in (0, 1)]
    study = Submitted(slurm_cluster, study_file, tmp_path / "slurm", cells, "--max-parallel", "1")
    try:
        study.wait(lambda _: study.trains(0))
        study.recpeft("stop", study.study)
        study.wait(lambda states: not states)
    finally:
        cancel(study.manifest.job_ids[0], environment=slurm_cluster)
    assert "stopped by recpeft stop; step " in study.log(0)
    assert "stopped by recpeft stop; cell 1 did not begin" in study.log(1)
    assert not any("start 2," in study.log(index) for index in range(2))
    assert "\n2 stopped\n" in study.recpeft("slurm", "status", study.study)


@pytest.mark.slurm
def test_two_tasks_share_the_trials_of_a_search_and_one_tests_the_winner(
    slurm_cluster: dict[str, str], study_file: Path, tmp_path: Path
) -> None:
    rates = "{low: 1.0e-4, high: 1.0e-2, log: true}"
    search = f"search={{trials: 4, sampler: random, pruner: none, space: {{training.learning_rate: {rates}}}}}"
    said = ["--set", search, "--set", "references=[popularity]", "--max-parallel", "2", "--gres", "gpu:1"]
    recpeft("slurm", "submit", study_file, *said, "--out", tmp_path, environment=slurm_cluster)
    until = time.monotonic() + 400
    squeue = ["squeue", "--noheader", "--array"]
    while subprocess.run(squeue, env=os.environ | slurm_cluster, check=True, capture_output=True).stdout:
        assert time.monotonic() < until
        time.sleep(0.5)
    logs = [path.read_text() for path in sorted((tmp_path / "tiny").glob("slurm/*/logs/*.txt"))]
    taken = [re.findall(r"^trial (\d): ", log, re.MULTILINE) for log in logs]
    assert len(logs) == 2
    assert sorted(itertools.chain(*taken)) == ["0", "1", "2", "3"], logs
    summary = json.loads((tmp_path / "tiny" / "search.json").read_text())
    assert [trial["state"] for trial in summary["trials"]] == ["done"] * 4
    records = {record["method"]: record for _, record in written_records(tmp_path / "tiny")}
    assert records.keys() == {"popularity", "lora"}
    assert records["lora"]["run_id"] == summary["winner"]["run_id"]
