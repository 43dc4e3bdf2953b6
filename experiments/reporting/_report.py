"""Contents of a report, independent of the file format."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.records.layout import FailedRecord
from experiments.reporting._pairs import Difference
from experiments.reporting._table import Column, Row


@dataclass(frozen=True)
class Report:
    """Everything that a report shows, in any file format."""

    monitor: str
    rows: list[Row]
    """Rows of the table; runs that differ only in their seed share one."""
    runs: list[Row]
    """One row for each run, in the same order."""
    names: list[Column]
    overview: list[Column]
    """Columns of the printed table, which fits on one screen."""
    quality: list[Column]
    costs: list[Column]
    notes: list[str]
    differences: list[Difference]
    """Differences between compared rows, the largest first."""
    difference_columns: list[Column]
    about_differences: list[str]
    """Notes that hold for all differences."""
    failed: list[FailedRecord]
    """Records of runs without a result."""
