"""The first steps of a run, in which the head alone is trained: made once for all cells that differ in their adapter.

They are a run of their own with the backbone fixed (adapter method ``frozen``), of which no epoch is validated. Cells
begin from its last step with a new optimiser, so that nothing depends on which cell was the first to need it.
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
    """A head that was trained for ``training.head_steps``."""

    path: Path
    """Its parameters, in safetensors."""
    seconds: float
    """What the training took, whichever cell did it."""


def trained_head(config: TextRun, prepared: Prepared, study: Path) -> TrainedHead | None:
    """The head that ``config`` starts from; the first cell to ask trains it, and the others wait for it.

    Args:
        study: the folder whose cells share it.
    Returns:
        None where there are no such steps.
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
    """The run of the head's steps: whatever the adapter is, the backbone stays as it is."""
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
    except (OSError, SafetensorError, KeyError):  # none yet, or cut off: it is trained anew
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
