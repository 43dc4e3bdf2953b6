"""The report as one HTML page, which needs no network and no other file."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from experiments.reporting._figures import Plot
from experiments.reporting._runs import leaves, one_line
from experiments.reporting._table import Column, Row
from recpeft import __version__

if TYPE_CHECKING:
    from experiments.reporting._report import Report

_ALARMS = ("NOT COMPARABLE", "CAREFUL", "failed")
"""Prefixes of notes that are shown as warnings."""


def html(report: Report, plots: list[Plot]) -> str:
    """Return the page. All values from records, including names and titles, are escaped and never markup."""
    from jinja2 import PackageLoader
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        loader=PackageLoader("experiments.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["one_line"] = one_line
    runs = [row.first for row in report.runs]
    names = [column for column in report.names if any(cell.text != "–" for cell in column.cells)]
    return environment.get_template("page.html").render(
        title=", ".join(dict.fromkeys(run.study or run.record.config.study for run in runs)),
        report=report,
        tables={
            title: names + [column for column in columns if _has_values(column)]
            for title, columns in (
                ("overview", report.overview),
                ("quality", report.quality),
                ("cost", report.costs),
            )
        },
        filters=[column for column in names if len({cell.text for cell in column.cells}) > 1],
        notes=[(note, note.startswith(_ALARMS)) for note in report.notes],
        plots=[(plot, _data_url(plot)) for plot in plots],
        runs=[(run.label + ("" if run.seed is None else f", seed {run.seed}"), run.record.json_values) for run in runs],
        rows=[row.first.label for row in report.rows],
        differences=_differences(report.rows),
        version=__version__,
    )


def _has_values(column: Column) -> bool:
    return any(cell.value is not None for cell in column.cells)


def _data_url(plot: Plot) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.svg.encode()).decode()}"


def _differences(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """Return the dotted keys at which configs differ, each with every row's value: its seeds, a value, or nothing.

    A row without the key's section does not count as differing; rankers, for example, have no prompt.
    """
    configs = [dict(leaves(row.first.record.config.json_values)) for row in rows]
    for config, row in zip(configs, rows, strict=True):
        if "seed" in config:
            config["seed"] = ", ".join(str(run.seed) for run in row.runs)
    found = []
    for key in dict.fromkeys(key for config in configs for key in config):
        section = key.partition(".")[0]
        concerned = [row.first.record.config.json_values.get(section) is not None for row in rows]
        values = [_show(config[key]) if key in config else "" for config in configs]
        if len({value for value, concerns in zip(values, concerned, strict=True) if concerns}) > 1:
            found.append((key, values))
    return found


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
