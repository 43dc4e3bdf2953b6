"""Utilities around training: progress display, silenced libraries, the device's name."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from recpeft.config import plain
from recpeft.files import write_text
from recpeft.terminal import say


class _PlainProgress(Callback):
    """Print one line per epoch, for a log file: NDCG, and the metric that selects the best epoch."""

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/ndcg@") or name == self._monitor
        }
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
        say(f"    step {trainer.global_step}: {values}")


class _ProgressFile(Callback):
    """Write a run's progress to a file for ``recpeft status``, at most every few seconds between validations."""

    def __init__(self, monitor: str, path: Path) -> None:
        self._monitor = monitor
        self._path = path
        self._written = 0.0
        self._value: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if time.monotonic() - self._written > 5:
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self._monitor)
        self._value = None if value is None else float(value)
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        self._written = time.monotonic()
        if trainer.is_global_zero:
            found = {"step": trainer.global_step, "of": trainer.max_steps, self._monitor: self._value}
            write_text(self._path, json.dumps(plain(found)))


def progress(monitor: str, path: Path) -> list[Callback]:
    """Return the callbacks that show progress on the terminal and write it to ``path``."""
    shown = RichProgressBar() if sys.stdout.isatty() else _PlainProgress(monitor)
    return [shown, _ProgressFile(monitor, path)]


def quiet() -> None:
    """Silence libraries' advertisements and known harmless notices on the user's terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*The `srun` command is available.*",  # users who do not use SLURM need no hint
        ".*does not have many workers.*",
        r".*module\(s\) in eval mode.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*your dataloader is not resumable.*",  # batches are functions of the step
        ".*checkpoint directory .* exists and is not empty.*",
        ".*ModelCheckpoint's `dirpath`.*",
        r".*It is recommended to use `self\.log.*sync_dist=True.*",  # metrics already cover all processes' users
        r".*zero-sized lora_A / lora_B tensor.*",  # AdaLoRA's matrices whose rank has fallen to 0
        ".*rank_pattern keys did not match any targeted module.*",  # AdaLoRA's own pattern, which PEFT does use
        ".*fan_in_fan_out is set to False but the target module is `Conv1D`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def device_name() -> str:
    """Return the name of the CUDA device, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
