"""Any Lightning logger, named by its class: ``{name: lightning.pytorch.loggers.MLFlowLogger, experiment_name: …}``."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from experiments.trackers._base import TrackedRun, Tracker, TrackerConfig
from recpeft.errors import RecpeftError

_SECRETS = ("key", "token", "password", "secret")


class Config(TrackerConfig):
    """Its further keys are the class's own arguments; {study}, {run_id} and {folder} in them are the run's."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^\w+(\.\w+)+$")

    @model_validator(mode="after")
    def _has_no_secret(self) -> Config:
        for option in self.options:
            if any(word in option.lower() for word in _SECRETS):
                raise ValueError(
                    f"{option} would stand in files that are passed on; leave it out, and give it by the environment "
                    "variable that the tracker reads"
                )
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def check(config: Config) -> None:
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


def start(config: Config, run: TrackedRun) -> Tracker:
    module, _, name = config.name.rpartition(".")
    options = {option: _filled(value, run) for option, value in config.options.items()}
    return Tracker(getattr(importlib.import_module(module), name)(**options), run)


def _filled(value: Any, run: TrackedRun) -> Any:
    if not isinstance(value, str):
        return value
    for what, text in {"study": run.study, "run_id": run.run_id, "folder": str(run.folder.path)}.items():
        value = value.replace(f"{{{what}}}", text)
    return value
