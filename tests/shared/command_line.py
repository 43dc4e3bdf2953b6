"""The command line in processes that import nothing, for tests of what a process of its own does.

A fresh interpreter imports torch, transformers and Lightning for seven seconds. Here one server imports them once, and
each command is a fork of it: a process with its own id, environment, folder and exit code, which signals end. Each
command has a few forks of itself in reserve, which become the Python processes that it starts, its children all the
same. Tests of what is imported, and of other interpreters' code, start a fresh interpreter.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT / "tests" / "experiments"), str(ROOT)])
"""Where plug-ins such as ``outside.kills_itself`` are found, by processes that a command starts too."""

# Asking CUDA itself how many GPUs there are, as imports do, would leave none to the server's forks.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["experiments.cell.train", "experiments.study.search", "experiments.study.workers", "experiments.reporting", "peft"]
)


class Command:
    """A running command; its standard error goes where its standard output goes unless ``apart``."""

    def __init__(
        self, arguments: list[str], cwd: Path | None, environment: Mapping[str, str], apart: bool, reserve: int
    ) -> None:
        self.args = ["recpeft", *arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr" if apart else "stdout")]
        for file in self._outputs:
            file.touch()
        given = (self.args, str(cwd or Path.cwd()), dict(environment), [str(file) for file in self._outputs], reserve)
        self._process = _server.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def printed(self) -> str:
        """Its standard output until now."""
        return self._outputs[0].read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def ended(self, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for its end with exit code ``code`` and return what it printed."""
        self._process.join(timeout)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in self._outputs]
        if self._process.exitcode is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"{self.args} has not ended after {timeout} s: {texts}")
        assert self._process.exitcode == code, texts
        return subprocess.CompletedProcess(self.args, code, *texts)


def start(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    apart: bool = False,
    reserve: int = 4,
) -> Command:
    """Start ``recpeft`` with these arguments; plug-ins of ``tests/experiments/outside`` are found.

    Args:
        reserve: number of forks that become the Python processes that the command starts; later ones are fresh.
    """
    environment = os.environ | dict(environment or {}) | {"PYTHONPATH": PYTHONPATH}
    return Command([*map(str, arguments)], cwd, environment, apart, reserve)


def recpeft(
    *arguments: str | Path, code: int = 0, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``recpeft`` with these arguments to its end, whose exit code must be ``code``."""
    return start(*arguments, cwd=cwd, environment=environment, apart=True).ended(code)


def output_of(*arguments: str | Path, code: int = 0) -> str:
    """Run ``recpeft`` as above and return what it printed on both outputs."""
    return start(*arguments).ended(code).stdout


def _run(arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str], reserve: int) -> None:
    """Become the command, in a fork of the server, or a Python process that the command starts, in a fork of that."""
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = PYTHONPATH.split(os.pathsep)
    for _ in range(reserve):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _become_what_is_asked_for(theirs)
            return
        theirs.close()
        _Popen.reserve.append((pid, ours))
    subprocess.Popen = _Popen  # type: ignore[misc]
    sys.argv = arguments

    from experiments.cli import main

    main()


class _Popen(subprocess.Popen[Any]):
    """A process that is taken from the reserve where it is to run ``python -P -m``."""

    reserve: list[tuple[int, socket.socket]] = []  # noqa: RUF012

    def _execute_child(self, *given: Any) -> None:  # type: ignore[override]
        base: Any = super()
        asked = inspect.signature(base._execute_child).bind(*given).arguments
        if not self.reserve or list(asked["args"])[:3] != [sys.executable, "-P", "-m"]:
            base._execute_child(*given)
            return
        self.pid, connection = self.reserve.pop(0)
        self._child_created = True
        ends = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        files = [own if end == -1 else end for own, end in enumerate(ends)]
        task = (asked["args"][3:], asked["env"], asked["start_new_session"])
        socket.send_fds(connection, [pickle.dumps(task)], files)
        for end in {*ends} - {-1}:
            os.close(end)


def _become_what_is_asked_for(connection: socket.socket) -> None:
    """Wait for the command's task and do it; where the command ends without one, end."""
    for _, other in _Popen.reserve:
        other.close()
    _Popen.reserve.clear()
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not message:
        os._exit(0)
    arguments, environment, own_session = pickle.loads(message)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if own_session:
        os.setsid()
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    sys.stdin = os.fdopen(0, encoding="utf-8")  # multiprocessing has put /dev/null in its place
    sys.argv = arguments
    sys.modules.pop(arguments[0], None)  # it was imported beforehand, and is now the main module
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
