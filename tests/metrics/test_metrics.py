"""Each metric against a loop over Python sets, sklearn or numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor

from metrics import RankedLists, match
from metrics.accuracy import average_precision, f1, hit_rate, mrr, ndcg, precision, recall
from metrics.coverage import gini, item_coverage, shannon_entropy
from metrics.diversity import ild_jaccard
from metrics.fairness import group_means, user_gap
from metrics.novelty import arp, novelty

Metric = Callable[[RankedLists, int], Tensor]
Oracle = Callable[[list[int], set[int], int], float]

NUM_ITEMS, NUM_CATEGORIES, NUM_TRAIN_USERS, LENGTH = 30, 5, 100, 12


class Case:
    """Lists of 0 to 12 items, 0 to 20 relevant items a user, and items with 0 to 5 categories."""

    def __init__(self, seed: int, num_users: int = 50) -> None:
        draw = np.random.default_rng(seed)
        lengths = draw.integers(0, LENGTH + 1, num_users)
        lengths[:10] = LENGTH
        lengths[10:13] = [0, 1, 2]
        self.lists = [draw.permutation(NUM_ITEMS)[:length].tolist() for length in lengths]
        sizes = draw.integers(0, 21, num_users)
        sizes[:5] = 0
        self.relevant = [set(draw.permutation(NUM_ITEMS)[:size].tolist()) for size in sizes]
        self.categories = torch.from_numpy(draw.random((NUM_ITEMS, NUM_CATEGORIES)) < 0.3)
        self.train_counts = torch.from_numpy(draw.integers(0, NUM_TRAIN_USERS + 1, NUM_ITEMS))
        self.train_counts[:3] = torch.tensor([0, 1, NUM_TRAIN_USERS])
        pairs = [(u, i) for u in range(num_users) for i in sorted(self.relevant[u])]
        self.ranked = match(
            torch.arange(num_users),
            torch.tensor([row + [-1] * (LENGTH - len(row)) for row in self.lists]),
            (torch.tensor([u for u, _ in pairs]), torch.tensor([i for _, i in pairs])),
            NUM_ITEMS,
        )


def loop_recall(listed: list[int], relevant: set[int], k: int) -> float:
    return len([i for i in listed if i in relevant]) / len(relevant)


def loop_precision(listed: list[int], relevant: set[int], k: int) -> float:
    return len([i for i in listed if i in relevant]) / k


def loop_hit_rate(listed: list[int], relevant: set[int], k: int) -> float:
    return float(any(i in relevant for i in listed))


def loop_mrr(listed: list[int], relevant: set[int], k: int) -> float:
    for r, i in enumerate(listed, start=1):
        if i in relevant:
            return 1 / r
    return 0.0


def loop_average_precision(listed: list[int], relevant: set[int], k: int) -> float:
    total, hits = 0.0, 0
    for r, i in enumerate(listed, start=1):
        if i in relevant:
            hits += 1
            total += hits / r
    return total / min(k, len(relevant))


def loop_f1(listed: list[int], relevant: set[int], k: int) -> float:
    p, r = loop_precision(listed, relevant, k), loop_recall(listed, relevant, k)
    return 2 * p * r / (p + r) if p + r else 0.0


def sklearn_ndcg(listed: list[int], relevant: set[int], k: int) -> float:
    """The listed items score above all others; the others are strung behind the list's empty places."""
    truth, score = np.zeros(NUM_ITEMS + k), np.zeros(NUM_ITEMS + k)
    truth[list(relevant)] = 1
    for r, i in enumerate(listed):
        score[i] = 1000 - r
    score[NUM_ITEMS:] = 500 - np.arange(k)  # irrelevant, and above all that is not listed
    score[[i for i in range(NUM_ITEMS) if i not in listed]] = -1 - np.arange(NUM_ITEMS - len(listed))
    return float(ndcg_score([truth], [score], k=k))


ORACLES = [
    (ndcg, sklearn_ndcg),
    (recall, loop_recall),
    (precision, loop_precision),
    (hit_rate, loop_hit_rate),
    (mrr, loop_mrr),
    (average_precision, loop_average_precision),
    (f1, loop_f1),
]


@pytest.mark.parametrize(("metric", "oracle"), ORACLES)
@pytest.mark.parametrize("seed", range(4))
def test_accuracy_equals_its_oracle(metric: Metric, oracle: Oracle, seed: int) -> None:
    case = Case(seed)
    for k in (1, 5, 12):
        values = metric(case.ranked, k)
        assert values.dtype == torch.float64
        for value, listed, relevant in zip(values.tolist(), case.lists, case.relevant, strict=True):
            if relevant:
                assert value == pytest.approx(oracle(listed[:k], relevant, k), abs=1e-12)
            else:
                assert math.isnan(value)


