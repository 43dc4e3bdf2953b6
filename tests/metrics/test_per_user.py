"""Every per-user metric by name against a loop over plain lists and sets, through RankingMetrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from metrics.catalog import METRICS

NAN = math.nan
World = Any
Oracle = Callable[[World, int, int], float]


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else NAN


def gains(world: World, row: int, k: int, gain: Callable[[float], float]) -> float:
    graded = world.grades[row]
    if not graded:
        return NAN
    found = sum(gain(graded[i]) / math.log2(r + 1) for r, i in enumerate(world.lists[row][:k], 1) if i in graded)
    best = sorted((gain(grade) for grade in graded.values()), reverse=True)[:k]
    return found / sum(value / math.log2(r + 1) for r, value in enumerate(best, 1))


def hits(world: World, row: int, k: int) -> int:
    return len(set(world.lists[row][:k]) & set(world.grades[row]))


def precision_sum(world: World, row: int, k: int) -> float:
    flags = [item in world.grades[row] for item in world.lists[row][:k]]
    return sum(sum(flags[: r + 1]) / (r + 1) for r, flag in enumerate(flags) if flag)


def over(value: float, size: float) -> float:
    return value / size if size else NAN


def first_hit(world: World, row: int, k: int) -> float:
    if not world.grades[row]:
        return NAN
    return max((1 / r for r, i in enumerate(world.lists[row][:k], 1) if i in world.grades[row]), default=0.0)


def alpha_dcg(world: World, row: int, ordered: list[int]) -> float:
    times, total = dict.fromkeys(range(5), 0), 0.0
    for r, item in enumerate(ordered, 1):
        if item in world.grades[row]:
            total += sum(0.5 ** times[g] for g in world.genres[item]) / math.log2(r + 1)
            for g in world.genres[item]:
                times[g] += 1
    return total


def alpha_ndcg(world: World, row: int, k: int) -> float:
    left, ideal, times = sorted(world.grades[row]), [], dict.fromkeys(range(5), 0)
    while left and len(ideal) < k:
        best = max(left, key=lambda i: (sum(0.5 ** times[g] for g in world.genres[i]), -i))
        left.remove(best)
        ideal.append(best)
        for g in world.genres[best]:
            times[g] += 1
    return over(alpha_dcg(world, row, world.lists[row][:k]), alpha_dcg(world, row, ideal))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def over_pairs(distance: Callable[[World, int, int], float]) -> Oracle:
    def oracle(world: World, row: int, k: int) -> float:
        listed = world.lists[row][:k]
        if len(listed) == 1:
            return 0.0
        return mean(distance(world, i, j) for i, j in itertools.combinations(listed, 2))

    return oracle


def jaccard(world: World, i: int, j: int) -> float:
    union = world.genres[i] | world.genres[j]
    return 1 - len(world.genres[i] & world.genres[j]) / len(union) if union else 0.0


def shares(sets: list[set[int]], size: int, weights: list[float] | None = None) -> np.ndarray | None:
    q = np.zeros(size)
    for number, found in enumerate(sets):
        for g in found:
            q[g] += (weights[number] if weights else 1) / len(found)
    return q / q.sum() if q.sum() else None


def entropy(q: np.ndarray | None) -> float:
    return NAN if q is None else -sum(p * math.log2(p) for p in q if p)


def by_genre(world: World) -> tuple[list[set[int]], int]:
    return world.genres, 5


def by_label(world: World) -> tuple[list[set[int]], int]:
    return [{label} - {-1} for label in world.labels], 4


def by_popularity(world: World) -> tuple[list[set[int]], int]:
    order = sorted(range(30), key=lambda i: (-world.counts[i], i))
    total, kind, before = sum(world.counts), [set[int]() for _ in range(30)], 0
    for place, item in enumerate(order):
        left = sum(world.counts[i] for i in order[place:])
        kind[item] = {0} if 5 * before < total else {2} if 5 * left <= total else {1}
        before += world.counts[item]
    return kind, 3


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a))


def calibration(
    features: Callable[[World], tuple[list[set[int]], int]],
    divergence: Callable[[np.ndarray, np.ndarray], float],
    rank_weighted: bool = False,
) -> Oracle:
    def oracle(world: World, row: int, k: int) -> float:
        sets, size = features(world)
        weights = [1 / math.log2(r + 1) for r in range(1, k + 1)] if rank_weighted else None
        q = shares([sets[i] for i in world.lists[row][:k]], size, weights)
        p = shares([sets[i] for i in world.history_of[row]], size)
        return NAN if p is None or q is None else divergence(p, q)

    return oracle


def expected(world: World, row: int, k: int) -> set[int]:
    order = sorted(range(30), key=lambda i: (-world.counts[i], i))
    return set([item for item in order if item not in world.history_of[row]][:k])


def serendipity_rank(world: World, row: int, k: int) -> float:
    levels = sorted(set(world.counts), reverse=True)

    def anyone(item: int) -> float:
        return (30 - levels.index(world.counts[item])) / 30 if world.counts[item] else 0.0

    listed = enumerate(world.lists[row][:k], 1)
    return mean(max((31 - r) / 30 - anyone(i), 0) * (i in world.grades[row]) for r, i in listed)


def serendipity_cosine(world: World, row: int, k: int) -> float:
    def surprise(item: int) -> float:
        return 1 - mean(cosine(world.embeddings[item], world.embeddings[j]) for j in world.history_of[row])

    return mean(surprise(i) * (i in world.grades[row]) for i in world.lists[row][:k])


def by_rank(value: Callable[[World, int], float], relevance: bool) -> Oracle:
    def oracle(world: World, row: int, k: int) -> float:
        listed = list(enumerate(world.lists[row][:k], 1))
        if relevance and not world.grades[row]:
            return NAN
        if relevance and not listed:
            return 0.0
        total = sum(1 / math.log2(r + 1) for r, _ in listed)
        wanted = [(r, i) for r, i in listed if not relevance or i in world.grades[row]]
        return over(sum(value(world, i) / math.log2(r + 1) for r, i in wanted), total)

    return oracle


def tail(world: World, item: int) -> bool:
    order, head = sorted(range(30), key=lambda i: (-world.counts[i], i)), set[int]()
    while 5 * sum(world.counts[i] for i in head) < 4 * sum(world.counts):
        head.add(order[len(head)])
    return item not in head


def autocorrelation(world: World, row: int, k: int) -> float:
    v = [[(g in world.genres[i]) / max(len(world.genres[i]), 1) for g in range(5)] for i in world.lists[row][:k]]
    if len(v) < 2:
        return NAN
    x = np.array(v) - np.mean(v, axis=0)
    return NAN if np.abs(x).max() < 1e-9 else float((x[1:] * x[:-1]).sum() / (x * x).sum())


ORACLES: dict[str, Oracle] = {
    "ndcg": lambda w, u, k: gains(w, u, k, lambda grade: 1),
    "ndcg_linear": lambda w, u, k: gains(w, u, k, lambda grade: grade),
    "ndcg_exp2": lambda w, u, k: gains(w, u, k, lambda grade: 2**grade - 1),
    "ndcg_empty_as_zero": lambda w, u, k: gains(w, u, k, lambda grade: 1) if w.grades[u] else 0.0,
    "recall": lambda w, u, k: over(hits(w, u, k), len(w.grades[u])),
    "recall_capped": lambda w, u, k: over(hits(w, u, k), min(k, len(w.grades[u]))),
    "precision": lambda w, u, k: hits(w, u, k) / k if w.grades[u] else NAN,
    "hit_rate": lambda w, u, k: float(hits(w, u, k) > 0) if w.grades[u] else NAN,
    "mrr": first_hit,
    "map": lambda w, u, k: over(precision_sum(w, u, k), min(k, len(w.grades[u]))),
    "map_trec": lambda w, u, k: over(precision_sum(w, u, k), len(w.grades[u])),
    "f1": lambda w, u, k: 2 * hits(w, u, k) / (k + len(w.grades[u])) if w.grades[u] else NAN,
    "alpha_ndcg": alpha_ndcg,
    "ild_cosine": over_pairs(lambda w, i, j: 1 - cosine(w.embeddings[i], w.embeddings[j])),
    "ild_jaccard": over_pairs(jaccard),
    "ild_hamming": over_pairs(lambda w, i, j: len(w.genres[i] ^ w.genres[j])),
    "category_entropy": lambda w, u, k: entropy(shares([w.genres[i] for i in w.lists[u][:k]], 5)),
    "category_entropy_single": lambda w, u, k: entropy(shares([{w.labels[i]} - {-1} for i in w.lists[u][:k]], 4)),
    "category_coverage": lambda w, u, k: (
        len(set[int]().union(*(w.genres[i] for i in w.lists[u][:k]))) / 5 if w.lists[u] else NAN
    ),
    "category_per_slot_single": lambda w, u, k: (
        len({w.labels[i] for i in w.lists[u][:k]} - {-1}) / k if w.lists[u] else NAN
    ),
    "category_autocorrelation": autocorrelation,
    "novelty": lambda w, u, k: mean(-math.log2(max(1, w.counts[i]) / w.num_train_users) for i in w.lists[u][:k]),
    "epc": by_rank(lambda w, i: 1 - w.counts[i] / w.num_train_users, True),
    "epc_norel": by_rank(lambda w, i: 1 - w.counts[i] / w.num_train_users, False),
    "efd": by_rank(lambda w, i: -math.log2(max(1, w.counts[i]) / sum(w.counts)), True),
    "arp": lambda w, u, k: mean(w.counts[i] for i in w.lists[u][:k]),
    "aplt": lambda w, u, k: mean(tail(w, i) for i in w.lists[u][:k]),
    "unexpectedness": lambda w, u, k: 1 - len(set(w.lists[u][:k]) & expected(w, u, k)) / k if w.lists[u] else NAN,
    "serendipity": lambda w, u, k: (
        len((set(w.lists[u][:k]) - expected(w, u, k)) & set(w.grades[u])) / k if w.grades[u] else NAN
    ),
    "serendipity_rank": serendipity_rank,
    "serendipity_cosine": serendipity_cosine,
    "calibration_kl": calibration(by_genre, lambda p, q: kl(p, 0.99 * q + 0.01 * p)),
    "calibration_kl_rankw": calibration(by_genre, lambda p, q: kl(p, 0.99 * q + 0.01 * p), True),
    "calibration_js": calibration(by_genre, lambda p, q: float(jensenshannon(p, q, 2)) ** 2),
    "calibration_hellinger": calibration(
        by_genre, lambda p, q: float(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / math.sqrt(2))
    ),
    "calibration_single_kl": calibration(
        by_label, lambda p, q: kl(0.999 * p + 0.001 * q, 0.999 * q + 0.001 * p) / math.log(2)
    ),
    "popularity_calibration_js": calibration(by_popularity, lambda p, q: float(jensenshannon(p, q, 2)) ** 2),
    "user_coverage": lambda w, u, k: float(bool(w.lists[u])),
}


def test_every_per_user_metric_has_an_oracle() -> None:
    assert set(ORACLES) == {
        name for name, info in METRICS.items() if info.kind == "per_user" and "impressions" not in info.needs
    }


def test_every_per_user_metric_equals_its_loop(world: World) -> None:
    metrics = world.metrics(list(ORACLES))
    metrics.update(world.ranked)
    columns, means = metrics.per_user(), metrics.compute()
    for name, oracle in ORACLES.items():
        for k in (1, 5, 12):
            found = columns[f"{name}@{k}"].tolist()
            values = [oracle(world, row, k) for row in range(len(world.users))]
            for row, value in enumerate(values):
                assert found[world.users[row]] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, k, row)
            defined = [value for value in values if not math.isnan(value)]
            assert means[f"{name}@{k}"] == pytest.approx(mean(defined), abs=1e-9, nan_ok=True), (name, k)


def test_populations_are_those_of_the_catalog(world: World) -> None:
    """The users with a value: those with relevant items, with a list, or all, if nothing else is missing."""
    metrics = world.metrics(list(ORACLES))
    metrics.update(world.ranked)
    columns = metrics.per_user()
    for name in ORACLES:
        if name == "category_autocorrelation":
            continue  # defined for two different items and more
        for row, user in enumerate(world.users):
            sets = [world.lists[row][:5], world.history_of[row], world.grades[row]]
            described = [[i for i in items if world.genres[i] and world.labels[i] >= 0] for items in sets]
            if not sets[1] or any(items and not found for items, found in zip(sets, described, strict=True)):
                continue  # without a category, or without a history
            population = {"relevant": bool(world.grades[row]), "listed": bool(world.lists[row]), "all": True}
            assert columns[f"{name}@5"][user].isnan().item() != population[METRICS[name].population], (name, row)
