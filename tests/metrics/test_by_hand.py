"""Values worked by hand, and the options that other libraries have as their only way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import History, RankedLists, match
from metrics import per_item as vectors
from metrics.accuracy import average_precision, ctr, f1, hit_rate, mrr, ndcg, precision, recall
from metrics.association import group_category_sums, mutual_information
from metrics.calibration import category_profile, miscalibration
from metrics.coverage import gini, item_coverage, shannon_entropy, user_coverage
from metrics.diversity import (
    alpha_ndcg,
    category_autocorrelation,
    category_coverage,
    category_entropy,
    ild_cosine,
    ild_hamming,
    inter_list_diversity,
)
from metrics.exposure import (
    disparate_treatment_ratio,
    exposure_kl,
    exposure_ratio,
    inequity_of_attention,
    item_equal_opportunity_gap,
    ranking_equal_opportunity,
    ranking_statistical_parity,
    share,
)
from metrics.fairness import (
    bootstrap_interval,
    by_group,
    cvar,
    user_gap,
    user_gini,
    user_mad,
    user_ratio,
    user_std,
    user_worst,
)
from metrics.generated import sufficient, unrepeated, valid_ratio
from metrics.novelty import aplt, efd, epc, least_popular, long_tail, novelty, popularity_groups, popularity_lift
from metrics.serendipity import mean_unit_embedding, serendipity, serendipity_cosine, serendipity_rank
from metrics.serendipity import unexpectedness as unexpected

L3 = math.log2(3)
NAN = math.nan


def lists_of(rows: list[list[int]], relevant: list[set[int]], num_items: int = 10) -> RankedLists:
    pairs = [(row, item) for row, items in enumerate(relevant) for item in items]
    columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return match(torch.arange(len(rows)), torch.tensor(rows), (columns[:, 0], columns[:, 1]), num_items)


def history_of(rows: list[set[int]], num_items: int) -> History:
    pairs = torch.tensor([(u, i) for u, items in enumerate(rows) for i in items], dtype=torch.int64).reshape(-1, 2)
    return History.of(pairs[:, 0], pairs[:, 1], len(rows), num_items)


def genres(*names: str, of: str = "abcd") -> Tensor:
    """One string of letters an item."""
    return torch.tensor([[letter in name for letter in of] for name in names])


# Accuracy ----------------------------------------------------------------------------------------------


def test_graded_ndcg() -> None:
    """Grades 3 and 1; the lower one is listed first."""
    lists = lists_of([[2, 1, 0]], [{1, 2}])
    graded = lists.graded((torch.tensor([0, 0]), torch.tensor([2, 1])), torch.tensor([1, 3]))
    assert ndcg(graded, 2, "linear").item() == pytest.approx((1 + 3 / L3) / (3 + 1 / L3))
    assert ndcg(graded, 2, "exp2").item() == pytest.approx((1 + 7 / L3) / (7 + 1 / L3))
    assert ndcg(graded, 1, "exp2").item() == pytest.approx(1 / 7)
    assert ndcg(graded, 2).item() == 1
    only = graded.only(torch.arange(10) == 2)
    assert ndcg(only, 2, "linear").item() == 1
    with pytest.raises(ValueError, match="needs grades"):
        ndcg(lists, 2, "linear")
    with pytest.raises(ValueError, match="binary"):
        ndcg(graded, 2, "linear", ideal="k")


def test_grades_are_taken_as_given_and_refused_where_they_do_not_fit() -> None:
    lists = lists_of([[2, 1], [5, 6]], [{1, 2}, {6}])
    row, item = torch.tensor([1, 0, 0, 1]), torch.tensor([6, 2, 1, 6])
    assert lists.graded((row, item), torch.tensor([4, 3, 2, 1])).grade.tolist() == [2, 3, 1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not the held-out pairs"):
        lists.graded((row[:2], item[:2]), torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="not the held-out pairs"):
        lists.graded((row, item + 1), torch.tensor([4, 3, 2, 1]))
    with pytest.raises(ValueError, match="at least 0"):
        lists.graded((row, item), torch.tensor([4, 3, 2, -1]))
    with pytest.raises(ValueError, match="at least 0"):
        lists.graded((row, item), torch.tensor([4, 3, 2, NAN]))


def test_ideal_over_k_expects_hits_everywhere() -> None:
    lists = lists_of([[1, 2, 3]], [{1}])
    assert ndcg(lists, 3).item() == 1
    assert ndcg(lists, 3, ideal="k").item() == pytest.approx(1 / (1 + 1 / L3 + 1 / 2))


def test_denominators_of_recall_precision_and_average_precision() -> None:
    """Hits at ranks 1 and 3 of a list of three, four relevant items; k 5."""
    lists = lists_of([[1, 9, 2, -1, -1], [-1] * 5], [{1, 2, 3, 4}, {1}])
    assert recall(lists, 3).tolist() == [0.5, 0]
    assert recall(lists, 3, capped=True).tolist() == pytest.approx([2 / 3, 0])
    assert precision(lists, 5).tolist() == [0.4, 0]
    assert precision(lists, 5, over="length").tolist() == pytest.approx([2 / 3, 0])
    found = 1 + 2 / 3
    assert average_precision(lists, 3).tolist() == pytest.approx([found / 3, 0])
    assert average_precision(lists, 3, over="relevant").tolist() == pytest.approx([found / 4, 0])
    assert average_precision(lists, 3, over="hits").tolist() == pytest.approx([found / 2, 0])


@pytest.mark.parametrize(
    "metric",
    [
        *[ndcg, recall, precision, hit_rate, mrr, average_precision, f1],
        partial(alpha_ndcg, categories=genres(*"abcdabcdab")),
        partial(epc, train_counts=torch.arange(10), num_train_users=20),
        partial(efd, train_counts=torch.arange(10)),
        partial(serendipity, train_counts=torch.arange(10)),
    ],
)
def test_users_without_relevant_items_count_as_asked(metric: Callable[..., Tensor]) -> None:
    lists = replace(lists_of([[1, 2], [1, 2]], [set(), {1}]), allowed=torch.ones(2, 10, dtype=torch.bool))
    plain = metric(lists, 2)
    assert plain[0].isnan()
    for value in (0.0, 1.0):
        assert metric(lists, 2, without_relevant=value).tolist() == [value, plain[1].item()]


def test_ctr_is_of_what_was_shown() -> None:
    """Listed 1, 2, 3; 1 and 3 were shown, 3 was clicked. The second user was shown nothing that is listed."""
    lists = lists_of([[1, 2, 3], [4, 5, -1]], [{3}, set()])
    shown = torch.tensor([0, 0, 1, 0]), torch.tensor([3, 1, 9, 7])
    assert ctr(lists, 3, shown)[0] == 0.5
    assert ctr(lists, 2, shown)[0] == 0
    assert ctr(lists, 3, shown)[1].isnan()
    with pytest.raises(ValueError, match="logged impressions"):
        ctr(lists, 3, (shown[0][:0], shown[1][:0]))
    with pytest.raises(ValueError, match="not shown"):
        ctr(lists, 3, (shown[0][1:], shown[1][1:]))


# Diversity ---------------------------------------------------------------------------------------------


def test_alpha_ndcg_halves_what_is_repeated() -> None:
    """Items 0 and 1 are of a, 2 of b, all relevant. The greedy ideal is 0, 2, 1."""
    lists = lists_of([[0, 1, 2]], [{0, 1, 2}], 3)
    categories = genres("a", "a", "b")
    assert alpha_ndcg(lists, 3, categories).item() == pytest.approx((1 + 0.5 / L3 + 1 / 2) / (1 + 1 / L3 + 0.5 / 2))
    assert alpha_ndcg(lists, 3, categories, alpha=0).item() == pytest.approx(1)
    assert alpha_ndcg(lists, 3, categories, alpha=1).item() == pytest.approx((1 + 1 / 2) / (1 + 1 / L3))


def test_alpha_ndcg_builds_its_ideal_greedily_with_ties_by_lowest_id() -> None:
    """All three items gain 2 at first. Item 0 goes first, and then only 1.5 is left; 1 and 2 would gain 2 + 2."""
    lists = lists_of([[1, 2], [0, 1]], [{0, 1, 2}, {0, 1, 2}], 3)
    values = alpha_ndcg(lists, 2, genres("ac", "ab", "cd"))
    assert values.tolist() == pytest.approx([(2 + 2 / L3) / (2 + 1.5 / L3), 1])


def test_alpha_ndcg_counts_the_subtopics_of_hits_alone() -> None:
    """The miss 0 is of a as well, and takes nothing from the hit behind it."""
    lists = lists_of([[0, 1]], [{1}], 2)
    assert alpha_ndcg(lists, 2, genres("a", "a")).item() == pytest.approx(1 / L3)
    without = lists_of([[0, 1]], [{1}], 2)
    assert alpha_ndcg(without, 2, genres("a", "")).isnan().all()


def test_ild_cosine_and_hamming() -> None:
    """Cosines 0, 1 and 0 between three items; bits that differ: 2, 1 and 1."""
    lists = lists_of([[0, 1, 2], [0, -1, -1], [-1, -1, -1]], [set()] * 3)
    vectors = torch.tensor([[1.0, 0], [0, 2], [3, 0], *[[1, 1]] * 7])
    assert ild_cosine(lists, 3, vectors).tolist() == pytest.approx([2 / 3, 0, NAN], nan_ok=True)
    categories = genres("a", "b", "ab", *[""] * 7)
    assert ild_hamming(lists, 3, categories).tolist() == pytest.approx([4 / 3, 0, NAN], nan_ok=True)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ild_cosine_without_pairs_is_as_exact_as_the_pairs(spread: float, dtype: torch.dtype) -> None:
    """100 items whose embeddings all but coincide: the sums cancel, and distances of 1e-12 remain."""
    draw = np.random.default_rng(0)
    embeddings = torch.from_numpy(draw.normal(size=384) + spread * draw.normal(size=(100, 384))).to(dtype)
    lists = lists_of([list(range(100))], [set()], 100)
    rows = embeddings.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # |a - b|^2 / 2 is 1 - cos without the cancellation.
    distances = [float(((a - b) ** 2).sum() / 2) for a, b in itertools.combinations(rows, 2)]
    value = ild_cosine(lists, 100, embeddings).item()
    assert value == pytest.approx(sum(distances) / len(distances), abs=1e-14)
    assert value >= 0


def test_category_entropy_and_coverage() -> None:
    """a, and a with b: q is (3/4, 1/4)."""
    lists = lists_of([[0, 1], [2, -1], [3, -1], [-1, -1]], [set()] * 4, 4)
    categories = genres("a", "ab", "abcd", "")
    bits = 0.75 * math.log2(4 / 3) + 0.25 * 2
    assert category_entropy(lists, 2, categories).tolist() == pytest.approx([bits, 2, NAN, NAN], nan_ok=True)
    normalised = category_entropy(lists, 2, categories, normalised=True)
    assert normalised.tolist() == pytest.approx([bits / 2, 1, NAN, NAN], nan_ok=True)
    assert category_coverage(lists, 2, categories).tolist() == pytest.approx([0.5, 1, 0, NAN], nan_ok=True)
    assert category_coverage(lists, 2, categories, over="k").tolist() == pytest.approx([1, 2, 0, NAN], nan_ok=True)


def test_autocorrelation_tells_runs_from_alternation() -> None:
    """Centred, a and b are opposite: neighbours add +1 or -1 to 3 pairs, over 4 items."""
    categories = genres(*"aabbab", of="ab")
    lists = lists_of([[0, 1, 2, 3, -1], [0, 2, 1, 3, -1], [0, -1, 1, 2, 3], [0, 1, -1, -1, -1]], [set()] * 4, 6)
    found = category_autocorrelation(lists, 5, categories)
    assert found.tolist() == pytest.approx([1 / 4, -3 / 4, 1 / 4, NAN], nan_ok=True)
    assert category_autocorrelation(lists, 5, categories, lag=2).tolist() == pytest.approx(
        [-2 / 4, 2 / 4, -2 / 4, NAN], nan_ok=True
    )
    assert category_autocorrelation(lists, 1, categories).isnan().all()
    # All of one mix: 1/5 less the mean of three 1/5 is not exactly 0.
    alike = lists_of([[0, 1, 2]], [set()], 3)
    assert category_autocorrelation(alike, 3, torch.ones(3, 5, dtype=torch.bool)).isnan().all()
    with pytest.raises(ValueError, match="lag is 0"):
        category_autocorrelation(lists, 5, categories, lag=0)


def test_inter_list_diversity() -> None:
    """Cosines 1/2, 0 and 0 between three lists; the empty one is left out."""
    lists = lists_of([[0, 1], [1, 2], [3, -1], [-1, -1]], [set()] * 4)
    number = lists.listed.any(1).sum()
    assert inter_list_diversity(vectors.cosine_weights(lists, 2, 10), number).item() == pytest.approx(5 / 6)
    one = lists_of([[0, 1]], [set()])
    assert inter_list_diversity(vectors.cosine_weights(one, 2, 10), torch.tensor(1)).isnan()


# Novelty -----------------------------------------------------------------------------------------------


def test_epc_efd_and_normalised_novelty() -> None:
    """Item 0 has 4 of 8 users, item 1 none; 16 interactions."""
    counts = torch.tensor([4, 0, 12])
    lists = lists_of([[0, 1], [0, -1], [-1, -1]], [{1}, {0}, {0}], 3)
    weights = 1 + 1 / L3
    assert epc(lists, 2, counts, 8).tolist() == pytest.approx([1 / L3 / weights, 0.5, 0])
    norel = epc(lists, 2, counts, 8, relevance=False).tolist()
    assert norel == pytest.approx([(0.5 + 1 / L3) / weights, 0.5, NAN], nan_ok=True)
    # 1 of 16 interactions where there are none: 4 bits; 4 of 16: 2 bits.
    assert efd(lists, 2, counts).tolist() == pytest.approx([4 / L3 / weights, 2, 0])
    # 1 of 8: 3 bits; 4 of 8: 1 bit
    assert novelty(lists, 2, counts, 8).tolist() == pytest.approx([2, 1, NAN], nan_ok=True)
    assert novelty(lists, 2, counts, 8, normalised=True).tolist() == pytest.approx([2 / 3, 1 / 3, NAN], nan_ok=True)


def test_head_tail_and_groups_of_popularity() -> None:
    # 8 + 5 + 5 of 20 is the first prefix with 16.
    assert long_tail(torch.tensor([8, 5, 5, 2])).tolist() == [False, False, False, True]
    # Exactly 16 of 20; of the equal counts the lower ids belong to the head.
    assert long_tail(torch.tensor([4, 4, 8, 4])).tolist() == [False, False, False, True]
    assert long_tail(torch.tensor([5, 3, 1, 1]), 0.5).tolist() == [False, True, True, True]
    # 0.1 + 0.2 is a little above 0.3, and 3 of 10 are enough.
    assert long_tail(torch.tensor([3, 3, 2, 2]), 0.1 + 0.2).tolist() == [False, True, True, True]
    assert least_popular(torch.tensor([4, 4, 8, 4]), 0.5).tolist() == [False, True, False, True]
    assert least_popular(torch.tensor([4, 4, 8, 4]), 0).tolist() == [False] * 4
    assert popularity_groups(torch.tensor([2] * 5)).long().argmax(1).tolist() == [0, 1, 1, 1, 2]
    # 1 + 1 of 10 are at most 2; items without users are in the tail.
    assert popularity_groups(torch.tensor([1, 0, 5, 3, 1])).long().argmax(1).tolist() == [2, 2, 0, 1, 2]
    # One item has nearly all; nothing is in the middle.
    assert popularity_groups(torch.tensor([97, 3])).long().argmax(1).tolist() == [0, 2]
    lists = lists_of([[0, 3], [3, -1]], [set()] * 2, 4)
    assert aplt(lists, 2, long_tail(torch.tensor([8, 5, 5, 2]))).tolist() == [0.5, 1]


def test_popularity_lift() -> None:
    assert popularity_lift(torch.tensor(3.0), torch.tensor(2.0)).item() == 0.5
    assert popularity_lift(torch.tensor(1.0), torch.tensor(2.0)).item() == -0.5


# Serendipity -------------------------------------------------------------------------------------------


def test_the_most_popular_unseen_items_are_expected() -> None:
    """Popularity order 0, 1, 2, 3, 4; seen: 0 by user 0, 1 and 3 by user 1, nothing by user 2."""
    counts = torch.tensor([5, 4, 3, 3, 1])
    lists = lists_of([[1, 4, 2], [2, 0, 4], [0, 2, -1]], [{1, 4}, {0}, {0, 2}], 5)
    lists = replace(lists, allowed=history_of([{0}, {1, 3}, set()], 5).others(lists.user))
    # The first two unseen: 1, 2 for user 0; 0, 2 for user 1; 0, 1 for user 2.
    assert unexpected(lists, 2, counts).tolist() == [0.5, 0, 0.5]
    assert serendipity(lists, 2, counts).tolist() == [0.5, 0, 0.5]
    # Three: 1, 2, 3; 0, 2, 4; 0, 1, 2. The third list's missing place is unexpected.
    assert unexpected(lists, 3, counts).tolist() == pytest.approx([1 / 3, 0, 1 / 3])
    assert serendipity(lists, 3, counts).tolist() == pytest.approx([1 / 3, 0, 0])


def test_a_seen_item_is_never_expected() -> None:
    counts = torch.tensor([5, 4, 3, 3, 1])
    lists = lists_of([[0, 1]], [{0}], 5)
    seen = replace(lists, allowed=torch.arange(5)[None] > 0)
    assert unexpected(seen, 2, counts).tolist() == [0.5]
    assert serendipity(seen, 2, counts).tolist() == [0.5]
    assert unexpected(replace(lists, allowed=torch.ones(1, 5, dtype=torch.bool)), 2, counts).tolist() == [0]
    with pytest.raises(ValueError, match="do not say what could be listed"):
        unexpected(lists, 2, counts)


def test_serendipity_by_rank_is_rectools() -> None:
    """The example in the documentation of RecTools' Serendipity, whose items have 3, 2, 0 and 0 users."""
    lists = lists_of([[0, 1], [1, 2], [2, -1], [1, 2]], [{0, 1}, {1, 2}, {1}, {1}], 4)
    counts = torch.tensor([3, 2, 0, 0])
    assert serendipity_rank(lists, 1, counts).tolist() == [0, 0.25, 0, 0.25]
    assert serendipity_rank(lists, 2, counts).tolist() == [0, 0.5, 0, 0.125]


