"""Callbacks around training: metrics each epoch, hard negatives, and checkpoints to resume from."""

from __future__ import annotations

import itertools
import math
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from datamodules import TextPairDataModule
from datamodules._batching import PairBatch
from lightning_modules._rec_module import RecModule
from metrics import RankingMetrics
from metrics._suite import KeptLists, Ranked, Suite
from recpeft import processes, stopping
from recpeft.files import disk_errors
from recpeft.terminal import say


def _all_stop(trainer: Trainer) -> bool:
    """Return whether to stop; all processes get the same answer at the same batch."""
    return trainer.strategy.reduce_boolean_decision(stopping.asked() is not None, all=False)


def _is_whole(path: Path) -> bool:
    """Return whether a checkpoint's archive is complete; torch writes a checksum of each part."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many kinds of errors on damaged archives
        return False


def _sync(path: Path) -> None:
    """Flush the file to disk, so that it survives a power cut."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _tokens_read(pl_module: LightningModule) -> int:
    assert isinstance(pl_module, RecModule)
    return pl_module.tokens_read


class RankingCallback(Callback):
    """Compute metrics over ranked lists, each epoch on validation and once on test.

    Logs ``val/<name>`` and ``test/<name>`` to the module's loggers, so that any of them can be monitored,
    and keeps a trace by epoch that a checkpoint carries.

    Args:
        metric: receives the lists of every evaluation batch (``keep_users=True`` for per-user values); or a suite of
            metrics.
        keep: called with the validation lists of each epoch that is the best so far.
        monitor: validation value that selects the best epoch.
        mode: ``max`` if higher is better, ``min`` if lower is.
    """

    def __init__(
        self,
        metric: RankingMetrics | Suite,
        keep: Callable[[KeptLists], None] | None = None,
        monitor: str = "",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.suite = metric if isinstance(metric, Suite) else Suite(metric)
        self._keep = keep
        self._monitor = monitor
        self._mode = mode
        self.trace: list[dict[str, Any]] = []
        self.test: dict[str, float] = {}
        self.test_tokens = 0
        self._losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        # Lightning divides the loss by the number of accumulated batches.
        self._losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)
        if self.suite.judged is not None:
            self.suite.judged.threshold = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)
        if self.suite.judged is not None and self.trace:
            judged = self.suite.judged
            judged.threshold = self.best()["validation"].get(f"threshold{judged.stamp}")
        self.test_tokens = -_tokens_read(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(outputs)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = self._values()
        # In float64, so that the checkpoint distinguishes the same epochs as the trace.
        logged = {f"val/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        pl_module.log_dict(logged)
        everyones = processes.gathered(self._losses)
        losses = [loss for own in everyones for loss in own]
        mean = sum(losses) / len(losses) if losses else None
        row: dict[str, Any] = {"step": trainer.global_step, "train_loss": mean, "validation": values}
        if losses:
            row["step_losses"] = _of_steps(everyones, trainer.accumulate_grad_batches)
        adapter = getattr(pl_module, "adapter", None)
        if adapter is not None:
            row["may_be_best"] = adapter.may_be_best(pl_module.backbone, trainer.global_step)
            observed = adapter.observe(pl_module.backbone)
            row |= {"adapter": observed} if observed else {}
        self.trace.append(row)
        if self._keep is not None and row.get("may_be_best", True) and self.best() is row:
            lists = self.suite.kept()
            if trainer.is_global_zero:
                self._keep(lists)
        self._losses = []

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.test = self._values()
        self.test_tokens = sum(processes.gathered(self.test_tokens + _tokens_read(pl_module)))
        pl_module.log_dict({f"test/{name}": value for name, value in self.test.items()})

    def step_losses(self, trainer: Trainer, after: int = 0) -> list[float]:
        """Return this process's mean training loss of each optimiser step since the end of the last epoch.

        Args:
            after: number of steps to leave out at the start.
        """
        every = trainer.accumulate_grad_batches
        return _of_steps([self._losses[after * every :]], every)

    def best(self) -> dict[str, Any]:
        """Return the best row of the trace; the first among equals, as for the checkpoint. NaN is the worst."""
        return max((row for row in self.trace if row.get("may_be_best", True)), key=self._goodness)

    def _goodness(self, row: dict[str, Any]) -> float:
        value = float(row["validation"][self._monitor])
        return -math.inf if math.isnan(value) else -value if self._mode == "min" else value

    def _start(self, pl_module: LightningModule) -> None:
        self.suite.reset(pl_module.device)

    def _update(self, outputs: Any) -> None:
        if isinstance(outputs, Ranked):  # batches of the catalogue return None
            self.suite.update(outputs)

    def _values(self) -> dict[str, float]:
        return self.suite.compute()

    def state_dict(self) -> dict[str, Any]:
        # Lightning calls this in every process, and the first one writes the checkpoint.
        return {"trace": self.trace, "losses": processes.gathered(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trace = state_dict["trace"]
        self._losses = state_dict["losses"][processes.number()]


def _of_steps(losses: list[list[float]], every: int) -> list[float]:
    """Return the mean loss of each optimiser step.

    Args:
        losses: losses of the batches of each process.
        every: number of accumulated batches per step in each process.
    """
    steps = [[loss for own in losses for loss in own[at : at + every]] for at in range(0, len(losses[0]), every)]
    return [sum(step) / len(step) for step in steps]


class HardNegatives(Callback):
    """Mine hard negatives with the model in training (Xiong et al. 2021, ANCE).

    At the start of an epoch, encode the catalogue, rank items for the users in training until the next refresh
    (each process takes a share of them), and give the data module each user's best items without a known interaction.
    Checkpoints hold these items, so a run resumed within an epoch draws the same negatives.
    """

    def __init__(self) -> None:
        self._pools: dict[int, list[int]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pools:
            self._data(trainer).set_hard_pools(self._pools)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = self._data(trainer)
        every = data.hard_refresh_epochs
        assert every is not None
        assert isinstance(pl_module, RecModule)
        started = (trainer.fit_loop.epoch_loop.total_batch_idx + 1) * trainer.world_size
        if started % data.steps_per_epoch or (started // data.steps_per_epoch) % every:
            return
        generators = torch.get_rng_state()
        pl_module.eval()
        with torch.no_grad():
            for items in data.catalogue():
                pl_module.encode_catalogue(trainer.strategy.batch_to_device(items))
            pools: dict[int, list[int]] = {}
            batches = data.users_to_mine(started, data.steps_per_epoch * every)
            for users in itertools.islice(batches, trainer.global_rank, None, trainer.world_size):
                batch = trainer.strategy.batch_to_device(users)
                scores = pl_module.score(batch)
                scores[batch.seen] = -torch.inf
                if batch.unavailable is not None:
                    scores = scores.masked_fill(batch.unavailable, -torch.inf)
                best = scores.topk(min(data.hard_pool_size, scores.shape[1]), dim=1)
                for user, item, score in zip(users.user.tolist(), best.indices, best.values, strict=True):
                    pools[user] = item[score > -torch.inf].tolist()
        pl_module.train()
        torch.set_rng_state(generators)  # mining does not advance the run's random state
        self._pools = {user: pool for own in processes.gathered(pools) for user, pool in own.items()}
        data.set_hard_pools(self._pools)

    def _data(self, trainer: Trainer) -> TextPairDataModule:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextPairDataModule)
        return data

    def state_dict(self) -> dict[str, Any]:
        return {"pools": self._pools}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pools = state_dict["pools"]


class BestCheckpoint(ModelCheckpoint):
    """Save the trained parameters of the best epoch that the adapter accepts, in ``<folder>/best.ckpt``.

    Args:
        folder: may be moved between an interruption and the resumed run.
        monitor: logged metric.
        mode: ``max`` if higher is better, ``min`` if lower is.
    """

    def __init__(self, folder: Path, monitor: str, mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = getattr(pl_module, "adapter", None)
        if adapter is None or adapter.may_be_best(pl_module.backbone, trainer.global_step):
            super().on_validation_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            _sync(Path(filepath))  # ResumeCheckpoint is written next, and refers to this file

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning drops the best score if the folder has been renamed since saving.
        here = str(Path(str(self.dirpath)) / "best.ckpt")
        paths = {key: here if state_dict[key] else "" for key in ("best_model_path", "kth_best_model_path")}
        scores = list(state_dict["best_k_models"].values())
        models = dict(zip([here], scores, strict=bool(scores)))
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": models})


class EarlyStop(EarlyStopping):
    """Stop training when a logged metric has not improved for ``patience`` validations that the adapter accepts."""

    def __init__(self, monitor: str, mode: str, patience: int, min_delta: float) -> None:
        # NaN, such as AUC over one class, counts as no improvement and does not stop training.
        always = {"check_on_train_epoch_end": False, "check_finite": False}
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode, **always)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Resuming from a checkpoint of a run that was stopped early: Lightning would train on.
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = getattr(pl_module, "adapter", None)
        if adapter is None or adapter.may_be_best(pl_module.backbone, trainer.global_step):
            super().on_validation_end(trainer, pl_module)


class StopWhenAsked(Callback):
    """Stop a validation or test at the end of a batch on request; for training see ``ResumeCheckpoint``."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        # Between two epochs there is nothing to save: the last checkpoint is up to date.
        if _all_stop(trainer):
            stopping.stop("the last checkpoint stands")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        if _all_stop(trainer):
            stopping.stop("what was trained is saved")


class ResumeCheckpoint(Callback):
    """Save the last state of training, from which a killed run resumes exactly.

    It is written at the end of an optimiser step and after each epoch's validation. The new file is written beside the
    old one and then replaces it atomically; the previous one is kept in case the last cannot be read. It includes the
    state of the random generators; batches need no state, being functions of seed and step. On a request to stop, the
    step is saved and training ends (``stopping.Interrupted``).

    With several processes the first one writes a single file that holds each process's own state. Each process draws
    from its own random stream (or all would drop out the same units), and the first uses the stream of a
    single-process run. So results depend on the number of processes with dropout, and without it only by rounding.

    Args:
        path: file of the checkpoint.
        every_steps: maximum number of optimiser steps that can be lost.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps
        self.tokens_seen = 0
        self._tokens_before = 0
        self.train_seconds = 0.0
        self.steps_run = 0  # by this process; fewer than the run's total if it was resumed
        self._since: float | None = None  # None outside training
        self._step = 0
        self._own: dict[str, Any] = {}  # this process's state at the last save

    @property
    def _before(self) -> Path:
        """Return the path of the checkpoint before the last."""
        return self.path.with_stem(f"{self.path.stem}-before")

    def last(self) -> Path | None:
        """Return the path of the last complete checkpoint; None if there is none."""
        for path in (self.path, self._before):
            if _is_whole(path):
                return path
            if path.exists():
                say(f"    {path} is cut off or damaged; the run goes on from what was saved before it")
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Random state is restored last, since building the loop may draw numbers too.
        if self._own:
            torch.set_rng_state(self._own["torch"])
            random.setstate(self._own["python"])
            numpy = self._own["numpy"]
            np.random.set_state({**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].numpy()}})
            if self._own["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._own["cuda"])
        elif trainer.global_rank > 0:
            streams = torch.randint(2**62, (trainer.world_size,))
            torch.manual_seed(int(streams[trainer.global_rank]))
        self._step = trainer.global_step
        self._since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int
    ) -> None:
        self._tokens_before = _tokens_read(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        self.tokens_seen += _tokens_read(pl_module) - self._tokens_before
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        self.steps_run += 1
        # An epoch's last batch is followed by validation; on_train_epoch_end saves after it.
        if trainer.is_last_batch:
            return
        wanted = _all_stop(trainer)
        # Also before an epoch's last step: that step and the validation after it are saved only once both are over.
        is_last_but_one = trainer.num_training_batches - batch_idx - 1 <= trainer.accumulate_grad_batches
        if wanted or self._step % self.every_steps == 0 or is_last_but_one:
            self._save(trainer)
        if wanted:
            stopping.stop(f"step {self._step} is saved")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # not in a validation outside fit
            self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _stop_clock(self) -> None:
        if self._since is not None:
            self.train_seconds += time.perf_counter() - self._since
            self._since = None

    def _save(self, trainer: Trainer) -> None:
        self._stop_clock()
        numpy = np.random.get_state(legacy=False)
        key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
        self._own = {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),  # recpeft draws from neither of these two, but a plug-in may
            "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "tokens_seen": self.tokens_seen,
        }
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written = self.path.with_suffix(".writing")
            trainer.save_checkpoint(written)
            if trainer.is_global_zero:
                _sync(written)
                if self.path.exists():
                    self.path.replace(self._before)
                written.replace(self.path)
        processes.wait()  # otherwise a process that stops here could end the first one before it has written
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds, "processes": processes.gathered(self._own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]
        self._own = state_dict["processes"][processes.number()]
        self.tokens_seen = self._own["tokens_seen"]
