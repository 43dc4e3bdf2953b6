"""Communication between the processes of one cell; with a single process, nothing is sent and nothing waits.

``torch.distributed`` is used only if torch has been imported, so importing this module is cheap.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TypeVar

Value = TypeVar("Value")


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Treat this process as the only one within the block, for work it does while the others wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def several() -> bool:
    """Return whether the cell has more than one process."""
    return count() > 1


def count() -> int:
    """Return the number of processes of the cell."""
    if _alone:
        return 1
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def number() -> int:
    """Return this process's number within the cell, from 0."""
    return 0 if count() == 1 else int(sys.modules["torch.distributed"].get_rank())


def gathered(value: Value) -> list[Value]:
    """Return every process's ``value`` in process order; all must call this, with values that can be pickled."""
    if count() == 1:
        return [value]
    everyones: list[Value] = [value] * count()
    sys.modules["torch.distributed"].all_gather_object(everyones, value)
    return everyones


def of_first(value: Value) -> Value:
    """Return the first process's ``value``; all processes must call this."""
    if count() == 1:
        return value
    held = [value]
    sys.modules["torch.distributed"].broadcast_object_list(held, src=0)
    return held[0]


def wait() -> None:
    """Wait until all processes have called this."""
    if count() > 1:
        sys.modules["torch.distributed"].barrier()
