"""Compute the table's numbers, and format its columns."""

from __future__ import annotations

import difflib
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.config.monitor import cut_of, direction_of
from experiments.records.layout import FinishedRecord, TrainingPart
from experiments.reporting._runs import Run, leaves
from metrics.catalog import Direction, find
from recpeft.errors import RecpeftError, cut

_COSTS = {
    "trainable": ("trainable", 1),
    "adapter MB": ("adapter_bytes", 2**20),
    "optimiser MB": ("optimizer_bytes", 2**20),
    "backbone MB": ("backbone_bytes", 2**20),
    "peak MB": ("peak_memory_bytes", 2**20),
    "steps": ("steps", 1),
    "best step": ("best_step", 1),
    "tokens": ("tokens_seen", 1),
    "train s": ("train_seconds", 1),
    "train tokens/s": ("train_tokens_per_second", 1),
    "test tokens/s": ("test_tokens_per_second", 1),
    "total s": ("wall_seconds", 1),
}
"""Header in the displayed table -> (column of report.csv, unit)."""

_ALWAYS = ("ndcg", "recall", "hit_rate", "mrr", "item_coverage", "gini", "novelty", "ild_jaccard")

_BEYOND = ("item_coverage", "ild_jaccard", "novelty", "gini")
"""Metrics for the overview, which shows the first two that were measured."""

_OVERVIEW_COSTS = ("trainable", "peak MB", "train s")


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed; in report.csv a single run."""

    runs: list[Run]
    values: dict[str, Any]
    """Means over the runs, but maxima for bytes; None if a run has no value."""
    sd: dict[str, float]
    """Sample standard deviations over the runs, if there are several and all have a value."""
    low: float
    """Lower end of the monitored metric's 95% interval over users; NaN if it has no interval."""
    high: float

    @property
    def first(self) -> Run:
        return self.runs[0]

    def end(self, key: str) -> tuple[float, float] | None:
        """Return a value's interval over users from the record; None if the row has several runs."""
        return ends_of(self.first.record, key) if len(self.runs) == 1 else None


class Cell(NamedTuple):
    text: str
    value: float | str | None
    """Value to sort by; None if there is none."""


class Column(NamedTuple):
    header: str
    cells: list[Cell]
    better: Literal["higher", "lower", ""] = ""


def fold(runs: list[Run], monitor: str, ends: np.ndarray) -> Row:
    """Combine runs that differ only in their seed into a row.

    Args:
        ends: (2,) ends of the monitored metric's interval.
    """
    every = [numbers(run.record) for run in runs]
    together: dict[str, list[Any]] = {key: [values.get(key) for values in every] for key in every[0]}
    means = {
        key: None if None in values else max(values) if key.endswith("bytes") else statistics.mean(values)
        for key, values in together.items()
    }
    sd = {key: statistics.stdev(v) for key, v in together.items() if len(v) > 1 and None not in v}
    low, high = ends.tolist()
    return Row(runs, {monitor: means[monitor]} | means, sd, low, high)


def numbers(record: FinishedRecord) -> dict[str, Any]:
    """Return all numbers of a record's results, metrics first."""
    training, backbone = record.training or TrainingPart(), record.backbone
    return {
        **dict(sorted(record.test.items(), key=_metric_order)),
        "trainable": record.parameters.trainable,
        "adapter_parameters": record.parameters.adapter,
        "total_parameters": record.parameters.total,
        **{key: getattr(training, key) for key in ("steps", "best_step", "tokens_seen")},
        "linear_bytes": backbone and backbone.linear_bytes,
        "backbone_bytes": backbone and backbone.bytes,
        **{key: value for key, value in record.costs.json_values.items() if key != "finished"},
    }


def ends_of(record: FinishedRecord, key: str) -> tuple[float, float] | None:
    """Return the ends of a value's interval over users."""
    found = record.intervals.get(key)
    return None if found is None or found.low is None or found.high is None else (found.low, found.high)


def _metric_order(item: tuple[str, Any]) -> tuple[int, str]:
    name, _, k = item[0].rpartition("@")
    cut = k.partition("/")[0]
    return (int(cut) if cut.isdigit() else 0, name or item[0])