def test_content_serendipity() -> None:
    """History (1, 0) and (0, 1): mean cosine of (3, 0) is 1/2, of (-1, 0) is -1/2."""
    vectors = torch.tensor([[1.0, 0], [0, 5], [3, 0], [-1, 0]])
    mean = mean_unit_embedding(history_of([{0, 1}, {0, 1}, set()], 4), vectors)
    lists = lists_of([[2, 3], [2, 3], [2, 3]], [{2, 3}, set(), {2}], 4)
    assert serendipity_cosine(lists, 2, vectors, mean).tolist() == pytest.approx([1, 0, NAN], nan_ok=True)
    assert serendipity_cosine(lists, 1, vectors, mean)[0] == pytest.approx(0.5)


# Calibration -------------------------------------------------------------------------------------------


def test_calibration_of_one_category_after_two() -> None:
    """p is (1/2, 1/2), q is (1, 0)."""
    categories = genres("a", "b", "a", of="ab")
    profile = category_profile(history_of([{0, 1}, set()], 3), categories)
    assert profile[0].tolist() == [0.5, 0.5]
    lists = lists_of([[2, 0], [2, 0]], [set(), set()], 3)

    def value(**options: Any) -> float:
        found = miscalibration(lists, 2, categories, profile, **options)
        assert found[1].isnan()
        return found[0].item()

    assert value() == pytest.approx(0.5 * math.log(0.5 / 0.995) + 0.5 * math.log(0.5 / 0.005))
    assert value(divergence="js") == pytest.approx(0.311278, abs=1e-6)
    assert value(divergence="hellinger") == pytest.approx(math.sqrt(1 - math.sqrt(0.5)))
    radio = 0.5005 * math.log2(0.5005 / 0.9995) + 0.4995 * math.log2(0.4995 / 0.0005)
    assert value(alpha=0.001, both_smoothed=True, base=2) == pytest.approx(radio)


