"""The report as text: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.reporting._runs import one_line
from experiments.reporting._table import Column, Row, numbers
from recpeft.errors import printable

NOT_PRINTED = ("optimiser MB", "steps", "best step", "tokens", "total s")
"""Costs for which a terminal and a page of paper are too narrow."""


def print_tables(names: list[Column], quality: list[Column], costs: list[Column], notes: list[str]) -> None:
    """Two tables, quality and cost, since one is wider than most terminals."""
    # A pipe or a log file has no width of its own; nothing may be cut there.
    console = Console(width=None if Console().is_terminal else 250)
    for columns in (quality, [column for column in costs if column.header not in NOT_PRINTED]):
        shown = names + columns
        table = Table(*[escape(printable(column.header.replace("_", " "))) for column in shown])
        for cells in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*(Text(printable(cell.text)) for cell in cells))
        console.print(table)
    for note in notes:
        console.print(printable(note), markup=False, highlight=False)


def markdown(columns: list[Column], notes: list[str]) -> str:
    def line(values: Iterable[str]) -> str:
        return "| " + " | ".join(_plain(value).replace("|", r"\|") for value in values) + " |"

    table = [line(column.header for column in columns), line("---" for _ in columns)]
    table += [line(cell.text for cell in cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    return "\n".join([*table, "", *[f"- {_plain(note)}" for note in notes]]) + "\n"


def _plain(text: str) -> str:
    """In one line, and as it is: Markdown takes HTML in a name for HTML, and a backslash for an escape."""
    return re.sub(r"\\|<(?=[A-Za-z/!?])", r"\\\g<0>", one_line(text))


def csv_of_runs(rows: list[Row], monitor: str) -> str:
    """Every number in full, one line a run.

    Args:
        rows: of one run each.
    """
    lines = [
        {
            **_study(row),
            "run_id": row.first.record["run_id"],
            "seed": row.first.seed,
            "method": row.first.name,
            "width": row.first.width,
            monitor: row.values[monitor],
            f"{monitor} 95% low": row.low,
            f"{monitor} 95% high": row.high,
            **row.values,
        }
        for row in rows
    ]
    return _csv(lines)


def csv_of_means(rows: list[Row]) -> str:
    """Mean, sample standard deviation and number of runs of every value over a row's seeds, one line a value."""
    lines = []
    for row in rows:
        every = [numbers(run.record) for run in row.runs]
        for key in row.values:
            values = [found[key] for found in every if found.get(key) is not None]
            if values:
                name = {"method": row.first.name, "width": row.first.width, "value": key}
                sd = statistics.stdev(values) if len(values) > 1 else None
                lines.append({**_study(row), **name, "mean": statistics.mean(values), "sd": sd, "n": len(values)})
    return _csv(lines)


def _study(row: Row) -> dict[str, str]:
    return {"study": row.first.study} if row.first.study else {}


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """Return text that a spreadsheet would take for a formula behind an apostrophe, which has it shown as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
