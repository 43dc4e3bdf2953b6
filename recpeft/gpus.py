"""The GPUs that this process may use, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess


def visible() -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES would name them; empty without a GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, timeout=30)  # noqa: S603
    except subprocess.TimeoutExpired:
        return []
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