def test_calibration_weighted_by_rank() -> None:
    """b at rank 1 and a at rank 2 weigh 1 and 1 / log2 3; p is all b."""
    categories = genres("a", "b", of="ab")
    profile = category_profile(history_of([{1}], 2), categories)
    lists = lists_of([[1, 0]], [set()], 2)
    q = 1 / (1 + 1 / L3)
    found = miscalibration(lists, 2, categories, profile, rank_weighted=True).item()
    assert found == pytest.approx(-math.log(0.99 * q + 0.01))


@pytest.mark.parametrize("options", [{}, {"divergence": "js"}, {"divergence": "hellinger"}, {"both_smoothed": True}])
def test_a_list_with_the_mix_of_the_history_is_calibrated(options: dict[str, Any]) -> None:
    categories = genres("a", "bc", "d", "ad", "abc")
    profile = category_profile(history_of([{0, 1, 2, 3, 4}], 5), categories)
    lists = lists_of([[4, 3, 2, 1, 0]], [set()], 5)
    assert miscalibration(lists, 5, categories, profile, **options).item() == pytest.approx(0, abs=1e-7)


# Coverage, fairness ------------------------------------------------------------------------------------


def test_options_of_coverage() -> None:
    counts = torch.tensor([3, 0, 1, 0])
    assert item_coverage(counts, among=torch.tensor([True, False, True, True])).item() == pytest.approx(2 / 3)
    assert gini(counts, corrected=True).item() == pytest.approx(10 / 12)
    assert gini(torch.tensor([0, 0, 7]), corrected=True).item() == pytest.approx(1)
    bits = 0.75 * math.log2(4 / 3) + 0.25 * 2
    assert shannon_entropy(counts, normalised=True).item() == pytest.approx(bits / 2)
    lists = lists_of([[0, 3], [3, -1], [-1, -1]], [set()] * 3)
    assert user_coverage(lists, 2).tolist() == [1, 1, 0]


