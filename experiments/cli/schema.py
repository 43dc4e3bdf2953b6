"""Commands ``recpeft schema``: the JSON Schema of files."""

from __future__ import annotations

import json

import typer

from experiments.cli.options import Debug


def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of experiment files, by which an editor completes and checks a YAML as it is typed."""
    from experiments.config.schema import experiment_schema

    typer.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))
