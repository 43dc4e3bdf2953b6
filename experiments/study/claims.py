"""Claim runs: a process locks a run's file while it works on it, and the system releases a dead process's lock."""

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
    """Return the file that a process keeps locked while it executes the run of ``folder``."""
    return folder.path.parent / f".{folder.path.name}.lock"


@contextmanager
def claim(folder: RunFolder) -> Iterator[bool]:
    """Claim the run of ``folder``; yield whether this process got it. The system ends a dead process's claim."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock, so it allows one process per study
        yield True
        return
    if processes.number() > 0:  # the first process holds it for all
        yield True
        return
    path = lock_path(folder)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(10):  # is_running in another process holds the lock for a moment too
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
        file.close()  # its holder has removed it meanwhile, and another process may hold its successor
    else:
        yield False
        return
    with file:
        if processes.several() and isinstance(read_record(folder), FailedRecord):
            folder.record.unlink()  # so that the first process to fail now records its error
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def is_running(folder: RunFolder) -> bool:
    """Return whether a living process on this machine executes the run of ``folder``."""
    try:
        import fcntl

        file = lock_path(folder).open("r")
    except (ImportError, OSError):
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # network disks need write access for LOCK_EX
        except BlockingIOError:
            return True
        except OSError:  # this disk has no locks; claim warns of it
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
