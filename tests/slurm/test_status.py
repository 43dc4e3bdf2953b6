"""squeue's answers are understood, and manifest, records and queue give each cell one state."""

from __future__ import annotations

from pathlib import Path

import pytest

from recpeft.errors import RecpeftError
from slurm import Cell, Manifest, Options, QueueState, counts, queue, rows, submit, to_resubmit
from slurm._cluster import cancel, expand_array, parse_queue


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("4", [4]),
        ("0-2,5", [0, 1, 2, 5]),
        ("[4-7%2]", [4, 5, 6, 7]),
        ("123_[4-7%2]", [4, 5, 6, 7]),
        ("123_4", [4]),
        ("0-6:2", [0, 2, 4, 6]),
    ],
)
def test_array_expressions_are_expanded(expression: str, expected: list[int]) -> None:
    assert expand_array(expression) == expected


@pytest.mark.parametrize("bad", ["", "N/A", "1-", "0-3,..."])
def test_what_is_no_array_expression_is_refused(bad: str) -> None:
    with pytest.raises(RecpeftError, match="no list of array tasks"):
        expand_array(bad)


def test_squeues_lines_become_states_of_cells() -> None:
    text = "12|[2-3%2]|PENDING|JobArrayTaskLimit\n12|0|RUNNING|None\n\n12|1|PENDING|(a|b) BeginTime\n"
    assert parse_queue(text) == {
        0: QueueState("RUNNING", "None", "12"),
        1: QueueState("PENDING", "(a|b) BeginTime", "12"),
        2: QueueState("PENDING", "JobArrayTaskLimit", "12"),
        3: QueueState("PENDING", "JobArrayTaskLimit", "12"),
    }


class Commands:
    """Stand-ins for SLURM's commands on an otherwise empty PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": str(folder)}

    def add(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Commands(tmp_path)


@pytest.mark.parametrize(("answer", "expected"), [("123", "123"), ("123;cluster", "123"), ("hint\n123", "123")])
def test_submit_gives_the_job_id(commands: Commands, answer: str, expected: str) -> None:
    commands.add("sbatch", f"echo '{answer}'")
    assert submit(Path("job.sh")) == expected


def test_without_slurm_the_missing_command_is_named(commands: Commands) -> None:
    with pytest.raises(RecpeftError, match="there is no sbatch on PATH"):
        submit(Path("job.sh"))
    with pytest.raises(RecpeftError, match="there is no squeue on PATH"):
        queue(["12"])
    with pytest.raises(RecpeftError, match="there is no scancel on PATH"):
        cancel("12")


def test_a_refusal_is_told_in_sbatchs_own_words(commands: Commands) -> None:
    commands.add("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(RecpeftError, match=r"sbatch refused: sbatch: error: invalid partition specified: x\."):
        submit(Path("job.sh"))
    commands.add("sbatch", "echo what")
    with pytest.raises(RecpeftError, match="instead of a job id"):
        submit(Path("job.sh"))


def test_a_job_that_slurm_has_forgotten_is_no_error_and_others_are_still_asked(commands: Commands) -> None:
    commands.add(
        "squeue",
        'if [[ "$*" == *--jobs=12\\ * ]]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi\n'
        "echo '15|1|RUNNING|None'",
    )
    assert queue(["12", "15"]) == {1: QueueState("RUNNING", "None", "15")}
    commands.add("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RecpeftError, match=r"squeue refused: .*Unable to contact"):
        queue(["12"])


def test_cancel_names_the_tasks(commands: Commands) -> None:
    commands.add("scancel", f'echo "$*" >> {commands.folder}/calls')
    cancel("12", [0, 3])
    cancel("12", [])
    cancel("12")
    assert (commands.folder / "calls").read_text() == "12_0 12_3\n12\n"


def pending(reason: str = "None") -> QueueState:
    return QueueState("PENDING", reason, "12")


RUNNING = QueueState("RUNNING", "None", "12")


def manifest(num_cells: int) -> Manifest:
    cells = tuple(Cell(index=n, run_id=f"run{n}", config={}, label=f"cell {n}") for n in range(num_cells))
    return Manifest(study="demo", out="/o", working_directory="/w", created="now", options=Options(), cells=cells)


def test_each_cell_has_one_state() -> None:
    records: dict[str, tuple[str, str | None] | None] = {
        "run0": ("done", None),
        "run1": ("done", None),  # finished, and its job is just leaving
        "run2": ("failed", "no data"),
        "run3": ("failed", "no data"),  # resubmitted
        "run4": None,
    }
    found = rows(
        manifest(9),
        records,
        {
            1: QueueState("COMPLETING", "None", "12"),
            3: pending(),
            5: RUNNING,
            6: pending("BeginTime"),
            7: QueueState("COMPLETING", "None", "12"),
        },
    )
    assert [(row.index, row.state, row.detail) for row in found] == [
        (0, "done", ""),
        (1, "done", ""),
        (2, "failed", "no data"),
        (3, "queued", ""),
        (4, "lost", ""),
        (5, "running", ""),
        (6, "queued", "BeginTime"),
        (7, "running", ""),
        (8, "lost", ""),
    ]
    assert counts(found) == {"done": 2, "running": 2, "queued": 2, "failed": 1, "lost": 2}
    assert list(counts(found)) == ["done", "running", "queued", "failed", "lost"]


def test_what_is_lost_after_a_stop_is_stopped_and_goes_on_when_it_is_resubmitted() -> None:
    records: dict[str, tuple[str, str | None] | None] = {"run0": ("done", None), "run1": ("failed", "no data")}
    found = rows(manifest(4), records, {2: RUNNING}, stopped=True)
    assert [row.state for row in found] == ["done", "failed", "running", "stopped"]
    assert to_resubmit(found) == [3]


def test_lost_cells_are_resubmitted_and_failed_ones_if_asked() -> None:
    found = rows(manifest(6), {"run2": ("failed", "no"), "run5": ("done", None)}, {3: RUNNING})
    assert to_resubmit(found) == [0, 1, 4]
    assert to_resubmit(found, failed=True) == [0, 1, 2, 4]
    assert to_resubmit(rows(manifest(1), {"run0": ("done", None)}, {})) == []