def test_spreads_of_group_means() -> None:
    """Means 1, 2 and 6, a group without users, and one user of no group."""
    values = torch.tensor([1.0, 1, 2, 4, 8, 9, NAN], dtype=torch.float64)
    index = torch.tensor([0, 0, 1, 2, 2, -1, 3])
    sums, counts = by_group(values, index[:, None] == torch.arange(4))
    assert sums.tolist() == [2, 2, 12, 0]
    assert counts.tolist() == [2, 1, 2, 0]
    assert counts.dtype == torch.int64
    assert user_gap(sums, counts).item() == 5
    assert user_ratio(sums, counts).item() == pytest.approx(1 / 6)
    assert user_std(sums, counts).item() == pytest.approx(math.sqrt(14 / 3))
    assert user_mad(sums, counts).item() == pytest.approx((1 + 5 + 4) / 3)
    assert user_worst(sums, counts).item() == 1
    assert user_worst(sums, counts, lower_is_better=True).item() == 6


@pytest.mark.parametrize("spread", [user_gap, user_ratio, user_std, user_mad])
def test_one_group_has_no_spread_and_equal_groups_none_to_speak_of(spread: Callable[..., Tensor]) -> None:
    sums, counts = torch.tensor([[3.0, 0], [3, 6]], dtype=torch.float64), torch.tensor([[3, 0], [1, 2]])
    found = spread(sums, counts)
    assert found[0].isnan()
    assert found[1] == (1 if spread is user_ratio else 0)


