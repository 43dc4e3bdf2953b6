"""The command line in processes that import nothing, for tests of what a process of its own does.

A fresh interpreter imports torch, transformers and Lightning for seven seconds. Here one server imports them once, and
each command is a fork of it: a process with its own id, environment, folder and exit code, which signals end. Tests of
what is imported, and of other interpreters' code, start a fresh one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT / "tests" / "experiments"), str(ROOT)])
"""Where plug-ins such as ``outside.kills_itself`` are found, by processes that a command starts too."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["experiments.cell.train", "experiments.study.serial", "experiments.reporting", "peft"])


class Command:
    """A running command, as ``subprocess.Popen`` has it; both its outputs go to one file unless ``apart``."""

    def __init__(self, arguments: list[str], cwd: Path | None, environment: Mapping[str, str], apart: bool) -> None:
        self.args = ["recpeft", *arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr" if apart else "stdout")]
        for file in self._outputs:
            file.touch()
        given = (self.args, str(cwd or Path.cwd()), dict(environment), [str(file) for file in self._outputs])
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

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """What it printed, once it has ended with this exit code."""
        self._process.join(timeout)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in self._outputs]
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self.args} has not ended after {timeout} s: {texts}")
        assert self._process.exitcode == code, texts
        return subprocess.CompletedProcess(self.args, code, *texts)


def start(
    *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None, apart: bool = False
) -> Command:
    """Start ``recpeft`` with these arguments; plug-ins of ``tests/experiments/outside`` are found."""
    environment = os.environ | dict(environment or {}) | {"PYTHONPATH": PYTHONPATH}
    return Command([*map(str, arguments)], cwd, environment, apart)


def recpeft(
    *arguments: str | Path, code: int = 0, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``recpeft`` with these arguments to its end, whose exit code must be ``code``."""
    return start(*arguments, cwd=cwd, environment=environment, apart=True).ended(code)


def output_of(*arguments: str | Path, code: int = 0) -> str:
    """What ``recpeft`` with these arguments prints on both outputs until its end, with exit code ``code``."""
    return start(*arguments).ended(code).stdout


def _run(arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    """In the fork: become the command."""
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = PYTHONPATH.split(os.pathsep)
    sys.argv = arguments

    from experiments.cli import main

    main()