def test_accuracy_worked_by_hand() -> None:
    """Hits at ranks 2 and 3 of 4, 3 relevant items."""
    relevant = (torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]))
    lists = match(torch.tensor([0]), torch.tensor([[9, 1, 2, 8]]), relevant, 10)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg(lists, 4).item() == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
    assert ndcg(lists, 2).item() == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert recall(lists, 4).item() == pytest.approx(2 / 3)
    assert precision(lists, 4).item() == 0.5
    assert mrr(lists, 4).item() == 0.5
    assert average_precision(lists, 4).item() == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert f1(lists, 4).item() == pytest.approx(4 / 7)
    assert [hit_rate(lists, 1).item(), hit_rate(lists, 2).item()] == [0, 1]


@pytest.mark.parametrize("metric", [metric for metric, _ in ORACLES])
def test_an_empty_list_of_a_user_with_relevant_items_scores_zero(metric: Metric) -> None:
    lists = match(torch.tensor([0]), torch.tensor([[-1, -1]]), (torch.tensor([0]), torch.tensor([1])), 3)
    assert metric(lists, 2).tolist() == [0]


@pytest.mark.parametrize("metric", [metric for metric, _ in ORACLES])
def test_a_cut_beyond_the_lists_is_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match="rank with a larger k"):
        metric(Case(0).ranked, LENGTH + 1)


@pytest.mark.parametrize("seed", range(4))
def test_ild_jaccard_equals_a_loop_over_pairs(seed: int) -> None:
    case = Case(seed)
    sets = [set(row.nonzero().flatten().tolist()) for row in case.categories]
    assert any(not s for s in sets)
    for k in (1, 5, 12):
        for value, full in zip(ild_jaccard(case.ranked, k, case.categories).tolist(), case.lists, strict=True):
            listed = full[:k]
            if not listed:
                assert math.isnan(value)
                continue
            distances = [
                1 - len(sets[i] & sets[j]) / len(sets[i] | sets[j]) if sets[i] | sets[j] else 0.0
                for i, j in combinations(listed, 2)
            ]
            assert value == pytest.approx(sum(distances) / len(distances) if distances else 0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_novelty_and_popularity_equal_a_loop(seed: int) -> None:
    case = Case(seed)
    counts = case.train_counts.tolist()
    for k in (1, 5, 12):
        novelties = novelty(case.ranked, k, case.train_counts, NUM_TRAIN_USERS).tolist()
        popularities = arp(case.ranked, k, case.train_counts).tolist()
        for bits, popularity, full in zip(novelties, popularities, case.lists, strict=True):
            listed = full[:k]
            if not listed:
                assert math.isnan(bits)
                assert math.isnan(popularity)
                continue
            expected = sum(-math.log2(max(1, counts[i]) / NUM_TRAIN_USERS) for i in listed) / len(listed)
            assert bits == pytest.approx(expected, abs=1e-12)
            assert popularity == pytest.approx(sum(counts[i] for i in listed) / len(listed), abs=1e-9)


def test_coverage_worked_by_hand() -> None:
    counts = torch.tensor([3, 0, 1, 0])
    assert item_coverage(counts).item() == 0.5
    # ascending 0, 0, 1, 3; weights -3, -1, 1, 3: (1 + 9) / (4 * 4)
    assert gini(counts).item() == pytest.approx(10 / 16)
    assert shannon_entropy(counts).item() == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)


@pytest.mark.parametrize("seed", range(4))
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(seed: int) -> None:
    counts = torch.randint(0, 9, (25,), generator=torch.Generator().manual_seed(seed))
    values = counts.tolist()
    expected = sum(abs(a - b) for a in values for b in values) / (2 * 25 * sum(values))
    assert gini(counts).item() == pytest.approx(expected)
    share = [v / sum(values) for v in values if v]
    assert shannon_entropy(counts).item() == pytest.approx(-sum(p * math.log2(p) for p in share))


def test_exposure_metrics_of_no_lists_are_undefined() -> None:
    assert math.isnan(gini(torch.zeros(4, dtype=torch.int64)))
    assert math.isnan(shannon_entropy(torch.zeros(4, dtype=torch.int64)))


def test_even_exposure_has_no_gini_and_full_entropy() -> None:
    assert gini(torch.full((8,), 5)).item() == pytest.approx(0)
    assert shannon_entropy(torch.full((8,), 5)).item() == pytest.approx(3)


def test_the_gap_leaves_out_groups_without_data() -> None:
    sums = torch.tensor([[1.0, 0, 6], [1, 0, 0]], dtype=torch.float64)
    counts = torch.tensor([[4, 0, 8], [2, 0, 0]])
    means = group_means(sums, counts)
    assert means[0, 0] == 0.25
    assert means[0, 2] == 0.75
    assert means.isnan().tolist() == [[False, True, False], [False, True, True]]
    gaps = user_gap(sums, counts)
    assert gaps[0] == 0.5
    assert gaps[1].isnan()
