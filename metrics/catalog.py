"""Catalogue of all metrics by name; each file of this package declares its own in ``METRICS``.

It is read without importing torch, to check experiment files and label tables. ``find("ndcg_gap")`` also finds
derived metrics.
"""

from __future__ import annotations

import importlib

from metrics._info import Direction, MetricInfo
from metrics.fairness import SPREADS
from recpeft import plugins

__all__ = ["DEFAULT_NAMES", "METRICS", "SPREADS", "Direction", "MetricInfo", "collect", "find"]

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
"""Metrics that are always measured."""


def collect() -> dict[str, MetricInfo]:
    """Return the metrics of all files of this package."""
    files = (importlib.import_module(f"metrics.{name}") for name in plugins.names("metrics") if name != "catalog")
    return {info.name: info for file in files for info in getattr(file, "METRICS", ())}


METRICS = collect()
"""All metrics by name; of those that lists are enough for, accuracy stands first."""


def find(name: str) -> MetricInfo | None:
    """Return the metric of this name, derived ones included; None if there is none.

    Derived from a per-user metric are ``ndcg_gap`` (see ``SPREADS``), ``ndcg_cvar50`` (the mean of the 50 % of the
    users who are served worst) and ``ndcg_user_gini``.
    """
    if name in METRICS:
        return METRICS[name]
    for place, letter in enumerate(name):
        base = METRICS.get(name[:place]) if letter == "_" else None
        if base is not None and base.kind == "per_user":
            for spread in SPREADS:
                found = spread.of(base, name[place + 1 :])
                if found is not None:
                    return found
    return None
