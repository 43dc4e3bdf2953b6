"""Which linear layers should LoRA adapt?

python -m experiments.ablations.target_modules

Query and value as in LoRA's paper, all of attention, all linear layers as in QLoRA, and all linear layers of only the
top two transformer layers, at one rank. The names are BERT's; another family has its own (q_proj, v_proj). Four runs
and the references; on two CPU cores a run of the quickstart takes about two and a half minutes.

More layers mean more parameters, so read the metric beside ``trainable``. If fewer layers come close to all, they cost
less; if they fall behind, try them at a rank with equal parameters before blaming the choice of layers.
"""

from __future__ import annotations

from pathlib import Path

from experiments import load_results, load_runs, run_all
from experiments.ablations._script import script
from recpeft.terminal import say


def target_modules(base: Path, overrides: list[str], out: Path, workers: int | None) -> int:
    study = {
        "extends": base,
        "study": "target_modules",
        "grid": {"adapter.target_modules": [["query", "value"], "attention", "all-linear"]},
        "include": [{"adapter.target_modules": "all-linear", "adapter.last_layers": 2}],
    }
    runs = load_runs(study, overrides)
    failed = run_all(runs, out, workers)
    quality = ("method", "adapter.target_modules", "adapter.last_layers", "seed", runs[0].evaluation.monitored)
    columns = (*quality, "trainable", "peak_memory_bytes", "train_seconds")
    say(str(load_results(out / runs[0].study, columns=columns).select(columns)))
    return failed


if __name__ == "__main__":
    script(target_modules)
