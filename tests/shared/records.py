"""Records as runs leave them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.config.grid import is_reference
from experiments.config.run import RunConfig, TextRun
from experiments.records.layout import SCHEMA
from experiments.records.record import RunFolder, find_records, read_record
from experiments.records.versions import versions

SPLIT: dict[str, Any] = {
    "kind": "per_user_temporal",
    "train": 12,
    "validation": 4,
    "test": 4,
    "hash": "abc",
    "audit": {"test_rows_before_train_end": 3, "users_out_of_order": 0, "duplicates_across_splits": 0},
}

DATA: dict[str, Any] = {
    "name": "tiny",
    "users": 4,
    "items": 1234,
    "interactions": 20,
    "hash": "data",
    "split": SPLIT,
}


def record_of(run: RunConfig, **fields: Any) -> dict[str, Any]:
    """The record of a finished run, with the least that a record has and ``fields`` over it."""
    monitor = run.evaluation.monitored
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "done",
        "run_id": run.run_id,
        "method": run.method,
        "width": run.width,
        "reference": is_reference(run),
        "config": run.model_dump(mode="json", exclude={"trackers"}),
        "monitor": monitor,
        "candidates": {"kind": run.evaluation.candidates.kind, "hash": None},
        "data": DATA,
        "test": {monitor: 0.5, "users": 4},
        "versions": versions(),
        "device": "cpu",
        "trace": [],
        "costs": {"wall_seconds": 1.0, "peak_memory_bytes": 2**20},
    }
    if isinstance(run, TextRun):
        record |= {"training": {"validation_users": 4}, "backbone": {"compute_dtype": "float32"}}
    return record | fields


def failure_of(run: RunConfig, error: str = "no luck") -> dict[str, Any]:
    """The record of a failed run."""
    kept = ("schema", "run_id", "method", "width", "config")
    return {key: value for key, value in record_of(run).items() if key in kept} | {"status": "failed", "error": error}


def written_record(folder: RunFolder) -> dict[str, Any] | None:
    """Return a run's record as the values of its file."""
    record = read_record(folder)
    return None if record is None else record.json_values


def written_records(directory: Path) -> list[tuple[RunFolder, dict[str, Any]]]:
    """Return all records below a folder as the values of their files."""
    return [(folder, record.json_values) for folder, record in find_records(directory)]
