"""The command line: table of commands, error handling and exit codes.

Heavy imports wait until a command needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from experiments.cli import data, finished, reports, runs, schema, slurm, wandb
from recpeft import stopping
from recpeft.errors import RecpeftError, cut, printable
from recpeft.terminal import guard, say

app = typer.Typer(
    help="Compare parameter-efficient fine-tuning methods, bit widths and backbones for text recommendation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(runs.run)
app.command()(runs.plan)
app.command()(schema.schema)
app.command()(runs.retry)
app.command()(runs.status)
app.command()(runs.stop)
app.command()(reports.report)
app.command()(reports.evaluate)
app.command()(finished.export)
app.command()(finished.recommend)
app.command()(finished.certify)


def _group(name: str, says: str, *commands: Callable[..., None]) -> None:
    """Add the commands ``recpeft <name> …``."""
    group = typer.Typer(help=says, no_args_is_help=True)
    for command in commands:
        group.command()(command)
    app.add_typer(group, name=name)


_group("data", "Fetch and describe data sets.", data.fetch, data.describe)
_group(
    "slurm",
    "Run a study as a SLURM job array.",
    slurm.submit,
    slurm.status,
    slurm.resubmit,
    slurm.cell,
    slurm.trials,
)
_group("wandb", "Mirror runs to Weights & Biases.", wandb.push)


def main() -> NoReturn:
    """Run the command line; a user's error prints one sentence and exits with code 2."""
    answer(app)


def answer(command: Callable[[], object]) -> NoReturn:
    """Call ``command`` and exit; a user's error prints one sentence and exits with code 2."""
    # Threads that wait by spinning are several times slower when one of two cores is busy with another
    # process (benchmarks/wait_policy.py). Importing torch reads this; the user's own setting wins.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from recpeft.installation import check_installation

    guard()

    try:
        _refuse_control_characters(sys.argv[1:])
        check_installation()
        stopping.unwind(command)
    except RecpeftError as error:
        if "--debug" in sys.argv:
            say(traceback.format_exc(), error=True)
        say(f"recpeft: {error}", error=True)
        sys.exit(stopping.EXIT_CODE if isinstance(error, stopping.Interrupted) else 2)
    except OSError as error:  # for example a name that is too long, or an unreadable folder
        if error.filename is None or "--debug" in sys.argv:
            raise
        say(f"recpeft: {cut(str(error.filename))}: {error.strerror}; give another path.", error=True)
        sys.exit(2)
    sys.exit(0)


def _refuse_control_characters(arguments: list[str]) -> None:
    """Raise ``RecpeftError`` if an argument has control characters, which a terminal would obey when printing it."""
    for number, argument in enumerate(arguments, 1):
        if printable(argument) != argument:
            raise RecpeftError(
                f"argument {number}, {cut(argument)}, has a control character, or bytes that are no UTF-8; write it "
                "without."
            )
