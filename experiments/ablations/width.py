"""What does a narrower backbone cost in quality, and what does it save?

python -m experiments.ablations.width

The base's adapter on the backbone at full width, int8, fp4, nf4, and nf4 with double quantisation. Five runs and the
references; on two CPU cores a run of the quickstart takes about two and a half minutes.

Read the metric beside ``backbone_bytes``. The report tests each width's difference from full width over the same users;
if no difference is shown, it also says how small a difference could have been shown. On a CPU, quantised layers save no
time.
"""

from __future__ import annotations

from pathlib import Path

from experiments import load_results, load_runs, run_all
from experiments.ablations._script import script
from recpeft.terminal import say


def width(base: Path, overrides: list[str], out: Path, workers: int | None) -> int:
    study = {
        "extends": base,
        "study": "width",
        "grid": {"backbone.width": ["none", "int8", "fp4", "nf4"]},
        "include": [{"backbone.width": "nf4", "backbone.double_quantisation": True}],
    }
    runs = load_runs(study, overrides)
    failed = run_all(runs, out, workers)
    quality = ("method", "width", "backbone.double_quantisation", "seed", runs[0].evaluation.monitored)
    columns = (*quality, "backbone_bytes", "peak_memory_bytes", "train_seconds")
    say(str(load_results(out / runs[0].study, columns=columns).select(columns)))
    return failed


if __name__ == "__main__":
    script(width)
