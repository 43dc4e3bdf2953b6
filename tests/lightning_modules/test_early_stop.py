"""Training that ends where a metric no longer improves: when, by what, and across an interruption."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from experiments.cell.train import preflight, run
from experiments.config.grid import load_runs
from experiments.config.run import TextRun
from experiments.config.training import EarlyStoppingConfig
from experiments.records.record import run_folder
from lightning_modules import EarlyStop, RankingCallback, TwoTower
from recpeft.errors import RecpeftError

pytestmark = pytest.mark.usefixtures("one_thread")


def config(study_file: Path, *overrides: str, **stopping: Any) -> TextRun:
    written = ", ".join(f"{key}: {value}" for key, value in stopping.items())
    few = ["training.users_per_step=2", "evaluation.validation_users=4", "training.max_steps=30"]
    (made,) = load_runs(study_file, [*few, f"training.early_stopping={{{written}}}", *overrides])
    assert isinstance(made, TextRun)
    return made


def plan(monkeypatch: pytest.MonkeyPatch, values: list[float], name: str = "ndcg@5") -> None:
    """Have the validations (of each 3 steps) measure ``values`` one after another, then the last one."""
    values_of = RankingCallback._values

    def planned(self: RankingCallback) -> dict[str, float]:
        return values_of(self) | {name: values[min(len(self.trace), len(values) - 1)]}

    monkeypatch.setattr(RankingCallback, "_values", planned)


def steps(record: dict[str, Any]) -> list[int]:
    return [row["step"] for row in record["trace"]]


# When --------------------------------------------------------------------------------------------------


class Validations:
    """A trainer as a callback sees it, of which each validation measures the next of ``values``."""

    def __init__(self, values: list[float], first: int = 0) -> None:
        self.values = values
        adapter = SimpleNamespace(may_be_best=lambda backbone, step: step >= first)
        self.module: Any = SimpleNamespace(adapter=adapter, backbone=None)

    def run(self, stop: EarlyStop) -> int:
        """How many there are until it ends."""
        for number, value in enumerate(self.values, 1):
            trainer: Any = SimpleNamespace(
                callback_metrics={"val/ndcg@5": torch.tensor(value)},
                state=SimpleNamespace(fn=TrainerFn.FITTING),
                strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
                sanity_checking=False,
                fast_dev_run=False,
                should_stop=False,
                current_epoch=number - 1,
                global_step=number,
            )
            stop.on_validation_end(trainer, self.module)
            if trainer.should_stop:
                return number
        return 0


@pytest.mark.parametrize(
    ("values", "options", "end"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.2, 0.9], {"patience": 3}, 5),  # equal is no improvement
        ([0.1, 0.3, 0.2, 0.2, 0.4, 0.4, 0.3, 0.2], {"patience": 3}, 8),  # an improvement counts anew
        ([0.3, 0.2], {"patience": 1}, 2),
        ([0.1, 0.2, 0.3, 0.4], {"patience": 1}, 0),
        ([0.30, 0.34, 0.38, 0.42], {"patience": 2, "min_delta": 0.05}, 0),  # by 0.08 after two, then by 0.04
        ([0.30, 0.34, 0.34, 0.42], {"patience": 2, "min_delta": 0.05}, 3),
        ([0.1, 0.2, 0.3], {"patience": 2, "mode": "min"}, 3),
        ([0.9, 0.5, 0.6, 0.4, 0.4, 0.4], {"patience": 2, "mode": "min"}, 6),
        ([math.nan, 0.3, math.nan, 0.4, 0.2, math.nan], {"patience": 2}, 6),  # NaN is the worst
        ([math.nan, 0.3, math.nan, 0.2, 0.4, math.nan], {"patience": 2, "mode": "min"}, 6),
    ],
)
def test_training_ends_after_patience_validations_without_improvement(
    values: list[float], options: dict[str, Any], end: int
) -> None:
    config = EarlyStoppingConfig(**options)
    stop = EarlyStop("val/ndcg@5", config.direction("ndcg@5"), config.patience, config.min_delta)
    assert Validations(values).run(stop) == end


def test_validations_that_the_adapter_does_not_let_count_are_none() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert Validations(falling).run(EarlyStop("val/ndcg@5", "max", 2, 0.0)) == 3
    assert Validations(falling, first=4).run(EarlyStop("val/ndcg@5", "max", 2, 0.0)) == 6


def test_another_metric_ends_it_than_the_one_that_picks_the_best_epoch(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch, [0.5, 0.4, 0.3], "gini@5")
    record = run(config(study_file, patience=2, monitor="gini@5", mode="min"), tmp_path)
    assert steps(record) == [3, 6, 9, 12, 15]  # the last value repeats twice
    assert record["training"]["steps"] == 15
    values = [row["validation"]["ndcg@5"] for row in record["trace"]]
    assert record["training"]["best_step"] == record["trace"][values.index(max(values))]["step"]
    assert not run_folder(tmp_path, record["config"]["study"], record["run_id"]).checkpoints.exists()


def test_train_loss_ends_it_where_it_no_longer_falls(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def loss(self: TwoTower, batch: Any) -> torch.Tensor:
        """Falls for six steps."""
        calls.append(1)
        return 0.0 * self.head.log_scale + max(10 - len(calls), 4)  # type: ignore[operator,return-value]

    monkeypatch.setattr(TwoTower, "loss", loss)
    found = run(config(study_file, patience=2, monitor="train/loss", mode="min"), tmp_path)
    assert [row["train_loss"] for row in found["trace"]] == [8, 5, 4, 4]
    assert steps(found) == [3, 6, 9, 12]


def test_adaloras_phases_are_not_counted(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaLoRA's ranks are within their budget from step 18 on: the falling values before are none."""
    plan(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    adalora = "adapter={method: adalora, init_rank: 4, target_rank: 2, initial_phase: 0.2, final_phase: 0.4}"
    record = run(config(study_file, adalora, patience=2), tmp_path)
    counted = [row["step"] for row in record["trace"] if row["may_be_best"]]
    assert counted[0] > 9
    assert len(counted) == 3  # the first is the best, and two are no better
    assert steps(record)[-1] == counted[-1] < 30
    assert record["training"]["best_step"] == counted[0]


# Across an interruption --------------------------------------------------------------------------------


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "costs"}


