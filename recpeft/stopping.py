"""A wish to stop, by signal or by a file, heard at once and answered where a run can go on from later.

Handlers are set before heavy imports, which take seconds: a cluster may send its signal while they last.
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
"""Of a process that stopped and can go on: sysexits' EX_TEMPFAIL, "try again later"."""

STAY_STOPPED = 3
"""Exit code of a job array's cell that ``recpeft stop`` ended: whoever requeues cells leaves it alone."""

STOP_FILE = ".stop"
"""In a study's folder, it asks those who run the study to stop."""

_heard: str | None = None
_files: list[Path] = []


class Interrupted(RecpeftError):
    """The run was asked to stop and did; the same command goes on from its last checkpoint."""


class _Ended(BaseException):
    """A signal that ends the process."""

    def __init__(self, number: int) -> None:
        self.number = number


def unwind(command: Callable[[], object]) -> None:
    """Call ``command``; a SIGTERM, or a terminal's end, ends the process once files that are half written are removed.

    Where ``command`` listens, it answers SIGTERM itself.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # once more ends at once
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
    """Hear Ctrl-C, SIGTERM and, where there is one, SIGUSR1 from now on.

    Args:
        second_ends: a second Ctrl-C or SIGTERM ends the process as ever. A SIGTERM not so under SLURM: of a preempted
            job both slurmstepd and srun send one, and SIGKILL ends what does not stop in time.
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
    """Ask this process to stop."""
    global _heard
    _heard = who


def watch(files: Iterable[Path], clear: bool = True) -> None:
    """Stop where one of ``files`` comes to be there; to ``clear`` them is to go on where others were stopped."""
    _files[:] = files
    for file in _files if clear else ():
        if file.exists():  # or a disk that may not be written would refuse what need not be done
            with disk_errors(file):
                file.unlink(missing_ok=True)


def asked() -> str | None:
    """Who asked to stop, as the file says it if it says anything; None while nobody has."""
    if _heard is not None:
        return _heard
    for file in _files:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text(encoding="utf-8") or "recpeft stop"
    return None


def asked_by_file() -> bool:
    """Whether ``recpeft stop`` asked, whatever signal came too."""
    return any(file.exists() for file in _files)


def stop(kept: str) -> NoReturn:
    """Raise ``Interrupted``.

    Args:
        kept: what is kept, as a clause.
    """
    raise Interrupted(f"stopped by {asked() or 'another process'}; {kept}; the same command goes on from there.")
