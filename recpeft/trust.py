"""The code that a record may run: recpeft's own plug-ins, and what the user names with ``--trust``.

Others may have written a record, a study's plan or a manifest. A config read from one is built within
``data_alone``, which refuses code that it names (a module outside recpeft, a model's own Python) unless trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from recpeft.errors import RecpeftError, shown

REMOTE_CODE = "remote-code"
"""Name for the Python code that comes with any model (backbone.trust_remote_code); ``remote-code:org/model`` names
the code of one model."""

SETUP = "setup"
"""Name for the lines of bash and the sbatch options that a manifest puts into a job's script."""

_VARIABLE = "RECPEFT_TRUST"  # in the environment, so that child processes inherit it
_OWN: set[str] = set()
"""Code that the user's own configs, not records, have named in this process; records of these runs name it too."""
_SOURCE: ContextVar[Path | None] = ContextVar("source", default=None)


def allow(names: Iterable[str]) -> None:
    """Trust ``names`` (dotted modules, ``REMOTE_CODE`` or ``SETUP``) in this process and its child processes."""
    os.environ[_VARIABLE] = "\n".join(sorted({*_allowed(), *names}))  # a model's folder may have a comma in its name


def _allowed() -> set[str]:
    return set(os.environ.get(_VARIABLE, "").split("\n")) - {""}


@contextmanager
def data_alone(source: Path) -> Iterator[None]:
    """Treat configs built within the block as read from ``source``, which somebody else may have written."""
    before = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(before)


def check(name: str, what: str) -> None:
    """Refuse code that a record asks for.

    Args:
        name: the name that ``--trust`` would need.
        what: description of the code, such as "the module my_package.my_loss".
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
