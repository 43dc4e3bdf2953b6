"""What the processes of one cell do together; where there is one alone, nothing is sent and nothing waits.

``torch.distributed`` is asked only where torch has been imported, so that this module costs nothing.
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
    """Within it this process is all there are: for what one does on its own while the others wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def several() -> bool:
    """Whether the cell has other processes too."""
    return count() > 1


def count() -> int:
    """How many processes the cell has."""
    if _alone:
        return 1
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def number() -> int:
    """Which of them this one is, from 0."""
    return 0 if count() == 1 else int(sys.modules["torch.distributed"].get_rank())


def gathered(value: Value) -> list[Value]:
    """Every process's ``value``, in their order; all must call it, and the values can be pickled."""
    if count() == 1:
        return [value]
    everyones: list[Value] = [value] * count()
    sys.modules["torch.distributed"].all_gather_object(everyones, value)
    return everyones


def of_first(value: Value) -> Value:
    """The first process's ``value``; all must call it."""
    if count() == 1:
        return value
    held = [value]
    sys.modules["torch.distributed"].broadcast_object_list(held, src=0)
    return held[0]


def wait() -> None:
    """Return once all processes have come here."""
    if count() > 1:
        sys.modules["torch.distributed"].barrier()
