"""On a real SLURM of one node: arrays, throttle, time limits, preemption, failures, resubmission, cancelling.

The cells are stand-ins that count steps (standin_cell.py). About a minute and a half.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from recpeft.errors import RecpeftError
from slurm import (
    Cell,
    Manifest,
    Options,
    Row,
    array_text,
    cancel,
    new_folder,
    now,
    queue,
    read_manifest,
    rows,
    sbatch_text,
    submit,
    to_resubmit,
    write_manifest,
)
from slurm.dev_cluster import cluster, down, missing, release, up

pytestmark = pytest.mark.slurm

CELL = Path(__file__).with_name("standin_cell.py")


def lacks(reason: str) -> NoReturn:
    """Skip; where continuous integration has to have it, fail."""
    if os.environ.get("RECPEFT_CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_slurm() -> None:
    if missing():
        lacks(f"needs SLURM: {', '.join(missing())} not installed")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a cluster of this file's own."""
    need_slurm()
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


class Study:
    """A study of stand-in cells, submitted as the command line does it."""

    def __init__(self, folder: Path, slurm: dict[str, str], num_cells: int, options: Options, **plan: Any) -> None:
        self.path, self.slurm = folder, slurm
        folder.mkdir()
        self.plan(**plan)
        self.submission = new_folder(folder)
        cells = tuple(Cell(index=n, run_id=f"run{n}", config={}, label=f"cell {n}") for n in range(num_cells))
        manifest = Manifest(
            study="a; rm -rf x",
            out=str(folder.parent),
            working_directory=str(folder),
            created=now(),
            options=options,
            cells=cells,
        )
        write_manifest(self.submission / "manifest.json", manifest)

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.submission / "manifest.json")

    def plan(self, steps: int = 3, seconds: float = 0.05, hold: Sequence[int] = (), fail: Sequence[int] = ()) -> None:
        plan = {"steps": steps, "seconds": seconds, "hold": list(hold), "fail": list(fail)}
        (self.path / "plan.json").write_text(json.dumps(plan))

    def submit(self, array: str | None = None) -> str:
        manifest = self.manifest
        array = array or array_text(range(len(manifest.cells)), manifest.options.max_parallel)
        command = [sys.executable, str(CELL), str(self.path)]
        text = sbatch_text(
            manifest.study, array, command, manifest.options, self.submission / "logs", Path(manifest.working_directory)
        )
        script = self.submission / "job.sh"
        script.write_text(text)
        job_id = submit(script, self.slurm)
        write_manifest(self.submission / "manifest.json", manifest.with_job(job_id, array))
        return job_id

    def record(self, index: int) -> dict[str, Any] | None:
        path = self.path / f"record-{index}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def progress(self, index: int) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = json.loads((self.path / f"progress-{index}.json").read_text())
        return found

    def steps(self, index: int) -> int:
        path = self.path / f"progress-{index}.steps"
        return int(path.read_text() or 0) if path.exists() else 0

    def log(self, index: int) -> str:
        return (self.submission / "logs" / f"{index}.txt").read_text()

    def rows(self) -> list[Row]:
        manifest = self.manifest
        waiting = queue(manifest.job_ids, self.slurm)  # before the records: a cell may end in between
        records = {
            cell.run_id: (record["status"], record.get("error")) if (record := self.record(cell.index)) else None
            for cell in manifest.cells
        }
        return rows(manifest, records, waiting)

    def states(self) -> list[str]:
        return [row.state for row in self.rows()]

    def wait(self, ready: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = [path.read_text() for path in sorted((self.submission / "logs").iterdir())]
                pytest.fail(f"not within {seconds} s: {self.rows()}\n" + "\n".join(logs))
            time.sleep(0.2)

    def wait_until_gone(self) -> None:
        """Until no job waits, runs or is just leaving."""
        self.wait(lambda: not queue(self.manifest.job_ids, self.slurm))

    def wait_until_requeued(self, index: int) -> None:
        def waits() -> bool:
            found = queue(self.manifest.job_ids, self.slurm).get(index)
            return found is not None and (found.state, found.reason) == ("PENDING", "BeginTime")

        self.wait(waits)


def test_an_array_runs_every_cell_and_never_more_than_its_throttle(slurm: dict[str, str], tmp_path: Path) -> None:
    # Six cells that would all fit on the eight CPUs; the folder's name is one that a shell would act upon.
    hostile = tmp_path / "a; touch harm 'q' $(touch harm) `touch harm` & #100%a"
    study = Study(hostile, slurm, 6, Options(max_parallel=2, cpus_per_task=1), steps=4, seconds=0.1)
    study.submit()
    assert set(study.states()) <= {"queued", "running"}
    study.wait(lambda: set(study.states()) == {"done"})
    study.wait_until_gone()
    times = [record for index in range(6) if (record := study.record(index))]
    at_once = [sum(other["began"] <= one["began"] < other["ended"] for other in times) for one in times]
    assert max(at_once) == 2
    assert all(study.progress(index)["starts"] == [4] for index in range(6))
    assert "recpeft: cell 5" in study.log(5)
    assert not list(tmp_path.rglob("harm"))
    assert not to_resubmit(study.rows(), failed=True)


def test_a_gpu_a_cell_is_the_cells_own(slurm: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", slurm, 3, Options(gres="gpu:1", setup=('echo "gpu=$CUDA_VISIBLE_DEVICES"',)))
    study.plan(steps=10, seconds=0.1)
    study.submit()
    study.wait(lambda: set(study.states()) == {"done"})
    # Two fake ones: the third cell must have waited for the first or the second.
    assert {line for n in range(3) for line in study.log(n).splitlines() if "gpu=" in line} == {"gpu=0", "gpu=1"}


def test_a_failed_cell_is_listed_with_its_error_and_goes_again_if_asked(slurm: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", slurm, 3, Options(), fail=[1])
    study.submit()
    study.wait_until_gone()
    assert [(row.state, row.detail) for row in study.rows()] == [
        ("done", ""),
        ("failed", "cell 1 fails by design"),
        ("done", ""),
    ]
    assert not to_resubmit(study.rows())
    array = array_text(to_resubmit(study.rows(), failed=True))
    assert array == "1"
    study.plan(fail=[])
    study.submit(array)
    study.wait(lambda: study.states() == ["done"] * 3)
    assert len(study.manifest.jobs) == 2
    assert len(study.progress(0)["starts"]) == 1


def test_a_cell_whose_time_ends_saves_is_requeued_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    # SLURM looks at time limits every half minute, and sends the signal up to a minute early: within 30 s here.
    study = Study(tmp_path / "study", slurm, 2, Options(time="1", signal_seconds=59), steps=5, seconds=0.1, hold=[1])
    job_id = study.submit()
    study.wait_until_requeued(1)
    saved = study.progress(1)
    assert saved["signals"] == ["SIGUSR1"]
    assert study.states() == ["done", "queued"]
    study.plan(steps=sum(saved["starts"]) + 4)
    release(f"{job_id}_1", slurm)
    study.wait(lambda: study.states() == ["done", "done"])
    study.wait_until_gone()
    assert study.progress(1)["starts"] == [*saved["starts"], 4]
    # Cell 1 is the array's last task, whose $SLURM_JOB_ID is the array's: cell 0 was not started again with it.
    assert len(study.progress(0)["starts"]) == 1
    assert "start 1," in study.log(1)
    assert "start 2," in study.log(1)


def test_a_preempted_cell_saves_is_requeued_once_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", slurm, 1, Options(cpus_per_task=8), steps=100_000, seconds=0.05, hold=[0])
    job_id = study.submit()
    study.wait(lambda: study.steps(0) >= 3)
    # Asynchronously, as another user's job would come; it ends by itself.
    other = ["sbatch", "--parsable", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(other, env=slurm, check=True, cwd=tmp_path, capture_output=True)
    study.wait_until_requeued(0)
    saved = study.progress(0)
    assert saved["signals"] == ["SIGTERM"]
    study.plan(steps=sum(saved["starts"]) + 4)
    release(f"{job_id}_0", slurm)
    study.wait(lambda: study.states() == ["done"])
    study.wait_until_gone()
    assert study.progress(0)["starts"] == [*saved["starts"], 4]
    # SLURM's requeue was the only one: the script did not add its own.
    assert [line.split("start ")[1][0] for line in study.log(0).splitlines() if "recpeft: cell" in line] == ["1", "2"]


def test_a_cancelled_cell_stays_cancelled_and_is_resubmitted_as_lost(slurm: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", slurm, 3, Options(max_parallel=1), steps=100_000, seconds=0.05)
    job_id = study.submit()
    study.wait(lambda: study.steps(0) >= 3)
    assert study.states() == ["running", "queued", "queued"]
    cancel(job_id, [2], slurm)
    study.wait(lambda: study.states()[2] == "lost")
    cancel(job_id, environment=slurm)
    study.wait_until_gone()
    time.sleep(1)  # a requeue, if there were one, would show by now
    assert study.states() == ["lost", "lost", "lost"]
    saved = study.progress(0)
    assert saved["signals"] == ["SIGTERM"]
    array = array_text(to_resubmit(study.rows()))
    assert array == "0-2"
    study.plan(steps=sum(saved["starts"]) + 2, seconds=0.001)
    study.submit(array)
    study.wait(lambda: study.states() == ["done"] * 3)
    assert study.progress(0)["starts"] == [*saved["starts"], 2]


def test_what_sbatch_refuses_is_told_in_its_words(slurm: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", slurm, 1, Options(partition="nowhere"))
    with pytest.raises(RecpeftError, match=r"sbatch refused: .*invalid partition specified: nowhere"):
        study.submit()
    assert study.manifest.jobs == ()
    assert queue(["999999"], slurm) == {}


def test_a_cluster_leaves_no_process_and_starts_again_in_the_same_folder(tmp_path: Path) -> None:
    need_slurm()
    folder = tmp_path / "cluster"
    for _ in range(2):
        environment = up(folder)
        with pytest.raises(RecpeftError, match=r"runs in .* already"):
            up(folder)
        pids = [int(path.read_text()) for path in folder.glob("*.pid")]
        assert len(pids) == 3
        script = tmp_path / "job.sh"
        script.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
        submit(script, environment | {"SBATCH_OUTPUT": "/dev/null"})
        end = time.monotonic() + 15
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < end
            time.sleep(0.1)
        pids.append(int((tmp_path / "pid").read_text()))
        (tmp_path / "pid").unlink()
        assert down(folder)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid)]
        assert not down(folder)


@pytest.mark.parametrize(
    ("name", "words"), [("a b", "without spaces or signs"), ("x" * 100, "too long a path for a Unix socket")]
)
def test_a_folder_that_slurm_cannot_use_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, words: str
) -> None:
    need_slurm()
    with pytest.raises(RecpeftError, match=words):
        up(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_the_command_line_starts_and_ends_a_cluster(tmp_path: Path) -> None:
    need_slurm()

    def call(action: str) -> str:
        command = [sys.executable, "-m", "slurm.dev_cluster", action, "--folder", str(tmp_path / "c")]
        root = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=60).stdout

    try:
        said = call("up")
        assert said == f"export SLURM_CONF={tmp_path}/c/slurm.conf\n"
        environment = dict(os.environ) | {"SLURM_CONF": said.partition("=")[2].strip()}
        command = ["sinfo", "--noheader", "--format=%R %T %G"]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert sorted(shown.splitlines()) == ["high idle gpu:2", "main idle gpu:2"]
    finally:
        ended = call("down")
    assert ended.startswith("Ended the cluster")
    assert call("down").startswith("No cluster runs")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_cluster_asks_nothing_of_the_hosts_name(tmp_path: Path) -> None:
    """In a UTS namespace of its own, under a name that nothing resolves."""
    need_slurm()
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode:
        lacks("needs the right to make a namespace (root)")
    code = (
        "import socket, subprocess, sys; from pathlib import Path; from slurm.dev_cluster import cluster\n"
        "socket.sethostname('nowhere-at-all')\n"
        "with cluster(Path(sys.argv[1])) as environment:\n"
        "    subprocess.run(['srun', 'hostname'], env=environment, check=True, timeout=30)\n"
    )
    command = ["unshare", "--uts", sys.executable, "-c", code, str(tmp_path / "cluster")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "nowhere-at-all", done.stderr
