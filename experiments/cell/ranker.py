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
from experiments.cell.data import Prepared
from experiments.cell.suite import (
    TIE_SEED,
    HeldOut,
    graded,
    history_matrix,
    interval_record,
    judged_record,
    make_suite,
    write_lists,
    write_per_user,
)
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import RankerRun
from experiments.records.record import RunFolder
from metrics import rank
from metrics._judged import JudgedPairs, among
from metrics._suite import Ranked, Suite
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
    suite = make_suite(prepared, evaluation, keep_lists=True)
    start = time.perf_counter()
    ranker = fit_ranker(config.ranker, prepared, evaluation)
    train_seconds = time.perf_counter() - start
    values: list[dict[str, float]] = []
    for at_test, part, held_out in ((False, "validation", parts.validation), (True, "test", parts.test)):
        start = time.perf_counter()
        if suite.judged is not None:
            suite.judged.threshold = values[0].get(f"threshold{suite.judged.stamp}") if at_test else None
            values.append(_judge(suite, ranker, prepared, evaluation, at_test))
        else:
            of_part = candidates[at_test] if candidates else None
            values.append(_measure(suite, ranker, prepared, evaluation, at_test, held_out, of_part))
        write_lists(folder, part, suite.kept(), prepared)
    validation, test = values
    test_seconds = time.perf_counter() - start
    write_per_user(folder, suite, prepared)
    return {
        "chosen": dict(ranker.details),
        "trace": [{"step": 0, "train_loss": None, "validation": validation}],
        "test": test,
        "intervals": interval_record(suite) | judged_record(folder, suite.judged, prepared),
        "costs": {"train_seconds": train_seconds, "test_seconds": test_seconds},
    }


def fit_ranker(config: RankerConfig, prepared: Prepared, evaluation: EvaluationConfig) -> Ranker:
    """The ranker fitted on train; what it chooses, it chooses by the validation metric over the whole catalogue."""
    # Of what needs judged pairs nothing can be said over the whole catalogue; NDCG stands in for it.
    by = evaluation.monitor if evaluation.candidates.kind != "rated" else f"ndcg@{max(evaluation.k)}"
    alone = {"candidates": type(evaluation.candidates)(), "monitor": by}
    if evaluation.candidates.kind == "rated":
        alone["metrics"] = ()
    whole = evaluation.model_copy(update=alone)
    suite = make_suite(prepared, whole)
    split = prepared.split
    train = history_matrix(prepared.dataset.num_users, prepared.dataset.num_items, split.liked(split.train))

    def validate(ranker: Ranker) -> float:
        value = _measure(suite, ranker, prepared, whole, False, split.validation, None)[by]
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
    suite: Suite,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    at_test: bool,
    held_out: pl.DataFrame,
    candidates: pl.DataFrame | None,
) -> dict[str, float]:
    suite.reset()
    history = liked_matrix(prepared, at_test)
    num_users, num_items = history.shape
    depth = max(*evaluation.k, evaluation.depth)
    held_out = prepared.split.liked(held_out)
    ranked = torch.from_numpy(evaluated_users(held_out, evaluation.test_users if at_test else None, at_test))
    pairs = HeldOut(held_out, num_users)
    listed = None if candidates is None else history_matrix(num_users, num_items, candidates)
    for users in ranked.split(1024):
        masked = masked_items(prepared, evaluation, users, at_test, listed)
        relevant, grade = pairs.of(users)
        scores = ranker.score(history[users])
        lists = rank(scores, users, masked, relevant, depth, TIE_SEED, max(evaluation.k))
        suite.update(Ranked(graded(lists, relevant, grade), scores))
    return suite.compute()


def masked_items(
    prepared: Prepared, evaluation: EvaluationConfig, users: Tensor, at_test: bool, listed: Tensor | None
) -> Tensor:
    """(n, I) bool: the items that lists of ``users`` (n,) leave out.

    Args:
        listed: (U, I), 0 at what is no candidate; None where the whole catalogue is ranked.
    """
    masked = known_matrix(prepared, at_test)[users].bool() & evaluation.mask_seen
    if listed is not None:
        masked |= listed[users] == 0
    outside = unavailable(prepared.dataset, users.numpy().astype(np.int64))
    return masked if outside is None else masked | torch.from_numpy(outside)


def _judge(
    suite: Suite,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    at_test: bool,
) -> dict[str, float]:
    """As ``_measure``, among the held-out items of each user alone."""
    suite.reset()
    dataset, split = prepared.dataset, prepared.split
    rated = Rated(split, dataset.num_users, at_test=at_test)
    rows = split.test if at_test else split.validation
    held_out = evaluated_users(rows, evaluation.test_users if at_test else None, at_test)
    known = known_matrix(prepared, at_test)
    for start in range(0, len(held_out), 64):
        users = held_out[start : start + 64]
        pairs = rated.of(users)
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
        depth = max(*evaluation.k, evaluation.depth)
        lists = rank(among_own, user, masked, relevant, depth, TIE_SEED, max(evaluation.k))
        judged = JudgedPairs(user[row], item, scores, liked, torch.from_numpy(pairs.rating), row)
        suite.update(Ranked(graded(lists, relevant, grade), among_own, judged))
    return suite.compute()
