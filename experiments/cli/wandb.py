"""Commands ``recpeft wandb``: mirror runs to Weights & Biases."""

from __future__ import annotations

from typing import Annotated

import typer

from experiments.cli.options import Debug, Study
from recpeft.terminal import say


def push(
    directory: Study,
    timeout: Annotated[float, typer.Option(help="Seconds that sending one run may take.", min=1, max=86_400)] = 60.0,
    debug: Debug = False,
) -> None:
    """Send a study's finished runs from W&B's offline folders; runs that were sent before are skipped."""
    from experiments.trackers.wandb import push as send

    sent, before = send(directory, timeout)
    say(f"{directory}: {len(sent)} runs sent{f', {before} were sent before' if before else ''}")
