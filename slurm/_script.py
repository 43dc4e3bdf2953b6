"""The sbatch text of a study, made by a pure function, so that it can be read before it runs and tested as text."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, StringConstraints, ValidationError, field_validator

from recpeft.config import Config
from recpeft.errors import RecpeftError, cut, shortened, shown
from recpeft.reading import read_yaml

SITE_VARIABLE = "RECPEFT_SLURM"
"""Environment variable with the path of a site's YAML file of ``Options``."""

INTERRUPTED = 75
"""Exit code of a cell that saved and stopped on request: sysexits.h's EX_TEMPFAIL, "try again"."""

CELL_MODULE = "experiments.cli"


def _in_quotes(value: object) -> object:
    if isinstance(value, int | float):
        # YAML 1.1 reads 4:00:00 in base 60, as 14400, which SLURM would take for ten days of minutes.
        raise ValueError("YAML reads a number here; put it in quotes, such as '4:00:00'")
    return value


# Characters of partitions, accounts, gres and memory: no spaces, quotes or shell metacharacters. pydantic uses Rust's
# regular expressions, in which $ matches only the end of the text.
Word = Annotated[str, BeforeValidator(_in_quotes), StringConstraints(pattern=r"^[A-Za-z0-9._:,=@+\-]+$")]
Duration = Annotated[
    str,
    BeforeValidator(_in_quotes),
    StringConstraints(pattern=r"^(\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d(:\d\d)?)?)$"),
]