@pytest.fixture(scope="module")
def planned(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TextRun, dict[str, Any]]]:
    """A config and its record, of a run that ends at step 12; one that did not would see 0.9 and go on."""
    with pytest.MonkeyPatch.context() as patched:
        plan(patched, [0.5, 0.6, 0.4, 0.4, 0.9])
        made = config(study_file, patience=2)
        record = run(made, tmp_path_factory.mktemp("whole"))
        assert steps(record) == [3, 6, 9, 12]
        yield made, record


@pytest.mark.parametrize("step", [10])
def test_a_run_that_was_interrupted_stops_where_it_would_have_stopped(
    step: int, planned: tuple[TextRun, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, whole = planned
    loss, calls = TwoTower.loss, []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > step:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TwoTower, "loss", counted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(made, tmp_path)
    again = run(made, tmp_path)
    assert again["costs"]["steps_run"] == 12 - step
    assert timeless(again) == timeless(whole)


def test_a_run_interrupted_after_it_was_stopped_is_tested_without_training_again(
    planned: tuple[TextRun, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, whole = planned

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "test", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(made, tmp_path)
    again = run(made, tmp_path)
    assert again["costs"]["steps_run"] == 0
    assert timeless(again) == timeless(whole)


# What it is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", ["gini@5", "recall@1", "train/loss", "users"])
def test_what_a_trace_has_may_be_watched(monitor: str, study_file: Path, tmp_path: Path) -> None:
    preflight([config(study_file, monitor=monitor)], tmp_path)


def test_what_is_not_measured_is_refused_before_the_first_run(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecpeftError,
        match=r"early_stopping\.monitor is 'recall@7', which is not measured; name a metric .* such as recall@5",
    ):
        preflight([config(study_file, monitor="recall@7")], tmp_path)
    with pytest.raises(RecpeftError, match=r"monitor is 'nothing', which is not measured; name a metric of a record's"):
        preflight([config(study_file, monitor="nothing")], tmp_path)


def test_what_it_watches_is_what_picks_the_best_epoch_unless_it_says_otherwise() -> None:
    assert EarlyStoppingConfig().watched("ndcg@5/uniform9") == "val/ndcg@5/uniform9"
    assert EarlyStoppingConfig(monitor="gini@5").watched("ndcg@5") == "val/gini@5"
    assert EarlyStoppingConfig(monitor="train/loss", mode="min").watched("ndcg@5") == "train/loss"


@pytest.mark.parametrize(("key", "value"), [("patience", 0), ("mode", "best"), ("min_delta", -0.1), ("patinece", 3)])
def test_its_options_are_checked(key: str, value: Any, study_file: Path) -> None:
    with pytest.raises(RecpeftError, match=rf"training\.early_stopping\.{key}"):
        config(study_file, **{key: value})


@pytest.mark.parametrize(
    ("options", "monitor", "expected"),
    [
        ({}, "ndcg@5", "max"),
        ({}, "arp@5", "min"),
        ({"monitor": "gini@5"}, "ndcg@5", "min"),
        ({"monitor": "ndcg_gap_gender@5"}, "ndcg@5", "min"),
        ({"monitor": "recall_item_popularity=tail@5"}, "arp@5", "max"),
        ({"monitor": "train/loss"}, "ndcg@5", "min"),
        ({"monitor": "gini@5", "mode": "max"}, "ndcg@5", "max"),
    ],
)
def test_what_is_watched_improves_in_its_own_direction(options: dict[str, Any], monitor: str, expected: str) -> None:
    assert EarlyStoppingConfig(**options).direction(monitor) == expected
