"""Reports on studies, from their records alone.

``_runs.py`` reads the records, ``_table.py`` makes rows and columns of them, ``_pairs.py`` compares rows, ``_notes.py``
writes notes for readers; ``_text.py``, ``_latex.py``, ``_figures.py`` and ``_html.py`` each write one kind of file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.records.layout import FailedRecord
from experiments.reporting._latex import latex
from experiments.reporting._notes import write_notes
from experiments.reporting._pairs import Compare, difference_columns, differences, find_pairs, mean
from experiments.reporting._report import Report
from experiments.reporting._runs import Run, pooled, read, seeds_together
from experiments.reporting._table import cost_columns, fold, name_columns, overview, quality_columns
from experiments.reporting._text import csv_of_means, csv_of_runs, markdown, print_report
from experiments.reporting.statistics import Correction, intervals
from recpeft.errors import RecpeftError
from recpeft.files import write_text
from recpeft.terminal import say


def write_report(
    *directories: Path | str,
    to: Path | str | None = None,
    page: bool = True,
    compare: Compare = "references",
    correction: Correction = "holm",
    columns: Sequence[str] = (),
) -> None:
    """Print the table of the studies in ``directories`` and write it as Markdown, LaTeX, CSV and an HTML page.

    Runs that differ only in their seed share one row of the table, and have one line each in ``report.csv``.

    Args:
        to: folder for all files; None is the directory itself, if there is only one.
        page: write ``report.html`` and ``figures/`` too, which takes some seconds.
        compare: ``references`` compares each cell with the references, ``all`` with every other cell too. More
            comparisons require larger differences, so choose before you look.
        correction: correction for the number of comparisons, explained in ``experiments.reporting.statistics.adjust``.
        columns: values for the printed table instead of the default ones, such as ``recall@10``; the files have all.
    Raises:
        RecpeftError: there are several directories and no ``to``, or no record has a column; see also ``read``.
    """
    if to is None:
        if len(directories) != 1:
            raise RecpeftError(
                f"{len(directories)} folders are reported together and --to is missing; give the folder for the "
                "report's files, such as --to reports/comparison."
            )
        to = directories[0]
    to = Path(to)
    runs, failed = read([Path(path) for path in directories])
    report = make_report(runs, failed, compare, correction, columns)
    print_report(report)
    files = {
        "report.md": markdown(report),
        "report.csv": csv_of_runs(report.runs, report.monitor),
        "report_means.csv": csv_of_means(report.rows),
        "report.tex": latex(report, _caption(runs)),
    }
    for name, text in files.items():
        write_text(to / name, text)
    written = list(files)
    if page:
        from experiments.reporting._figures import draw, write_figures
        from experiments.reporting._html import html

        figures = draw(report)
        write_figures(figures, to / "figures")
        write_text(to / "report.html", html(report, figures))
        written += ["figures", "report.html"]
    say(f"Written into {to}: {', '.join(written)}")
    if page:
        say(f"The page: {to / 'report.html'}")


def make_report(
    runs: list[Run],
    failed: list[FailedRecord],
    compare: Compare = "references",
    correction: Correction = "holm",
    columns: Sequence[str] = (),
) -> Report:
    """Return the report on ``runs``, one or more, which share one monitored metric."""
    monitor = runs[0].record.monitor
    grouped = seeds_together(runs)
    pairs = find_pairs(grouped, compare)
    values = [run.values for run in runs] + [mean(row) for row in grouped] + [pair.values for pair in pairs]
    # Pooled metrics are already bootstrap replicates; users' values still have to be resampled.
    bounds = (
        np.nanquantile(values, [0.025, 0.975], axis=1).T if pooled(monitor) else intervals(np.stack(values, axis=1))
    )
    of_runs, of_rows, of_pairs = np.split(bounds, [len(runs), len(runs) + len(grouped)])
    rows = [fold(row, monitor, ends) for row, ends in zip(grouped, of_rows, strict=True)]
    notes = write_notes([run.record for run in runs], failed)
    if any(row.sd for row in rows):
        notes.append(
            "a row is the mean over its seeds (of bytes, the largest), and its interval is over users, of each user's "
            "mean over the seeds; the files have the sample standard deviation over seeds too, and report.csv every run"
        )
    found, about = differences(pairs, of_pairs, monitor, compare, correction)
    return Report(
        monitor=monitor,
        rows=rows,
        runs=[fold([run], monitor, ends) for run, ends in zip(runs, of_runs, strict=True)],
        names=name_columns(rows),
        overview=overview(rows, monitor, columns),
        quality=quality_columns(rows, monitor),
        costs=cost_columns(rows),
        notes=notes,
        differences=found,
        difference_columns=difference_columns(found, monitor, correction),
        about_differences=about,
        failed=failed,
    )


def _caption(runs: list[Run]) -> str:
    studies = dict.fromkeys(run.study or run.record.config.study for run in runs)
    data = dict.fromkeys(run.record.data.name for run in runs)
    return f"{', '.join(studies)} on {', '.join(data)}"
