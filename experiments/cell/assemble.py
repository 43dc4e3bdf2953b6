"""Build a run's data module, model and trainer options from its config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapters import Adapter
from datamodules import TextPairDataModule
from datamodules._assembler import PromptAssembler
from datamodules._groups import GroupConfig, train_counts, user_index
from experiments.cell import launch
from experiments.cell.data import Prepared
from experiments.config.run import TextRun
from lightning_modules import Backbone, RecModule
from recpeft import plugins
from recpeft.files import home


def make_data(
    config: TextRun,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    candidates: tuple[pl.DataFrame, pl.DataFrame] | None = None,
) -> TextPairDataModule:
    """Return the data module that serves the run's batches."""
    training, evaluation = config.training, config.evaluation
    prompt = config.prompt.model_dump()
    if prompt["liked_from"] is None:
        prompt["liked_from"] = (
            config.data.liked_from
        )  # one threshold between likes and dislikes, unless the prompt sets its own
    counts = train_counts(prepared.split.train, "user", prepared.dataset.num_users)

    def groups(group: GroupConfig) -> np.ndarray:
        return user_index(prepared.dataset, group, counts, evaluation.cold_below)

    return TextPairDataModule(
        prepared.dataset,
        prepared.split,
        tokenizer,
        users_per_step=training.users_per_step,
        positives_per_user=training.positives_per_user,
        positive_window=training.positive_window,
        steps_per_epoch=training.steps_per_epoch and training.steps_per_epoch * training.accumulate_batches,
        validation_users=evaluation.validation_users,
        test_users=evaluation.test_users,
        mask_seen=evaluation.mask_seen,
        max_bucket_tokens=None if config.distributed.shards else training.max_bucket_tokens,
        examples=training.examples,
        rated=evaluation.candidates.kind == "rated",
        rolling=evaluation.candidates.rolling,
        negatives=training.negatives,
        balance=None if training.balance is None else groups(training.balance),
        user_groups={group.column: groups(group) for group in config.loss.user_groups},
        item_features=config.formulation.item_features,
        candidates=candidates,
        cache=home() / "tokens",
        form=config.formulation.form,
        sequence_length=config.formulation.sequence_length or 1,
        rated_sequences=config.formulation.rated_sequences,
        texts_per_step=_texts_per_step(config),
        seed=config.seed,
        **prompt,
    )


def _texts_per_step(config: TextRun) -> int | None:
    """Return the number of a batch's items that are encoded with a gradient; None is all."""
    if not config.adapter.trains_backbone:
        return 0
    return config.formulation.encoded_per_step


def make_module(
    config: TextRun,
    prepared: Prepared,
    adapted: nn.Module,
    backbone: Backbone,
    adapter: Adapter | None = None,
    prompt: PromptAssembler | None = None,
) -> RecModule:
    """Build the formulation around ``adapted``, which is ``backbone.model`` with or without an adapter.

    Args:
        prompt: required by formulations that read user and item as one text.
    """
    training = config.training
    loss_plugin = plugins.load("lightning_modules.losses", config.loss.name)
    loss_options = config.loss.model_dump(exclude={"name"})
    formulation = plugins.load("lightning_modules", config.formulation.name)
    prepare = getattr(formulation, "prepare", None)
    dataset = prepared.dataset
    of_formulation: dict[str, Any] = {}
    if prepare is not None:
        counts = train_counts(prepared.split.train, "item", dataset.num_items)
        of_formulation = prepare(config.formulation, backbone, prompt, dataset.items, counts)
    module: RecModule = formulation.build(
        adapted,
        config.formulation,
        num_items=dataset.num_items,
        hidden_size=backbone.hidden_size,
        loss=lambda pairs: loss_plugin.loss(pairs, **loss_options),
        adapter=adapter,
        gradient_checkpointing=training.gradient_checkpointing,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        head_learning_rate=training.head_learning_rate,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        warmup_steps=training.warmup_steps,
        total_steps=training.own_steps,
        k=max(config.evaluation.k),
        depth=config.evaluation.depth,
        **of_formulation,
    )
    module.head.requires_grad_(config.adapter.trains_head)
    return module


def trainer_options(config: TextRun, folder: Path) -> dict[str, Any]:
    """Return the Trainer options that training and evaluation share."""
    return {
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        **launch.trainer_options(config),
        "precision": config.training.precision,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": sys.stdout.isatty(),
        "enable_model_summary": False,
        "default_root_dir": folder,
        "deterministic": "warn",
    }
