"""Tracker that writes the history as CSV by Lightning: ``<run>/csv/metrics.csv``, with the scalars in its last row."""

from __future__ import annotations

from typing import Literal

from experiments.config.trackers import TrackerConfig
from experiments.trackers._base import TrackedRun, Tracker, emptied


class Config(TrackerConfig):
    name: Literal["csv"] = "csv"


def check(config: Config) -> None:
    """Accept every config; this tracker needs nothing."""


def start(config: Config, run: TrackedRun) -> Tracker:
    from lightning.pytorch.loggers import CSVLogger

    folder = emptied(run.folder.path / "csv")
    return Tracker(CSVLogger(folder.parent, name="", version=folder.name), run)
