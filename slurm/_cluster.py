"""Calls of sbatch, squeue, scancel and scontrol. ``sacct`` is not used, since many sites have no accounting."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recpeft.errors import RecpeftError


@dataclass(frozen=True)
class QueueState:
    """State of an array task in squeue."""

    state: str
    """SLURM's state: PENDING, RUNNING, COMPLETING, …"""
    reason: str
    """SLURM's reason for waiting: Priority, Resources, BeginTime, …; ``None`` is SLURM's word for no reason."""
    job_id: str
    """Job id of the array."""


def most_tasks(environment: Mapping[str, str] | None = None) -> int | None:
    """Return the maximum number of tasks in a job array (SLURM's MaxArraySize); None if SLURM cannot be asked."""
    try:
        text = _run(["scontrol", "show", "config"], environment)
    except RecpeftError:
        return None
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)\s*$", text, re.MULTILINE)
    return int(found[1]) or None if found else None  # 0 means no arrays at all, which sbatch reports itself


def submit(script: Path, environment: Mapping[str, str] | None = None) -> str:
    """Submit ``script`` with sbatch and return the array's job id.

    Raises:
        RecpeftError: there is no sbatch, or it refuses; with its own message.
    """
    answer = _run(["sbatch", "--parsable", str(script.absolute())], environment).strip()
    # In a federation the cluster's name follows: 123;cluster.
    job_id = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not job_id.isdecimal():
        raise RecpeftError(
            f"sbatch answered {answer!r} instead of a job id; see squeue whether {script} was submitted."
        )
    return job_id


def queue(job_ids: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[int, QueueState]:
    """Return the waiting and running array tasks by index; a later job in ``job_ids`` overrides an earlier one.

    Raises:
        RecpeftError: there is no squeue, or it refuses; with its own message.
    """
    found: dict[int, QueueState] = {}
    for job_id in job_ids:
        command = ["squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%F|%K|%T|%r"]
        try:
            text = _run(command, environment)
        except RecpeftError as error:
            # SLURM forgets a job some minutes after its end, and squeue rejects a single unknown id.
            if "Invalid job id" in str(error):
                continue
            raise
        found |= parse_queue(text)
    return found


def parse_queue(text: str) -> dict[int, QueueState]:
    """Parse squeue's ``%F|%K|%T|%r`` lines; waiting tasks may share one line, ``[4-7%2]``."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 3)
        if len(fields) != 4:
            continue
        job_id, expression, state, reason = fields
        for index in expand_array(expression):
            found[index] = QueueState(state, reason, job_id)
    return found


def expand_array(expression: str) -> list[int]:
    """Return the indices of SLURM's array expression: ``4``, ``0-2,5``, ``[4-7%2]``, ``0-6:2``, ``123_[4-7%2]``.

    Raises:
        RecpeftError: ``expression`` is not an array expression.
    """
    text = expression.rpartition("_")[2].strip("[]").partition("%")[0]
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise RecpeftError(f"{expression!r} is no list of array tasks; SLURM writes for example 0-2,5.")
        first, last, step = match.groups()
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def cancel(job_id: str, indices: Sequence[int] | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Cancel an array, or only its tasks ``indices``.

    Raises:
        RecpeftError: there is no scancel, or it refuses; with its own message.
    """
    if indices is not None and not indices:
        return
    jobs = [job_id] if indices is None else [f"{job_id}_{index}" for index in indices]
    _run(["scancel", *jobs], environment)


def _run(command: list[str], environment: Mapping[str, str] | None) -> str:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise RecpeftError(
            f"there is no {command[0]} on PATH; run this on a machine of a SLURM cluster (load its module, if any), "
            "or use recpeft run."
        ) from None
    if done.returncode:
        words = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise RecpeftError(f"{command[0]} refused: {words or f'exit code {done.returncode}'}.")
    return done.stdout
