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
    """Training ends where a metric has not improved for some validations."""

    patience: PositiveInt = 3
    """Validations in a row without improvement; 3 is Lightning's default."""
    monitor: str | None = None
    """Any metric of the record's trace, such as gini@10 or recall@5, or train/loss; null is evaluation.monitor."""
    mode: Literal["max", "min"] | None = None
    """Whether higher is better, or lower; null is the metric's own direction."""
    min_delta: NonNegativeFloat = 0.0
    """The least change that counts as an improvement."""

    def watched(self, monitored: str) -> str:
        """What it watches, as it is logged."""
        return self.monitor if self.monitor == "train/loss" else f"val/{self.monitor or monitored}"

    def direction(self, monitor: str) -> Literal["max", "min"]:
        """``mode``, or that of what it watches.

        Args:
            monitor: evaluation.monitor.
        """
        name = self.monitor or monitor
        return self.mode or ("min" if name == "train/loss" or lower_is_better(name) else "max")


class TrainingConfig(Config):
    ADDED: ClassVar[Mapping[str, Any]] = {"head_steps": 0}

    max_steps: PositiveInt = 60
    """Optimiser steps."""
    head_steps: NonNegativeInt = 0
    """How many of them, the first, train the head alone, on item encodings that are computed once: of formulation
    sequence. Cells of a study that differ in their adapter alone share these steps, and begin the others with a new
    optimiser and schedule."""
    examples: Literal["users", "interactions", "positions"] = "users"
    """What a batch is drawn from: users at a moment of their history, who learn what they liked later; or single
    interactions, each right behind its user's history, liked or (data.liked_from) not. The latter is pointwise, as
    TALLRec learns (Bao et al. 2023), and has neither positives_per_user nor positive_window. Or every place of users'
    histories at once (SASRec, Kang & McAuley 2018), for formulation sequence."""
    users_per_step: PositiveInt = 32
    """Users of a batch, or interactions; its items are theirs."""
    positives_per_user: PositiveInt = 8
    """At most so many items of a user are learnt in a step."""
    positive_window: PositiveInt | None = None
    """They are drawn from so many items that follow the history; null is all that follow. Of examples:
    positions, all of so many are learnt, and null is the next one."""
    steps_per_epoch: PositiveInt | None = None
    """Steps between validations; null is one pass over the training users."""
    learning_rate: PositiveFloat = 1e-3
    """For the adapter, unless adapter.learning_rate is given; 1e-3 is PEFT's example value for LoRA."""
    head_learning_rate: PositiveFloat | None = None
    """For what is trained beside the backbone, such as temperature and item bias; null is learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Of the adapter's matrices; vectors (biases, norms, DoRA's magnitudes and the like) and the head have none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls, over max_steps."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    early_stopping: EarlyStoppingConfig | None = None
    """End before max_steps where a metric no longer improves, as {patience: 3}; null is off. Schedules still fall over
    max_steps."""
    gradient_clip: PositiveFloat | None = None
    """Largest norm of the gradient; null is off."""
    negatives: NegativesConfig = NegativesConfig()
    """What is learnt to rank below the positives."""
    balance: GroupConfig | None = None
    """A group of users, as in evaluation.groups: a batch has equally many of each; null draws users alike."""
    max_bucket_tokens: PositiveInt = 8192
    """Most tokens, padding included, that are encoded at once."""
    accumulate_batches: PositiveInt = 1
    """Batches whose mean gradient is one optimiser step, on all processes together; in-batch negatives are each
    batch's own. An epoch's last step has fewer where its batches are no multiple, and takes the mean of those."""
    optimizer: OptimizerName = "adamw"
    """AdamW (Loshchilov & Hutter 2019) by torch; its 8-bit form (Dettmers et al. 2022) and paged forms, which move
    their state to main memory when a GPU's is short (Dettmers et al. 2023), by bitsandbytes; Adafactor (Shazeer &
    Stern 2018) by transformers."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning's precision: autocast to bfloat16 or float16 in forward passes. backbone.compute_dtype is another
    matter: what the backbone's weights are held in."""
    gradient_checkpointing: Literal["none", "layers", "buckets"] = "none"
    """Compute activations again in the backward pass, for less memory and about a third more time: of each
    transformer layer (transformers' own), or of each bucket of texts as a whole (any method)."""
    checkpoint_every_steps: PositiveInt = 10
    """How many steps an interrupted run may lose."""

    @property
    def own_steps(self) -> int:
        """How many steps a cell trains behind those of the head."""
        return self.max_steps - self.head_steps

    @field_validator("balance", mode="before")
    @classmethod
    def _column_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class DistributedConfig(Config):
    """How many processes train a cell together (docs/several-gpus.md); no part of what is computed."""

    devices: Processes = 1
    """Processes a node: one a GPU, or CPU processes where there is none."""
    num_nodes: Processes = 1
    """Machines, which SLURM or torchrun starts the processes on."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Each process holds the whole model (DDP), or a share of each layer (FSDP), which is for backbones that do not
    fit otherwise: formulation two_tower, width none, and texts of a batch in one bucket."""

    @property
    def processes(self) -> int:
        """All there are."""
        return self.devices * self.num_nodes

    @property
    def shards(self) -> bool:
        """Whether a process holds a share of the model alone."""
        return self.strategy == "fsdp" and self.processes > 1
