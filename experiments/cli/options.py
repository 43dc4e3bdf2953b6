"""Command-line arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recpeft import trust

File = Annotated[Path, typer.Argument(help="Experiment YAML, such as experiments/configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value over the file's; a dotted key, a YAML value.")
]
Study = Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all studies' records.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=1024, help="Runs at a time, which share out the threads. [default: one a GPU, else 1]"
    ),
]
Mixed = Annotated[
    bool, typer.Option("--mixed-versions", help="Add to a study whose runs other versions of libraries have made.")
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        help="What a record or manifest may run: a dotted module, remote-code:MODEL, or setup (its bash); repeatable.",
        callback=lambda names: trust.allow(names or []),
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
