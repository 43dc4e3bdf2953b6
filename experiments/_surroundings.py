"""What stands around training: progress, trackers, quiet, versions."""

from __future__ import annotations

import logging
import platform
import sys
import warnings
from importlib.metadata import version
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from experiments.config import TextRun
from experiments.results import RunFolder
from recpeft import __version__


class _PlainProgress(Callback):
    """A line an epoch, for a log file: NDCG, and the metric that picks the best epoch."""

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/ndcg@") or name == self._monitor
        }
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
        print(f"    step {trainer.global_step}: {values}", flush=True)


def progress(monitor: str) -> list[Callback]:
    return [RichProgressBar()] if sys.stdout.isatty() else [_PlainProgress(monitor)]


def make_logger(config: TextRun, folder: RunFolder) -> Any:
    if config.logger == "none":
        return False
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        project=config.study,
        id=config.run_id,
        name=f"{config.method}-{config.width}-{config.run_id}",
        save_dir=folder.path,
        config=config.model_dump(mode="json"),
        resume="allow",
    )


def close_logger(config: TextRun) -> None:
    """End the W&B run, or the next cell's metrics would go into it."""
    if config.logger == "wandb":
        import wandb

        wandb.finish()


def quiet() -> None:
    """Keep libraries' advertisements and known, harmless notices out of the user's terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*does not have many workers.*",
        r".*module\(s\) in eval mode.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*your dataloader is not resumable.*",  # batches are functions of the step
        ".*checkpoint directory .* exists and is not empty.*",
        ".*ModelCheckpoint's `dirpath`.*",
        r".*zero-sized lora_A / lora_B tensor.*",  # AdaLoRA's matrices whose rank has fallen to 0
        ".*rank_pattern keys did not match any targeted module.*",  # AdaLoRA's own pattern, which PEFT does use
        ".*fan_in_fan_out is set to False but the target module is `Conv1D`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def versions() -> dict[str, str]:
    """Of recpeft, Python and the libraries that numbers depend on."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}
