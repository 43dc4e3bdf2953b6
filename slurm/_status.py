"""The state of each submitted cell, from manifest, records and queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slurm._cluster import QueueState
from slurm._manifest import Manifest

State = Literal["done", "running", "queued", "failed", "stopped", "lost"]
STATES: tuple[State, ...] = ("done", "running", "queued", "failed", "stopped", "lost")

# Everything else that squeue lists by default has its place on a node or is just leaving it.
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


@dataclass(frozen=True)
class Row:
    """One cell."""

    index: int
    run_id: str
    label: str
    state: State
    detail: str
    """The error of a failed one, why a queued one waits, the log of a lost one; otherwise empty."""


def rows(
    manifest: Manifest,
    records: Mapping[str, tuple[str, str | None] | None],
    queue: Mapping[int, QueueState],
    stopped: bool = False,
    logs: Mapping[int, Path] | None = None,
) -> list[Row]:
    """Each cell's state.

    Args:
        records: ``run_id`` to ``("done", None)`` or ``("failed", error)``; None or absent where there is no record.
        queue: from ``queue(manifest.job_ids)``, asked before the records are read: a cell that ends in between would
            otherwise seem lost.
        stopped: whether all were asked to stop.
        logs: by index, those that there are.
    Returns:
        In the cells' order. *lost* is a cell that neither waits nor runs and left no record: cancelled, killed, out
        of memory, or interrupted more often than it may be requeued; *stopped*, if all were asked to.
    """
    found = []
    for cell in manifest.cells:
        status, error = records.get(cell.run_id) or (None, None)
        queued = queue.get(cell.index)
        state: State
        detail = ""
        if status == "done":
            state = "done"
        elif queued is not None and queued.state in _WAITING:
            state = "queued"
            detail = "" if queued.reason == "None" else queued.reason
        elif queued is not None:
            state = "running"
        elif status == "failed":
            state, detail = "failed", error or "no error is recorded"
        else:
            state = "stopped" if stopped else "lost"
            detail = f"see {logs[cell.index]}" if logs and cell.index in logs and not stopped else ""
        found.append(Row(cell.index, cell.run_id, cell.label, state, detail))
    return found


def counts(found: Sequence[Row]) -> dict[State, int]:
    """How many cells are in each state that occurs."""
    return {state: number for state in STATES if (number := sum(row.state == state for row in found))}


def to_resubmit(found: Sequence[Row], failed: bool = False) -> list[int]:
    """Indices of lost and stopped cells, and of failed ones if asked for."""
    wanted = {"lost", "stopped", "failed"} if failed else {"lost", "stopped"}
    return [row.index for row in found if row.state in wanted]
