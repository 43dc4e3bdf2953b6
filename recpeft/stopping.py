"""Stop requests, by signal or file: noted at once, obeyed where the run can resume later.

Handlers are set before heavy imports, which take seconds: a cluster may send its signal during them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from recpeft.errors import RecpeftError
from recpeft.files import disk_errors

EXIT_CODE = 75
"""Exit code of a process that stopped and can resume: sysexits' EX_TEMPFAIL, "try again later"."""

STAY_STOPPED = 3
"""Exit code of a job array's cell that ``recpeft stop`` ended; such a cell is not requeued."""

STOP_FILE = ".stop"
"""Name of the file in a study's folder that asks the study's processes to stop."""

_heard: str | None = None
_files: list[Path] = []


class Interrupted(RecpeftError):
    """The run stopped on request; the same command resumes from its last checkpoint."""


class _Ended(BaseException):
    """A signal that ends the process."""

    def __init__(self, number: int) -> None:
        self.number = number


def unwind(command: Callable[[], object]) -> None:
    """Call ``command``; SIGTERM or a closed terminal ends the process after partly written files are removed.

    A ``command`` that calls ``listen`` handles SIGTERM itself.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise _Ended(number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, end)
    try:
        command()
    except _Ended as ended:
        os.kill(os.getpid(), ended.number)


def listen(second_ends: bool = True) -> None:
    """Treat Ctrl-C, SIGTERM and, where it exists, SIGUSR1 as stop requests from now on.

    Args:
        second_ends: a second SIGTERM ends the process at once, as a second Ctrl-C always does. False under SLURM: both
            slurmstepd and srun send SIGTERM to a preempted job, and SIGKILL ends what does not stop in time.
    """

    def note(number: int, _: FrameType | None) -> None:
        ask(signal.Signals(number).name)
        if number == signal.SIGTERM and second_ends:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b"\nCtrl-C: the step is saved first; once more ends at once\n")  # print may not be called here

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), note)


def ask(who: str) -> None:
    """Ask this process to stop, on behalf of ``who``."""
    global _heard
    _heard = who


def watch(files: Iterable[Path], clear: bool = True) -> None:
    """Treat the appearance of one of ``files`` as a stop request; ``clear`` removes the files of earlier requests."""
    _files[:] = files
    for file in _files if clear else ():
        if file.exists():  # else a read-only disk would refuse a removal that is not needed
            with disk_errors(file):
                file.unlink(missing_ok=True)


def asked() -> str | None:
    """Return the source of the stop request, from the file's content if it has any; None without a request."""
    if _heard is not None:
        return _heard
    for file in _files:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text(encoding="utf-8") or "recpeft stop"
    return None


def asked_by_file() -> bool:
    """Return whether ``recpeft stop`` made a request, with or without a signal as well."""
    return any(file.exists() for file in _files)


def stop(kept: str) -> NoReturn:
    """Raise ``Interrupted``.

    Args:
        kept: clause that says what is kept.
    """
    raise Interrupted(f"stopped by {asked() or 'another process'}; {kept}; the same command goes on from there.")
