"""The config of one run, and how a plug-in's section finds its class.

Nothing here imports torch or Lightning: a mistake in a YAML is answered in under a second.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from adapters._base import AdapterConfig
from datamodules._prompts import PromptConfig
from datamodules._source import SourceConfig
from lightning_modules._backbone import BackboneConfig
from lightning_modules._formulation import FormulationConfig
from lightning_modules._optimizers import OptimizerName
from lightning_modules.losses._base import LossConfig
from rankers._base import RankerConfig
from recpeft import plugins
from recpeft.config import Config, digest
from recpeft.errors import RecpeftError

PLUGIN_SECTIONS = {
    "data": ("datamodules", "source"),
    "adapter": ("adapters", "method"),
    "formulation": ("lightning_modules", "name"),
    "loss": ("lightning_modules.losses", "name"),
    "ranker": ("rankers", "name"),
}
"""Section of a run's config -> (folder of its plug-ins, key that names one)."""


class TrainingConfig(Config):
    max_steps: PositiveInt = 60
    """Optimiser steps."""
    users_per_step: PositiveInt = 32
    """Users of a batch; its items are theirs."""
    positives_per_user: PositiveInt = 8
    """At most so many items of a user are learnt in a step."""
    positive_window: PositiveInt | None = None
    """They are drawn from so many items that follow the history; null is all that follow."""
    steps_per_epoch: PositiveInt | None = None
    """Steps between validations; null is one pass over the training users."""
    learning_rate: PositiveFloat = 1e-3
    """For the adapter, unless adapter.learning_rate is given; 1e-3 is PEFT's example value for LoRA."""
    head_learning_rate: PositiveFloat | None = None
    """For temperature and item bias; null is learning_rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Of the adapter's parameters; the head has none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls, over max_steps."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    gradient_clip: PositiveFloat | None = None
    """Largest norm of the gradient; null is off."""
    max_bucket_tokens: PositiveInt = 8192
    """Most tokens, padding included, that are encoded at once."""
    accumulate_batches: PositiveInt = 1
    """Batches whose gradients add up to one optimiser step; in-batch negatives are each batch's own."""
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


class EvaluationConfig(Config):
    k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """Lengths at which lists are cut."""
    monitor: str = "ndcg@10"
    """The validation metric that picks the best epoch and EASE's λ: ndcg, recall, hit_rate or mrr at one of k."""
    validation_users: PositiveInt | None = None
    """How many users each epoch's validation ranks, a fixed draw; null is all. Test is always on all."""
    groups: tuple[str, ...] = ()
    """User attributes between whose groups the gap of NDCG is reported."""
    mask_seen: bool = True
    """Leave out of a user's list what is in the user's history."""

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> EvaluationConfig:
        allowed = [f"{name}@{k}" for name in ("ndcg", "recall", "hit_rate", "mrr") for k in self.k]
        if self.monitor not in allowed:
            raise ValueError(f"monitor is {self.monitor!r}; choose one of {', '.join(allowed)}")
        if len(set(self.k)) != len(self.k):
            raise ValueError(f"k is {list(self.k)}, with a length twice; name each once")
        return self


class _Run(Config):
    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study, and of its folder: letters, digits, dot, dash and underscore."""
    threads: PositiveInt = 2
    """CPU threads. Results are the same for the same seed and number of threads."""
    data: SerializeAsAny[SourceConfig]
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def run_id(self) -> str:
        """12 hex digits of a hash over every leaf of the config."""
        return digest(self.model_dump(mode="json"), 12)


class TextRun(_Run):
    """One cell: a backbone, adapted and quantised, under a formulation and a loss, on a data set."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialisation, batches and draws. The split has a seed of its own, data.split_seed."""
    prompt: PromptConfig = PromptConfig()
    backbone: BackboneConfig
    adapter: SerializeAsAny[AdapterConfig]
    formulation: SerializeAsAny[FormulationConfig]
    loss: SerializeAsAny[LossConfig]
    training: TrainingConfig = TrainingConfig()
    logger: Literal["none", "wandb"] = "none"
    """Where metrics are mirrored; the record is written in any case."""

    @model_validator(mode="after")
    def _adapter_can_work(self) -> TextRun:
        refusal = self.adapter.refusal(
            width=self.backbone.width,
            max_steps=self.training.max_steps,
            gradient_checkpointing=self.training.gradient_checkpointing,
        )
        if refusal is not None:
            raise ValueError(refusal)
        return self

    @property
    def method(self) -> str:
        return self.adapter.method

    @property
    def width(self) -> str:
        return self.backbone.width


class RankerRun(_Run):
    """A reference that reads no text."""

    ranker: SerializeAsAny[RankerConfig]

    @property
    def method(self) -> str:
        return self.ranker.name

    @property
    def width(self) -> str:
        return "–"


RunConfig = TextRun | RankerRun


def build_run(raw: Mapping[str, Any]) -> RunConfig:
    """A validated run from plain values, as YAML or a record holds them.

    Raises:
        RecpeftError: what is wrong, where, and what is allowed.
    """
    kind: type[_Run] = RankerRun if "ranker" in raw else TextRun
    values = dict(raw)
    for section, (folder, key) in PLUGIN_SECTIONS.items():
        if section not in values or section not in kind.model_fields or isinstance(values[section], Config):
            continue
        value = values[section]
        if not isinstance(value, Mapping):
            raise RecpeftError(f"{section} is {value!r}; give a mapping, such as {{{key}: …}}.")
        if not isinstance(value.get(key), str):
            raise RecpeftError(
                f"{section}.{key} is missing or no text; choose one of {', '.join(plugins.names(folder))}."
            )
        try:
            cls = plugins.config_class(folder, value[key])
        except RecpeftError as error:
            raise RecpeftError(f"{section}.{key}: {error}") from None
        values[section] = _validate(cls, value, prefix=f"{section}.")
    run = _validate(kind, values)
    assert isinstance(run, TextRun | RankerRun)
    return run


def _validate(cls: type[Config], value: Mapping[str, Any], prefix: str = "") -> Config:
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise RecpeftError("; ".join(_sentence(cls, detail, prefix) for detail in error.errors()[:3])) from None


def _sentence(cls: type[Config], detail: ErrorDetails, prefix: str) -> str:
    """One pydantic error as a sentence: key, value got, what is allowed."""
    location = [str(part) for part in detail["loc"]]
    key = prefix + ".".join(location)
    if detail["type"] == "extra_forbidden":
        owner = cls
        for part in location[:-1]:
            if part in owner.model_fields:  # else a position in a list
                owner = _config_in(owner.model_fields[part].annotation) or owner
        valid = list(owner.model_fields)
        close = difflib.get_close_matches(location[-1], valid, 1)
        hint = f"did you mean {close[0]}? Allowed: " if close else "allowed: "
        return f"unknown key {key}; {hint}{', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{key} is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key.rstrip('.')}: {message}" if key else message
    return f"{key} is {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _config_in(annotation: Any) -> type[Config] | None:
    """The config class that ``annotation`` is, or that stands in it: ``tuple[Filter, ...]``."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None
