"""Check that recpeft's packages, which have common names, come from this installation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from recpeft.errors import RecpeftError

PACKAGES = ("adapters", "datamodules", "lightning_modules", "metrics", "rankers", "slurm", "experiments")


def check_installation() -> None:
    """Refuse to start where another project's package has the name of one of ours.

    Raises:
        RecpeftError: names the package and the file that shadows it.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if found != home / name:
            raise RecpeftError(
                f"the package {name!r} is taken from {found or 'nowhere'} instead of {home / name}; another project "
                "has the same name: use recpeft in an environment of its own, away from that folder."
            )
