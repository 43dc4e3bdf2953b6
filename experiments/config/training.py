"""The sections ``training`` and ``distributed`` of a run's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from datamodules._groups import GroupConfig
from datamodules._negatives import NegativesConfig
from experiments.config.monitor import lower_is_better
from lightning_modules._optimizers import OptimizerName
from recpeft.config import Config, Processes


class EarlyStoppingConfig(Config):
    """End training once a metric has not improved for some validations."""

    patience: PositiveInt = 3
    """Number of validations in a row without improvement that end training; 3 is Lightning's default."""
    monitor: str | None = None
    """Any metric of the record's trace, such as gini@10 or recall@5, or train/loss; null is evaluation.monitor."""
    mode: Literal["max", "min"] | None = None
    """Whether higher (max) or lower (min) is better; null is the metric's own direction."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest change that counts as an improvement."""

    def watched(self, monitored: str) -> str:
        """Return the name under which the watched metric is logged."""
        return self.monitor if self.monitor == "train/loss" else f"val/{self.monitor or monitored}"

    def direction(self, monitor: str) -> Literal["max", "min"]:
        """Return ``mode``, or if that is null the direction of the watched metric.

        Args:
            monitor: evaluation.monitor.
        """
        name = self.monitor or monitor
        return self.mode or ("min" if name == "train/loss" or lower_is_better(name) else "max")


class TrainingConfig(Config):
    ADDED: ClassVar[Mapping[str, Any]] = {"head_steps": 0}

    max_steps: PositiveInt = 60
    """Number of optimiser steps."""
    head_steps: NonNegativeInt = 0
    """Number of first steps that train the head alone, on item encodings computed once; for formulation sequence. Cells
    of a study that differ only in their adapter share these steps, and begin the remaining ones with a new optimiser
    and schedule."""
    examples: Literal["users", "interactions", "positions"] = "users"
    """Unit from which batches are drawn. users: users at a moment of their history, with items they liked later as
    positives. interactions: single interactions, each given its user's history right before it, liked or disliked
    (data.liked_from); this is pointwise, as in TALLRec (Bao et al. 2023), without positives_per_user and
    positive_window. positions: every position of users' histories at once (SASRec, Kang & McAuley 2018), for
    formulation sequence."""
    users_per_step: PositiveInt = 32
    """Number of users, or interactions, per batch; the batch's items are theirs."""
    positives_per_user: PositiveInt = 8
    """Maximum number of positive items per user per step."""
    positive_window: PositiveInt | None = None
    """Number of items after the history from which positives are drawn; null is all that follow. With examples:
    positions, all items of the window are positives, and null is the next item alone."""
    steps_per_epoch: PositiveInt | None = None
    """Number of steps between validations; null is one pass over the training users."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the adapter, unless adapter.learning_rate is given; 1e-3 is PEFT's example value for LoRA."""
    head_learning_rate: PositiveFloat | None = None
    """Learning rate of the parameters outside the backbone, such as temperature and item bias; null is
    learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the adapter's matrices; its vectors (biases, norms, DoRA's magnitudes and similar) and the head
    have none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay of the learning rate over max_steps."""
    warmup_steps: NonNegativeInt = 0
    """Number of steps over which the learning rate rises from 0."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop before max_steps once a metric no longer improves, as {patience: 3}; null is off. Schedules still decay over
    max_steps."""
    gradient_clip: PositiveFloat | None = None
    """Maximum norm of the gradient; null is off."""
    negatives: NegativesConfig = NegativesConfig()
    """Items that training ranks below the positives."""
    balance: GroupConfig | None = None
    """Grouping of users, as in evaluation.groups, of which each batch has equal numbers per group; null draws users
    uniformly."""
    max_bucket_tokens: PositiveInt = 8192
    """Maximum number of tokens, padding included, encoded at once."""
    accumulate_batches: PositiveInt = 1
    """Number of batches, over all processes, whose mean gradient makes one optimiser step; in-batch negatives stay
    within a batch. An epoch's last step has fewer batches if their number is no multiple, and takes their mean."""
    optimizer: OptimizerName = "adamw"
    """Optimiser: torch's AdamW (Loshchilov & Hutter 2019); bitsandbytes' 8-bit form of it (Dettmers et al. 2022) and
    paged forms, which move their state to main memory when GPU memory is short (Dettmers et al. 2023); or
    transformers' Adafactor (Shazeer & Stern 2018)."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning's precision: autocast to bfloat16 or float16 in forward passes. In contrast, backbone.compute_dtype is
    the dtype of the backbone's weights."""
    gradient_checkpointing: Literal["none", "layers", "buckets"] = "none"
    """Recompute activations in the backward pass, for less memory and about a third more time: of each transformer
    layer (transformers' implementation), or of each bucket of texts as a whole (works with any method)."""
    checkpoint_every_steps: PositiveInt = 10
    """Number of steps between checkpoints, the most that an interrupted run loses."""

    @property
    def own_steps(self) -> int:
        """Return the number of steps that a cell trains after the head's steps."""
        return self.max_steps - self.head_steps

    @field_validator("balance", mode="before")
    @classmethod
    def _column_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class DistributedConfig(Config):
    """Number of processes that train a cell together (docs/several-gpus.md); not part of the run's identity."""

    devices: Processes = 1
    """Number of processes per node: one per GPU, or CPU processes if there is no GPU."""
    num_nodes: Processes = 1
    """Number of machines on which SLURM or torchrun starts the processes."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole model; fsdp: each holds a share of each layer, for backbones that do not fit
    otherwise. fsdp needs formulation two_tower and width none, and encodes a batch's texts in one bucket."""

    @property
    def processes(self) -> int:
        """Return the total number of processes."""
        return self.devices * self.num_nodes

    @property
    def shards(self) -> bool:
        """Return whether each process holds only a share of the model."""
        return self.strategy == "fsdp" and self.processes > 1
