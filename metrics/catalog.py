"""Every metric by name: direction, population, what it needs, and the function that computes it.

Read without importing torch, so that a file of experiments is checked and a table is labelled from here.
``find("ndcg_gap")`` knows the derived names too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Direction = Literal["+", "-", "0"]
"""Higher is better, lower is better, nearer to zero is better."""
Population = Literal["relevant", "listed", "all", "items", "groups", "pairs"]
"""The users with relevant items, with a list that is not empty, all users; or a value of the whole catalogue, of groups
(of users or items), of held-out pairs."""
Kind = Literal[
    "per_user", "per_item", "item_groups", "user_groups", "users", "scores", "generated", "impressions", "ratings"
]
"""What it is a function of: lists, vectors over the catalogue, these and groups of items, sums over groups of users,
all users' values, the scores before they are cut to lists, generated lists before they are matched, lists and what
was shown, predicted ratings."""

DERIVED: dict[str, tuple[str, ...]] = {
    "num_train_users": ("train_counts",),
    "tail": ("train_counts",),
    "popularity_groups": ("train_counts",),
    "main_categories": ("main_category",),
    "profile": ("history", "categories"),
    "main_profile": ("history", "main_categories"),
    "popularity_profile": ("history", "popularity_groups"),
    "profile_popularity": ("history", "train_counts"),
    "mean_embedding": ("history", "embeddings"),
    "candidates": ("history",),
    "membership": ("item_groups",),
}
"""What is computed once from what is given."""
SUMS = ("counts", "exposure", "cosine_weights", "num_lists", "hits", "relevant", "catalogue")
"""Sums over the lists (``catalogue`` is ones), which need nothing to be given."""


@dataclass(frozen=True)
class MetricInfo:
    """One metric."""

    name: str
    function: str
    """``file:name`` in this package."""
    direction: Direction
    population: Population
    kind: Kind = "per_user"
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Argument of the function to what it gets; see ``DERIVED`` and ``SUMS``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the function, where they differ from its defaults."""
    also_needs: tuple[str, ...] = ()
    base: str = ""
    """Of a derived metric the per-user metric it is of; inputs are then the base's."""

    @property
    def is_spread(self) -> bool:
        """Whether it is one number of how a per-user metric differs between groups of users."""
        return bool(self.base) and self.kind == "user_groups" and self.function != "fairness:by_group"

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be given, of: categories, main_category (one label an item), embeddings, train_counts, history,
        grades, groups (of users), item_groups, scores, logits (as which scores are read), generated, impressions,
        ratings, predicted_ratings, keep_users; in alphabetical order."""
        found, left = set[str](), [*self.inputs.values(), *self.also_needs]
        while left:
            name = left.pop()
            if name in DERIVED:
                left += DERIVED[name]
            elif name not in SUMS:
                found.add(name)
        return tuple(sorted(found))


def _of(*names: str) -> dict[str, str]:
    """Arguments that get what they are called."""
    return {name: name for name in names}


_SINGLE = {"categories": "main_categories", "profile": "main_profile"}
_POPULARITY = {"categories": "popularity_groups", "profile": "popularity_profile"}
_RADIO = {"alpha": 0.001, "both_smoothed": True, "base": 2.0}

_LISTS = [
    MetricInfo("ndcg", "accuracy:ndcg", "+", "relevant"),
    MetricInfo("recall", "accuracy:recall", "+", "relevant"),
    MetricInfo("precision", "accuracy:precision", "+", "relevant"),
    MetricInfo("hit_rate", "accuracy:hit_rate", "+", "relevant"),
    MetricInfo("mrr", "accuracy:mrr", "+", "relevant"),
    MetricInfo("map", "accuracy:average_precision", "+", "relevant"),
    MetricInfo("f1", "accuracy:f1", "+", "relevant"),
    MetricInfo("ndcg_linear", "accuracy:ndcg", "+", "relevant", options={"gain": "linear"}, also_needs=("grades",)),
    MetricInfo("ndcg_exp2", "accuracy:ndcg", "+", "relevant", options={"gain": "exp2"}, also_needs=("grades",)),
    MetricInfo("ndcg_empty_as_zero", "accuracy:ndcg", "+", "all", options={"without_relevant": 0.0}),
    MetricInfo("recall_capped", "accuracy:recall", "+", "relevant", options={"capped": True}),
    MetricInfo("map_trec", "accuracy:average_precision", "+", "relevant", options={"over": "relevant"}),
    MetricInfo("alpha_ndcg", "diversity:alpha_ndcg", "+", "relevant", inputs=_of("categories")),
    MetricInfo("ild_cosine", "diversity:ild_cosine", "+", "listed", inputs=_of("embeddings")),
    MetricInfo("ild_jaccard", "diversity:ild_jaccard", "+", "listed", inputs=_of("categories")),
    MetricInfo("ild_hamming", "diversity:ild_hamming", "+", "listed", inputs=_of("categories")),
    MetricInfo("category_entropy", "diversity:category_entropy", "+", "listed", inputs=_of("categories")),
    MetricInfo(
        "category_entropy_single",
        "diversity:category_entropy",
        "+",
        "listed",
        inputs={"categories": "main_categories"},
    ),
    MetricInfo("category_coverage", "diversity:category_coverage", "+", "listed", inputs=_of("categories")),
    MetricInfo(
        "category_per_slot_single",
        "diversity:category_coverage",
        "+",
        "listed",
        inputs={"categories": "main_categories"},
        options={"over": "k"},
    ),
    MetricInfo(
        "category_autocorrelation", "diversity:category_autocorrelation", "-", "listed", inputs=_of("categories")
    ),
    MetricInfo("novelty", "novelty:novelty", "+", "listed", inputs=_of("train_counts", "num_train_users")),
    MetricInfo("epc", "novelty:epc", "+", "relevant", inputs=_of("train_counts", "num_train_users")),
    MetricInfo(
        "epc_norel",
        "novelty:epc",
        "+",
        "listed",
        inputs=_of("train_counts", "num_train_users"),
        options={"relevance": False},
    ),
    MetricInfo("efd", "novelty:efd", "+", "relevant", inputs=_of("train_counts")),
    MetricInfo("arp", "novelty:arp", "-", "listed", inputs=_of("train_counts")),
    MetricInfo("aplt", "novelty:aplt", "+", "listed", inputs=_of("tail")),
    MetricInfo(
        "unexpectedness",
        "serendipity:unexpectedness",
        "+",
        "listed",
        inputs=_of("train_counts"),
        also_needs=("history",),
    ),
    MetricInfo(
        "serendipity", "serendipity:serendipity", "+", "relevant", inputs=_of("train_counts"), also_needs=("history",)
    ),
    MetricInfo("serendipity_rank", "serendipity:serendipity_rank", "+", "listed", inputs=_of("train_counts")),
    MetricInfo(
        "serendipity_cosine",
        "serendipity:serendipity_cosine",
        "+",
        "listed",
        inputs=_of("embeddings", "mean_embedding"),
    ),
    *(
        MetricInfo(name, "calibration:miscalibration", "-", "listed", inputs=inputs, options=options)
        for name, inputs, options in list[tuple[str, dict[str, str], dict[str, Any]]](
            [
                ("calibration_kl", _of("categories", "profile"), {}),
                ("calibration_kl_rankw", _of("categories", "profile"), {"rank_weighted": True}),
                ("calibration_js", _of("categories", "profile"), {"divergence": "js"}),
                ("calibration_hellinger", _of("categories", "profile"), {"divergence": "hellinger"}),
                ("calibration_single_kl", _SINGLE, _RADIO),
                ("popularity_calibration_js", _POPULARITY, {"divergence": "js"}),
            ]
        )
    ),
    MetricInfo("user_coverage", "coverage:user_coverage", "+", "all"),
]
_CATALOGUE = [
    MetricInfo(name, function, direction, "items", "per_item", inputs)
    for name, function, direction, inputs in list[tuple[str, str, Direction, dict[str, str]]](
        [
            ("item_coverage", "coverage:item_coverage", "+", _of("counts")),
            ("gini", "coverage:gini", "-", _of("counts")),
            ("shannon_entropy", "coverage:shannon_entropy", "+", _of("counts")),
            ("gini_exposure", "coverage:gini", "-", {"counts": "exposure"}),
            ("inter_list_diversity", "diversity:inter_list_diversity", "+", _of("cosine_weights", "num_lists")),
            ("iaa", "exposure:inequity_of_attention", "-", _of("exposure", "relevant")),
        ]
    )
]
_ITEM_GROUPS = [
    MetricInfo(name, f"exposure:{function}", direction, "groups", "item_groups", {**inputs, **_of("membership")})
    for name, function, direction, inputs in list[tuple[str, str, Direction, dict[str, str]]](
        [
            ("exposure_share", "share", "0", {"per_item": "exposure"}),
            ("exposure_ratio", "exposure_ratio", "+", _of("exposure")),
            ("exposure_kl_catalogue", "exposure_kl", "-", {"exposure": "exposure", "target": "catalogue"}),
            ("exposure_kl_train", "exposure_kl", "-", {"exposure": "exposure", "target": "train_counts"}),
            ("exposure_dtr", "disparate_treatment_ratio", "+", _of("exposure", "relevant")),
            ("rsp", "ranking_statistical_parity", "-", _of("counts", "candidates")),
            ("reo", "ranking_equal_opportunity", "-", _of("hits", "relevant")),
            ("item_eo_gap", "item_equal_opportunity_gap", "-", _of("hits", "relevant")),
        ]
    )
]
_USER_GROUPS = [
    MetricInfo(name, function, direction, population, "user_groups", also_needs=needs)
    for name, function, direction, population, needs in list[tuple[str, str, Direction, Population, tuple[str, ...]]](
        [
            ("pop_lift", "novelty:popularity_lift", "0", "listed", ("history", "train_counts")),
            ("delta_gap", "novelty:popularity_lift", "0", "groups", ("groups", "history", "train_counts")),
            ("eo_gap", "fairness:user_gap", "-", "groups", ("groups",)),
            ("category_information", "association:mutual_information", "-", "groups", ("groups", "categories")),
        ]
    )
]
_SCORES = [
    MetricInfo("user_auc", "scores:user_auc", "+", "relevant", "scores", also_needs=("scores",)),
    MetricInfo("gauc", "scores:gauc", "+", "relevant", "scores", also_needs=("scores",)),
    *(
        MetricInfo(
            f"{kind}_unfairness",
            "scores:unfairness",
            "-",
            "pairs",
            "scores",
            options={"kind": kind},
            also_needs=("scores", "groups", "logits"),
        )
        for kind in ("value", "absolute", "underestimation", "overestimation")
    ),
    MetricInfo(
        "nonparity_unfairness", "scores:nonparity", "-", "pairs", "scores", also_needs=("scores", "groups", "logits")
    ),
    MetricInfo(
        "differential_fairness",
        "scores:differential_fairness",
        "-",
        "all",
        "scores",
        also_needs=("scores", "groups", "logits"),
    ),
]
_GENERATED = [
    MetricInfo(name, f"generated:{function}", "+", "all", "generated", also_needs=("generated",))
    for name, function in [("valid_ratio", "valid_share"), ("sufficient", "sufficient"), ("unrepeated", "unrepeated")]
]

_IMPRESSIONS = [MetricInfo("ctr", "accuracy:ctr", "+", "listed", "impressions", also_needs=("impressions",))]
_RATINGS = [
    MetricInfo(f"rating_{name}", f"ratings:{name}", direction, "pairs", "ratings", also_needs=("ratings", *needs))
    for direction, names, needs in list[tuple[Direction, tuple[str, ...], tuple[str, ...]]](
        [
            ("-", ("mae", "mse", "rmse"), ("predicted_ratings",)),
            ("-", ("log_loss", "calibration_error"), ("logits",)),
            ("+", ("accuracy", "precision", "recall", "f1", "auc"), ()),
        ]
    )
    for name in names
]

METRICS = {
    info.name: info
    for family in (_LISTS, _CATALOGUE, _ITEM_GROUPS, _USER_GROUPS, _SCORES, _GENERATED, _IMPRESSIONS, _RATINGS)
    for info in family
}
"""All metrics by name; of those that lists are enough for, accuracy stands first."""

SPREADS: dict[str, tuple[str, Direction | None]] = {
    "gap": ("fairness:user_gap", "-"),
    "ratio": ("fairness:user_ratio", "+"),
    "std": ("fairness:user_std", "-"),
    "mad": ("fairness:user_mad", "-"),
    "worst": ("fairness:user_worst", None),
    "users": ("fairness:by_group", "0"),
}
"""Ending of a per-user metric's name to the function of its groups' sums and counts; None keeps its direction.
``users``, the number of users behind each group's mean, is no judgement."""


