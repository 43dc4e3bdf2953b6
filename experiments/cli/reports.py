"""Commands for a study's table: report writes it, and evaluate adds another system's row to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.cli.options import Debug, Out, Overrides
from recpeft.errors import DiskError, RecpeftError
from recpeft.terminal import say


def report(
    directories: Annotated[list[Path], typer.Argument(help="Studies' folders, such as runs/quickstart.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder for the report; of one study it is the study's own unless given."),
    ] = None,
    compare: Annotated[
        Literal["references", "all"],
        typer.Option(help="What each cell is compared with: all is every other cell too."),
    ] = "references",
    correction: Annotated[
        Literal["holm", "bh"],
        typer.Option(help="For the number of comparisons: by Holm, or by Benjamini and Hochberg."),
    ] = "holm",
    columns: Annotated[
        str | None,
        typer.Option(help="Values of the printed table, such as recall,mrr,test_tokens_per_second."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the table of one or several studies and write it as Markdown, LaTeX, CSV and an HTML page with plots."""
    from experiments.reporting import write_report

    try:
        chosen = () if columns is None else columns.split(",")
        write_report(*directories, to=to, compare=compare, correction=correction, columns=chosen)
    except DiskError as error:
        raise DiskError(f"{error} --to names a folder for the report's files.") from error


def evaluate(
    recommendations: Annotated[
        Path,
        typer.Option(
            "--recommendations", help="Lists in CSV, TSV or Parquet: columns user, item, and rank (from 1) or score."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Experiment YAML whose data and evaluation are meant.")],
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The row's name in the table; by default the file's.")
    ] = None,
    out: Out = Path("runs"),
    debug: Debug = False,
) -> None:
    """Judge another system's lists, so that it appears beside the runs in a study's table."""
    from experiments.config.grid import load_runs

    first, *others = load_runs(data, overrides or [])
    if any((other.data, other.evaluation) != (first.data, first.evaluation) for other in others):
        say(f"{data}: runs differ in data or evaluation; those of the first are taken, --set gives others")

    from experiments.finished.judge import judge, read_lists

    lists = read_lists(recommendations, name)
    try:
        record = judge(lists, first, out)
    except DiskError:
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{data}: {error}") from error
    monitor = record["monitor"]
    value = "–" if record["test"][monitor] is None else f"{record['test'][monitor]:.4f}"
    say(f"{record['method']}: test {monitor} {value}, in {out / first.study / record['run_id']}")