def test_means_of_groups_that_are_all_zero_have_no_ratio() -> None:
    assert user_ratio(torch.zeros(2, dtype=torch.float64), torch.tensor([3, 4])).isnan()


def test_cvar_and_gini_of_users() -> None:
    values = torch.tensor([0.5, NAN, 0.1, 0.4, 0.0, 1.0], dtype=torch.float64)
    assert cvar(values, 0.2).item() == 0
    assert cvar(values, 0.5).item() == pytest.approx(0.5 / 3)  # ceil(2.5) users
    assert cvar(values, 1).item() == pytest.approx(2 / 5)
    assert cvar(values, 0.4, lower_is_better=True).item() == 0.75
    # 0.07 of 100 is 7 users, though in floating point it is a little more.
    assert cvar(torch.arange(100.0), 0.07).item() == 3
    assert cvar(values[1:2]).isnan()
    # |differences| of 0, 0.1, 0.4, 0.5 and 1 over all ordered pairs sum to 9.6; 2 * 25 * 0.4
    assert user_gini(values).item() == pytest.approx(9.6 / 20)
    for alpha in (0, 1.1, NAN):
        with pytest.raises(ValueError, match="alpha is"):
            cvar(values, alpha)


def test_intervals_leave_out_draws_without_a_gap_and_are_nan_where_all_are() -> None:
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    apart = torch.eye(2, dtype=torch.bool)
    # Either both are drawn, and the gap is 1, or one of them twice, and there is none.
    assert [end.item() for end in bootstrap_interval(values, apart, samples=50)] == [1, 1]
    together = torch.tensor([[True, False], [True, False]])
    assert all(end.isnan() for end in bootstrap_interval(values, together, samples=50))
    with pytest.raises(ValueError, match="level is"):
        bootstrap_interval(values, apart, level=1)