def name_columns(rows: list[Row]) -> list[Column]:
    """Return the columns that identify a row."""
    columns = [
        Column("method", [Cell(row.first.name, row.first.name) for row in rows]),
        Column("width", [Cell(row.first.width, row.first.width) for row in rows]),
    ]
    if any(row.first.study for row in rows):
        columns.insert(0, Column("study", [Cell(row.first.study, row.first.study) for row in rows]))
    return columns


def quality_columns(rows: list[Row], monitor: str) -> list[Column]:
    """Return the quality columns: the monitored metric with its interval over users, then others at its cut-off."""
    columns = [Column(f"{monitor} [95%]", [_monitored(row, monitor) for row in rows], _better(monitor))]
    if any(row.sd for row in rows):
        columns.append(_seeds(rows))
    for key, header in _metrics(rows, monitor).items():
        columns.append(Column(header, [_metric(row, key) for row in rows], _better(key)))
    return columns


def cost_columns(rows: list[Row]) -> list[Column]:
    """Return the cost columns."""
    return [
        Column(header, [Cell(_amount(row.values.get(key), unit), row.values.get(key)) for row in rows])
        for header, (key, unit) in _COSTS.items()
    ]


def overview(rows: list[Row], monitor: str, columns: Sequence[str] = ()) -> list[Column]:
    """Return the columns of the one-screen table that follow the rows' names.

    Args:
        columns: names of columns to show instead: a metric (as in ``report.csv``, or without its cut-off), a cost (as
            in ``report.csv`` or in the table of costs), ``seeds``, or a key of the configs.
    Raises:
        RecpeftError: no row has a column of that name.
    """
    cut = cut_of(monitor, rows[0].first.record.config.json_values)
    measured = {key for row in rows for key, value in row.values.items() if value is not None}
    if not columns:
        beyond = [f"{name}@{cut}" for name in _BEYOND if f"{name}@{cut}" in measured - {monitor}]
        columns = [monitor, *beyond[:2], *(name for name in _OVERVIEW_COSTS if _COSTS[name][0] in measured)]
    return [_named_column(rows, monitor, name.strip(), cut) for name in columns]


def _named_column(rows: list[Row], monitor: str, name: str, cut: str) -> Column:
    values = [row.values for row in rows]
    headers = {key: header for header, (key, _) in _COSTS.items()}
    key = next(
        (key for key in (name, f"{name}@{cut}") if any(key in of for of in values)), _COSTS.get(name, (name,))[0]
    )
    if key == monitor:
        return _overview_quality(rows, monitor)
    if key in headers and any(key in of for of in values):
        return next(column for column in cost_columns(rows) if column.header == headers[key])
    if any(key in of for of in values):
        cells = [Cell(_short(row, key), row.values.get(key)) for row in rows]
        return Column(key.removesuffix(f"@{cut}"), cells, _better(key))
    if name == "seeds":
        return _seeds(rows)
    configs = [dict(leaves(row.first.record.config.json_values)) for row in rows]
    if any(name in config for config in configs):
        found = ["–" if (value := config.get(name)) is None else str(value) for config in configs]
        return Column(name, [Cell(text, None if text == "–" else text) for text in found])
    raise _no_column(name, rows, cut, [key for config in configs for key in config])


def _no_column(name: str, rows: list[Row], cut_off: str, keys: list[str]) -> RecpeftError:
    plain = [key.removesuffix(f"@{cut_off}") for row in rows for key in row.values if "=" not in key]
    allowed = [key for key in dict.fromkeys([*plain, "seeds"]) if "@" not in key]
    close = difflib.get_close_matches(name, dict.fromkeys([*allowed, *plain, *_COSTS, *keys]), 1)
    hint = f", did you mean {close[0]}? Allowed" if close else "; allowed"
    return RecpeftError(
        f"--columns: {cut(name)!r} is no value of these records{hint} are {', '.join(allowed)}, any other "
        "column of report.csv, and keys of the configs such as backbone.width."
    )


