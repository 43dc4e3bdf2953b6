"""Statistics against planted differences and none, and against scipy, statsmodels and what is worked by hand."""

from __future__ import annotations

import math
import re
from dataclasses import astuple, replace
from functools import cache

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.power import TTestPower

from experiments.reporting.statistics import (
    ALPHA,
    Comparison,
    Side,
    _parts,
    adjust,
    compare,
    compare_all,
    could_show,
    result,
)
from recpeft.errors import RecpeftError

TABLES, METHODS, USERS = 400, 6, 300
COMPARISONS = METHODS * (METHODS - 1) // 2
GAINS = np.array([0, *1 / np.log2(np.arange(10, 0, -1) + 1)])
EDGES = stats.norm.ppf(np.linspace(0.7, 0.97, 10))
"""NDCG@10 of one relevant item: 0 for seven users in ten, and the item as often at each of ten places."""


def side(values: object, name: str = "ours", seeds: tuple[int, ...] | None = None, **fields: str) -> Side:
    rows = np.atleast_2d(np.array(values, dtype=float))
    found = tuple(range(len(rows))) if seeds is None else seeds
    return Side(name, rows, found, **{"split": "5717", "candidates": None, **fields})


def table(draw: np.random.Generator, seeds: int, moved: float = 0.0, shift: float = 0.0) -> list[Side]:
    """Methods of one distribution, but for ``shift`` of the first.

    A list is ordered by how easy the user is, for this method, in this run; a seed moves all users of its run by
    ``moved`` standard deviations.
    """
    order = np.sqrt(0.6) * draw.standard_normal(USERS) + np.sqrt(0.2) * draw.standard_normal((METHODS, 1, USERS))
    order = order + np.sqrt(0.2) * draw.standard_normal((METHODS, seeds, USERS))
    order += moved * draw.standard_normal((METHODS, seeds, 1))
    order[0] += shift
    return [side(values, str(n)) for n, values in enumerate(GAINS[np.searchsorted(EDGES, order)])]


def comparisons(sides: list[Side]) -> list[Comparison]:
    pairs = [(ours, theirs) for n, ours in enumerate(sides) for theirs in sides[n + 1 :]]
    return compare_all(pairs, flips=999, resamples=200)


def expected(shift: float, moved: float) -> float:
    """Mean NDCG."""
    reached = stats.norm.sf((EDGES - shift) / math.sqrt(1 + moved**2))
    return float((np.diff(GAINS) * reached).sum())


@cache
def nothing_planted(seeds: int, moved: float) -> list[list[Comparison]]:
    draw = np.random.default_rng(7)
    return [comparisons(table(draw, seeds, moved)) for _ in range(TABLES)]


def shown(tables: list[list[Comparison]], of: str = "p") -> float:
    """Share of tables with a difference: Holm's first step, the least p-value by the number of comparisons."""
    return float(np.mean([min(getattr(found, of) for found in row) * COMPARISONS < ALPHA for row in tables]))


@pytest.mark.parametrize(("seeds", "moved"), [(1, 0.0), (3, 0.0), (3, 0.1)])
def test_no_more_than_five_tables_in_a_hundred_show_a_difference_where_there_is_none(seeds: int, moved: float) -> None:
    """A share of exactly 5% would itself come out with a standard deviation of 1.1 points."""
    rows = nothing_planted(seeds, moved)
    assert shown(rows) <= 0.05
    assert all((min(adjust([found.p for found in row])) < ALPHA) == (shown([row]) == 1) for row in rows[:20])


def test_users_alone_would_show_differences_that_are_the_seeds() -> None:
    rows = nothing_planted(3, 0.1)
    assert shown(rows, "p_users") > 0.3
    assert shown(rows) <= 0.05


def test_with_one_seed_the_test_keeps_its_level_for_one_comparison_and_wastes_none_of_it() -> None:
    """Three standard errors of a share of 5% of 1,200, three of a table that share no method."""
    p_values = [row[n].p for row in nothing_planted(1, 0.0) for n in (0, 9, 14)]  # 0-1, 2-3, 4-5
    share = float(np.mean(np.array(p_values) < 0.05))
    assert abs(share - 0.05) < 3 * math.sqrt(0.05 * 0.95 / len(p_values))


