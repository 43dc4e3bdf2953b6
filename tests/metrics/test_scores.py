"""Metrics of scores, generated lists and ratings: by hand, by sklearn and by loops."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from metrics import RankedLists, ScoreMetrics, match, rank, ratings
from metrics.accuracy import mrr, ndcg
from metrics.generated import (
    as_misses,
    generated_slots,
    repeated,
    sufficient,
    unrepeated,
    valid_ratio,
    valid_share,
    valid_slots,
)
from metrics.scores import differential_fairness, gauc, item_group_sums, nonparity, num_positives, unfairness, user_auc
from recpeft.errors import RecpeftError

NAN = math.nan
KINDS = ("value", "absolute", "underestimation", "overestimation")
NAMES = ["user_auc", "gauc", "nonparity_unfairness", "differential_fairness", *[f"{kind}_unfairness" for kind in KINDS]]


class Case:
    """40 users with scores of few levels (ties), 25 items, 0 to 10 relevant ones of which some are seen."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.scores = torch.from_numpy(draw.integers(0, 12, (40, 25)) / 12).float()
        self.seen = torch.from_numpy(draw.random((40, 25)) < 0.3)
        self.seen[3] = True
        self.relevant = torch.from_numpy(draw.random((40, 25)) < draw.random((40, 1)) * 0.4)
        self.relevant[5] = False
        self.relevant[6] = ~self.seen[6]
        self.users = torch.from_numpy(draw.permutation(40))
        self.gender = torch.from_numpy(draw.integers(-1, 2, 40))  # by user
        self.age = torch.from_numpy(draw.integers(0, 4, 40))
        self.pairs = tuple(self.relevant.nonzero(as_tuple=True))
        self.labels = torch.from_numpy(draw.integers(1, 5, len(self.pairs[0])) / 4)

    def metrics(self, names: list[str] = NAMES) -> ScoreMetrics:
        return ScoreMetrics(25, {"gender": (self.gender, ["F", "M"]), "age": (self.age, list("abcd"))}, names)


def test_user_auc_by_hand() -> None:
    """Relevant 2 and 0 among 2, 2, 1, 0: 2 beats one and ties with one, 0 beats none, of two others each."""
    scores = torch.tensor([[2.0, 2, 1, 0, 9], [1, 1, 1, 1, 1]])
    seen = torch.tensor([[False] * 4 + [True], [False] * 5])
    relevant = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 3, 2, 0])
    assert user_auc(scores, seen, relevant).tolist() == [1.5 / 4, 0.5]
    assert num_positives(scores, seen, relevant).tolist() == [2, 1]
    found = gauc(user_auc(scores, seen, relevant), num_positives(scores, seen, relevant))
    assert found.item() == pytest.approx((2 * 1.5 / 4 + 0.5) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_user_auc_is_sklearns_over_the_unseen_items(seed: int) -> None:
    case = Case(seed)
    values = user_auc(case.scores, case.seen, case.pairs).tolist()
    expected, weights = [], []
    for row in range(40):
        unseen = ~case.seen[row]
        truth = case.relevant[row][unseen].numpy()
        if 0 < truth.sum() < len(truth):
            expected.append(sklearn_metrics.roc_auc_score(truth, case.scores[row][unseen].numpy()))
            weights.append(int(truth.sum()))
            assert values[row] == pytest.approx(expected[-1], abs=1e-12)
        else:
            assert math.isnan(values[row])
    assert len(expected) < 38
    metrics = case.metrics(["user_auc", "gauc"])
    metrics.update(case.users, case.scores, case.seen, case.pairs)
    result = metrics.compute()
    assert result["user_auc"] == pytest.approx(statistics.mean(expected))
    assert result["gauc"] == pytest.approx(np.average(expected, weights=weights))
    everything = user_auc(case.scores, None, case.pairs)
    assert everything[0].item() == pytest.approx(sklearn_metrics.roc_auc_score(case.relevant[0], case.scores[0]))


def test_auc_of_no_users_and_of_broken_scores() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert user_auc(torch.empty(0, 5), None, (none, none)).shape == (0,)
    assert user_auc(torch.ones(2, 5), None, (none, none)).isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        user_auc(torch.full((1, 5), NAN), None, (none, none))


def test_mrr_over_the_full_unseen_ranking() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1]])
    seen = torch.tensor([[True, False, False, False], [False] * 4])
    lists = rank(scores, torch.arange(2), seen, (torch.tensor([0, 1]), torch.tensor([3, 3])), 4, 0)
    assert mrr(lists, 4).tolist() == pytest.approx([1 / 3, 1 / 4])