def _overview_quality(rows: list[Row], monitor: str) -> Column:
    """Return the monitored metric ± half of its 95% interval, with the decimals that the intervals justify (max. 4)."""
    halves = [(row.high - row.low) / 2 for row in rows]
    apart = [half for half in halves if half > 1e-4]  # neither NaN nor next to 0
    digits = min(4, max(_decimals(max(apart), 2), _decimals(min(apart), 1))) if apart else 4

    def told(value: float | None, half: float) -> str:
        if value is None:
            return "–"
        return f"{value:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    values = [row.values.get(monitor) for row in rows]
    cells = [Cell(told(value, half), value) for value, half in zip(values, halves, strict=True)]
    return Column(monitor if all(map(math.isnan, halves)) else f"{monitor} ± 95%", cells, _better(monitor))


def _decimals(value: float, significant: int) -> int:
    """Return the number of decimals at which ``value`` has ``significant`` significant digits."""
    return max(0, significant - 1 - math.floor(math.log10(value)))


def _short(row: Row, key: str) -> str:
    """Return a value with its interval as short text."""
    value, ends = row.values.get(key), row.end(key)
    if value is None or isinstance(value, str):
        return value or "–"
    if ends is not None:
        return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _seeds(rows: list[Row]) -> Column:
    seeds = [len({run.seed for run in row.runs} - {None}) for row in rows]
    return Column("seeds", [Cell(str(number or "–"), number or None) for number in seeds])


def gaps(rows: list[Row], cut: str) -> list[str]:
    """Return the keys of the NDCG gaps between groups of users."""
    pattern = re.compile(rf"ndcg_gap_[^=]*@{re.escape(cut)}")
    return sorted({key for row in rows for key in row.values if pattern.fullmatch(key)})


def _metrics(rows: list[Row], monitor: str) -> dict[str, str]:
    """Return key -> header of the metrics shown beside the monitored one."""
    cut = cut_of(monitor, rows[0].first.record.config.json_values)
    headers = {f"{name}@{cut}": name for name in _ALWAYS}
    for row in rows:
        for name in row.first.record.config.evaluation.metrics:
            headers |= {key: key.partition("@")[0].partition("/")[0] for key in _keys(name, cut, row.values)}
    headers |= {key: key.rpartition("@")[0] for key in gaps(rows, cut)}
    headers.pop(monitor, None)
    return headers


def _keys(name: str, cut: str, values: dict[str, Any]) -> list[str]:
    """Return the keys of a metric: at the cut-off, for each attribute, or without a cut-off."""
    stamp = cut.partition("/")[2]
    plain = (f"{name}@{cut}", f"{name}/{stamp}" if stamp else name)
    info = find(name)
    of_groups = info is not None and info.kind in ("user_groups", "item_groups", "scores")
    spread = re.compile(rf"{name}_[^=@]*(@{re.escape(cut)})?")
    return [key for key in values if key in plain or (of_groups and spread.fullmatch(key))]


_BETTER: dict[Direction, Literal["higher", "lower", ""]] = {"+": "higher", "-": "lower", "0": ""}


def _better(key: str) -> Literal["higher", "lower", ""]:
    return _BETTER[direction_of(key)]


def _monitored(row: Row, monitor: str) -> Cell:
    """Return the monitored metric's cell, with its interval if it has one."""
    text = _with_sd(row, monitor, 4)
    return Cell(text if np.isnan(row.low) else f"{text} [{row.low:.3f}, {row.high:.3f}]", row.values[monitor])


def _metric(row: Row, key: str) -> Cell:
    ends = row.end(key)
    interval = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
    return Cell(_with_sd(row, key, 3) + interval, row.values.get(key))


def _with_sd(row: Row, key: str, digits: int) -> str:
    value = row.values.get(key)
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (f" ± {row.sd[key]:.{digits}f}" if key in row.sd else "")


def _amount(value: float | None, unit: int) -> str:
    """Format an amount as a whole number, or with three digits if it is small in its unit."""
    if value is None:
        return "–"
    return f"{value / unit:,.0f}" if unit == 1 or value >= 100 * unit else f"{value / unit:.3g}"