DEFAULT_NAMES = (
    "ndcg",
    "recall",
    "hit_rate",
    "mrr",
    "item_coverage",
    "gini",
    "novelty",
    "ild_jaccard",
    "ndcg_gap",
)
"""What is measured unless more is asked for."""


def find(name: str) -> MetricInfo | None:
    """The metric of this name, derived ones included; None where there is none.

    Derived from a per-user metric are ``ndcg_gap`` (see ``SPREADS``), ``ndcg_cvar50`` (the mean of the 50 % of the
    users who are served worst) and ``ndcg_user_gini``.
    """
    if name in METRICS:
        return METRICS[name]
    base, _, ending = name.rpartition("_")
    info = METRICS.get(base)
    if info is not None and info.kind == "per_user":
        if ending in SPREADS:
            function, direction = SPREADS[ending]
            return _derived(info, name, function, direction or info.direction, "user_groups", "groups")
        percent = re.fullmatch(r"cvar([1-9]\d?|100)", ending)
        if percent:
            options = {"alpha": int(percent[1]) / 100}
            return _derived(info, name, "fairness:cvar", info.direction, "users", "keep_users", options)
    info = METRICS.get(name.removesuffix("_user_gini"))
    if info is not None and info.kind == "per_user":
        return _derived(info, name, "fairness:user_gini", "-", "users", "keep_users")
    return None


def _derived(
    info: MetricInfo,
    name: str,
    function: str,
    direction: Direction,
    kind: Kind,
    need: str,
    options: Mapping[str, Any] | None = None,
) -> MetricInfo:
    also_needs = (*info.also_needs, need)
    return replace(
        info,
        name=name,
        function=function,
        direction=direction,
        population="groups" if kind == "user_groups" else info.population,
        kind=kind,
        options=options or {},
        also_needs=also_needs,
        base=info.name,
    )
