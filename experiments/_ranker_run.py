"""A reference that reads no text: fitted on train, its hyper-parameters chosen on validation, tested once."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules._candidates import unavailable
from experiments._data import Prepared
from experiments._evaluation import TIE_SEED, history_matrix, ranking_metrics, write_per_user
from experiments.config import EvaluationConfig, RankerRun
from experiments.results import RunFolder
from metrics import RankingMetrics, rank
from rankers._base import Ranker, RankerConfig
from recpeft import plugins


def run_ranker(
    config: RankerRun, prepared: Prepared, folder: RunFolder, candidates: tuple[pl.DataFrame, pl.DataFrame] | None
) -> dict[str, Any]:
    """Fit, choose, test; what the record holds of it.

    Args:
        candidates: for validation and test; None is the whole catalogue.
    """
    parts, evaluation = prepared.split, config.evaluation
    for_validation, for_test = candidates or (None, None)
    metric = ranking_metrics(prepared, evaluation)
    start = time.perf_counter()
    ranker = fit_ranker(config.ranker, prepared, evaluation)
    train_seconds = time.perf_counter() - start
    validation = _measure(
        metric, ranker, prepared, evaluation, known_matrix(prepared, False), parts.validation, for_validation
    )
    start = time.perf_counter()
    test = _measure(metric, ranker, prepared, evaluation, known_matrix(prepared, True), parts.test, for_test)
    write_per_user(folder, metric, prepared)
    return {
        "chosen": dict(ranker.details),
        "trace": [{"step": 0, "train_loss": None, "validation": validation}],
        "test": test,
        "costs": {"train_seconds": train_seconds, "test_seconds": time.perf_counter() - start},
    }


def fit_ranker(config: RankerConfig, prepared: Prepared, evaluation: EvaluationConfig) -> Ranker:
    """The ranker fitted on train; what it chooses, it chooses by the validation metric over the whole catalogue."""
    whole = evaluation.model_copy(update={"candidates": type(evaluation.candidates)(), "groups": (), "item_groups": ()})
    metric = ranking_metrics(prepared, whole, keep_users=False)
    train = history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, prepared.split.train)
    known = known_matrix(prepared, False)

    def validate(ranker: Ranker) -> float:
        held_out = prepared.split.validation
        return _measure(metric, ranker, prepared, whole, known, held_out, None)[whole.monitored]

    fitted: Ranker = plugins.load("rankers", config.name).fit(train, config, validate)
    return fitted


@lru_cache(maxsize=2)
def known_matrix(prepared: Prepared, at_test: bool) -> Tensor:
    """(U, I) float32: what is known of the users when validation begins, or test."""
    return history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, prepared.split.known(at_test=at_test))


def _measure(
    metric: RankingMetrics,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    history: Tensor,
    held_out: pl.DataFrame,
    candidates: pl.DataFrame | None,
) -> dict[str, float]:
    metric.reset()
    num_users, num_items = history.shape
    rows = torch.tensor(held_out["user"].to_list())
    items = torch.tensor(held_out["item"].to_list())
    listed = None if candidates is None else history_matrix(num_users, num_items, candidates)
    for users in rows.unique().split(1024):
        place = torch.full((num_users,), -1)
        place[users] = torch.arange(len(users))
        inside = place[rows] >= 0
        seen = history[users]
        masked = seen.bool() if evaluation.mask_seen else torch.zeros(seen.shape, dtype=torch.bool)
        if listed is not None:
            masked |= listed[users] == 0
        outside = unavailable(prepared.dataset, users.numpy().astype(np.int64))
        if outside is not None:
            masked |= torch.from_numpy(outside)
        lists = rank(
            ranker.score(seen),
            users,
            masked,
            (place[rows[inside]], items[inside]),
            max(evaluation.k),
            TIE_SEED,
        )
        metric.update(lists)
    return metric.compute()
