"""What is run: experiment files, runs, records, reports.

``from experiments import load_runs, run, report`` is the same from Python as ``recpeft`` on the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.grid import load_runs
    from experiments.report import write_report as report
    from experiments.train import run

__all__ = ["load_runs", "report", "run"]

_WHERE = {
    "load_runs": ("experiments.grid", "load_runs"),
    "report": ("experiments.report", "write_report"),
    "run": ("experiments.train", "run"),
}


def __getattr__(name: str) -> Any:
    # Imported when used: the command line must answer a mistake without importing torch.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
