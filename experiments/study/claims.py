"""Who runs what: a process holds a run's file locked while it works on it, and the system lets go of a dead one's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from experiments.records.layout import FailedRecord
from experiments.records.record import RunFolder, read_record
from recpeft import processes
from recpeft.files import disk_errors
from recpeft.terminal import say


def lock_path(folder: RunFolder) -> Path:
    """The file that a process holds locked while it runs what belongs into ``folder``."""
    return folder.path.parent / f".{folder.path.name}.lock"


@contextmanager
def claim(folder: RunFolder) -> Iterator[bool]:
    """Whether this process alone may run what belongs into ``folder``; the system ends a dead one's claim."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock: there, one process a study
        yield True
        return
    if processes.number() > 0:  # the first process holds it for all
        yield True
        return
    path = lock_path(folder)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(10):  # a look at who runs what (is_running) holds it for a moment too
        with disk_errors(path):
            file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            time.sleep(0.02)
            continue
        except OSError as error:
            file.close()
            path.unlink()
            _warn_of_no_locks(path.parent, str(error.strerror))
            yield True
            return
        if _is_there(file, path):
            break
        file.close()  # who had it has removed it meanwhile, and another may hold the one that is there now
    else:
        yield False
        return
    with file:
        if processes.several() and isinstance(read_record(folder), FailedRecord):
            folder.record.unlink()  # so that of the processes that fail now the first tells why
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def is_running(folder: RunFolder) -> bool:
    """Whether a living process on this machine runs what belongs into ``folder``."""
    try:
        import fcntl

        file = lock_path(folder).open("r")
    except (ImportError, OSError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # network disks let no reader lock others out
        except BlockingIOError:
            return True
        except OSError:  # no locks here, as claim says
            return False
        return False


@cache
def _warn_of_no_locks(study: Path, error: str) -> None:
    say(
        f"{study} is on a disk without locks ({error}), so nothing keeps two runners from running a cell "
        "twice: start one at a time.",
        error=True,
    )


def _is_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
