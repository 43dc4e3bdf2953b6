"""A report, before it is written as a kind of file."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.records.layout import FailedRecord
from experiments.reporting._pairs import Difference
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
    overview: list[Column]
    """The few columns of the table on one screen."""
    quality: list[Column]
    costs: list[Column]
    notes: list[str]
    differences: list[Difference]
    """Of the rows that belong together, the largest first."""
    difference_columns: list[Column]
    about_differences: list[str]
    """What holds for all of them."""
    failed: list[FailedRecord]
    """Records of runs without a result."""
