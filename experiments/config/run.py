"""The config of one run, and the lookup of each section's plug-in class.

Nothing here imports torch or Lightning, so that a mistake in a YAML is reported in under a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from adapters._base import AdapterConfig
from datamodules._prompts import PromptConfig
from datamodules._source import SourceConfig
from experiments.config.evaluation import EvaluationConfig
from experiments.config.trackers import TrackerConfig
from experiments.config.trackers import build as build_tracker
from experiments.config.training import DistributedConfig, TrainingConfig
from lightning_modules._backbone import NO_BACKBONE, BackboneConfig
from lightning_modules._formulation import FormulationConfig, refusal
from lightning_modules.losses._base import LossConfig
from rankers._base import RankerConfig
from rankers.diversify._base import DiversifyConfig
from recpeft import trust
from recpeft.config import Config, Processes, digest
from recpeft.errors import RecpeftError, shown
from recpeft.validation import build_plugin, validate

PLUGIN_SECTIONS = {
    "data": ("datamodules", "source"),
    "adapter": ("adapters", "method"),
    "formulation": ("lightning_modules", "name"),
    "loss": ("lightning_modules.losses", "name"),
    "ranker": ("rankers", "name"),
    "diversify": ("rankers.diversify", "method"),
}
"""Section of a run's config -> (folder of its plug-ins, key that names one)."""

HOW_RUN = {"variant", "threads", "distributed", "trackers"}
"""Keys of a config that affect a run's name, execution or tracking but not its identity."""


