"""One run from config to record."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from safetensors.torch import save_file
from torch import Tensor, nn

from datamodules import TextPairDataModule
from experiments._cost import Cost
from experiments._data import Prepared, history_matrix, prepare, ranking_metrics
from experiments.config import RankerRun, RunConfig, TextRun
from experiments.grid import is_reference
from experiments.results import SCHEMA, RunFolder, run_folder, write_record
from lightning_modules import RankingCallback, RecModule, ResumeCheckpoint
from lightning_modules import _backbone as backbones
from metrics import RankingMetrics, rank
from recpeft import __version__, plugins
from recpeft.files import atomic_folder, atomic_path

TIE_SEED = 0
"""Of the draw that orders equal scores: the same for every run, so that tables compare like with like."""


def preflight(configs: list[RunConfig]) -> None:
    """Check what can be checked before the first run: data, groups, backbones.

    Raises:
        RecpeftError: as the step that fails says it.
    """
    for config in configs:
        prepared = prepare(config.data)
        ranking_metrics(prepared, config.evaluation)
        if isinstance(config, TextRun):
            backbones.check_reachable(config.backbone.name, config.backbone.revision)


def run(config: RunConfig, out: Path = Path("runs")) -> dict[str, Any]:
    """Run ``config``, or go on from its last checkpoint, and write its record.

    Args:
        out: the record is ``<out>/<study>/<run_id>/result.json``.
    Returns:
        The record.
    Raises:
        RecpeftError: what the user can mend.
    """
    folder = run_folder(out, config.study, config.run_id)
    torch.set_num_threads(config.threads)
    prepared = prepare(config.data)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "done",
        "run_id": config.run_id,
        "method": config.method,
        "width": config.width,
        "reference": is_reference(config),
        "config": config.model_dump(mode="json"),
        "data": prepared.record,
        "versions": _versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": config.threads,
    }
    with Cost() as cost:
        parts = (
            _run_ranker(config, prepared, folder)
            if isinstance(config, RankerRun)
            else _run_text(config, prepared, folder)
        )
    record |= parts
    record["costs"] |= {
        "wall_seconds": cost.seconds,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "added_memory_bytes": cost.added_memory_bytes,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_record(folder, record)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return record


# References that read no text ------------------------------------------------------------------------


def _run_ranker(config: RankerRun, prepared: Prepared, folder: RunFolder) -> dict[str, Any]:
    plugin = plugins.load("rankers", config.ranker.name)
    parts = prepared.split
    sizes = (prepared.dataset.num_users, prepared.dataset.num_items)
    train = history_matrix(*sizes, parts.train)
    metric = ranking_metrics(prepared, config.evaluation)

    def measure(ranker: Any, history: Tensor, held_out: pl.DataFrame) -> dict[str, float]:
        metric.reset()
        rows = torch.tensor(held_out["user"].to_list())
        items = torch.tensor(held_out["item"].to_list())
        for users in rows.unique().split(1024):
            place = torch.full((sizes[0],), -1)
            place[users] = torch.arange(len(users))
            inside = place[rows] >= 0
            seen = history[users]
            lists = rank(
                ranker.score(seen),
                users,
                seen.bool() if config.evaluation.mask_seen else None,
                (place[rows[inside]], items[inside]),
                max(config.evaluation.k),
                TIE_SEED,
            )
            metric.update(lists)
        return metric.compute()

    ranker = plugin.fit(train, config.ranker, lambda r: measure(r, train, parts.validation)[config.evaluation.monitor])
    validation = measure(ranker, train, parts.validation)
    start = time.perf_counter()
    test = measure(ranker, history_matrix(*sizes, parts.train, parts.validation), parts.test)
    _write_per_user(folder, metric, prepared)
    return {
        "chosen": dict(ranker.details),
        "trace": [{"step": 0, "train_loss": None, "validation": validation}],
        "test": test,
        "costs": {"test_seconds": time.perf_counter() - start},
    }


# Text ------------------------------------------------------------------------------------------------


def _run_text(config: TextRun, prepared: Prepared, folder: RunFolder) -> dict[str, Any]:
    training, evaluation = config.training, config.evaluation
    _quiet()
    seed_everything(config.seed, verbose=False)
    backbone = backbones.load(**config.backbone.model_dump())
    adapter = plugins.load("adapters", config.adapter.method)
    # A second seeding: what the loading of a backbone draws must not move the adapter's initialisation.
    seed_everything(config.seed, verbose=False)
    data = TextPairDataModule(
        prepared.dataset,
        prepared.split,
        backbone.tokenizer,
        users_per_step=training.users_per_step,
        positives_per_user=training.positives_per_user,
        positive_window=training.positive_window,
        steps_per_epoch=training.steps_per_epoch,
        validation_users=evaluation.validation_users,
        mask_seen=evaluation.mask_seen,
        seed=config.seed,
        **config.prompt.model_dump(),
    )
    loss_plugin = plugins.load("lightning_modules.losses", config.loss.name)
    loss_options = config.loss.model_dump(exclude={"name"})
    module: RecModule = plugins.load("lightning_modules", config.formulation.name).build(
        adapter.attach(backbone.model, config.adapter, training.max_steps),
        config.formulation,
        num_items=prepared.dataset.num_items,
        hidden_size=backbone.hidden_size,
        loss=lambda *batch: loss_plugin.loss(*batch, **loss_options),
        adapter=adapter,
        recompute_activations=training.recompute_activations,
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
    best = ModelCheckpoint(
        folder.checkpoints,
        filename="best",
        monitor=f"val/{evaluation.monitor}",
        mode="max",
        save_weights_only=True,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    trains = config.adapter.trains_head or config.adapter.trains_backbone
    trainer = Trainer(
        max_steps=training.max_steps,
        callbacks=[ranking, *_progress(), *([resume, best] if trains else [])],
        logger=_logger(config, folder),
        gradient_clip_val=training.gradient_clip,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        enable_checkpointing=trains,
        default_root_dir=folder.path,
        deterministic="warn",
    )
    try:
        test_seconds = _fit_and_test(trainer, module, data, resume, best if trains else None)
    finally:
        _close_logger(config)

    _write_per_user(folder, ranking.metric, prepared)
    _save_trained(module, folder, config)
    monitored = [row["validation"][evaluation.monitor] for row in ranking.trace]
    best_epoch = max(range(len(monitored)), key=lambda epoch: (monitored[epoch], -epoch))
    return {
        "prompt": {
            "hash": data.prompt.hash,
            "truncated_items": data.prompt.num_truncated_items,
            "example_item": data.prompt.item_texts[0],
        },
        "backbone": {
            "compute_dtype": str(backbone.compute_dtype).removeprefix("torch."),
            "linear_bytes": backbone.linear_bytes,
        },
        "parameters": _count(module),
        "training": {
            "steps": trainer.global_step,
            "tokens_seen": resume.tokens_seen,
            "best_step": ranking.trace[best_epoch]["step"],
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


def _fit_and_test(
    trainer: Trainer,
    module: RecModule,
    data: TextPairDataModule,
    resume: ResumeCheckpoint,
    best: ModelCheckpoint | None,
) -> float:
    """Train from the last checkpoint if there is one, put the best epoch back, test; seconds of the test."""
    if best is None:
        trainer.validate(module, data, verbose=False)
    else:
        interrupted = str(resume.path) if resume.path.exists() else None
        trainer.fit(module, data, ckpt_path=interrupted, weights_only=True)
        _load_trained(module, Path(best.best_model_path))
    start = time.perf_counter()
    trainer.test(module, data, verbose=False)
    return time.perf_counter() - start


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


def _write_per_user(folder: RunFolder, metric: RankingMetrics, prepared: Prepared) -> None:
    """Every test user's values under the user's own id, for paired comparisons."""
    columns = {name: values.cpu().numpy() for name, values in metric.per_user().items()}
    frame = pl.DataFrame(columns).with_columns(pl.col("user").cast(pl.Int32))
    frame = frame.join(prepared.dataset.users.select("user", "raw_id"), on="user", how="left").sort("user")
    with atomic_path(folder.per_user) as temporary:
        frame.select("raw_id", pl.exclude("raw_id", "user")).write_parquet(temporary)


# Surroundings ----------------------------------------------------------------------------------------


class _PlainProgress(Callback):
    """A line an epoch, for a log file."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/ndcg@")}
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
        print(f"    step {trainer.global_step}: {values}", flush=True)


def _progress() -> list[Callback]:
    return [RichProgressBar()] if sys.stderr.isatty() else [_PlainProgress()]


def _logger(config: TextRun, folder: RunFolder) -> Any:
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


def _close_logger(config: TextRun) -> None:
    """End the W&B run, or the next cell's metrics would go into it."""
    if config.logger == "wandb":
        import wandb

        wandb.finish()


def _quiet() -> None:
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
    ):
        warnings.filterwarnings("ignore", message=message)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}