# Fairness of scores ------------------------------------------------------------------------------------


def test_unfairness_by_hand() -> None:
    """Errors of the two groups: item 0 +0.2 and -0.1, item 1 -0.3 and -0.1; item 2 has pairs of one group only."""
    item = torch.tensor([0, 0, 0, 1, 1, 2, 0])
    group = torch.tensor([0, 0, 1, 0, 1, 0, -1])
    score = torch.tensor([0.9, 0.7, 0.4, 0.2, 0.4, 0.6, 0.0], dtype=torch.float64)
    label = torch.tensor([0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64)
    sums, counts = item_group_sums(group, item, score, 4)
    labels, _ = item_group_sums(group, item, label, 4)
    assert counts.tolist() == [[2, 1], [1, 1], [1, 0], [0, 0]]
    by_hand = {"value": (0.3, 0.2), "absolute": (0.1, 0.2), "underestimation": (0.1, 0.2), "overestimation": (0.2, 0.0)}
    for kind, (first, second) in by_hand.items():
        assert unfairness(kind, sums, labels, counts).item() == pytest.approx((first + second) / 2)  # type: ignore[arg-type]
        # With means of 0 for the group that is absent, item 2 errs by +0.1 and 0.
        third = 0.0 if kind == "underestimation" else 0.1
        found = unfairness(kind, sums, labels, counts, absent="zero").item()  # type: ignore[arg-type]
        assert found == pytest.approx((first + second + third) / 3)
    assert nonparity(sums, counts).item() == pytest.approx(abs((0.9 + 0.7 + 0.2 + 0.6) / 4 - (0.4 + 0.4) / 2))
    with pytest.raises(ValueError, match="there are 3"):
        unfairness("value", torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="there are 3"):
        nonparity(torch.ones(2, 3), torch.ones(2, 3))


def test_differential_fairness_by_hand() -> None:
    """Three groups of 2, 2 and 0 users. P(1) is (1.5 + 1) / 4 and (0 + 1) / 4 for item 0, equal for item 1."""
    sums = torch.tensor([[1.5, 0.0, 0.0], [0.4, 0.4, 0.0]], dtype=torch.float64)
    sizes = torch.tensor([2, 2, 0])
    both = max(math.log(2.5), math.log(3 / 1.5))
    assert differential_fairness(sums, sizes).item() == pytest.approx(both / 2)
    high = torch.tensor([[2.0, 1.5]], dtype=torch.float64)
    # P(0) is 1/4 and 1.5/4: there the ratio is larger than between 3/4 and 2.5/4.
    assert differential_fairness(high, sizes[:2]).item() == pytest.approx(math.log(1.5))
    assert differential_fairness(high, sizes[:2], outcomes="positive").item() == pytest.approx(math.log(1.2))
    assert differential_fairness(high, sizes[:2], alpha=0.5).item() == pytest.approx(math.log(2))
    assert differential_fairness(high * torch.tensor([1, 0]), torch.tensor([2, 0])).isnan()
    with pytest.raises(ValueError, match="sigmoid"):
        differential_fairness(torch.tensor([[3.0, 1]]), sizes[:2])
    with pytest.raises(ValueError, match="sigmoid"):
        differential_fairness(torch.tensor([[-1.0, 1]]), sizes[:2])


def loop_unfairness(case: Case, kind: str) -> float:
    found = []
    for item in range(25):
        errors = []
        for g in range(2):
            pairs = [
                (case.scores[row, i].item() - label)
                for row, i, label in zip(*(column.tolist() for column in (*case.pairs, case.labels)), strict=True)
                if i == item and case.gender[case.users[row]] == g
            ]
            errors.append(statistics.mean(pairs) if pairs else None)
        if None not in errors:
            part: Callable[[float], float] = {
                "value": lambda e: e,
                "absolute": abs,
                "underestimation": lambda e: max(0, -e),
                "overestimation": lambda e: max(0, e),
            }[kind]
            found.append(abs(part(errors[0]) - part(errors[1])))
    return statistics.mean(found)


@pytest.mark.parametrize("seed", range(3))
def test_fairness_of_scores_equals_loops_in_any_blocks(seed: int) -> None:
    case = Case(seed)
    whole, parts, other = (case.metrics() for _ in range(3))
    whole.update(case.users, case.scores, case.seen, case.pairs, case.labels)
    row, item = case.pairs
    for metrics, start, end in [(parts, 0, 7), (parts, 7, 8), (other, 8, 40), (other, 40, 40)]:
        inside = (row >= start) & (row < end)
        block = slice(start, end)
        metrics.update(
            case.users[block],
            case.scores[block],
            case.seen[block],
            (row[inside] - start, item[inside]),
            case.labels[inside],
        )
    parts.merge_state(other)
    result = whole.compute()
    assert parts.compute() == pytest.approx(result, abs=1e-12)
    for kind in KINDS:
        assert result[f"{kind}_unfairness_gender"] == pytest.approx(loop_unfairness(case, kind))
        assert f"{kind}_unfairness_age" not in result
    genders = case.gender[case.users][row]
    means = [case.scores[row, item][genders == g].double().mean().item() for g in range(2)]
    assert result["nonparity_unfairness_gender"] == pytest.approx(abs(means[0] - means[1]))
    for attribute, index, number in [("gender", case.gender, 2), ("age", case.age, 4)]:
        epsilons = []
        for i in range(25):
            chances = []
            for g in range(number):
                scores = case.scores[index[case.users] == g, i].double()
                chances.append((scores.sum().item() + 1) / (len(scores) + 2))
            logs = [abs(math.log(a / b)) for p, q in combinations(chances, 2) for a, b in [(p, q), (1 - p, 1 - q)]]
            epsilons.append(max(logs))
        assert result[f"differential_fairness_{attribute}"] == pytest.approx(statistics.mean(epsilons))


def test_score_metrics_refuse_what_they_cannot_compute() -> None:
    case = Case(0)
    with pytest.raises(RecpeftError, match="unknown metric 'ndcg' of scores"):
        case.metrics(["ndcg"])
    with pytest.raises(RecpeftError, match="needs groups"):
        ScoreMetrics(25, {}, ["differential_fairness"])
    with pytest.raises(ValueError, match="needs the labels"):
        case.metrics().update(case.users, case.scores, None, case.pairs)
    with pytest.raises(ValueError, match="sigmoid"):
        case.metrics().update(case.users, case.scores + 1, None, case.pairs, case.labels)
    with pytest.raises(ValueError, match="group indices of gender"):
        ScoreMetrics(25, {"gender": (case.gender, ["F"])})


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float64])
def test_casting_a_parent_module_leaves_score_states_as_they_are(cast: torch.dtype) -> None:
    case = Case(0)
    whole = case.metrics()
    parent = torch.nn.Module()
    parent.metrics = case.metrics()
    parent.to(cast)
    for metrics in (whole, parent.metrics):
        metrics.update(case.users, case.scores, case.seen, case.pairs, case.labels)
    types = {name: getattr(parent.metrics, name).dtype for name in parent.metrics._states.values()}
    counts = {name for name in types if "sizes" in name or "counts" in name}
    assert len(counts) == 3
    assert all(dtype == (torch.int64 if name in counts else torch.float64) for name, dtype in types.items())
    assert parent.metrics.compute() == whole.compute()


