"""What all trackers share: their configs' base, what they are told of a run, and how."""

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
    """What a tracker is told when a run starts."""

    folder: RunFolder
    study: str
    run_id: str
    group: str
    """The same for runs that differ in their seed alone."""
    job_type: str
    """train, reference (what the others are read against) or reorder."""
    name: str
    tags: tuple[str, ...]
    """Method, width, data set and study."""
    columns: dict[str, str | float | None]
    """What tables of runs are sorted by, the same keys for all runs."""
    config: dict[str, Any]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {**self.columns, "config": self.config}


class Tracker:
    """A Lightning logger that is handed one row a step, and at the end the scalars of the record."""

    rows_before = 0
    """Rows that it holds from before the run was interrupted; they are not sent again."""

    def __init__(self, logger: Logger, run: TrackedRun) -> None:
        self.logger = logger
        self.run = run
        logger.log_hyperparams(run.hyperparameters)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One row of the history."""
        self.logger.log_metrics(metrics, step)

    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        """The run is done.

        Args:
            scalars: ``best/…``, ``test/…``, ``cost/…`` and ``params/…`` of the record.
        """
        self.logger.log_metrics(scalars, record["trace"][-1]["step"])
        self.logger.save()
        self.logger.finalize("success")

    def close(self) -> None:
        """The run has failed or was interrupted."""
        self.logger.save()
        self.logger.finalize("failed")


def emptied(folder: Path) -> Path:
    """``folder`` without what an interrupted run has left in it: the whole history is written anew."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
