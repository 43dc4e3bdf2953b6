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

# Tasks in any other state that squeue lists by default occupy a node or are just leaving it.
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


@dataclass(frozen=True)
class Row:
    """Status of one cell."""

    index: int
    run_id: str
    label: str
    state: State
    detail: str
    """Error of a failed cell, reason for waiting of a queued cell, log of a lost cell; otherwise empty."""


def rows(
    manifest: Manifest,
    records: Mapping[str, tuple[str, str | None] | None],
    queue: Mapping[int, QueueState],
    stopped: bool = False,
    logs: Mapping[int, Path] | None = None,
) -> list[Row]:
    """Return each cell's state, in the cells' order.

    Args:
        records: maps ``run_id`` to ``("done", None)`` or ``("failed", error)``; None or absent without a record.
        queue: from ``queue(manifest.job_ids)``, called before the records are read: otherwise a cell that ends in
            between would seem lost.
        stopped: True if all cells were asked to stop.
        logs: existing log files by index.
    Returns:
        One row per cell. A *lost* cell neither waits nor runs and left no record: it was cancelled, killed, out of
        memory, or interrupted more often than it may be requeued. It is *stopped* instead if ``stopped``.
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
    """Count the cells in each state that occurs."""
    return {state: number for state in STATES if (number := sum(row.state == state for row in found))}


def to_resubmit(found: Sequence[Row], failed: bool = False) -> list[int]:
    """Return the indices of lost and stopped cells, and of failed cells if ``failed``."""
    wanted = {"lost", "stopped", "failed"} if failed else {"lost", "stopped"}
    return [row.index for row in found if row.state in wanted]
