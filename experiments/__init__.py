"""What is run: experiment files, runs, records, reports.

``from experiments import load_runs, run, report, recommend`` is the same from Python as ``recpeft`` in a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from experiments.grid import load_runs
    from experiments.recommendation import recommend
    from experiments.reporting import write_report as report
    from experiments.train import run

__all__ = ["load_runs", "recommend", "report", "run"]

__getattr__ = lazy.exports(
    __name__,
    {
        "load_runs": "experiments.grid:load_runs",
        "recommend": "experiments.recommendation:recommend",
        "report": "experiments.reporting:write_report",
        "run": "experiments.train:run",
    },
)
