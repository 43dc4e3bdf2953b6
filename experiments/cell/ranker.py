"""Run a reference that reads no text: fit on train, choose hyper-parameters on validation, test once."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from datamodules._module import evaluated_users
from datamodules._rated import Rated
from datamodules._sparse import binary
from experiments.cell.allowed import AllowedItems, liked_matrix
from experiments.cell.data import Prepared
from experiments.cell.saved_ranker import find_ranker, save_ranker, saved_ranker
from experiments.cell.suite import (
    HeldOut,
    interval_record,
    judged_record,
    make_suite,
    write_lists,
    write_per_user,
)
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import RankerRun
from experiments.records.record import RunFolder
from metrics._judged import JudgedPairs, among
from metrics._listing import Relevant, best_lists
from metrics._suite import Ranked, Suite
from rankers._base import Ranker, RankerConfig, TrainingOptions
from rankers._data import TrainData
from recpeft import plugins
from recpeft.config import digest
from recpeft.files import locked
from recpeft.memory import machine_bytes

_CELLS_AT_ONCE = 1024 * 16384
"""Maximum number of (user, item) pairs scored at a time, for at most 1,024 users; float sums depend on this number."""


def run_ranker(
    config: RankerRun, prepared: Prepared, folder: RunFolder, candidates: tuple[pl.DataFrame, pl.DataFrame] | None
) -> dict[str, Any]:
    """Fit, select and test the ranker, and save it with its run; return the record's parts.

    Args:
        candidates: for validation and test; None is the whole catalogue.
    """
    parts, evaluation, seed = prepared.split, config.evaluation, getattr(config, "seed", 0)
    suite = make_suite(prepared, evaluation, keep_lists=True)
    start = time.perf_counter()
    ranker = fit_ranker(config.ranker, prepared, evaluation, seed, folder.checkpoints)
    train_seconds = time.perf_counter() - start
    save_ranker(folder, config.ranker, ranker, fit_key(config.ranker, prepared, evaluation, seed))
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


def fit_ranker(
    config: RankerConfig,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    seed: int = 0,
    folder: Path | None = None,
) -> Ranker:
    """Fit a ranker on train; it selects hyper-parameters by the validation metric over the whole catalogue.

    Args:
        folder: folder for checkpoints; None keeps none.
    """
    whole = _over_the_catalogue(evaluation)
    suite = make_suite(prepared, whole)

    def validate(ranker: Ranker) -> float:
        value = _measure(suite, ranker, prepared, whole, False, prepared.split.validation, None)[whole.monitor]
        return -value if whole.lower_is_better else value

    with tempfile.TemporaryDirectory() as nowhere:
        options = TrainingOptions(
            validate=validate,
            folder=folder or Path(nowhere),
            seed=seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
            memory_bytes=int(config.memory_share * machine_bytes()),
        )
        data = TrainData.of(prepared.dataset, prepared.split)
        fitted: Ranker = plugins.load("rankers", config.name).fit(data, config, options)
    return fitted


def _over_the_catalogue(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the evaluation that selects hyper-parameters: over the whole catalogue, where metrics that need judged
    pairs are undefined, so that NDCG replaces them."""
    of_pairs = evaluation.candidates.kind == "rated"
    alone: dict[str, Any] = {"candidates": type(evaluation.candidates)()}
    if of_pairs:
        alone |= {"monitor": f"ndcg@{max(evaluation.k)}", "metrics": ()}
    return evaluation.model_copy(update=alone)


def fit_key(config: RankerConfig, prepared: Prepared, evaluation: EvaluationConfig, seed: int) -> str:
    """Return a digest of everything that a fit depends on, which identifies a saved ranker."""
    data = [prepared.record["hash"], prepared.record["split"]["hash"], prepared.split.liked_from]
    return digest([data, config.asked_for(), _over_the_catalogue(evaluation).asked_for(), seed])


def ranker_of_study(
    config: RankerConfig,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    study: Path | None,
    seed: int = 0,
    keep: bool = True,
) -> Ranker:
    """Load the ranker from any run of the study that has fitted it; otherwise fit it, once for the whole study.

    Args:
        study: the study's folder; None neither loads nor saves.
        keep: whether a newly fitted ranker is saved there.
    """
    if study is None:
        return fit_ranker(config, prepared, evaluation, seed)
    key = fit_key(config, prepared, evaluation, seed)
    if not keep:
        return _found(study, key, config) or fit_ranker(config, prepared, evaluation, seed)
    folder = RunFolder(study / f"ranker-{key}")
    with locked(folder.path):
        ranker = _found(study, key, config)
        if ranker is None:
            ranker = fit_ranker(config, prepared, evaluation, seed)
            save_ranker(folder, config, ranker, key)
    return ranker


def _found(study: Path, key: str, config: RankerConfig) -> Ranker | None:
    folder = find_ranker(study, key)
    return None if folder is None else saved_ranker(folder, config)


def users_at_once(num_items: int) -> int:
    """Return the number of users scored at a time."""
    return max(1, min(1024, _CELLS_AT_ONCE // num_items))


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
    allowed = AllowedItems(prepared, evaluation.mask_seen, at_test, candidates)
    for users in ranked.split(users_at_once(num_items)):
        scores = ranker.score(users.numpy(), history[users.numpy()])
        lists = best_lists(scores, users, allowed.of(users), pairs.of(users), depth, tied_within=max(evaluation.k))
        suite.update(Ranked(lists, scores))
    return suite.compute()


def _judge(
    suite: Suite,
    ranker: Ranker,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    at_test: bool,
) -> dict[str, float]:
    """Do as ``_measure``, ranking only each user's held-out items."""
    suite.reset()
    dataset, split = prepared.dataset, prepared.split
    rated = Rated(split, dataset.num_users, at_test=at_test)
    rows = split.test if at_test else split.validation
    held_out = evaluated_users(rows, evaluation.test_users if at_test else None, at_test)
    allowed, history = AllowedItems(prepared, evaluation.mask_seen, at_test), liked_matrix(prepared, at_test)
    for start in range(0, len(held_out), 64):
        users = held_out[start : start + 64]
        pairs = rated.of(users)
        row, item, liked = (torch.from_numpy(part) for part in (pairs.row, pairs.item, pairs.liked))
        if evaluation.candidates.rolling:
            before = binary(*rated.liked_before(users, pairs), (len(item), dataset.num_items))
            scores = ranker.score(users[pairs.row], before)[torch.arange(len(item)), item]
        else:
            scores = ranker.score(users, history[users])[row, item]
        user = torch.from_numpy(users)
        among_own = among(scores[:, None], item[:, None], row, len(users), dataset.num_items)
        relevant = Relevant((row[liked], item[liked]), torch.from_numpy(pairs.rating)[liked])
        depth = max(*evaluation.k, evaluation.depth)
        lists = best_lists(among_own, user, allowed.of(user), relevant, depth, tied_within=max(evaluation.k))
        judged = JudgedPairs(user[row], item, scores, liked, torch.from_numpy(pairs.rating), row)
        suite.update(Ranked(lists, among_own, judged))
    return suite.compute()
