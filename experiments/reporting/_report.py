"""A report, before it is written as a kind of file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.reporting._table import Column, Row


@dataclass(frozen=True)
class Report:
    """All that is shown, whatever the kind of file."""

    monitor: str
    rows: list[Row]
    """Runs that differ in their seed alone are one."""
    runs: list[Row]
    """Each run by itself, in the same order."""
    names: list[Column]
    quality: list[Column]
    costs: list[Column]
    notes: list[str]
    sentences: list[str]
    """A sentence a pair, and what holds for all of them."""
    failed: list[dict[str, Any]]
    """Records of runs without a result."""