def test_fairness_to_items() -> None:
    """Groups of 1, 2 and 1 items with exposure 3, 1 and 0, and 2, 1 and 0 relevant pairs."""
    member = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    exposure = torch.tensor([3.0, 0.5, 0.5, 0], dtype=torch.float64)
    relevant = torch.tensor([2, 1, 0, 0])
    assert share(exposure, member).tolist() == [0.75, 0.25, 0]
    assert exposure_ratio(exposure, member).item() == 0
    assert exposure_ratio(exposure, member[:, :2]).item() == pytest.approx(0.5 / 3)
    # The third group has nothing relevant, so no due exposure.
    assert disparate_treatment_ratio(exposure, relevant, member).item() == pytest.approx(1 / 1.5)
    wasted = exposure + torch.tensor([0, 0, 0, 1])
    assert disparate_treatment_ratio(wasted, relevant, member).item() == pytest.approx(1 / 1.5)
    assert exposure_kl(exposure, torch.ones(4), member).item() == math.inf
    two = member[:, :2]
    kl = 1 / 3 * math.log(1 / 3 / 0.75) + 2 / 3 * math.log(2 / 3 / 0.25)
    assert exposure_kl(exposure, torch.ones(4), two).item() == pytest.approx(kl)
    assert exposure_kl(exposure, torch.tensor([9, 2, 1, 5]), two).item() == pytest.approx(0)
    assert math.isnan(exposure_kl(exposure, torch.ones(4), two[:, :1]).item())  # one group is compared with none
    assert inequity_of_attention(exposure, relevant).item() == pytest.approx(
        abs(3 / 4 - 2 / 3) + abs(1 / 8 - 1 / 3) + 1 / 8
    )
    # Listed 4 of 8, and 1 of 4 candidates: mean 3/8, deviation 1/8.
    parity = ranking_statistical_parity(torch.tensor([4, 1, 0, 0]), torch.tensor([8, 2, 2, 0]), member)
    assert parity.item() == pytest.approx(1 / 3)
    # Found 2 of 2 and 0 of 1: mean 1/2, deviation 1/2.
    hits = torch.tensor([2, 0, 0, 0])
    assert ranking_equal_opportunity(hits, relevant, member).item() == 1
    assert item_equal_opportunity_gap(hits, relevant, member).item() == 1
    assert item_equal_opportunity_gap(hits, torch.tensor([2, 0, 0, 0]), member).isnan()


