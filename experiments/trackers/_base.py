"""Base of all trackers: the description of a run, and the interface to a Lightning logger."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records.record import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(frozen=True)
class TrackedRun:
    """Description of a run that a tracker receives at its start."""

    folder: RunFolder
    study: str
    run_id: str
    group: str
    """Id that runs share if they differ only in their seed."""
    job_type: str
    """train, reference (compared with the other runs) or reorder."""
    name: str
    tags: tuple[str, ...]
    """Tags: method, width, data set and study."""
    columns: dict[str, str | float | None]
    """Columns by which tables of runs are sorted, the same keys for all runs."""
    config: dict[str, Any]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {**self.columns, "config": self.config}


class Tracker:
    """A Lightning logger that receives one row per step, and at the end the record's scalars."""

    rows_before = 0
    """Number of rows logged before an interruption; they are not sent again."""

    def __init__(self, logger: Logger, run: TrackedRun) -> None:
        self.logger = logger
        self.run = run
        logger.log_hyperparams(run.hyperparameters)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log one row of the history."""
        self.logger.log_metrics(metrics, step)

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        """Log the scalars of a finished run, and close the logger.

        Args:
            scalars: ``best/…``, ``test/…``, ``cost/…`` and ``params/…`` of the record.
        """
        self.logger.log_metrics(scalars, record["trace"][-1]["step"])
        self.logger.save()
        self.logger.finalize("success")

    def close(self) -> None:
        """Close the logger of a run that failed or was interrupted."""
        self.logger.save()
        self.logger.finalize("failed")


def emptied(folder: Path) -> Path:
    """Delete an interrupted run's files in ``folder`` and return it; the whole history is written again."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
