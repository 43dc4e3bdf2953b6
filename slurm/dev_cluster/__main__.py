"""``python -m slurm.dev_cluster up|down [--folder FOLDER]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from recpeft.errors import RecpeftError
from slurm.dev_cluster import down, up


def main() -> int:
    """Start or end a cluster, and print the setting that SLURM's commands need to reach it."""
    parser = argparse.ArgumentParser(prog="python -m slurm.dev_cluster", description="A one-node SLURM for trying out.")
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "recpeft-slurm", help="Its folder."
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    try:
        if arguments.action == "down":
            print(f"Ended the cluster in {folder}" if down(folder) else f"No cluster runs in {folder}")
        else:
            print(f"export SLURM_CONF={up(folder)['SLURM_CONF']}")
    except RecpeftError as error:
        print(f"slurm.dev_cluster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