def test_vectors_over_the_catalogue() -> None:
    lists = lists_of([[0, 1], [1, -1], [-1, -1]], [{1}, {1, 3}, {3}], 4)
    assert vectors.counts(lists, 2, 4).tolist() == [1, 2, 0, 0]
    assert vectors.counts(lists, 1, 4).tolist() == [1, 1, 0, 0]
    assert vectors.hits(lists, 2, 4).tolist() == [0, 2, 0, 0]
    assert vectors.relevant(lists, 4).tolist() == [0, 2, 0, 2]
    assert vectors.exposure(lists, 2, 4).tolist() == pytest.approx([1, 1 + 1 / L3, 0, 0])
    assert vectors.cosine_weights(lists, 2, 4).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5) + 1, 0, 0])
    history = history_of([{0, 2}, {2}, set(), {0}], 4)
    allowed = history.others(torch.tensor([2, 0, 1]))
    assert allowed.tolist() == [[True] * 4, [False, True, False, True], [True, True, False, True]]
    assert vectors.candidates(replace(lists, allowed=allowed)).tolist() == [2, 3, 1, 3]
    assert history.train_counts.tolist() == [2, 0, 2, 0]


def test_mutual_information_of_groups_and_categories() -> None:
    categories = genres("a", "b", of="ab")
    member = torch.tensor([[True, False], [True, False], [False, True], [False, True], [False, False]])
    apart = lists_of([[0], [0], [1], [1], [0]], [set()] * 5, 2)
    alike = lists_of([[0], [1], [1], [0], [-1]], [set()] * 5, 2)
    assert group_category_sums(apart, 1, categories, member).tolist() == [[2, 0], [0, 2]]
    assert mutual_information(group_category_sums(apart, 1, categories, member)).item() == pytest.approx(1)
    assert mutual_information(group_category_sums(alike, 1, categories, member)).item() == pytest.approx(0)
    assert math.isnan(mutual_information(torch.tensor([[3.0, 1], [0, 0]])).item())  # of one group nothing depends
    assert mutual_information(torch.tensor([[3.0, 1], [1, 3]])).item() == pytest.approx(
        0.75 * math.log2(1.5) + 0.25 * math.log2(0.5)
    )


