"""Train the head alone in a run's first steps, once for all cells that differ only in their adapter.

These steps are a separate run with a frozen backbone (adapter method ``frozen``) and no validation. Cells start from
its last step with a new optimiser, so that no result depends on which cell needed it first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer, seed_everything
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapters import Adapter
from experiments.cell.assemble import make_data, make_module, trainer_options
from experiments.cell.bank import give_bank
from experiments.cell.data import Prepared
from experiments.config.run import TextRun
from experiments.records.versions import versions
from lightning_modules import ResumeCheckpoint, StopWhenAsked
from lightning_modules import _backbone as backbones
from recpeft import plugins
from recpeft.config import digest
from recpeft.files import atomic_path, disk_errors, locked
from recpeft.terminal import say


class TrainedHead(NamedTuple):
    """A head trained for ``training.head_steps`` steps."""

    path: Path
    """Safetensors file of its parameters."""
    seconds: float
    """Training time in seconds, whichever cell trained it."""


def trained_head(config: TextRun, prepared: Prepared, study: Path) -> TrainedHead | None:
    """Return the head that ``config`` starts from; the first cell that asks trains it, the others wait.

    Args:
        study: folder of the study whose cells share the head.
    Returns:
        None if ``training.head_steps`` is 0.
    """
    if not config.training.head_steps:
        return None
    own = _alone(config)
    # Another number of threads rounds differently.
    key = digest([own.run_id, config.threads, prepared.record["hash"], prepared.record["split"]["hash"], versions()])
    path = study / "heads" / f"{key}.safetensors"
    found = _read(path)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            found = _read(path)
            if found is None:
                say("    the head alone first, for all cells that differ in their adapter")
                _train(own, prepared, path)
                found = _read(path)
    assert found is not None
    return found


def _alone(config: TextRun) -> TextRun:
    """Return the config of the run that trains the head alone; the backbone is frozen whatever the adapter."""
    training = config.training.model_copy(
        update={"max_steps": config.training.head_steps, "head_steps": 0, "early_stopping": None}
    )
    frozen = plugins.config_class("adapters", "frozen").model_validate({"method": "frozen"})
    update = {"training": training, "trackers": (), "diversify": None}
    return config.model_copy(update=update | ({"adapter": frozen} if config.adapter.reads_text else {}))


def _read(path: Path) -> TrainedHead | None:
    try:
        with safe_open(path, "pt") as file:
            return TrainedHead(path, float((file.metadata() or {})["train_seconds"]))
    except (OSError, SafetensorError, KeyError):  # missing or truncated: it is trained again
        return None


def _train(config: TextRun, prepared: Prepared, path: Path) -> None:
    backbone = backbones.load(**config.backbone.model_dump())
    data = make_data(config, prepared, backbone.tokenizer)
    seed_everything(config.seed, verbose=False)
    adapter = Adapter(config.adapter)
    adapted = adapter.attach(backbone.model, config.training.max_steps, backbone.tokenizer)
    module = make_module(config, prepared, adapted, backbone, adapter, data.prompt)
    give_bank(config, module, data, backbone)
    checkpoints = path.with_suffix(".checkpoints")
    resume = ResumeCheckpoint(checkpoints / "last.ckpt", config.training.checkpoint_every_steps)
    trainer = Trainer(
        max_steps=config.training.max_steps,
        callbacks=[resume, StopWhenAsked()],
        logger=False,
        limit_val_batches=0,
        accumulate_grad_batches=config.training.accumulate_batches,
        gradient_clip_val=config.training.gradient_clip,
        enable_checkpointing=False,
        **trainer_options(config, checkpoints),
    )
    with disk_errors(path):
        trainer.fit(module, data, ckpt_path=resume.last(), weights_only=True)
    state = {name: value.detach().cpu().contiguous() for name, value in module.head.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {"train_seconds": repr(resume.train_seconds)})
    shutil.rmtree(checkpoints, ignore_errors=True)