@pytest.mark.parametrize(("seeds", "moved"), [(1, 0.0), (5, 0.05)])
def test_a_difference_of_the_stated_minimal_size_is_shown_four_times_in_five(seeds: int, moved: float) -> None:
    """Binomial error of 80% of 400 is 2 points; the rest of 8 is for Holm, which lets more through than Bonferroni."""
    draw = np.random.default_rng(11)
    shift = 0.0
    for _ in range(2):  # what is stated depends a little on what is planted, as NDCG spreads more when it is higher
        stated = np.mean([comparisons(table(draw, seeds, moved, shift))[0].minimal for _ in range(30)])
        base = expected(0.0, moved)
        shift = optimize.brentq(lambda by: expected(by, moved) - base - stated, 0, 5)  # noqa: B023
    rows = [comparisons(table(draw, seeds, moved, shift)) for _ in range(TABLES)]
    assert np.mean([row[0].difference for row in rows]) == pytest.approx(stated, abs=0.01 * seeds)
    power = np.mean([_holm(row) for row in rows])
    assert 0.72 <= power <= 0.88


def _holm(row: list[Comparison]) -> bool:
    """Whether the first comparison is shown."""
    if row[0].p >= ALPHA or row[0].p * COMPARISONS < ALPHA:  # as Holm has it, whatever the others are
        return row[0].p < ALPHA
    return adjust([found.p for found in row])[0] < ALPHA


@pytest.mark.parametrize(("seeds", "moved", "most"), [(1, 0.0, 0.975), (3, 0.1, 1.0), (3, 0.3, 1.0)])
def test_the_interval_covers_the_difference_95_times_in_100(seeds: int, moved: float, most: float) -> None:
    """Two standard errors of a share of 95% of 400; with several seeds it may be wider than it need be."""
    draw = np.random.default_rng(3)
    truth = expected(0.4, moved) - expected(0.0, moved)
    covered = []
    for _ in range(TABLES):
        ours, theirs, *_ = table(draw, seeds, moved, 0.4)
        found = compare_all([(ours, theirs)], flips=99, resamples=500)[0]
        covered.append(found.low <= truth <= found.high)
    assert 0.928 <= np.mean(covered) <= most


def test_randomisation_of_few_users_is_scipys_exact_test() -> None:
    draw = np.random.default_rng(0)
    for users in (2, 5, 8, 13):
        ours, theirs = draw.random((2, users)).round(1)
        oracle = stats.permutation_test(
            (ours, theirs), lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=np.inf
        )
        assert compare(side(ours), side(theirs)).p == pytest.approx(oracle.pvalue)


def test_randomisation_of_signed_ranks_is_wilcoxons_exact_test() -> None:
    ranks = np.array([1, -2, 3, 4, -5, 6, 7, 8, -9, 10, 11.0])
    found = compare(side(ranks), side(np.zeros(11)))
    assert found.p == pytest.approx(stats.wilcoxon(ranks, method="exact").pvalue)


def test_drawn_flips_come_near_to_all_flips() -> None:
    draw = np.random.default_rng(5)
    ours, theirs = draw.random((2, 16)) + np.array([[0.15], [0.0]])
    difference = ours - theirs
    signs = 1 - 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12).mean()
    drawn = compare(side(ours), side(theirs)).p
    assert 0.02 < exact < 0.5
    assert drawn == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 10_000))
    assert drawn * 10_000 == pytest.approx(round(drawn * 10_000))  # (b + 1) / (9,999 + 1)


def test_no_p_value_is_zero() -> None:
    assert compare(side(np.full(50, 0.5)), side(np.zeros(50))).p == 1 / 10_000
    many = compare_all([(side(np.full(50, 0.5)), side(np.zeros(50)))], comparisons=500)[0]
    assert adjust([many.p, *[1.0] * 499])[0] == pytest.approx(0.01)


