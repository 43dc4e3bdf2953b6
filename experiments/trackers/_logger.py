"""Tracker for any Lightning logger class: ``{name: lightning.pytorch.loggers.MLFlowLogger, experiment_name: …}``."""

from __future__ import annotations

import importlib
from typing import Any

from experiments.config.trackers import LoggerConfig
from experiments.trackers._base import TrackedRun, Tracker
from recpeft.errors import RecpeftError


def check(config: LoggerConfig) -> None:
    """Raise ``RecpeftError`` unless ``name`` is a Lightning logger's class."""
    from lightning.pytorch.loggers import Logger

    module, _, name = config.name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise RecpeftError(
            f"trackers names {config.name}, but there is no module {error.name}; install it or put its folder on "
            "PYTHONPATH."
        ) from None
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise RecpeftError(
            f"trackers names {config.name}, which is no class of a Lightning logger; give one such as "
            "lightning.pytorch.loggers.MLFlowLogger."
        )


def start(config: LoggerConfig, run: TrackedRun) -> Tracker:
    module, _, name = config.name.rpartition(".")
    options = {option: _filled(value, run) for option, value in config.options.items()}
    return Tracker(getattr(importlib.import_module(module), name)(**options), run)


def _filled(value: Any, run: TrackedRun) -> Any:
    if not isinstance(value, str):
        return value
    for what, text in {"study": run.study, "run_id": run.run_id, "folder": str(run.folder.path)}.items():
        value = value.replace(f"{{{what}}}", text)
    return value
