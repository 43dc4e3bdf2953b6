"""Read the name of a monitored value: its terms, its direction, and the length at which its lists are cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metrics.catalog import Direction, find


def terms_of(monitor: str) -> dict[str, float]:
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
    if len(terms_of(name)) > 1:
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