class _Run(Config):
    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the study and of its folder: letters, digits, dot, dash and underscore. File systems allow 255 bytes."""
    variant: str | None = None
    """Name of a change in an experiment file's ``variants``; not part of the run's identity."""
    threads: Processes = 2
    """Number of CPU threads; several workers divide the cores among them. The same seed and number of threads give
    bit-identical results; another number rounds differently, so the record holds it, although it is not part of the
    run's identity."""
    data: SerializeAsAny[SourceConfig]
    evaluation: EvaluationConfig = EvaluationConfig()
    diversify: SerializeAsAny[DiversifyConfig] | None = None
    """Stage that reorders lists: {method: mmr, strength: 0.3}. The run without the stage makes the lists; it belongs to
    the study too and is trained once for all strengths. Null does not reorder."""
    trackers: tuple[SerializeAsAny[TrackerConfig], ...] = ()
    """Trackers that mirror the record: [wandb], [{name: wandb, mode: offline}, csv, tensorboard], or a Lightning logger
    by the dotted name of its class; not part of the run's identity."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers_are_plugins(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{shown(value)} is no list; give one such as [wandb]")
        trackers = [build_tracker(part) for part in value]
        names = [tracker.name for tracker in trackers]
        if len(set(names)) != len(names):
            raise ValueError(f"{', '.join(names)} has a tracker twice; name each once")
        return trackers

    @model_validator(mode="after")
    def _there_is_something_to_reorder(self) -> Self:
        diversify, evaluation = self.diversify, self.evaluation
        if diversify is None:
            return self
        if evaluation.candidates.kind == "rated":
            raise ValueError(
                "diversify reorders lists, but evaluation.candidates are rated, where pairs are judged; leave one out"
            )
        if not max(evaluation.k) <= diversify.depth <= max(*evaluation.k, evaluation.depth):
            raise ValueError(
                f"diversify.depth is {diversify.depth}; it must be at least the largest of evaluation.k, "
                f"{max(evaluation.k)}, and at most evaluation.depth, {evaluation.depth}"
            )
        return self

    @property
    def undiversified(self) -> Self:
        """Return the run whose lists are reordered."""
        return self.model_copy(update={"diversify": None})

    @model_validator(mode="after")
    def _likes_are_known_where_they_are_judged(self) -> Self:
        if self.evaluation.candidates.kind == "rated" and self.data.liked_from is None:
            raise ValueError(
                "evaluation.candidates.kind is rated, which needs data.liked_from, the lowest rating that counts as "
                "liked; set it, and let data.filters keep what is disliked"
            )
        return self

    @property
    def run_id(self) -> str:
        """Return 12 hex digits of a hash over all of the config except ``HOW_RUN``."""
        return self._id_without(HOW_RUN)

    @property
    def run_id_without_seed(self) -> str:
        """Return an id that runs share if they differ only in their seed."""
        return self._id_without(HOW_RUN | {"seed"})

    def _id_without(self, keys: set[str]) -> str:
        return digest({key: part for key, part in self.asked_for().items() if key not in keys}, 12)


class TextRun(_Run):
    """One cell: an adapted and quantised backbone with a formulation and a loss, on a data set."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialisation, batches and draws. The split has its own seed, data.split.seed."""
    prompt: PromptConfig = PromptConfig()
    backbone: BackboneConfig
    adapter: SerializeAsAny[AdapterConfig]
    formulation: SerializeAsAny[FormulationConfig]
    loss: SerializeAsAny[LossConfig]
    training: TrainingConfig = TrainingConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="before")
    @classmethod
    def _no_text_needs_no_backbone(cls, values: Any) -> Any:
        adapter = values.get("adapter")
        if isinstance(adapter, AdapterConfig) and not adapter.reads_text:
            return {**values, "backbone": {"name": NO_BACKBONE}}
        return values

    @model_validator(mode="after")
    def _items_are_something(self) -> TextRun:
        method, formulation, examples = self.adapter.method, self.formulation, self.training.examples
        if self.adapter.reads_text and self.backbone.name == NO_BACKBONE:
            raise ValueError(
                f"backbone.name is none but adapter.method {method} adapts one; name a backbone, or set adapter: "
                "{method: none}"
            )
        if not self.adapter.reads_text and not formulation.can_do_without_text:
            raise ValueError(
                f"adapter.method is {method}, which reads no text, but then formulation {formulation.name} has nothing "
                "to tell items by; use {name: sequence, ids: add}"
            )
        if examples == "positions" and not formulation.learns_at_each_place:
            raise ValueError(
                f"training.examples is positions, which formulation {formulation.name} cannot learn from as it is; use "
                "users or interactions, or formulation sequence with another user_encoder than target_attention"
            )
        return self

    @model_validator(mode="after")
    def _head_can_go_first(self) -> TextRun:
        head_steps, max_steps = self.training.head_steps, self.training.max_steps
        if head_steps and self.formulation.sequence_length is None:
            raise ValueError(
                f"training.head_steps is {head_steps}, but formulation {self.formulation.name} reads users' texts by "
                "the backbone in each step; leave it out, or use formulation sequence"
            )
        if head_steps >= max_steps:
            raise ValueError(
                f"training.head_steps is {head_steps}, which leaves none of training.max_steps {max_steps} to the "
                "adapter; lower it, or raise max_steps"
            )
        if self.distributed.processes > 1 and (head_steps or self.formulation.encoded_per_step is not None):
            raise ValueError(
                "training.head_steps and formulation.texts_per_step are for one process, but distributed asks for "
                f"{self.distributed.processes}; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _activations_can_be_dropped(self) -> TextRun:
        if self.formulation.form not in ("single", "items") and self.training.gradient_checkpointing != "none":
            raise ValueError(
                f"training.gradient_checkpointing does not go with formulation {self.formulation.name}, which reads "
                "users and items together; set it to none, and lower training.users_per_step to save memory"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_the_formulation(self) -> TextRun:
        clause = refusal(self.formulation, self.loss)
        if clause is not None:
            raise ValueError(clause)
        return self

    @model_validator(mode="after")
    def _formulation_can_rank_the_candidates(self) -> TextRun:
        formulation, candidates = self.formulation, self.evaluation.candidates
        most, proposed = formulation.max_candidates, formulation.proposes
        if formulation.list_size is not None and candidates.kind == "rated":
            raise ValueError(
                f"formulation {formulation.name} sets the items of a list against each other, so it cannot judge each "
                "of evaluation.candidates kind rated; use verbalizer or cross_encoder"
            )
        if most is not None and (candidates.kind == "full" or candidates.size > most):
            raise ValueError(
                f"formulation {formulation.name} ranks at most {most} items a user, but evaluation.candidates are "
                f"{candidates.kind if candidates.kind == 'full' else candidates.size}; give {{kind: uniform, size: "
                f"{most - 1}}} or the like, or let a first stage propose (formulation: {{name: two_stage, …}})"
            )
        if formulation.list_size is not None and self.training.negatives.hard:
            raise ValueError(
                f"training.negatives.hard is mined from the whole catalogue, of which formulation {formulation.name} "
                f"reads at most {formulation.list_size} items at once; use uniform or popularity"
            )
        if proposed is not None and candidates.kind == "rated":
            raise ValueError(
                f"evaluation.candidates.kind is rated, where nothing is proposed; use formulation {formulation.name}'s "
                "second stage alone"
            )
        if proposed is not None and proposed < max(self.evaluation.k):
            raise ValueError(
                f"formulation.size is {proposed}, fewer than the {max(self.evaluation.k)} items of the longest list in "
                "evaluation.k; raise it"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_learn(self) -> TextRun:
        training, liked_from = self.training, self.data.liked_from
        if training.negatives.disliked and (liked_from is None or training.examples != "users"):
            raise ValueError(
                "training.negatives.disliked needs data.liked_from, which says what is disliked, and "
                "training.examples: users; set them"
            )
        unused = {"interactions": ("positives_per_user", "positive_window"), "positions": ("positives_per_user",)}
        for key in unused.get(training.examples, ()):
            if getattr(training, key) != TrainingConfig.model_fields[key].default:
                raise ValueError(
                    f"training.{key} is for training.examples: users, not {training.examples}; leave it out"
                )
        negatives = training.negatives
        drawn = (negatives.catalogue, negatives.in_batch, negatives.uniform, negatives.popularity)
        if (
            training.examples == "interactions"
            and not any((*drawn, training.negatives.hard))
            and not self.loss.pointwise
        ):
            raise ValueError(
                f"loss {self.loss.name} sets items of a user against each other, but training.examples: interactions "
                "gives each example one item; use loss bce or mse, or draw training.negatives"
            )
        learns_dislikes = training.examples == "interactions" and liked_from is not None
        if not training.negatives.there_are_some and not learns_dislikes:
            raise ValueError(
                "there are no negatives: training.negatives sets neither in_batch, uniform, popularity, hard nor "
                "disliked; set one"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_shared_out(self) -> TextRun:
        batches, processes = self.training.accumulate_batches, self.distributed.processes
        if batches % processes:
            raise ValueError(
                f"training.accumulate_batches is {batches}, the batches of a step, which {processes} processes "
                f"(distributed) cannot share evenly; set it to a multiple of {processes}"
            )
        return self

    @model_validator(mode="after")
    def _model_can_be_sharded(self) -> TextRun:
        if not self.distributed.shards:
            return self
        training = self.training
        found: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "formulation.name": (self.formulation.name, ("two_tower",)),
            "backbone.width": (self.backbone.width, ("none",)),
            "training.optimizer": (training.optimizer, ("adamw",)),
            "training.precision": (training.precision, ("32-true", "bf16-mixed")),
            "training.gradient_checkpointing": (training.gradient_checkpointing, ("none", "layers")),
            "training.negatives.hard": (training.negatives.hard, (0,)),
            "training.gradient_clip": (training.gradient_clip, (None,)),
        }
        for key, (value, allowed) in found.items():
            if value not in allowed:
                choices = " or ".join("null" if choice is None else str(choice) for choice in allowed)
                raise ValueError(
                    f"{key} is {value}, which distributed.strategy fsdp is not known to work with; set it to "
                    f"{choices}, or use ddp"
                )
        return self

    @model_validator(mode="after")
    def _adapter_can_work(self) -> TextRun:
        refusal = self.adapter.refusal(
            width=self.backbone.width,
            max_steps=self.training.own_steps,
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
        return self.backbone.width if self.adapter.reads_text else "–"


class RankerRun(_Run):
    """A reference that reads no text."""

    ranker: SerializeAsAny[RankerConfig]

    @property
    def method(self) -> str:
        return self.ranker.name

    @property
    def width(self) -> str:
        return "–"


class DrawnRankerRun(RankerRun):
    """A ranker that uses random draws, and is therefore run once for each seed."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all its draws."""


RunConfig = TextRun | RankerRun


def build_recorded(raw: Mapping[str, Any], source: Path) -> RunConfig:
    """Return the run that a record or a plan holds; code that it names is executed only if trusted.

    The run has no trackers, since they follow a run only while it is executed.

    Args:
        source: file or folder that holds the record or plan.
    Raises:
        RecpeftError: see ``build_run``, with the source's name added; or the config names untrusted code
            (``recpeft.trust``).
    """
    try:
        with trust.data_alone(source):
            return build_run({key: value for key, value in raw.items() if key != "trackers"})
    except RecpeftError as error:
        if str(source) in str(error):
            raise
        raise RecpeftError(f"{source} holds a config that this version does not take: {error}") from None


def build_run(raw: Mapping[str, Any]) -> RunConfig:
    """Return a validated run from plain values, as YAML or a record holds them.

    Raises:
        RecpeftError: the values are invalid; the message says what, where, and what is allowed.
    """
    kind: type[_Run] = RankerRun if "ranker" in raw else TextRun
    values = dict(raw)
    for section, (folder, key) in PLUGIN_SECTIONS.items():
        if values.get(section) is not None and section in kind.model_fields:
            values[section] = build_plugin(folder, key, values[section], section)
    ranker = values.get("ranker")
    if isinstance(ranker, RankerConfig) and ranker.STOCHASTIC:
        kind = DrawnRankerRun
    elif isinstance(ranker, RankerConfig) and "seed" in values:
        raise RecpeftError(f"seed is for runs that draw, but ranker {ranker.name} draws nothing; leave it out.")
    run = validate(kind, values)
    assert isinstance(run, TextRun | RankerRun)
    return run
