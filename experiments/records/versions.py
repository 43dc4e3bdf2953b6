"""Versions of the libraries and of recpeft's sources that numbers depend on, found without importing the libraries."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recpeft import __version__
from recpeft.installation import PACKAGES


def versions() -> dict[str, str]:
    """Return the versions of recpeft, Python and the libraries that numbers depend on."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}


_SOURCES = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def git_state(sources: Path = _SOURCES) -> dict[str, Any] | None:
    """Return the running sources' commit, and whether recpeft's packages differ from it; None without a git checkout.

    It is read once per process, near the time when the running code was imported.
    """
    packages = ["recpeft", *PACKAGES]
    # Sources installed into another project's environment may lie in its checkout without belonging to it.
    if _git(sources, "ls-files", "--error-unmatch", "recpeft/__init__.py") is None:
        return None
    commit, changes = _git(sources, "rev-parse", "HEAD"), _git(sources, "status", "--porcelain", "--", *packages)
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output; None if it fails, takes over 10 seconds or is not installed."""
    # A git hook's variables would point git elsewhere; GIT_OPTIONAL_LOCKS=0 keeps it from writing the index.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and the arguments are ours
            command, capture_output=True, text=True, timeout=10, check=True, env=inherited | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
