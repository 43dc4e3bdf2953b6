"""Load and adapt a text model, train it from its last checkpoint if there is one, and test it once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from adapters import Adapter
from datamodules import TextPairDataModule
from datamodules._dataset import frame_hash
from experiments.cell import launch
from experiments.cell.assemble import make_data, make_module, trainer_options
from experiments.cell.bank import bank_record, give_bank
from experiments.cell.data import Prepared
from experiments.cell.encodings import keep as keep_encodings
from experiments.cell.head_phase import TrainedHead, trained_head
from experiments.cell.suite import interval_record, judged_record, make_suite, write_lists, write_per_user
from experiments.cell.surroundings import progress, quiet
from experiments.cell.tracking import Tracking
from experiments.config.run import TextRun
from experiments.records.record import RunFolder
from experiments.records.versions import versions
from lightning_modules import (
    BestCheckpoint,
    EarlyStop,
    HardNegatives,
    RankingCallback,
    RecModule,
    ResumeCheckpoint,
    StopWhenAsked,
)
from lightning_modules import _backbone as backbones
from lightning_modules._backbone import Backbone
from lightning_modules._diagnostics import Diagnostics
from lightning_modules._optimizers import state_bytes
from lightning_modules._saved import load_head, save_adapter, save_head
from lightning_modules._sharding import gather, load_whole
from metrics._suite import KeptLists, Suite
from recpeft import processes
from recpeft.files import atomic_folder, atomic_path, disk_errors, write_text
from recpeft.terminal import say

AfterValidation = Callable[[list[dict[str, Any]], bool], None]
"""Callback that gets the trace so far and whether training continues; an exception from it ends the run."""


@dataclass(frozen=True)
class _Callbacks:
    """The trainer's callbacks that are read after training."""

    ranking: RankingCallback
    diagnostics: Diagnostics
    resume: ResumeCheckpoint
    best: BestCheckpoint


