"""A reference that reads no text: fitted on train, its hyper-parameters chosen on validation, tested once."""

from __future__ import annotations

import time
from typing import Any

import polars as pl
import torch
from torch import Tensor

from experiments._data import Prepared
from experiments._evaluation import TIE_SEED, history_matrix, ranking_metrics, write_per_user
from experiments.config import RankerRun
from experiments.results import RunFolder
from metrics import rank
from recpeft import plugins


def run_ranker(config: RankerRun, prepared: Prepared, folder: RunFolder) -> dict[str, Any]:
    plugin = plugins.load("rankers", config.ranker.name)
    parts = prepared.split
    sizes = (prepared.dataset.num_users, prepared.dataset.num_items)
    train = history_matrix(*sizes, parts.train)
    metric = ranking_metrics(prepared, config.evaluation)

    def measure(ranker: Any, history: Tensor, held_out: pl.DataFrame) -> dict[str, float]:
        metric.reset()
        rows = torch.tensor(held_out["user"].to_list())
        items = torch.tensor(held_out["item"].to_list())
        for users in rows.unique().split(1024):
            place = torch.full((sizes[0],), -1)
            place[users] = torch.arange(len(users))
            inside = place[rows] >= 0
            seen = history[users]
            lists = rank(
                ranker.score(seen),
                users,
                seen.bool() if config.evaluation.mask_seen else None,
                (place[rows[inside]], items[inside]),
                max(config.evaluation.k),
                TIE_SEED,
            )
            metric.update(lists)
        return metric.compute()

    start = time.perf_counter()
    ranker = plugin.fit(train, config.ranker, lambda r: measure(r, train, parts.validation)[config.evaluation.monitor])
    train_seconds = time.perf_counter() - start
    validation = measure(ranker, train, parts.validation)
    start = time.perf_counter()
    test = measure(ranker, history_matrix(*sizes, parts.train, parts.validation), parts.test)
    write_per_user(folder, metric, prepared)
    return {
        "chosen": dict(ranker.details),
        "trace": [{"step": 0, "train_loss": None, "validation": validation}],
        "test": test,
        "costs": {"train_seconds": train_seconds, "test_seconds": time.perf_counter() - start},
    }
