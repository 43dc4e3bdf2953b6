"""Write the report as text: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from experiments.reporting._pairs import EFFECT
from experiments.reporting._runs import one_line
from experiments.reporting._table import Cell, Column, Row, numbers
from recpeft import terminal
from recpeft.errors import printable

if TYPE_CHECKING:
    from experiments.reporting._report import Report

SCREEN = 100
"""Width in characters that the printed tables fit into."""

MOST_DIFFERENCES = 20
"""Maximum number of rows in the printed table of differences."""


def print_report(report: Report) -> None:
    """Print the table and the largest differences, on one screen."""
    names = [Column("method", [Cell(row.first.title, None) for row in report.rows])]
    if any(row.first.width != "–" for row in report.rows):
        names.append(Column("width", [Cell(row.first.width, None) for row in report.rows]))
    _print_table(names + report.overview, len(names))
    if any(column.header.endswith("± 95%") for column in report.overview):
        _print("± is half of the 95% interval. The files have all columns; --columns NAME,NAME prints others.")
    for note in report.notes:
        _print(note)
    if report.differences:
        columns = [column for column in report.difference_columns[1:] if column.header != EFFECT]
        columns.insert(0, Column("compared", [Cell(one.short, None) for one in report.differences]))
        _print_table([Column(column.header, column.cells[:MOST_DIFFERENCES]) for column in columns], 1)
        if len(report.differences) > MOST_DIFFERENCES:
            left = len(report.differences) - MOST_DIFFERENCES
            _print(f"These are the largest; {left} smaller differences are in report.md and on the page.")
        for note in report.about_differences:
            _print(note)


def _print_table(columns: list[Column], names: int) -> None:
    """Print a table whose first ``names`` columns may wrap; numbers never do."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        words = printable(column.header.replace("_", " "))
        wide = max(len(text) for text in (*words.split(" "), *(cell.text for cell in column.cells)))
        wrap: dict[str, Any] = {"overflow": "fold"} if place < names else {"no_wrap": True, "justify": "right"}
        table.add_column(Text("\n".join(textwrap.wrap(words, wide))), vertical="bottom", **wrap)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(printable(cell.text)) for cell in cells))
    console = terminal.console()
    # A pipe or a log file has no width, so use SCREEN; the minimum keeps numbers from being cut.
    width = max(console.width if console.is_terminal else SCREEN, console.measure(table).minimum)
    terminal.console(width=width).print(table)


def _print(note: str) -> None:
    """Print a line, wrapped between words in a terminal and unbroken in a pipe."""
    console = terminal.console()
    console.print(note, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def markdown(report: Report) -> str:
    """Return Markdown with all columns in one table, the notes, and the differences."""
    parts = [_markdown_table(report.names + report.quality + report.costs), _markdown_list(report.notes)]
    if report.differences:
        parts += [_markdown_table(report.difference_columns), _markdown_list(report.about_differences)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: list[Column]) -> str:
    def line(values: Iterable[str]) -> str:
        return "| " + " | ".join(_plain(value).replace("|", r"\|") for value in values) + " |"

    table = [line(column.header for column in columns), line("---" for _ in columns)]
    table += [line(cell.text for cell in cells) for cells in zip(*(column.cells for column in columns), strict=True)]
    return "\n".join(table)


def _markdown_list(notes: list[str]) -> str:
    return "\n".join(f"- {_plain(note)}" for note in notes)


def _plain(text: str) -> str:
    """Return text in one line, with HTML tags and backslashes escaped, which Markdown would interpret."""
    return re.sub(r"\\|<(?=[A-Za-z/!?])", r"\\\g<0>", one_line(text))


def csv_of_runs(rows: list[Row], monitor: str) -> str:
    """Return CSV with every number in full precision, one line per run.

    Args:
        rows: rows of one run each.
    """
    lines = [
        {
            **_study(row),
            "run_id": row.first.record.run_id,
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
    """Return CSV with one line per value: mean, sample standard deviation and number of runs over a row's seeds."""
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
    """Prefix text that a spreadsheet would run as a formula with an apostrophe, so that it is shown literally."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
