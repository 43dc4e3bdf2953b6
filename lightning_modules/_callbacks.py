"""What happens around training: metrics each epoch, checkpoints to resume from."""

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
    """Whether a checkpoint's archive can be read to its end; torch writes a checksum of each part."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of damaged archives zipfile raises errors of many kinds
        return False


def _sync(path: Path) -> None:
    """Have the disk hold it, so that a power cut leaves it whole."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _tokens_read(pl_module: LightningModule) -> int:
    assert isinstance(pl_module, RecModule)
    return pl_module.tokens_read


class RankingCallback(Callback):
    """Metrics over ranked lists, each epoch on validation and once on test.

    Logs ``val/<name>`` and ``test/<name>`` to the module's loggers, so that any of them can be monitored,
    and keeps a trace by epoch that a checkpoint carries.

    Args:
        metric: given the lists of every evaluation batch; ``keep_users=True`` for per-user values. Or a suite of
            metrics.
        keep: handed the validation lists of each epoch that is the best so far.
        monitor: the value of validation that picks it.
        mode: whether higher is better, or lower.
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
        # Lightning divides the loss by the number of batches whose gradients add up.
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
        # In float64, so that the checkpoint tells the epochs apart that the trace does.
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
        """The mean training loss of each optimiser step since the last epoch's end, as this process knows it.

        Args:
            after: how many of these steps to leave out, the first ones.
        """
        every = trainer.accumulate_grad_batches
        return _of_steps([self._losses[after * every :]], every)

    def best(self) -> dict[str, Any]:
        """The row of the trace that is the best; the first of equal ones, as the checkpoint is. NaN is the worst."""
        return max((row for row in self.trace if row.get("may_be_best", True)), key=self._goodness)

    def _goodness(self, row: dict[str, Any]) -> float:
        value = float(row["validation"][self._monitor])
        return -math.inf if math.isnan(value) else -value if self._mode == "min" else value

    def _start(self, pl_module: LightningModule) -> None:
        self.suite.reset(pl_module.device)

    def _update(self, outputs: Any) -> None:
        if isinstance(outputs, Ranked):  # the catalogue's batches give none
            self.suite.update(outputs)

    def _values(self) -> dict[str, float]:
        return self.suite.compute()

    def state_dict(self) -> dict[str, Any]:
        # Lightning has every process make it, and the first write it.
        return {"trace": self.trace, "losses": processes.gathered(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trace = state_dict["trace"]
        self._losses = state_dict["losses"][processes.number()]


def _of_steps(losses: list[list[float]], every: int) -> list[float]:
    """The mean loss of each optimiser step.

    Args:
        losses: of each process's batches.
        every: of how many of a process's batches the gradients add up.
    """
    steps = [[loss for own in losses for loss in own[at : at + every]] for at in range(0, len(losses[0]), every)]
    return [sum(step) / len(step) for step in steps]


class HardNegatives(Callback):
    """Has the model itself choose the items that its users confuse with their positives (Xiong et al. 2021, ANCE).

    At the start of an epoch it encodes the catalogue, ranks the users that the epochs until the next refresh will
    train on, each process a share of them, and hands the best items that none of them is known to like to the data
    module. A checkpoint holds them, so a run that is resumed within an epoch draws what it would have drawn.
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
        torch.set_rng_state(generators)  # mining is no step of the run's own draws
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
    """The trained parameters of the best epoch that the adapter lets be best, in ``<folder>/best.ckpt``.

    Args:
        folder: may be moved between an interruption and the run that goes on.
        monitor: logged metric.
        mode: whether higher is better, or lower.
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
            _sync(Path(filepath))  # ResumeCheckpoint writes next, and says that it is there

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning forgets the best score where the folder has another name than at the time of saving.
        here = str(Path(str(self.dirpath)) / "best.ckpt")
        paths = {key: here if state_dict[key] else "" for key in ("best_model_path", "kth_best_model_path")}
        scores = list(state_dict["best_k_models"].values())
        models = dict(zip([here], scores, strict=bool(scores)))
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": models})


class EarlyStop(EarlyStopping):
    """Ends training where a logged metric has not improved for ``patience`` validations that the adapter lets count."""

    def __init__(self, monitor: str, mode: str, patience: int, min_delta: float) -> None:
        # A value that is not a number, such as AUC over one class, is no improvement and no end.
        always = {"check_on_train_epoch_end": False, "check_finite": False}
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode, **always)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of a run that it has ended: Lightning would train on.
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        adapter = getattr(pl_module, "adapter", None)
        if adapter is None or adapter.may_be_best(pl_module.backbone, trainer.global_step):
            super().on_validation_end(trainer, pl_module)


class StopWhenAsked(Callback):
    """Ends a validation or test at a batch's end where somebody asked to stop; of training see ResumeCheckpoint."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        # Between two epochs there is nothing to save: what was saved last stands.
        if _all_stop(trainer):
            stopping.stop("the last checkpoint stands")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        if _all_stop(trainer):
            stopping.stop("what was trained is saved")


class ResumeCheckpoint(Callback):
    """The last state of training, from which a run that was killed goes on as if it had not been.

    Written at the end of a step's batch and after each epoch's validation; a file is written beside the old one and
    takes its place whole, and the one before is kept in case the last cannot be read. Random generators are part of
    it; batches need no state, being functions of seed and step. Where somebody asks to stop, the step is saved and
    training ends (``stopping.Interrupted``).

    Of several processes the first writes, and what each has of its own goes into the one file. Each draws from a
    stream of its own (or all would drop out the same units), the first from the one it would have alone: so with
    dropout, results depend on the number of processes, and without it they do not, up to rounding.

    Args:
        path: the checkpoint's file.
        every_steps: how many optimiser steps may be lost.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps
        self.tokens_seen = 0
        self._tokens_before = 0
        self.train_seconds = 0.0
        self.steps_run = 0  # by this process; a resumed run's is smaller than its number of steps
        self._since: float | None = None  # None while nothing is trained
        self._step = 0
        self._own: dict[str, Any] = {}  # what this process had when it was saved

    @property
    def _before(self) -> Path:
        """The checkpoint before the last."""
        return self.path.with_stem(f"{self.path.stem}-before")

    def last(self) -> Path | None:
        """The last checkpoint that is whole; None where there is none."""
        for path in (self.path, self._before):
            if _is_whole(path):
                return path
            if path.exists():
                say(f"    {path} is cut off or damaged; the run goes on from what was saved before it")
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Last of all, since building the loop may draw numbers too.
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
        # Before an epoch's last step too: what comes next, that step and the validation, is not saved until it is over.
        is_last_but_one = trainer.num_training_batches - batch_idx - 1 <= trainer.accumulate_grad_batches
        if wanted or self._step % self.every_steps == 0 or is_last_but_one:
            self._save(trainer)
        if wanted:
            stopping.stop(f"step {self._step} is saved")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # a validation on its own is no training
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
            "python": random.getstate(),  # none of ours draw from these two, but a plug-in may
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
        processes.wait()  # or a process that stops here might have the first one ended before that
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds, "processes": processes.gathered(self._own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]
        self._own = state_dict["processes"][processes.number()]
        self.tokens_seen = self._own["tokens_seen"]
