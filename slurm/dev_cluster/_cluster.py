"""Start and stop munged, slurmctld and slurmd, with their own keys, ports and state in one folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from recpeft.errors import RecpeftError
from recpeft.files import disk_errors, write_text

NODE = "dev1"
_DAEMONS = ("slurmd", "slurmctld", "munged")
"""Daemons, in the order in which they are stopped."""
_TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_SOCKET_LENGTH = 100
"""Maximum length of the socket's path, below a Unix socket's 108 bytes: munge keeps a lock file beside the socket."""

_STARTED: dict[int, subprocess.Popen[bytes]] = {}
"""Daemons that this process started, by pid; it must wait for them, or they remain as zombies."""


def missing() -> list[str]:
    """Return the programs that a development cluster needs and that are not installed."""
    return [name for name in (*_DAEMONS, *_TOOLS) if _program(name) is None]


def up(folder: Path) -> dict[str, str]:
    """Start a cluster in ``folder`` and wait until its node is idle.

    Returns:
        Environment for users of the cluster.
    Raises:
        RecpeftError: programs are missing, a cluster runs there already, or a daemon does not start (names its log).
    """
    lacking = missing()
    if lacking:
        raise RecpeftError(
            f"a development cluster needs {', '.join(lacking)}; install Debian's slurmctld, slurmd, slurm-client "
            "and munge."
        )
    folder = folder.absolute()
    running = [name for name in _DAEMONS if _running(folder, name)]
    if running:
        raise RecpeftError(f"{running[0]} runs in {folder} already; python -m slurm.dev_cluster down ends it.")
    if len(os.fsencode(folder / "munge.socket")) > _SOCKET_LENGTH:
        raise RecpeftError(
            f"{folder} is too long a path for a Unix socket; choose a folder of less than {_SOCKET_LENGTH - 13} bytes."
        )
    if not str(folder).isascii() or set(str(folder)) & set(" \t\n,#=\"'\\[]%"):
        raise RecpeftError(f"{folder} cannot stand in slurm.conf; choose a folder without spaces or signs.")
    _prepare(folder)
    try:
        _start(folder, "munged", "--foreground", *_munge_options(folder))
        _wait(folder, "munged", (folder / "munge.socket").is_socket)
        # Under these names: the libraries look at the program's name to see whether a daemon reads slurm.conf;
        # under Debian's other name, slurmctld-wlm, a node has no gres.
        _start(folder, "slurmctld", "-D", "-i")
        _start(folder, "slurmd", "-D", "-N", NODE)
        _wait(folder, "slurmctld", lambda: _node_is_idle(folder))
    except BaseException:
        down(folder)
        raise
    return environment(folder)


def down(folder: Path) -> bool:
    """Cancel the jobs and end the cluster's daemons, by their pid files; return False if none ran."""
    folder = folder.absolute()
    running = [name for name in _DAEMONS if _running(folder, name)]
    if {"slurmctld", "slurmd"} <= set(running):
        _cancel_all(folder)
    for name in running:
        _end(folder, name)
    for name in _DAEMONS:
        _pid_file(folder, name).unlink(missing_ok=True)
    return bool(running)


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment with the cluster in ``folder`` as the target of SLURM's commands."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH_"))}
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), _SYSTEM_PATH])
    return {**inherited, "PATH": path, "SLURM_CONF": str(folder.absolute() / "slurm.conf")}