def run_text(
    config: TextRun,
    prepared: Prepared,
    folder: RunFolder,
    candidates: tuple[pl.DataFrame, pl.DataFrame] | None,
    tracking: Tracking,
    trial: AfterValidation | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """Load, adapt, train and test; return the record's parts and ``sample_scores`` of the model that was tested.

    Args:
        candidates: for validation and test; None is the whole catalogue.
        trial: a search's callback after each validation. If given, the run ends before the test and keeps its
            checkpoints, so that it can be tested later without training again.
    """
    quiet()
    head = trained_head(config, prepared, folder.path.parent)
    backbone, data, adapter, module = _load(config, prepared, candidates, head)
    suite = make_suite(prepared, config.evaluation, config.formulation.predicts, keep_lists=True)
    callbacks = _callbacks(config, prepared, folder, suite)
    ranking = callbacks.ranking
    trainer = _trainer(config, folder, data, callbacks, tracking, trial)
    if _trains(config):
        _drop_checkpoints_of_other_inputs(folder, _inputs(prepared, candidates, data, backbone))
        with disk_errors(folder.path):  # Lightning writes checkpoints too
            _fit(trainer, module, data, callbacks)
    else:
        trainer.validate(module, data, verbose=False)
    if trial is not None:
        return {"trace": ranking.trace, "best": ranking.best()}, None
    parameters = _count(module)
    bank = bank_record(module, data, trainer.global_step)
    adapter.finish(module.backbone)
    start = time.perf_counter()
    trainer.test(module, data, verbose=False)
    test_seconds = time.perf_counter() - start - callbacks.diagnostics.seconds

    # Each process holds its share of the users; the first process writes.
    gather(module)
    write_per_user(folder, suite, prepared)
    write_lists(folder, "test", suite.kept(), prepared)
    tokens_seen = sum(processes.gathered(callbacks.resume.tokens_seen))
    _save(config, folder, module, backbone)
    if processes.count() == 1:
        keep_encodings(folder, config, module, trainer.strategy.root_device)
    parts = {
        **_prompt_and_backbone(data, backbone),
        "adapter": adapter.describe(module.backbone),
        "parameters": parameters,
        "training": {
            "steps": trainer.global_step,
            "tokens_seen": tokens_seen,
            "best_step": ranking.best()["step"],
            "validation_users": len(data.validation_users),
            **({"head_steps": config.training.head_steps, "bank": bank} if module.has_bank else {}),
        },
        "trace": ranking.trace,
        "test": ranking.test,
        "diagnostics": callbacks.diagnostics.found,
        "intervals": interval_record(suite) | judged_record(folder, suite.judged, prepared),
        "costs": _costs(config, folder, trainer, callbacks, tokens_seen, test_seconds)
        | ({} if head is None else {"head_seconds": head.seconds}),
    }
    return parts, callbacks.diagnostics.sample


def _load(
    config: TextRun,
    prepared: Prepared,
    candidates: tuple[pl.DataFrame, pl.DataFrame] | None,
    head: TrainedHead | None,
) -> tuple[Backbone, TextPairDataModule, Adapter, RecModule]:
    """Load the backbone and adapt it; return what is to be trained and its data."""
    backbone = backbones.load(**config.backbone.model_dump())
    data = make_data(config, prepared, backbone.tokenizer, candidates)
    launch.check_shares(data.steps_per_epoch)
    # Seeded after loading, so that loading's random draws do not change the adapter's initialisation.
    seed_everything(config.seed, verbose=False)
    adapter = Adapter(config.adapter)
    adapted = adapter.attach(backbone.model, config.training.own_steps, backbone.tokenizer)
    module = make_module(config, prepared, adapted, backbone, adapter, data.prompt)
    give_bank(config, module, data, backbone)
    module.prove(data.validation_batches(data.validation_users[:3])[0].texts, data.catalogue(5)[0].texts)
    if head is not None:
        load_head(module.head, head.path)
    return backbone, data, adapter, module


def _trains(config: TextRun) -> bool:
    """Return whether anything is trained."""
    return config.adapter.trains_head or config.adapter.trains_backbone


def _callbacks(config: TextRun, prepared: Prepared, folder: RunFolder, suite: Suite) -> _Callbacks:
    training, evaluation = config.training, config.evaluation
    mode: Literal["max", "min"] = "min" if evaluation.lower_is_better else "max"

    def keep(lists: KeptLists) -> None:
        write_lists(folder, "validation", lists, prepared)

    return _Callbacks(
        RankingCallback(suite, keep, evaluation.monitored, mode),
        Diagnostics(),
        ResumeCheckpoint(folder.checkpoints / "last.ckpt", training.checkpoint_every_steps),
        BestCheckpoint(folder.checkpoints, f"val/{evaluation.monitored}", mode),
    )


def _trainer(
    config: TextRun,
    folder: RunFolder,
    data: TextPairDataModule,
    callbacks: _Callbacks,
    tracking: Tracking,
    trial: AfterValidation | None,
) -> Trainer:
    training, monitored = config.training, config.evaluation.monitored
    ranking, stopping = callbacks.ranking, training.early_stopping
    in_training: list[Callback] = []
    if _trains(config):
        # Checkpoints come last because they store what the other callbacks have set.
        if data.hard_refresh_epochs:
            in_training.append(HardNegatives())
        if stopping is not None:
            direction = stopping.direction(config.evaluation.monitor)
            in_training.append(EarlyStop(stopping.watched(monitored), direction, stopping.patience, stopping.min_delta))
        in_training += [callbacks.resume, callbacks.best]
    return Trainer(
        max_steps=training.own_steps,
        callbacks=[
            ranking,
            *tracking.live(ranking),
            callbacks.diagnostics,
            *progress(f"val/{monitored}", folder.progress),
            *in_training,
            *([_Watch(ranking, trial)] if trial is not None else []),
            StopWhenAsked(),
        ],
        logger=False,  # trackers copy the trace, which is complete in a resumed run
        accumulate_grad_batches=training.accumulate_batches // processes.count(),
        gradient_clip_val=training.gradient_clip,
        enable_checkpointing=_trains(config),
        **trainer_options(config, folder.path),
    )


class _Watch(Callback):
    """Report a trial's validations to its search."""

    def __init__(self, ranking: RankingCallback, tell: AfterValidation) -> None:
        self._ranking = ranking
        self._tell = tell

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(self._ranking.trace, trainer.global_step < trainer.max_steps and not trainer.should_stop)


def _fit(
    trainer: Trainer,
    module: RecModule,
    data: TextPairDataModule,
    callbacks: _Callbacks,
) -> None:
    """Train, from the last checkpoint if there is one, and restore the best epoch's parameters."""
    ranking = callbacks.ranking
    trainer.fit(module, data, ckpt_path=callbacks.resume.last(), weights_only=True)
    if not ranking.trace or ranking.trace[-1]["step"] < trainer.global_step:
        # The steps ended within an epoch, and Lightning validates only at an epoch's end.
        trainer.validate(module, data, verbose=False)
        if ranking.best() is ranking.trace[-1]:
            return
    _load_trained(module, Path(callbacks.best.best_model_path))


def _inputs(
    prepared: Prepared,
    candidates: tuple[pl.DataFrame, pl.DataFrame] | None,
    data: TextPairDataModule,
    backbone: Backbone,
) -> dict[str, Any]:
    """Return everything outside the config that a checkpoint depends on."""
    return {
        "data": prepared.record["hash"],
        "split": prepared.record["split"]["hash"],
        "candidates": frame_hash(*candidates) if candidates else None,
        "prompt": data.prompt.hash,
        "backbone": backbone.identity,
        "versions": versions(),
        "processes": processes.count(),
    }


def _drop_checkpoints_of_other_inputs(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Delete the checkpoints if the run's inputs have changed since it was interrupted."""
    note = folder.checkpoints / "inputs.json"
    text = json.dumps(inputs, indent=1)
    if processes.number() == 0:
        if folder.checkpoints.exists() and (not note.exists() or note.read_text(encoding="utf-8") != text):
            changed = "data, candidates, prompt, backbone, versions or the number of processes"
            say(f"    {changed} have changed since this run was interrupted: it starts anew")
            shutil.rmtree(folder.checkpoints)
        write_text(note, text)
    processes.wait()  # before the others look for a checkpoint


def _load_trained(module: RecModule, path: Path) -> None:
    """Restore the best epoch's trained parameters."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    load_whole(module, checkpoint["state_dict"])


def _save(config: TextRun, folder: RunFolder, module: RecModule, backbone: Backbone) -> None:
    """Write adapter and head, in the first process only."""
    if processes.number() > 0:
        return
    if config.adapter.trains_backbone:
        with atomic_folder(folder.adapter) as temporary:
            save_adapter(module.backbone, temporary, backbone)
    if config.adapter.trains_head:
        with atomic_path(folder.head) as temporary:
            save_head(module.head, temporary)


def _prompt_and_backbone(data: TextPairDataModule, backbone: Backbone) -> dict[str, Any]:
    """Return the record's parts ``prompt`` and ``backbone``."""
    return {
        "prompt": {
            "hash": data.prompt.hash,
            "truncated_items": data.prompt.num_truncated_items,
            "example_item": data.prompt.item_texts[0],
        },
        "backbone": {
            "compute_dtype": str(backbone.compute_dtype).removeprefix("torch."),
            "bytes": backbone.bytes,
            "linear_bytes": backbone.linear_bytes,
            "linear_layers": backbone.widths,
            "identity": backbone.identity,
            "dequantised_from": backbone.dequantised_from,
        },
    }


def _costs(
    config: TextRun, folder: RunFolder, trainer: Trainer, callbacks: _Callbacks, tokens_seen: int, test_seconds: float
) -> dict[str, Any]:
    """Return the record's ``costs``, except those of the run as a whole."""
    train_seconds = callbacks.resume.train_seconds
    return {
        "train_seconds": train_seconds,
        "train_tokens_per_second": tokens_seen / train_seconds if train_seconds else None,
        "test_seconds": test_seconds,
        "test_tokens_per_second": callbacks.ranking.test_tokens / test_seconds,
        "adapter_bytes": sum(path.stat().st_size for path in folder.adapter.glob("*.safetensors")),
        "optimizer_bytes": sum(map(state_bytes, trainer.optimizers)) if _trains(config) else 0,
        "steps_run": callbacks.resume.steps_run,
    }


def _count(module: RecModule) -> dict[str, int]:
    """Count parameters; a quantised weight counts its dequantised number of elements."""

    def size(parameter: Tensor) -> int:
        state = getattr(parameter, "quant_state", None)
        return int(state.shape.numel() if state is not None else parameter.numel())

    backbone = list(module.backbone.parameters())
    head = list(module.head.parameters())
    return {
        "adapter": sum(size(p) for p in backbone if p.requires_grad),
        "head": sum(size(p) for p in head if p.requires_grad),
        "trainable": sum(size(p) for p in [*backbone, *head] if p.requires_grad),
        "total": sum(size(p) for p in [*backbone, *head]),
    }
