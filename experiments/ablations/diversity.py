"""How much accuracy does diversity cost?

python -m experiments.ablations.diversity

One run is trained, and its lists are reordered at growing strength: by MMR (items unlike those before them) and towards
the mix of categories in the user's history. It is trained once, which takes two and a half minutes on two CPU cores
with the quickstart; reordering takes seconds.

Compare each method's rows from strength 0.1 to 0.9 with the first row, which is not reordered: take the last strength
before accuracy falls faster than diversity (``ild_jaccard``) rises or ``calibration_kl`` falls. The page that
``recpeft report`` writes plots both.
"""

from __future__ import annotations

from pathlib import Path

from experiments import load_results, load_runs, run_all
from experiments.ablations._script import script
from experiments.config.monitor import cut_of
from recpeft.terminal import say

METHODS = ("mmr", "calibrated")
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def diversity(base: Path, overrides: list[str], out: Path, workers: int | None) -> int:
    cells = [{"diversify": {"method": method, "strength": strength}} for method in METHODS for strength in STRENGTHS]
    study = {"extends": base, "study": "diversity", "grid": {}, "include": cells}
    runs = load_runs({**study, "evaluation": {"metrics": ["calibration_kl"]}}, overrides)
    failed = run_all(runs, out, workers)
    metric = runs[0].evaluation.monitored
    cut = cut_of(metric, runs[0].model_dump())
    others = [f"{name}@{cut}" for name in ("ild_jaccard", "calibration_kl", "item_coverage")]
    columns = list(dict.fromkeys(["method", "diversify.method", "diversify.strength", "seed", metric, *others]))
    say(str(load_results(out / runs[0].study, columns=columns).select(columns)))
    return failed


if __name__ == "__main__":
    script(diversity)
