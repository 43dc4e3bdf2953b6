"""Experiment files, runs, records and reports.

``from experiments import load_runs, run_all, report, recommend`` does in Python what ``recpeft`` does in a terminal;
``run`` executes one run, and ``load_results`` returns a data frame (docs/python.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from experiments.cell.train import run
    from experiments.cli.run_all import run_all
    from experiments.config.grid import load_runs
    from experiments.finished.recommend import recommend
    from experiments.reporting import write_report as report
    from experiments.reporting._frame import load_results

__all__ = ["load_results", "load_runs", "recommend", "report", "run", "run_all"]

__getattr__ = lazy.exports(
    __name__,
    {
        "load_results": "experiments.reporting._frame:load_results",
        "load_runs": "experiments.config.grid:load_runs",
        "recommend": "experiments.finished.recommend:recommend",
        "report": "experiments.reporting:write_report",
        "run": "experiments.cell.train:run",
        "run_all": "experiments.cli.run_all:run_all",
    },
)
