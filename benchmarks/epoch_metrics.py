"""What all metrics cost of an epoch: the quickstart's LoRA cell with every metric that lists and scores are enough for.

    .venv/bin/python benchmarks/epoch_metrics.py

One epoch (15 steps) and validation of all 943 users over 1,682 items of MovieLens-100K, at 5, 10 and 20; the seconds
within the suite of metrics over those of the epoch, training and validation together. About two minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; see wait_policy.py

import tempfile
import time
from pathlib import Path
from typing import Any

from experiments import load_runs, run
from lightning_modules._callbacks import RankingCallback, ResumeCheckpoint
from metrics._suite import Suite
from metrics.catalog import METRICS

QUICKSTART = Path(__file__).parents[1] / "experiments" / "configs" / "quickstart.yaml"
KINDS = ("per_user", "sums", "item_groups", "user_groups", "scores")


def timed(owner: Any, name: str, into: list[float]) -> None:
    """Have ``owner.name`` note the seconds of each call."""
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            into.append(time.perf_counter() - start)

    setattr(owner, name, call)


def main() -> None:
    names = [name for name, info in METRICS.items() if info.kind in KINDS and "impressions" not in info.needs]
    spreads = ["ndcg_gap", "ndcg_ratio", "ndcg_std", "ndcg_mad", "ndcg_worst", "ndcg_cvar50", "ndcg_user_gini"]
    (config,) = (
        config
        for config in load_runs(
            QUICKSTART,
            [
                "include=[]",
                "references=[]",
                "training.max_steps=15",
                "evaluation.validation_users=null",
                "evaluation.item_groups=[popularity]",
                f"evaluation.metrics=[{', '.join(names + spreads)}]",
            ],
        )
        if config.width == "none"
    )
    spent: list[float] = []
    for name in ("update", "compute"):
        timed(Suite, name, spent)
    epoch: dict[str, float] = {}
    start, end = ResumeCheckpoint.on_train_start, RankingCallback.on_validation_epoch_end

    def began(self: ResumeCheckpoint, *arguments: Any) -> None:
        start(self, *arguments)
        epoch["start"] = time.perf_counter()

    def ended(self: RankingCallback, *arguments: Any) -> None:
        end(self, *arguments)
        if "seconds" not in epoch:
            epoch["seconds"], epoch["metrics"] = time.perf_counter() - epoch["start"], sum(spent)

    ResumeCheckpoint.on_train_start = began  # type: ignore[method-assign]
    RankingCallback.on_validation_epoch_end = ended  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        record = run(config, Path(folder))
    values = len(record["trace"][0]["validation"])
    print(
        f"{len(names + spreads)} metrics, {values} values: {epoch['metrics']:.2f} s of an epoch of "
        f"{epoch['seconds']:.1f} s, {epoch['metrics'] / epoch['seconds']:.1%}"
    )


if __name__ == "__main__":
    main()
