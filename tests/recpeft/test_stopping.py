"""How often one must ask."""

from __future__ import annotations

import subprocess
import sys

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
