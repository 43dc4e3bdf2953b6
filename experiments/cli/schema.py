"""Command ``recpeft schema``: JSON Schemas of experiment files and records."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from experiments.cli.options import Debug
from recpeft.terminal import say_json


def schema(
    of: Annotated[
        Literal["experiment", "record"], typer.Argument(help="Experiment files, or result.json.")
    ] = "experiment",
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of experiment files, with which editors complete and check YAML, or that of records."""
    if of == "record":
        from experiments.records.layout import record_schema as found
    else:
        from experiments.config.schema import experiment_schema as found

    say_json(found())
