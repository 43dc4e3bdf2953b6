"""A text model: loaded, adapted, trained from its last checkpoint if there is one, and tested once."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters import Adapter
from datamodules import TextPairDataModule
from experiments._data import Prepared
from experiments._evaluation import TIE_SEED, ranking_metrics, write_per_user
from experiments._surroundings import close_logger, make_logger, progress, quiet, versions
from experiments.config import TextRun
from experiments.results import RunFolder
from lightning_modules import BestCheckpoint, RankingCallback, RecModule, ResumeCheckpoint
from lightning_modules import _backbone as backbones
from recpeft import plugins
from recpeft.files import atomic_folder, atomic_path, disk_errors, write_text


def run_text(config: TextRun, prepared: Prepared, folder: RunFolder) -> dict[str, Any]:
    training, evaluation = config.training, config.evaluation
    quiet()
    seed_everything(config.seed, verbose=False)
    backbone = backbones.load(**config.backbone.model_dump())
    adapter = Adapter(config.adapter)
    # A second seeding: what the loading of a backbone draws must not move the adapter's initialisation.
    seed_everything(config.seed, verbose=False)
    data = TextPairDataModule(
        prepared.dataset,
        prepared.split,
        backbone.tokenizer,
        users_per_step=training.users_per_step,
        positives_per_user=training.positives_per_user,
        positive_window=training.positive_window,
        steps_per_epoch=training.steps_per_epoch and training.steps_per_epoch * training.accumulate_batches,
        validation_users=evaluation.validation_users,
        mask_seen=evaluation.mask_seen,
        max_bucket_tokens=training.max_bucket_tokens,
        seed=config.seed,
        **config.prompt.model_dump(),
    )
    loss_plugin = plugins.load("lightning_modules.losses", config.loss.name)
    loss_options = config.loss.model_dump(exclude={"name"})
    module: RecModule = plugins.load("lightning_modules", config.formulation.name).build(
        adapter.attach(backbone.model, training.max_steps, backbone.tokenizer),
        config.formulation,
        num_items=prepared.dataset.num_items,
        hidden_size=backbone.hidden_size,
        loss=lambda *batch: loss_plugin.loss(*batch, **loss_options),
        adapter=adapter,
        gradient_checkpointing=training.gradient_checkpointing,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        head_learning_rate=training.head_learning_rate,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        warmup_steps=training.warmup_steps,
        total_steps=training.max_steps,
        k=max(evaluation.k),
        tie_seed=TIE_SEED,
    )
    module.head.requires_grad_(config.adapter.trains_head)

    ranking = RankingCallback(ranking_metrics(prepared, evaluation))
    resume = ResumeCheckpoint(folder.checkpoints / "last.ckpt", training.checkpoint_every_steps)
    best = BestCheckpoint(folder.checkpoints, f"val/{evaluation.monitor}")
    trains = config.adapter.trains_head or config.adapter.trains_backbone
    if trains:
        _drop_checkpoints_of_other_inputs(
            folder,
            {
                "data": prepared.record["hash"],
                "split": prepared.record["split"]["hash"],
                "prompt": data.prompt.hash,
                "backbone": backbone.identity,
                "versions": versions(),
            },
        )
    trainer = Trainer(
        max_steps=training.max_steps,
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        callbacks=[ranking, *progress(), *([resume, best] if trains else [])],
        logger=make_logger(config, folder),
        precision=training.precision,
        accumulate_grad_batches=training.accumulate_batches,
        gradient_clip_val=training.gradient_clip,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        enable_checkpointing=trains,
        default_root_dir=folder.path,
        deterministic="warn",
    )
    try:
        if trains:
            with disk_errors(folder.path):  # Lightning writes checkpoints too
                _fit(trainer, module, data, ranking, resume, best)
        else:
            trainer.validate(module, data, verbose=False)
        start = time.perf_counter()
        trainer.test(module, data, verbose=False)
        test_seconds = time.perf_counter() - start
    finally:
        close_logger(config)

    write_per_user(folder, ranking.metric, prepared)
    _save_trained(module, folder, config)
    # max() keeps the first of equal epochs, as the checkpoint does.
    best_epoch = max(
        (row for row in ranking.trace if row["may_be_best"]),
        key=lambda row: float(row["validation"][evaluation.monitor]),
    )
    return {
        "prompt": {
            "hash": data.prompt.hash,
            "truncated_items": data.prompt.num_truncated_items,
            "example_item": data.prompt.item_texts[0],
        },
        "backbone": {
            "compute_dtype": str(backbone.compute_dtype).removeprefix("torch."),
            "linear_bytes": backbone.linear_bytes,
            "identity": backbone.identity,
        },
        "adapter": adapter.describe(module.backbone),
        "parameters": _count(module),
        "training": {
            "steps": trainer.global_step,
            "tokens_seen": resume.tokens_seen,
            "best_step": best_epoch["step"],
            "validation_users": len(data.validation_users),
        },
        "trace": ranking.trace,
        "test": ranking.test,
        "costs": {
            "train_seconds": resume.train_seconds,
            "test_seconds": test_seconds,
            "steps_run": resume.steps_run,
        },
    }


def _fit(
    trainer: Trainer,
    module: RecModule,
    data: TextPairDataModule,
    ranking: RankingCallback,
    resume: ResumeCheckpoint,
    best: BestCheckpoint,
) -> None:
    """Train, from the last checkpoint if there is one, and put the best epoch's parameters back."""
    interrupted = str(resume.path) if resume.path.exists() else None
    trainer.fit(module, data, ckpt_path=interrupted, weights_only=True)
    if not ranking.trace or ranking.trace[-1]["step"] < trainer.global_step:
        # The steps ended within an epoch; Lightning validates at an epoch's end alone.
        trainer.validate(module, data, verbose=False)
        last = ranking.trace[-1]["validation"][str(best.monitor).removeprefix("val/")]
        if best.best_model_score is None or last > best.best_model_score:
            return
    _load_trained(module, Path(best.best_model_path))


def _drop_checkpoints_of_other_inputs(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Start the run anew where what it was trained on has changed since it was interrupted."""
    note = folder.checkpoints / "inputs.json"
    text = json.dumps(inputs, indent=1)
    if folder.checkpoints.exists() and (not note.exists() or note.read_text(encoding="utf-8") != text):
        print("    data, backbone or versions have changed since this run was interrupted: it starts anew", flush=True)
        shutil.rmtree(folder.checkpoints)
    write_text(note, text)


def _load_trained(module: RecModule, path: Path) -> None:
    """Put the best epoch's trained parameters back."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def _save_trained(module: RecModule, folder: RunFolder, config: TextRun) -> None:
    if config.adapter.trains_backbone:
        with atomic_folder(folder.adapter) as temporary:
            assert isinstance(module.backbone, nn.Module)
            # Embeddings are the backbone's; asking about them would ask a hub.
            module.backbone.save_pretrained(str(temporary), save_embedding_layers=False)  # type: ignore[operator]
    if config.adapter.trains_head:
        tensors = {name: value.detach().cpu().contiguous() for name, value in module.head.state_dict().items()}
        with atomic_path(folder.head) as temporary:
            save_file(tensors, temporary)


def _count(module: RecModule) -> dict[str, int]:
    """Numbers of parameters; a quantised weight counts as what it stands for."""

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
