"""What a record may have run: recpeft's own plug-ins, and what the user names with ``--trust``.

A record, a study's plan and a manifest are data that others may have made. A config read from one is built within
``data_alone``, where code that it names (a module outside recpeft, a model's own Python) is refused unless trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from recpeft.errors import RecpeftError, shown

REMOTE_CODE = "remote-code"
"""Stands for the Python code that comes with a model (backbone.trust_remote_code): any model's, or with its name behind
it, as in ``remote-code:org/model``, that one's."""

SETUP = "setup"
"""Stands for the lines of bash and the options of sbatch that a manifest puts into a job's script."""

_VARIABLE = "RECPEFT_TRUST"  # in the environment, so that processes which a command starts know it too
_OWN: set[str] = set()
"""What configs that are no record's have named in this process: the user's own, which records of them name too."""
_SOURCE: ContextVar[Path | None] = ContextVar("source", default=None)


def allow(names: Iterable[str]) -> None:
    """Trust each of ``names``, in this process and in those that it starts: dotted modules or ``REMOTE_CODE``."""
    os.environ[_VARIABLE] = "\n".join(sorted({*_allowed(), *names}))  # a model's folder may have a comma in its name


def _allowed() -> set[str]:
    return set(os.environ.get(_VARIABLE, "").split("\n")) - {""}


@contextmanager
def data_alone(source: Path) -> Iterator[None]:
    """Within it, configs are read from ``source``, which somebody else may have written."""
    before = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(before)


def check(name: str, what: str) -> None:
    """Refuse code that a record asks for.

    Args:
        name: what ``--trust`` would have to name.
        what: it is, such as "the module my_package.my_loss".
    Raises:
        RecpeftError: a config is read from a record, and ``name`` is neither trusted nor in the user's own configs.
    """
    source = _SOURCE.get()
    if source is None:
        _OWN.add(name)
    elif not {name, name.partition(":")[0]} & (_allowed() | _OWN):
        raise RecpeftError(
            f"{source} asks to run {what}, and it may be another's; if you trust it, add --trust {shown(name)[1:-1]}."
        )