# Generated lists ---------------------------------------------------------------------------------------

RAW = torch.tensor([[4, 10, 4, -2, -1], [-3, -3, -1, 0, -1], [-1, -1, -1, -1, -1]])
"""A repetition and two texts that name none of 10 items; one such text twice, and a hole; nothing at all."""


def test_generated_lists_are_valid_sufficient_and_unrepeated() -> None:
    assert generated_slots(RAW, 5).tolist() == [4, 3, 0]
    assert valid_slots(RAW, 5, 10).tolist() == [2, 1, 0]
    assert repeated(RAW).nonzero().tolist() == [[0, 2], [1, 1]]
    assert valid_ratio(RAW, 5, 10).tolist() == pytest.approx([2 / 4, 1 / 3, NAN], nan_ok=True)
    assert valid_ratio(RAW, 1, 10).tolist() == pytest.approx([1, 0, NAN], nan_ok=True)
    # 3 of 7 slots, though the mean of the lists' shares is 5/12
    assert valid_share(valid_slots(RAW, 5, 10), generated_slots(RAW, 5)).item() == pytest.approx(3 / 7)
    assert sufficient(RAW, 5).tolist() == pytest.approx([4 / 5, 3 / 5, 0])
    assert unrepeated(RAW, 5).tolist() == pytest.approx([3 / 4, 2 / 3, NAN], nan_ok=True)
    assert unrepeated(RAW, 2).tolist() == pytest.approx([1, 1 / 2, NAN], nan_ok=True)
    for metric in (sufficient, unrepeated, generated_slots):
        with pytest.raises(ValueError, match="k is 6"):
            metric(RAW, 6)


