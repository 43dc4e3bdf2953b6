"""A CSV file of the history by Lightning: ``<run>/csv/metrics.csv``, the scalars in its last row."""

from __future__ import annotations

from typing import Literal

from experiments.config.trackers import TrackerConfig
from experiments.trackers._base import TrackedRun, Tracker, emptied


class Config(TrackerConfig):
    name: Literal["csv"] = "csv"


def check(config: Config) -> None:
    """There is nothing that it needs."""


def start(config: Config, run: TrackedRun) -> Tracker:
    from lightning.pytorch.loggers import CSVLogger

    folder = emptied(run.folder.path / "csv")
    return Tracker(CSVLogger(folder.parent, name="", version=folder.name), run)
