"""Memory of this machine."""

from __future__ import annotations

from pathlib import Path

import psutil


def machine_bytes() -> int:
    """Return the memory available to this process: the machine's, or the container's limit (cgroup) if lower."""
    bounds = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            bounds.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(bounds)
