"""Feed a run's trackers from start to end; they copy the record's history, and the run survives their failure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.config.grid import is_reference
from experiments.config.run import RunConfig, TextRun
from experiments.config.trackers import TrackerConfig
from experiments.records.record import RunFolder
from experiments.trackers import _logger
from experiments.trackers._base import TrackedRun, Tracker
from lightning_modules import RankingCallback
from recpeft import plugins, processes
from recpeft.terminal import say


def check_trackers(trackers: Iterable[TrackerConfig]) -> None:
    """Raise ``RecpeftError`` if one of ``trackers`` is not installed or is no logger."""
    for tracker in trackers:
        _plugin(tracker).check(tracker)


class Tracking:
    """The trackers of one run.

    They receive the rows of its history as they arise, one per step, from the trace that a checkpoint carries. A
    resumed run therefore begins with the earlier rows, and no step is logged twice or, when trained again, with
    another value.

    Args:
        data_set: name of the data set.
    """

    def __init__(self, config: RunConfig, data_set: str, folder: RunFolder) -> None:
        self._config = config
        self._run = describe(config, data_set, folder)
        self._open: dict[TrackerConfig, Tracker] = {}
        self._epochs = 0  # epochs of the trace that are logged
        self._step = 0  # last step that is logged
        self._rows = 0

    def __enter__(self) -> Tracking:
        for config in self._config.trackers if processes.number() == 0 else ():
            self._guarded(config, self._start, config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for config, tracker in list(self._open.items()):
            self._guarded(config, tracker.close)

    def live(self, ranking: RankingCallback) -> list[Callback]:
        """Return the callback that logs during training; it must follow ``ranking`` in the trainer's list."""
        # With several processes, one alone sees only its share of a step's loss; epochs come with the trace.
        return [_Live(self, ranking, steps=not processes.several())] if self._open else []

    def catch_up(
        self, trace: Sequence[Mapping[str, Any]], losses_after: Callable[[int], Sequence[float]] = lambda after: ()
    ) -> None:
        """Log the rows that have not been logged yet.

        Args:
            trace: trace in the record's format.
            losses_after: maps the number of steps logged since the trace's last epoch to the later steps' losses.
        """
        for row in trace[self._epochs :]:
            self._epochs += 1
            own = row.get("step_losses", ())
            self._log_losses(own[:-1], row["step"] - len(own))
            values = {f"val/{name}": value for name, value in row["validation"].items()}
            last = {"train/loss": own[-1], "train/epoch_loss": row["train_loss"]} if own else {}
            self._log({"epoch": self._epochs} | last | values, row["step"])
        begun = trace[-1]["step"] if trace else 0
        self._log_losses(losses_after(self._step - begun), self._step)

    def finish(self, record: dict[str, Any]) -> None:
        """Log the rest and the summary, just before the complete record is written; a run killed earlier resumes."""
        self.catch_up(record["trace"])
        scalars = summary(record)
        for config, tracker in list(self._open.items()):
            self._guarded(config, tracker.finish, scalars, record)
        self._open = {}

    def _start(self, config: TrackerConfig) -> None:
        self._open[config] = _plugin(config).start(config, self._run)

    def _log_losses(self, losses: Sequence[float], before: int) -> None:
        for step in range(max(self._step, before) + 1, before + len(losses) + 1):
            self._log({"train/loss": losses[step - before - 1]}, step)

    def _log(self, metrics: Mapping[str, Any], step: int) -> None:
        row = _numbers("", metrics)
        for config, tracker in list(self._open.items()):
            if self._rows >= tracker.rows_before:
                self._guarded(config, tracker.log, row, step)
        self._step = step
        self._rows += 1

    def _guarded(self, config: TrackerConfig, action: Callable[..., None], *arguments: Any) -> None:
        """Call ``action``; a tracker that fails is dropped, so that its warning appears once."""
        try:
            action(*arguments)
        # Third-party trackers raise exceptions without a common class, and a failed copy must not end the run.
        except Exception as error:
            self._open.pop(config, None)
            what = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            say(
                f"WARNING: the tracker {config.name} is off for {self._run.run_id}: {what}; the run goes on and its "
                f"record misses nothing; {config.remedy}.",
                error=True,
            )


class _Live(Callback):
    """Pass each row of the history to the trackers."""

    def __init__(self, tracking: Tracking, ranking: RankingCallback, steps: bool) -> None:
        self._tracking = tracking
        self._ranking = ranking
        self._steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Leave out the newest loss: it shares its row with the validation that may follow it.
        if self._steps:
            self._tracking.catch_up(self._ranking.trace, lambda after: self._ranking.step_losses(trainer, after)[:-1])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracking.catch_up(self._ranking.trace)


def describe(config: RunConfig, data_set: str, folder: RunFolder) -> TrackedRun:
    """Return the description of a run that trackers receive.

    Args:
        data_set: name of the data set.
    """
    columns: dict[str, str | float | None] = {
        "method": config.method,
        "width": None,
        "rank": None,
        "learning_rate": None,
        "backbone": None,
        "data_set": data_set,
        "formulation": None,
        "loss": None,
        "seed": None,
    }
    if isinstance(config, TextRun):
        columns |= {
            "width": config.width,
            "rank": getattr(config.adapter, "rank", None),
            "learning_rate": config.adapter.learning_rate or config.training.learning_rate,
            "backbone": config.backbone.name,
            "formulation": config.formulation.name,
            "loss": config.loss.name,
            "seed": config.seed,
        }
    named = [str(part) for part in (columns["method"], columns["width"]) if part is not None]
    return TrackedRun(
        folder=folder,
        study=config.study,
        run_id=config.run_id,
        group=config.run_id_without_seed,
        job_type="reorder" if config.diversify else "reference" if is_reference(config) else "train",
        name="-".join([*named, config.run_id]),
        tags=tuple(dict.fromkeys([*named, data_set, config.study])),
        columns=columns,
        config=config.model_dump(mode="json", exclude={"trackers"}),
    )


def summary(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a record that serve to compare runs.

    Returns:
        ``best/<metric>`` (validation at the best epoch), ``test/<metric>``, ``cost/<cost>``, ``params/<count>``.
    """
    step = record.get("training", {}).get("best_step")
    best = next((row for row in record["trace"] if row["step"] == step), record["trace"][-1])
    return {
        **_numbers("best/", {"step": best["step"], **best["validation"]}),
        **_numbers("test/", record["test"]),
        **_numbers("cost/", record["costs"]),
        **_numbers("params/", record.get("parameters", {})),
    }


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are finite numbers, with prefixed names; a metric without users is NaN and left out."""
    return {
        prefix + name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _plugin(config: TrackerConfig) -> Any:
    return _logger if "." in config.name else plugins.load("experiments.trackers", config.name)
