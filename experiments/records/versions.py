"""The versions that numbers depend on, of libraries and of our own sources, known without importing them."""

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
    """Of recpeft, Python and the libraries that numbers depend on."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}


_SOURCES = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def git_state(sources: Path = _SOURCES) -> dict[str, Any] | None:
    """Commit of the sources that run, and whether our packages differ from it; None where they are no git checkout.

    Read once a process: what runs was imported then.
    """
    packages = ["recpeft", *PACKAGES]
    # Installed into another project's environment, the sources lie in that project's checkout but are no part of it.
    if _git(sources, "ls-files", "--error-unmatch", "recpeft/__init__.py") is None:
        return None
    commit, changes = _git(sources, "rev-parse", "HEAD"), _git(sources, "status", "--porcelain", "--", *packages)
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, takes too long or is not installed."""
    # A hook's variables would point it at another repository; and looking must not write the index.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and the arguments are ours
            command, capture_output=True, text=True, timeout=10, check=True, env=inherited | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
