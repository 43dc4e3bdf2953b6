"""How often one must ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("second_ends", "code"), [(True, -15), (False, 0)])
def test_a_second_sigterm_ends_a_run_and_not_a_job_arrays_cell(second_ends: bool, code: int) -> None:
    """Of a preempted job slurmstepd and srun send one each, and the cell is still saving."""
    script = (
        "import os, signal; from recpeft import stopping\n"
        f"stopping.listen({second_ends})\n"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stopping.asked() == 'SIGTERM'"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == code


def test_sigterm_ends_a_command_as_ever_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys, time\n"
        "from recpeft import stopping\n"
        "from recpeft.files import atomic_folder, atomic_path\n"
        "def command():\n"
        "    folder = pathlib.Path(sys.argv[1])\n"
        "    with atomic_path(folder / 'plot.png') as file, atomic_folder(folder / 'figures'):\n"
        "        file.write_bytes(b'half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(60)\n"
        "stopping.unwind(command)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -15
    assert list(tmp_path.iterdir()) == []