def test_equal_runs_have_p_one_and_say_so() -> None:
    found = compare(side([0.0, 0.5, 1.0], seeds=()), side([0.0, 0.5, 1.0], seeds=()))
    assert (found.p, found.minimal, found.higher, found.lower) == (1.0, 0.0, 0.0, 0.0)
    assert result(found, 1.0) == "the same for all"


def test_with_nothing_but_seeds_between_runs_it_is_the_t_test_over_seeds() -> None:
    by_seed = np.array([0.02, 0.05, 0.03, 0.06])
    found = compare(side(np.repeat(by_seed[:, None], 40, axis=1)), side(np.zeros((4, 40))))
    oracle = stats.ttest_1samp(by_seed, 0)
    ends = oracle.confidence_interval(0.95)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p_users < found.p
    needed = TTestPower().solve_power(nobs=4, alpha=0.05, power=0.8) * by_seed.std(ddof=1)
    assert found.minimal == pytest.approx(needed, rel=0.01)


def test_the_parts_of_the_variance_add_up_to_what_was_planted() -> None:
    draw, seeds, users = np.random.default_rng(0), 3, 50
    found = []
    for _ in range(2_000):
        values = 0.1 * draw.standard_normal((seeds, 1)) + 0.5 * draw.standard_normal(users)
        found.append(_parts(values + draw.standard_normal((seeds, users))))
    rest = 1 / (seeds * users)
    assert np.mean([parts.of_seeds for parts in found]) == pytest.approx(0.01 / seeds + rest, rel=0.1)
    assert np.mean([parts.of_users for parts in found]) == pytest.approx(0.25 / users, rel=0.1)


def test_with_nothing_between_seeds_it_is_the_test_over_users() -> None:
    users = np.random.default_rng(0).normal(0.2, 1, 200)
    several = compare(side(np.tile(users, (4, 1))), side(np.zeros((4, 200))))
    assert several.p == pytest.approx(stats.ttest_1samp(users, 0).pvalue, abs=0.002)
    one = compare(side(users), side(np.zeros(200)))
    assert several.minimal == pytest.approx(one.minimal, rel=0.01)
    assert several.p_users == one.p


@pytest.mark.parametrize("comparisons", [1, 66])
def test_the_minimal_difference_is_statsmodels(comparisons: int) -> None:
    ours, theirs = np.random.default_rng(0).random((2, 943))
    found = compare(side(ours), side(theirs), comparisons)
    effect = TTestPower().solve_power(nobs=943, alpha=0.05 / comparisons, power=0.8)
    assert found.minimal == pytest.approx(effect * (ours - theirs).std(ddof=1), rel=1e-4)
    assert found.minimal == found.minimal_users


def test_effect_and_shares_by_hand() -> None:
    found = compare(side([0.5, 1.0, 0.0, 0.5]), side([0.0, 0.0, 0.5, 0.5]))
    assert found.difference == 0.25
    assert found.effect == pytest.approx(0.25 / math.sqrt(1.25 / 3))  # differences .5, 1, -.5, 0
    assert (found.higher, found.lower, found.users, found.seeds) == (0.5, 0.25, 4, (0,))


def test_the_interval_with_one_seed_is_scipys_bootstrap() -> None:
    ours, theirs = np.random.default_rng(1).random((2, 400)) ** 3
    found = compare(side(ours), side(theirs))
    oracle = stats.bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=2)
    ends = oracle.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.002)


def test_users_without_a_value_are_left_out_and_seeds_are_those_both_have() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.random((2, 3, 30))
    ours[:, 3], theirs[:, 4] = np.nan, np.nan
    found = compare(side(ours, seeds=(0, 1, 2)), side(theirs, seeds=(2, 7, 1)))
    kept = [n for n in range(30) if n not in (3, 4)]
    own, other = ours[[1, 2]][:, kept], theirs[[2, 0]][:, kept]
    alone = compare(side(own, seeds=(1, 2)), side(other, seeds=(1, 2)))
    assert found.p_users == pytest.approx(alone.p_users, abs=0.02)  # drawn for 30 users, and for 28
    assert replace(found, p=alone.p, p_users=alone.p_users) == alone
    assert (found.seeds, found.users) == ((1, 2), 28)


