"""Tracker for TensorBoard by Lightning: ``<run>/tensorboard``; ``tensorboard --logdir runs/<study>`` shows a study."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from experiments.config.trackers import TrackerConfig
from experiments.trackers._base import TrackedRun, Tracker, emptied
from recpeft.errors import RecpeftError


class Config(TrackerConfig):
    name: Literal["tensorboard"] = "tensorboard"


def check(config: Config) -> None:
    if find_spec("tensorboard") is None:
        raise RecpeftError("trackers names tensorboard, which is not installed; pip install tensorboard.")


class TensorBoardTracker(Tracker):
    def finish(self, scalars: dict[str, float], record: dict[str, Any]) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        # The tab HPARAMS compares runs by this metric; log_hyperparams also logs it as a scalar.
        name = f"test/{record['monitor']}"
        monitored = {name: scalars[name]} if name in scalars else {}
        assert isinstance(self.logger, TensorBoardLogger)
        self.logger.log_hyperparams(self.run.columns, monitored, record["trace"][-1]["step"])
        super().finish({key: value for key, value in scalars.items() if key != name}, record)


def start(config: Config, run: TrackedRun) -> Tracker:
    from lightning.pytorch.loggers import TensorBoardLogger

    folder = emptied(run.folder.path / "tensorboard")
    return TensorBoardTracker(TensorBoardLogger(folder.parent, "", folder.name, default_hp_metric=False), run)
