"""Parse the name of a monitored value: its terms, its direction and its cut-off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metrics.catalog import Direction, find


def terms_of(monitor: str) -> dict[str, float]:
    """Return the metrics in ``0.8*ndcg@10 - gini@10`` with their weights; empty if it cannot be parsed."""
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
    """Return the direction of a metric named as in a record (``ndcg_gap_gender@10``); "+" for a weighted sum."""
    if len(terms_of(name)) > 1:
        return "+"
    base = name.partition("@")[0].partition("/")[0]  # without the stamp of the candidates
    while base:
        info = find(base)
        if info is not None:
            return info.direction
        base = base.rpartition("_")[0]  # drop a trailing group attribute
    return "+"


def lower_is_better(name: str) -> bool:
    """Return whether the metric's direction is "-"."""
    return direction_of(name) == "-"


def cut_of(monitor: str, config: Mapping[str, Any]) -> str:
    """Return the cut-off of ``monitor`` with its candidates' stamp: ``10``, ``10/uniform100``.

    Args:
        monitor: name as in a record; one without a cut-off gets the largest of ``evaluation.k``.
        config: a run's config.
    """
    found = re.search(r"@(\d+)", monitor)  # the first one in a weighted sum
    _, slash, stamp = monitor.partition("/")
    return f"{found[1] if found else max(config['evaluation']['k'])}{slash}{stamp}"
