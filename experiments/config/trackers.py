"""Configs of ``trackers``: a file of ``experiments/trackers/`` or a Lightning logger's class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from recpeft import trust
from recpeft.config import Config
from recpeft.validation import build_plugin, validate

_SECRETS = ("key", "token", "password", "secret")


class TrackerConfig(Config):
    remedy: ClassVar[str] = "see that its options are right and that what it writes to is there"
    """Advice to the user if the tracker fails."""

    name: str
    """Name of a file in ``experiments/trackers/``, or dotted name of a Lightning logger's class."""


class LoggerConfig(TrackerConfig):
    """A Lightning logger by the dotted name of its class, such as
    ``{name: lightning.pytorch.loggers.MLFlowLogger, experiment_name: …}``.

    Further keys are the class's arguments; {study}, {run_id} and {folder} in them are replaced by the run's values.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^\w+(\.\w+)+$")

    @model_validator(mode="after")
    def _has_no_secret(self) -> LoggerConfig:
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


def build(value: Any) -> TrackerConfig:
    """Return the config of an entry of ``trackers``: ``wandb``, ``{name: wandb, …}``, or a logger's dotted name.

    Raises:
        RecpeftError: the entry is invalid; the message says why, and what is allowed.
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and "." in str(value.get("name")):
        config = validate(LoggerConfig, value, prefix="trackers.")
        if not config.name.startswith("lightning.pytorch.loggers."):
            trust.check(config.name, f"the tracker {config.name}")
        return config
    tracker = build_plugin("experiments.trackers", "name", value, "trackers")
    assert isinstance(tracker, TrackerConfig)
    return tracker
