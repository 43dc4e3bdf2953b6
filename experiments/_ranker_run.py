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
from datamodules._module import evaluated_users
from datamodules._rated import Rated
from experiments._data import Prepared
from experiments._evaluation import (
    TIE_SEED,
    history_matrix,
    judged_metrics,
    judged_record,
    ranking_metrics,
    write_per_user,
)
from experiments.config import EvaluationConfig, RankerRun
from experiments.results import RunFolder
from metrics import RankingMetrics, rank
from metrics._judged import JudgedMetrics, JudgedPairs, among
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
    metric = ranking_metrics(prepared, evaluation)
    judged = judged_metrics(evaluation)
    start = time.perf_counter()
    ranker = fit_ranker(config.ranker, prepared, evaluation)
    train_seconds = time.perf_counter() - start
    values = []
    for at_test, held_out in ((False, parts.validation), (True, parts.test)):
        start = time.perf_counter()
        if judged is not None:
            values.append(_judge(metric, judged, ranker, prepared, evaluation, at_test))
        else:
            of_part = candidates[at_test] if candidates else None
            values.append(_measure(metric, ranker, prepared, evaluation, at_test, held_out, of_part))
    validation, test = values
    write_per_user(folder, metric, prepared)
    return {
        **judged_record(folder, judged, prepared),
        "chosen": dict(ranker.details),
        "trace": [{"step": 0, "train_loss": None, "validation": validation}],
        "test": test,
        "costs": {"train_seconds": train_seconds, "test_seconds": time.perf_counter() - start},
    }


def fit_ranker(config: RankerConfig, prepared: Prepared, evaluation: EvaluationConfig) -> Ranker:
    """The ranker fitted on train; what it chooses, it chooses by the validation metric over the whole catalogue."""
    monitored = tuple(name for name in evaluation.metrics if name == evaluation.monitor.partition("@")[0])
    alone = {"candidates": type(evaluation.candidates)(), "metrics": monitored, "groups": (), "item_groups": ()}
    whole = evaluation.model_copy(update=alone)
    metric = ranking_metrics(prepared, whole, keep_users=False)
    split = prepared.split
    train = history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, split.liked(split.train))
    by = f"ndcg@{max(whole.k)}" if whole.monitor == "auc" else whole.monitor  # AUC is of rated items alone

    def validate(ranker: Ranker) -> float:
        value = _measure(metric, ranker, prepared, whole, False, split.validation, None)[by]
        return -value if whole.lower_is_better else value

    fitted: Ranker = plugins.load("rankers", config.name).fit(train, config, validate)
    return fitted


@lru_cache(maxsize=2)
def liked_matrix(prepared: Prepared, at_test: bool) -> Tensor:
    """(U, I) float32: what the users are known to like when validation begins, or test."""
    split = prepared.split
    if split.liked_from is None:
        return known_matrix(prepared, at_test)
    liked = split.liked(split.known(at_test=at_test))
    return history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, liked)


@lru_cache(maxsize=2)
def known_matrix(prepared: Prepared, at_test: bool) -> Tensor:
    """(U, I) float32: what is known of the users when validation begins, or test."""
    return history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, prepared.split.known(at_test=at_test))


def _measure(
    metric: RankingMetrics,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    at_test: bool,
    held_out: pl.DataFrame,
    candidates: pl.DataFrame | None,
) -> dict[str, float]:
    metric.reset()
    known, history = known_matrix(prepared, at_test), liked_matrix(prepared, at_test)
    num_users, num_items = history.shape
    held_out = prepared.split.liked(held_out)
    ranked = torch.from_numpy(evaluated_users(held_out, evaluation.test_users if at_test else None, at_test))
    rows = torch.tensor(held_out["user"].to_list())
    items = torch.tensor(held_out["item"].to_list())
    grades = torch.from_numpy(held_out["rating"].fill_null(float("nan")).to_numpy().copy())
    listed = None if candidates is None else history_matrix(num_users, num_items, candidates)
    for users in ranked.split(1024):
        place = torch.full((num_users,), -1)
        place[users] = torch.arange(len(users))
        inside = place[rows] >= 0
        masked = known[users].bool() & evaluation.mask_seen
        if listed is not None:
            masked |= listed[users] == 0
        outside = unavailable(prepared.dataset, users.numpy().astype(np.int64))
        if outside is not None:
            masked |= torch.from_numpy(outside)
        relevant = (place[rows[inside]], items[inside])
        lists = rank(ranker.score(history[users]), users, masked, relevant, max(evaluation.k), TIE_SEED)
        metric.update(lists.graded(relevant, grades[inside]) if (grades[inside] >= 0).all() else lists)
    return metric.compute()


def _judge(
    metric: RankingMetrics,
    judged: JudgedMetrics,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    at_test: bool,
) -> dict[str, float]:
    """As ``_measure``, among the held-out items of each user alone."""
    metric.reset()
    judged.reset()
    dataset, split = prepared.dataset, prepared.split
    rated = Rated(split, dataset.num_users)
    rows = split.test if at_test else split.validation
    held_out = evaluated_users(rows, evaluation.test_users if at_test else None, at_test)
    known = known_matrix(prepared, at_test)
    for start in range(0, len(held_out), 64):
        users = held_out[start : start + 64]
        pairs = rated.of(users, at_test)
        row, item, liked = (torch.from_numpy(part) for part in (pairs.row, pairs.item, pairs.liked))
        if evaluation.candidates.rolling:
            before = torch.from_numpy(rated.liked_before(users, pairs, dataset.num_items))
            scores = ranker.score(before)[torch.arange(len(item)), item]
        else:
            scores = ranker.score(liked_matrix(prepared, at_test)[users])[row, item]
        user = torch.from_numpy(users)
        masked = known[user].bool() & evaluation.mask_seen
        among_own = among(scores[:, None], item[:, None], row, len(users), dataset.num_items)
        relevant, grade = (row[liked], item[liked]), torch.from_numpy(pairs.rating)[liked]
        lists = rank(among_own, user, masked, relevant, max(evaluation.k), TIE_SEED)
        metric.update(lists.graded(relevant, grade) if (grade >= 0).all() else lists)
        judged.update(JudgedPairs(user[row], item, scores, liked))
    return metric.compute() | judged.compute()
