"""Files that a command is given, read as a data source's are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from recpeft.errors import RecpeftError


@contextlib.contextmanager
def given(path: Path, what: str, *, folder: bool = False) -> Iterator[None]:
    """Within it, errors of the reader are without its hints at keys under data, which are for a data source's files.

    Args:
        what: is to be given, ``a file of recommendations``.
        folder: whether a folder of parts will do.
    Raises:
        RecpeftError: there is no such file, and what the reader finds.
    """
    if not (path.exists() if folder else path.is_file()):
        raise RecpeftError(f"there is no file {path}; give {what}.")
    try:
        yield
    except RecpeftError as error:
        raise RecpeftError(re.sub(r", or set data\.\w+: [^;.]*", "", str(error))) from None
