"""How much rank does LoRA need?

python -m experiments.ablations.rank_sweep

Ranks 2 to 64, each with alpha twice its rank, so that the update's scale (alpha / rank) is the same for all. Six runs
and the references; on two CPU cores a run of the quickstart takes about two and a half minutes.

Read down the rows and take the smallest rank above which the metric no longer rises by more than the report's
intervals. Parameters grow with the rank, seconds hardly do.
"""

from __future__ import annotations

from pathlib import Path

from experiments import load_results, load_runs, run_all
from experiments.ablations._script import script
from recpeft.terminal import say


def rank_sweep(base: Path, overrides: list[str], out: Path, workers: int | None) -> int:
    cells = [{"adapter": {"method": "lora", "rank": rank, "alpha": 2 * rank}} for rank in (2, 4, 8, 16, 32, 64)]
    runs = load_runs({"extends": base, "study": "rank_sweep", "grid": {}, "include": cells}, overrides)
    failed = run_all(runs, out, workers)
    metric = runs[0].evaluation.monitored
    columns = ("method", "adapter.rank", "seed", metric, "trainable", "adapter_bytes", "train_seconds")
    say(str(load_results(out / runs[0].study, columns=columns).select(columns)))
    return failed


if __name__ == "__main__":
    script(rank_sweep)
