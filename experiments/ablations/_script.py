"""Command line that the ablation scripts share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from experiments.cli.app import answer
from experiments.cli.options import Debug, Out, Overrides, Workers
from recpeft import stopping

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"

Base = Annotated[
    Path, typer.Option("--base", help="Experiment YAML that is changed.", show_default="quickstart.yaml, ML-100K")
]


def script(ablation: Callable[[Path, list[str], Path, int | None], int]) -> NoReturn:
    """Run the command line of ``ablation(base, overrides, out, workers)``, which returns how many runs failed.

    As with ``recpeft run``, finished runs are skipped, interrupted ones resume, and a mistake prints one sentence.
    """

    def command(
        base: Base = QUICKSTART,
        overrides: Overrides = None,
        out: Out = Path("runs"),
        workers: Workers = None,
        debug: Debug = False,
    ) -> None:
        stopping.listen()  # before the imports that take seconds

        import polars as pl

        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, tbl_hide_column_data_types=True):
            if ablation(base, overrides or [], out, workers):
                raise typer.Exit(1)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=sys.modules[ablation.__module__].__doc__)(command)
    answer(app)