class Options(Config):
    """Resources that a cell requests from the cluster; most are sbatch's option of the same name."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    gres: Word | None = None
    """Generic resources, such as ``gpu:1``."""
    time: Duration | None = None
    """Time limit of one start of a cell, as SLURM writes it: ``90`` (minutes), ``4:00:00``, ``1-12``. None is the
    partition's."""
    mem: Word | None = None
    """Memory per node, such as ``16G``."""
    cpus_per_task: PositiveInt | None = None
    max_parallel: PositiveInt | None = None
    """Maximum number of cells that run at a time; None is as many as the cluster allows."""
    signal_seconds: PositiveInt = 120
    """Seconds before the time limit at which a cell is told to save and stop; SLURM may do so up to a minute earlier
    (sbatch(1))."""
    max_requeues: NonNegativeInt = 5
    """Maximum number of times that a cell that saved returns to the queue; SLURM counts preemptions too. It stops a
    cell that makes no progress within its time limit."""
    nodes: PositiveInt = 1
    ntasks_per_node: PositiveInt = 1
    """Processes per node; under Lightning one per GPU."""
    extra: tuple[str, ...] = ()
    """Further sbatch options, each as on its command line: ``--constraint=a100``."""
    setup: tuple[str, ...] = ()
    """Lines of bash that run before the cell, such as ``module load cuda``; a failing line fails the cell."""

    @field_validator("extra")
    @classmethod
    def _one_option_a_line(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            if not line.startswith("-") or not line.isprintable():
                raise ValueError(f"{line!r} is no sbatch option on one line; write for example --constraint=a100")
            name = re.split(r"[=\s]", line, maxsplit=1)[0]
            if name in _OURS:
                raise ValueError(f"{name} is set by recpeft; {_OURS[name]}")
        return lines

    @field_validator("setup")
    @classmethod
    def _no_zero_bytes(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in line for line in lines):
            raise ValueError("a line holds a zero byte; leave it out")
        return lines


_OURS = {
    "--array": "give max_parallel",
    "-a": "give max_parallel",
    "--signal": "give signal_seconds",
    "--output": "logs go into the study's folder",
    "-o": "logs go into the study's folder",
    "--error": "logs go into the study's folder",
    "-e": "logs go into the study's folder",
    "--chdir": "a cell runs where it was submitted",
    "-D": "a cell runs where it was submitted",
    "--requeue": "give max_requeues",
    "--no-requeue": "give max_requeues",
    "--open-mode": "logs are appended to",
    "--job-name": "it is the study's name",
    "-J": "it is the study's name",
    "--wrap": "a script is submitted",
    "--parsable": "it is there already",
}


def read_options(site: Path | None = None, given: Mapping[str, Any] | None = None) -> Options:
    """Return the site's default options, overridden by those in ``given``.

    Args:
        site: YAML file of ``Options``; None is ``$RECPEFT_SLURM``, or no defaults if that is unset.
        given: values by name; None values are ignored.
    Raises:
        RecpeftError: a value is invalid; names the file, the key and what is allowed.
    """
    if site is None and os.environ.get(SITE_VARIABLE):
        site = Path(os.environ[SITE_VARIABLE]).expanduser()
    defaults = _read_site(site) if site else {}
    if site:
        _validated(defaults, f"{site}: ")  # so that the error names the file with the mistake
    return _validated({**defaults, **{key: value for key, value in (given or {}).items() if value is not None}}, "")


def _validated(values: dict[str, Any], where: str) -> Options:
    try:
        return Options(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RecpeftError(
                f"{where}unknown SLURM option {cut(key)}; allowed: {', '.join(Options.model_fields)}."
            ) from None
        message = shortened(first["msg"].removeprefix("Value error, "), first["input"])
        if first["type"] == "string_pattern_mismatch":
            message = "it has signs that SLURM does not take here"
            if key == "time":
                message = "write minutes, hours:minutes:seconds or days-hours"
        raise RecpeftError(f"{where}SLURM's {key} is {shown(first['input'])}: {message}.") from None


def _read_site(path: Path) -> dict[str, Any]:
    content = read_yaml(path, f"a YAML of SLURM options, or unset {SITE_VARIABLE}")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecpeftError(f"{path} holds no mapping of keys to values; write for example partition: gpu.")
    return content


def array_text(indices: Sequence[int], max_parallel: int | None = None) -> str:
    """Return ``indices`` as sbatch's ``--array`` takes them: ``0-2,5``, with ``%4`` for at most 4 at a time."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    text = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)
    return f"{text}%{max_parallel}" if max_parallel else text


def cell_command(python: str, manifest: Path) -> list[str]:
    """Return the command that runs a cell of ``manifest``; the script appends the cell's index."""
    # -P: a folder named experiments or metrics in the working directory must not shadow recpeft's.
    return [python, "-P", "-m", CELL_MODULE, "slurm", "cell", str(manifest)]


def sbatch_text(
    study: str,
    array: str,
    command: Sequence[str],
    options: Options,
    logs: Path,
    working_directory: Path,
) -> str:
    """Return the sbatch script of the job array that runs a study's cells.

    USR1 tells a cell to save and stop before its time limit; it then exits with 75 and returns to the queue,
    at most ``options.max_requeues`` times.

    Args:
        study: name of the study and of the job.
        array: indices of the cells, from ``array_text``.
        command: program and arguments of a cell; the index is appended. See ``cell_command``.
        logs: existing folder; ``<index>.txt`` is the log of all starts of a cell.
        working_directory: absolute path.
    Raises:
        RecpeftError: sbatch would not accept the array or a path.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*(%[1-9]\d*)?", array):
        raise RecpeftError(f"{array!r} is no list of cells; write for example 0-2,5.")
    lines = [
        ("job-name", study),
        ("array", array),
        ("partition", options.partition),
        ("account", options.account),
        ("qos", options.qos),
        ("gres", options.gres),
        ("time", options.time),
        ("mem", options.mem),
        ("nodes", options.nodes),
        ("ntasks-per-node", options.ntasks_per_node),
        ("cpus-per-task", options.cpus_per_task),
        ("chdir", working_directory),
        # sbatch replaces %a by the index; a % in the path itself must be doubled.
        ("output", f"{str(logs).replace('%', '%%')}/%a.txt"),
        ("open-mode", "append"),
        ("signal", f"USR1@{options.signal_seconds}"),
    ]
    directives = [f"#SBATCH --{name}={_directive(str(value))}" for name, value in lines if value is not None]
    directives += ["#SBATCH --requeue", *(f"#SBATCH {line}" for line in options.extra)]
    # Since SLURM 22.05 srun does not inherit this option from the batch job.
    cpus = [f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []
    step = shlex.join(["srun", "--kill-on-bad-exit=1", *cpus, *command])
    setup = "".join(f"{line}\n" for line in options.setup)
    return f"""#!/bin/bash
{chr(10).join(directives)}

cell="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
starts_before="${{SLURM_RESTART_COUNT:-0}}"
node="${{SLURMD_NODENAME:-$HOSTNAME}}"
export SLURM_EXPORT_ENV=ALL  # of this script to its step, also where --export=NONE kept the submitter's from the job
echo "recpeft: cell $SLURM_ARRAY_TASK_ID, job $cell, start $((starts_before + 1)), $(date '+%F %T') on $node"

# The signals are the cell's, which runs as a step under srun; bash only must outlive them.
signalled='' terminated=''
trap 'signalled=1' USR1
trap 'signalled=1; terminated=1' TERM
{f"{chr(10)}set -e{chr(10)}{setup}set +e{chr(10)}" if setup else ""}
{step} "$SLURM_ARRAY_TASK_ID" &
step=$!
# A signal ends wait before the step has ended; waited for again, bash still knows the step's exit code, or says 127.
code=127
while true; do
    signalled=''
    wait "$step" 2>/dev/null
    ended=$?
    [ "$ended" -eq 127 ] || code=$ended
    [ -z "$signalled" ] && ! kill -0 "$step" 2>/dev/null && break
done

# 75: saved. 138: USR1 came before the cell could hear it, so there was nothing to save.
if [ "$code" -ne {INTERRUPTED} ] && [ "$code" -ne 138 ]; then
    exit "$code"
fi
if [ "$starts_before" -ge {options.max_requeues} ]; then
    echo "recpeft: interrupted, and requeued {options.max_requeues} times before; recpeft slurm resubmit goes on"
    exit "$code"
fi
# SLURM requeues a preempted job itself, and a cancelled one must stay so. At its time limit a job is merely ended.
case "$(squeue --noheader --states=all --format='%T %r' --jobs="$cell" 2>/dev/null)" in
    'RUNNING '* | *' TimeLimit') ;;
    '') [ -z "$terminated" ] || exit "$code" ;;
    *) exit "$code" ;;
esac
# The task's own id: $SLURM_JOB_ID is, in the array's last task, the id of the whole array. Requeueing ends this
# script with TERM, and must not end scontrol before it has answered.
trap '' TERM
for pause in 5 15 0; do
    scontrol requeue "$cell" && exit 0
    sleep "$pause"
done
exit "$code"
"""


def _directive(value: str) -> str:
    """Quote ``value`` for an ``#SBATCH`` line, where sbatch interprets only double quotes and backslashes."""
    if not value.isprintable():
        raise RecpeftError(f"{value!r} cannot stand in an sbatch script; choose a path without control characters.")
    if "\\" in value or '"' in value:
        # In a log's path, sbatch reads a backslash as "no %a here".
        raise RecpeftError(f'{value!r} cannot stand in an sbatch script; choose a path without \\ and ".')
    return value if re.fullmatch(r"[A-Za-z0-9._:,=@+%/\-]+", value) else f'"{value}"'
