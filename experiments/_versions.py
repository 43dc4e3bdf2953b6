"""The versions that numbers depend on, known without importing what they are of."""

from __future__ import annotations

import platform
from importlib.metadata import version

from recpeft import __version__


def versions() -> dict[str, str]:
    """Of recpeft, Python and the libraries that numbers depend on."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "lightning", "torchmetrics", "polars", "numpy")
    return {"recpeft": __version__, "python": platform.python_version()} | {n: version(n) for n in names}