# Histories ---------------------------------------------------------------------------------------------


def test_a_history_takes_each_pair_once_in_any_order() -> None:
    history = History.of(torch.tensor([2, 0, 2, 2]), torch.tensor([3, 1, 0, 3]), 4, 5)
    assert history.offsets.tolist() == [0, 1, 1, 3, 3]
    assert history.item.tolist() == [1, 0, 3]
    assert history.user.tolist() == [0, 2, 2]
    assert history.mean(torch.tensor([1, 2, 3, 4, 5])).tolist() == pytest.approx([2, NAN, 2.5, NAN], nan_ok=True)
    assert history.mean(torch.eye(5))[2].tolist() == [0.5, 0, 0, 0.5, 0]
    with pytest.raises(ValueError, match="train items"):
        History.of(torch.tensor([0]), torch.tensor([5]), 4, 5)
    with pytest.raises(ValueError, match="train users"):
        History.of(torch.tensor([-1]), torch.tensor([4]), 4, 5)


def test_shares_of_generated_lists_are_float64() -> None:
    item = torch.tensor([[3, 3, -1], [7, 99, 1]])
    assert sufficient(item, 3).tolist() == [2 / 3, 1.0]
    assert unrepeated(item, 3).tolist() == [0.5, 1.0]
    assert valid_ratio(item, 3, 10).tolist() == [1.0, 2 / 3]
    assert {sufficient(item, 3).dtype, unrepeated(item, 3).dtype, valid_ratio(item, 3, 10).dtype} == {torch.float64}