def test_what_draws_nothing_stands_against_every_seed() -> None:
    ours, theirs = np.random.default_rng(0).random((3, 30)), np.random.default_rng(1).random(30)
    found = compare(side(ours), side(theirs, seeds=()))
    assert found == compare(side(ours), side(np.tile(theirs, (3, 1))))
    assert compare(side(theirs, seeds=()), side(ours)).difference == pytest.approx(-found.difference)


def test_a_pair_is_the_same_in_a_table_as_alone() -> None:
    sides = table(np.random.default_rng(0), 2)
    together = compare_all([(sides[0], sides[1]), (sides[2], sides[3]), (sides[0], sides[5])])
    alone = compare(sides[2], sides[3], comparisons=3)
    assert astuple(together[1])[:-1] == pytest.approx(astuple(alone)[:-1])
    assert compare_all([]) == []


def test_corrections_by_hand() -> None:
    assert adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust([0.01, 0.04, 0.03], "bh") == pytest.approx([0.03, 0.04, 0.04])
    assert adjust([0.04, math.nan, 0.01])[::2] == pytest.approx([0.04, 0.02])
    assert math.isnan(adjust([math.nan])[0])
    assert adjust([]) == []


FOUND = Comparison(-0.001, -0.006, 0.004, 0.03, 0.03, -0.021, 0.4, 0.5, 0.007, 0.007, 1.0, 943, (0,))


def test_what_could_have_been_shown_is_said_with_and_without_more_seeds() -> None:
    assert could_show(FOUND) == ("0.007", "")
    few = replace(FOUND, seeds=(0, 1), minimal=0.6)
    assert could_show(few) == ("0.600", "0.007")
    assert could_show(replace(few, minimal=0.007)) == ("0.007", "")
    none = replace(few, minimal=1.2)  # no two means of values from 0 to 1 are so far apart
    assert could_show(none) == ("none", "0.007")
    assert could_show(replace(FOUND, seeds=(), minimal=4e-5, minimal_users=4e-5)) == ("4e-05", "")


def test_a_result_is_better_worse_or_neither_by_the_metrics_direction() -> None:
    found = replace(FOUND, difference=0.02, low=0.01, high=0.03)
    assert result(found, 0.003) == "shown: better"
    assert result(found, 1e-4, direction="-") == "shown: worse"
    assert result(found, 0.003, direction="0") == "shown: higher"
    assert result(replace(found, difference=-0.02), 0.003) == "shown: worse"


def test_a_small_p_value_that_correction_takes_away_is_no_difference() -> None:
    assert FOUND.p < ALPHA
    assert result(FOUND, 0.06) == result(FOUND, math.nan) == "not shown"


ONE, TWO = np.zeros(4), np.zeros((2, 4))


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (side(ONE, "A", split="aa"), side(ONE, "B", split="bb"), "A and B were tested on different splits, aa and bb;"),
        (side(ONE, candidates="aa"), side(ONE), "different candidates, aa and the whole catalogue; .* run one of them"),
        (side(TWO, seeds=(3, 3)), side(TWO), "ours has more than one run with seed 3, .*: give one of the runs"),
        (side(TWO), side(TWO, "B", seeds=(3, 3)), "B has more than one run with seed 3"),
        (side(TWO), side(ONE, seeds=(7,)), r"no seed in common \(0, 1 and 7\); .*: run both with the same seeds"),
        (side([1, math.nan]), side([math.nan, 1], "B"), "ours and B have no user in common .*: evaluate both on"),
        (side([[1, math.nan], [1, 1]]), side([[1, 1], [1, 1]]), "one user in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_remedy(ours: Side, theirs: Side, says: str) -> None:
    with pytest.raises(RecpeftError, match=says) as error:
        compare(ours, theirs)
    assert str(error.value).endswith(".")
    assert not re.search(r"\.\s", str(error.value))  # one sentence