def release(job: str, environment: Mapping[str, str]) -> None:
    """Let a requeued job (``12_3``) start now; SLURM would delay it for two minutes.

    Raises:
        RecpeftError: scontrol refuses; with its message.
    """
    command = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RecpeftError(f"scontrol did not release {job}: {done.stderr.strip()}; see squeue.")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster during the block and yield the environment for its users."""
    try:
        yield up(folder)
    finally:
        down(folder)


def _prepare(folder: Path) -> None:
    """Write a new cluster's files and delete those of an earlier cluster (jobs, logs)."""
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("state", "spool"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(mode=0o755)
        for log in folder.glob("*.log"):
            log.unlink()
        for number in range(2):  # SLURM numbers devices by the digits at the end of their name
            device = folder / f"gpu{number}"
            device.unlink(missing_ok=True)
            device.symlink_to(os.devnull)
        key = folder / "munge.key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (folder / "munge.socket").unlink(missing_ok=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    controller, node = _free_ports(2)
    write_text(folder / "slurm.conf", conf_text(folder, user, socket.gethostname(), controller, node))
    write_text(folder / "gres.conf", f"NodeName={NODE} Name=gpu File={folder}/gpu[0-1]\n")


def conf_text(folder: Path, user: str, host: str, controller_port: int, node_port: int) -> str:
    """Return the text of ``slurm.conf``; every address is 127.0.0.1, so the host's name need not resolve."""
    host = host.partition(".")[0]
    return f"""\
ClusterName=recpeft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
# The scheduler looks every second, and no more than every 0.1 s (microseconds here).
SchedulerParameters=sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
InactiveLimit=0
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={NODE} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=8 RealMemory=16000 Gres=gpu:2
PartitionName=main Nodes={NODE} Default=YES MaxTime=60 PriorityTier=1
PartitionName=high Nodes={NODE} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


def _munge_options(folder: Path) -> list[str]:
    return [
        # Without it, parent folders closed to other users (pytest's are) are an error; here one user owns everything.
        "--force",
        f"--socket={folder}/munge.socket",
        f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munged.pid",
        f"--seed-file={folder}/munge.seed",
        "--num-threads=1",
    ]


def _program(name: str) -> str | None:
    """Find a program on PATH or in ``sbin``, which holds the daemons and is not on every user's PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), _SYSTEM_PATH]))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start(folder: Path, name: str, *arguments: str) -> None:
    program = _program(name)
    assert program is not None
    # In its own session, so that Ctrl-C for the test does not reach it.
    with (folder / f"{name}.out.log").open("w") as output:
        process = subprocess.Popen(
            [program, *arguments],
            executable=program,
            env=environment(folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _STARTED[process.pid] = process
    # A daemon writes its own pid file only once it is up; one that hangs before that must be ended as well.
    _pid_file(folder, name).write_text(f"{process.pid}\n")


def _wait(folder: Path, name: str, ready: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end or not _running(folder, name):
            output = folder / f"{name}.out.log"
            last = next((line for line in reversed(output.read_text().splitlines()) if line), "it says nothing")
            raise RecpeftError(f"{name} did not come up ({last}); see the logs in {folder}.")
        time.sleep(0.05)


def _node_is_idle(folder: Path) -> bool:
    command = ["sinfo", "--noheader", "--format=%T"]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    return done.returncode == 0 and "idle" in done.stdout


def _cancel_all(folder: Path) -> None:
    """Cancel all jobs and wait up to 10 s for their end, so that none of their processes outlives the cluster."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", f"--user={user}"], env=environment(folder), capture_output=True, timeout=10)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            command = ["squeue", "--noheader"]
            done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=10)
            if done.returncode or not done.stdout.strip():
                break
            time.sleep(0.1)


def _pid_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def _running(folder: Path, name: str) -> int | None:
    """Return the daemon's process id if its pid file names a live process of that name, else None."""
    try:
        pid = int(_pid_file(folder, name).read_text())
    except (OSError, ValueError):
        return None
    return pid if _lives(pid, name) else None


def _lives(pid: int, name: str) -> bool:
    """Return whether the process is alive and has that name: after a reboot another program may have its number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    command, _, rest = text.partition("(")[2].rpartition(")")
    return rest.split()[0] != "Z" and command == name


def _end(folder: Path, name: str) -> None:
    pid = _running(folder, name)
    if pid is None:
        return
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        end = time.monotonic() + seconds
        while _lives(pid, name) and time.monotonic() < end:  # its pid file disappears before the process does
            time.sleep(0.02)
        if not _lives(pid, name):
            break
    started = _STARTED.pop(pid, None)
    if started is not None:
        started.wait(timeout=5)