@pytest.mark.parametrize("seed", range(3))
def test_generated_lists_equal_loops(seed: int) -> None:
    raw = torch.from_numpy(np.random.default_rng(seed).integers(-4, 14, (50, 8)))
    for k in (1, 5, 8):
        for number, row in enumerate(raw.tolist()):
            made = [i for i in row[:k] if i != -1]
            assert valid_slots(raw, k, 10)[number] == sum(0 <= i < 10 for i in made)
            assert sufficient(raw, k)[number].item() == pytest.approx(len(made) / k)
            expected = len(set(made)) / len(made) if made else NAN
            assert unrepeated(raw, k)[number].item() == pytest.approx(expected, nan_ok=True)


def test_what_is_no_item_or_repeated_scores_as_a_miss_at_its_place() -> None:
    cleaned = as_misses(RAW, 10)
    assert cleaned.tolist() == [[4, -1, -1, -1, -1], [-1, -1, -1, 0, -1], [-1] * 5]
    assert as_misses(RAW, 10, keep="order").tolist() == [[4, -1, -1, -1, -1], [0, -1, -1, -1, -1], [-1] * 5]
    relevant = torch.tensor([0, 1, 2]), torch.tensor([4, 0, 1])

    def scored(**options: Any) -> RankedLists:
        return match(torch.arange(3), as_misses(RAW, 10, **options), relevant, 10)

    assert ndcg(scored(), 5).tolist() == pytest.approx([1, 1 / math.log2(5), 0])
    assert ndcg(scored(keep="order"), 5).tolist() == [1, 1, 0]


# Ratings -----------------------------------------------------------------------------------------------


def pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, 300)
    return np.clip(np.round(draw.normal(0.4 + 0.2 * label, 0.2), 2), 0.01, 0.99), label


@pytest.mark.parametrize("seed", range(3))
def test_ratings_are_sklearns(seed: int) -> None:
    p, y = pairs(seed)
    probability, label = torch.from_numpy(p), torch.from_numpy(y)
    stars, guesses = 1 + 4 * y, 5 * p
    assert ratings.mae(torch.from_numpy(guesses), torch.from_numpy(stars)).item() == pytest.approx(
        sklearn_metrics.mean_absolute_error(stars, guesses)
    )
    assert ratings.mse(torch.from_numpy(guesses), torch.from_numpy(stars)).item() == pytest.approx(
        sklearn_metrics.mean_squared_error(stars, guesses)
    )
    assert ratings.rmse(torch.from_numpy(guesses), torch.from_numpy(stars)).item() == pytest.approx(
        sklearn_metrics.root_mean_squared_error(stars, guesses)
    )
    for threshold in (0.3, 0.5, 0.62):
        decided = p >= threshold
        for name in ("accuracy", "precision", "recall", "f1"):
            expected = getattr(sklearn_metrics, f"{name}_score")(y, decided)
            assert getattr(ratings, name)(probability, label, threshold).item() == pytest.approx(expected)
    assert ratings.auc(probability, label).item() == pytest.approx(sklearn_metrics.roc_auc_score(y, p), abs=1e-9)
    logits = torch.from_numpy(40 * (p - 0.2))
    assert ratings.auc(logits, label).item() == pytest.approx(sklearn_metrics.roc_auc_score(y, p), abs=1e-9)
    assert ratings.log_loss(probability, label).item() == pytest.approx(sklearn_metrics.log_loss(y, p))
    best = ratings.best_threshold(probability, label)
    tried = {t: sklearn_metrics.f1_score(y, p >= t) for t in np.unique(p)}
    assert tried[best] == pytest.approx(max(tried.values()))


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.2 and 0.4 with one of two positive, 0.9 with none: 2/3 of 0.2 and 1/3 of 0.9."""
    error = ratings.calibration_error(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([0, 1, 0]), bins=2)
    assert error.item() == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.9, abs=1e-6)


def test_ratings_without_what_they_need() -> None:
    ones = torch.tensor([1, 1])
    assert ratings.auc(torch.tensor([0.2, 0.7]), ones).isnan()
    assert ratings.precision(torch.tensor([0.2, 0.3]), ones, 0.5).isnan()
    assert ratings.recall(torch.tensor([0.2, 0.3]), 1 - ones, 0.1).isnan()
    assert ratings.mae(torch.empty(0), torch.empty(0)).isnan()
    with pytest.raises(ValueError, match="no pair is positive"):
        ratings.best_threshold(torch.tensor([0.2, 0.7]), 1 - ones)
