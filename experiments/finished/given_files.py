"""Check files given to a command and adapt the errors of the data-source reader to them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from recpeft.errors import RecpeftError


@contextlib.contextmanager
def given(path: Path, what: str, *, folder: bool = False) -> Iterator[None]:
    """Remove hints at keys under ``data`` from the reader's errors in this context; they concern data sources only.

    Args:
        what: description of the expected file, such as ``a file of recommendations``.
        folder: whether a folder of parts is accepted too.
    Raises:
        RecpeftError: there is no such file, or the reader fails.
    """
    if not (path.exists() if folder else path.is_file()):
        raise RecpeftError(f"there is no file {path}; give {what}.")
    try:
        yield
    except RecpeftError as error:
        raise RecpeftError(re.sub(r", or set data\.\w+: [^;.]*", "", str(error))) from None
