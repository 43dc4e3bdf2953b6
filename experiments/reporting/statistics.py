"""What is real of the differences between runs: paired over the same users, with a seed's runs as a block.

Two questions are asked of a difference, and it must pass both. *Of these trained models, is it more than the chance of
which users were tested?* A randomisation test flips the signs of users' differences, each user's taken as the mean over
seeds (Smucker, Allan & Carterette 2007). *Would the methods differ with other seeds too?* A training seed moves all of
its users at once, so users, however many, say nothing of it: with one seed the first question alone can be asked, and
the report says so. With several, the difference must also exceed what users and seeds together bring about by chance
(``_Parts.reach``). The p-value is the larger of the two: where there is no seed effect the first is exact, where there
is one the second holds, and the larger of two p-values is valid wherever either is.

This asks for seeds: two or three show next to nothing once corrected, five are a start, and the minimal detectable
difference says so in figures. It does not pool the seeds' part over methods, some of which move far more than others.
Seeds are not flipped as users are: signs of 5 seeds have a least p-value of 1/16, from which no correction leaves
anything. Nor are they resampled: with few of them the ends come out too near (``benchmarks/differences.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from metrics.catalog import Direction
from recpeft.errors import RecpeftError

LEVEL = 0.95
"""Of intervals."""

ALPHA = 1 - LEVEL
"""Chance that a table says of any pair that it differs where none does (Holm)."""

POWER = 0.8
"""Chance that the minimal detectable difference is shown (Cohen 1988's convention)."""

RESAMPLES = 10_000
"""Of the bootstrap over users."""

FLIPS = 9_999
"""Draws of the randomisation test: with what was seen, p-values are multiples of 1/10,000."""

NOT_SHOWN = "not shown"
"""The result of a comparison whose difference may be chance."""

Correction = Literal["holm", "bh"]
_METHODS = {"holm": ("holm", "Holm"), "bh": ("fdr_bh", "Benjamini-Hochberg")}
"""Correction -> (statsmodels' name, name in a sentence)."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a method's runs, which differ in their seed alone."""

    name: str
    values: np.ndarray
    """(S, U) each run's values, of the same users in the same order as the other side's; NaN for a user without one."""
    seeds: tuple[int, ...]
    """S of them, a run each; none for what draws nothing, a ranker, whose one run stands against each of the others."""
    split: str
    """Hash of it."""
    candidates: str | None
    """Hash of what lists were chosen from; None for the whole catalogue."""


@dataclass(frozen=True)
class Comparison:
    """Ours less theirs."""

    difference: float
    """Mean over users and seeds."""
    low: float
    high: float
    """Ends of the 95% interval; not corrected for the number of comparisons."""
    p: float
    """Two-sided, not corrected: ``adjust`` is."""
    p_users: float
    """Of these trained models: by randomisation over users alone. Equals ``p`` with one seed."""
    effect: float
    """Cohen's d_z: the mean of users' differences over their standard deviation; NaN without deviation."""
    higher: float
    """Share of users whose value is higher: better off, where higher is better."""
    lower: float
    """Share of users whose value is lower; the rest have the same."""
    minimal: float
    """Least true difference that ``POWER`` of such comparisons would show."""
    minimal_users: float
    """The same of these trained models: what more seeds bring ``minimal`` towards."""
    span: float
    """From the least to the greatest of all users' values, on either side: no true difference is larger."""
    users: int
    seeds: tuple[int, ...]
    """Those that both have; none where neither draws anything."""


def compare(ours: Side, theirs: Side, comparisons: int = 1) -> Comparison:
    """``compare_all`` of one pair out of a table of ``comparisons``."""
    return compare_all([(ours, theirs)], comparisons)[0]


def compare_all(
    pairs: Sequence[tuple[Side, Side]],
    comparisons: int | None = None,
    *,
    alpha: float = ALPHA,
    flips: int | None = None,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """A comparison a pair, all from one draw: drawing takes longer than what is done with it.

    Of d (S, U), ours less theirs at the seeds both have, for the users with a value in both:

    - difference: the mean of d over all; its interval: end by end the farther of the percentile bootstrap over users
      of d's mean over seeds (Efron 1979) and, with several seeds, the difference -+ ``_Parts.reach``
    - p: the larger of the randomisation over users and, with several seeds, the level at which that is just reached
    - minimal: what either test shows with ``POWER`` at ``alpha / comparisons``, the larger of the two. By Bonferroni,
      than which Holm and Benjamini-Hochberg are never stricter. It rests on the variances as estimated, which of few
      seeds is a rough guess

    Args:
        pairs: of sides with the same number of users throughout.
        comparisons: in the table that ``adjust`` corrects for; the number of pairs unless given.
        flips: of signs; unless given, enough that the least p-value is at most 0.01 once corrected.
        resamples: of users.
    Raises:
        RecpeftError: different splits or candidates, a seed twice, no seed in common, under two common users.
    """
    if not pairs:
        return []
    comparisons = comparisons or len(pairs)
    differences = [_difference(ours, theirs) for ours, theirs in pairs]
    users = np.stack([values.mean(axis=0) for values, *_ in differences], axis=1)
    p_users = _randomisation(users, max(FLIPS, 100 * comparisons - 1) if flips is None else flips)
    bounds = intervals(users, resamples=resamples)
    found = []
    for (values, seeds, span), p_user, (low, high) in zip(differences, p_users.tolist(), bounds.tolist(), strict=True):
        values = values[:, np.isfinite(values[0])]
        means = values.mean(axis=0)
        mean, deviation, num_users = float(means.mean()), float(means.std(ddof=1)), means.size
        p, minimal = p_user, deviation / math.sqrt(num_users) * _noncentrality(num_users - 1, alpha / comparisons)
        minimal_users = minimal
        if len(values) > 1:
            parts = _parts(values)
            p, minimal = max(p, parts.p(mean)), max(minimal, parts.minimal(alpha / comparisons))
            reach = parts.reach(1 - LEVEL)
            low, high = min(low, mean - reach), max(high, mean + reach)
        found.append(
            Comparison(
                difference=mean,
                low=low,
                high=high,
                p=p,
                p_users=p_user,
                effect=mean / deviation if deviation else math.nan,
                higher=float((means > 0).mean()),
                lower=float((means < 0).mean()),
                minimal=minimal,
                minimal_users=minimal_users,
                span=span,
                users=num_users,
                seeds=seeds,
            )
        )
    return found


def adjust(p_values: Sequence[float], method: Correction = "holm") -> list[float]:
    """p-values corrected for all comparisons of a table; NaN, no test at all, stays and is not counted.

    ``holm`` (Holm 1979) bounds the chance of one false difference in the table, however tests depend on each other.
    ``bh`` (Benjamini & Hochberg 1995) bounds the expected share of false ones among those shown; it shows more, and its
    proof asks for tests that are independent or depend positively, which comparisons that share a side need not.
    """
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p_values, dtype=float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], method=_METHODS[method][0])[1]
    return [float(p) for p in adjusted]


def name_of(method: Correction) -> str:
    """As sentences have it."""
    return _METHODS[method][1]


def result(found: Comparison, adjusted: float, *, alpha: float = ALPHA, direction: Direction = "+") -> str:
    """What can be said of a pair: ``shown: better`` and the like, ``NOT_SHOWN``, or that all users have the same.

    Args:
        adjusted: p after ``adjust``; nothing is said to differ on any other.
        direction: of the metric; with "0" a difference is higher or lower and neither is better.
    """
    if adjusted < alpha:
        return f"shown: {_better_or_worse(found.difference, direction)}"
    return "the same for all" if found.minimal == 0 == found.difference else NOT_SHOWN


def could_show(found: Comparison, digits: int = 3) -> tuple[str, str]:
    """The minimal detectable difference, and that with many more seeds, empty where it is no other.

    The first is ``none`` where it is beyond all values.
    """
    could, with_more = (_least(value, digits) for value in (found.minimal, found.minimal_users))
    if len(found.seeds) < 2 or with_more == could:
        with_more = ""
    return "none" if found.minimal >= found.span > 0 else could, with_more


def intervals(values: np.ndarray, level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Percentile bootstrap intervals of means over users (Efron 1979); NaN users are left out.

    Columns that have the same users share one draw: drawing takes longer than averaging.

    Args:
        values: (U, C) one value a user, C times.
    Returns:
        (C, 2) lower and upper ends; NaN for a column without a value.
    """
    finite = np.isfinite(values)
    bounds = np.full((values.shape[1], 2), np.nan)
    for users in np.unique(finite, axis=1).T:
        if users.any():
            columns = (finite == users[:, None]).all(axis=0)
            means = _resampled_means(values[np.ix_(users, columns)], np.random.default_rng(seed), resamples)
            bounds[columns] = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0).T
    return bounds


def _resampled_means(values: np.ndarray, draw: np.random.Generator, resamples: int) -> np.ndarray:
    """(U, C) -> (resamples, C)."""
    users = len(values)
    at_once = max(1, 2**22 // users)  # 32 MB of counts
    means = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        picks = draw.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * users).reshape(size, users)
        means.append(counts @ values / users)
    return np.concatenate(means)


def _difference(ours: Side, theirs: Side) -> tuple[np.ndarray, tuple[int, ...], float]:
    """(S, U) at the seeds both have, NaN for users without a value in all of these runs; the seeds; and the span."""
    pair = f"{ours.name} and {theirs.name}"
    hashes = (("splits", ours.split, theirs.split), ("candidates", ours.candidates, theirs.candidates))
    for what, *differing in hashes:
        if differing[0] != differing[1]:
            first, second = (part or "the whole catalogue" for part in differing)
            raise RecpeftError(
                f"{pair} were tested on different {what}, {first} and {second}; only runs on the same can be "
                "compared: run one of them anew with the data and evaluation sections of the other."
            )
    for side in (ours, theirs):
        twice = [seed for seed, runs in Counter(side.seeds).items() if runs > 1]
        if twice:
            raise RecpeftError(
                f"{side.name} has more than one run with seed {twice[0]}, which would count as seeds that differ; a "
                "seed may stand once: give one of the runs another seed or leave it out."
            )
        if len(side.values) != max(1, len(side.seeds)):
            raise ValueError(f"{side.name} has {len(side.values)} rows of values for {len(side.seeds)} seeds")
    if ours.seeds and theirs.seeds:
        seeds = tuple(sorted({*ours.seeds} & {*theirs.seeds}))
        if not seeds:
            raise RecpeftError(
                f"{pair} have no seed in common ({', '.join(map(str, ours.seeds))} and "
                f"{', '.join(map(str, theirs.seeds))}); runs are compared seed by seed: run both with the same seeds."
            )
        own, other = (side.values[[side.seeds.index(seed) for seed in seeds]] for side in (ours, theirs))
    else:
        seeds, own, other = ours.seeds or theirs.seeds, ours.values, theirs.values
    values = own - other
    common = np.isfinite(values).all(axis=0)
    if common.sum() < 2:
        raise RecpeftError(
            f"{pair} have {'one user' if common.any() else 'no user'} in common with a value in each of their runs; a "
            "comparison is over the same users, two or more: evaluate both on the same test users."
        )
    there = [side[:, common] for side in (own, other)]
    span = float(max(part.max() for part in there) - min(part.min() for part in there))
    return np.where(common, values, np.nan), seeds, span


def _randomisation(differences: np.ndarray, flips: int, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of means over users by flips of signs (Fisher 1935; Smucker, Allan & Carterette 2007).

    Where two models do not differ, either could have had either of a user's two values. Of k users whose values differ
    all 2**k flips are tried where these are no more than ``flips``; else as many are drawn and p is
    (b + 1) / (flips + 1), with b of them as far from zero as what was seen, which itself is one of them (Phipson &
    Smyth 2010: b / flips would reject too often, and could be 0).

    Args:
        differences: (U, C); NaN users are left out.
    Returns:
        (C,)
    """
    differences = np.nan_to_num(differences)
    seen = np.abs(differences.sum(axis=0))
    # Sums of the same numbers in another order differ in their last bits, and are as far from zero.
    seen -= 1e-12 * np.abs(differences).sum(axis=0)
    p_values = np.ones(differences.shape[1])
    few = (differences != 0).sum(axis=0) <= math.log2(flips + 1)
    for column in np.flatnonzero(few):
        apart = differences[differences[:, column] != 0, column]
        signs = (np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart))) & 1
        p_values[column] = (np.abs(2 * (signs @ apart) - apart.sum()) >= seen[column]).mean()
    if few.all():
        return p_values
    many, draw, users = differences[:, ~few], np.random.default_rng(seed), len(differences)
    at_once = max(1, 2**22 // users)  # 32 MB of signs
    farther = np.zeros(many.shape[1])
    for start in range(0, flips, at_once):
        size = min(at_once, flips - start)
        bits = draw.integers(0, 256, (size, -(-users // 8)), dtype=np.uint8)
        signs = np.unpackbits(bits, axis=1, count=users).astype(float)
        farther += (np.abs(2 * (signs @ many) - many.sum(axis=0)) >= seen[~few]).sum(axis=0)
    p_values[~few] = (farther + 1) / (flips + 1)
    return p_values


class _Parts(NamedTuple):
    """Of the variance of a mean over users and seeds, as estimated; ``of_users`` without what ``of_seeds`` has."""

    of_seeds: float
    of_users: float
    seeds: int
    users: int

    def reach(self, alpha: float) -> float:
        """What a difference must exceed at ``alpha``: sqrt(t(seeds - 1)**2 * of_seeds + t(users - 1)**2 * of_users).

        Banerjee 1961: whatever the true parts are, no more than ``alpha`` of null differences do. Degrees of freedom
        by Satterthwaite 1946, as studies of several readers of the same cases have them (Hillis 2007), are many
        whenever two or three seeds happen to agree: by benchmarks/differences.py 7 to 11% of null differences then
        pass at 5%.
        """
        of_seeds, of_users = special.stdtrit([self.seeds - 1, self.users - 1], alpha / 2)
        return float(np.hypot(of_seeds * math.sqrt(self.of_seeds), of_users * math.sqrt(self.of_users)))

    def p(self, difference: float) -> float:
        """The ``alpha`` at which it is just reached."""
        if abs(difference) <= self.reach(1.0):
            return 1.0
        least = 1e-12
        if abs(difference) >= self.reach(least):
            return least
        exponent = optimize.brentq(lambda x: self.reach(math.exp(x)) - abs(difference), math.log(least), 0.0)
        return math.exp(exponent)

    def minimal(self, alpha: float) -> float:
        """The true difference of which ``POWER`` exceed ``reach``, which itself moves with the seeds that are drawn."""
        error = math.sqrt(self.of_seeds + self.of_users)
        if error == 0:
            return 0.0
        drawn = special.chdtri(self.seeds - 1, _QUANTILES) / (self.seeds - 1)
        of_seeds, of_users = special.stdtrit([self.seeds - 1, self.users - 1], alpha / 2) ** 2
        reach = np.sqrt(of_seeds * self.of_seeds * drawn + of_users * self.of_users)
        return float(
            optimize.brentq(
                lambda shift: special.ndtr((shift - reach) / error).mean() - POWER, 0, float(reach.max()) + 10 * error
            )
        )


_QUANTILES = (np.arange(400) + 0.5) / 400
"""Of the distribution of a variance between seeds."""


def _parts(values: np.ndarray) -> _Parts:
    """The variance of the mean where both users and seeds are samples (Clark 1973: subjects and words).

    d[s, u] = D + a[s] + b[u] + e[s, u], so it is var(a)/S + var(b)/U + var(e)/(S U). The means of seeds estimate the
    first and third together, those of users the second and third, and what is left over the third, which is taken from
    the latter.

    Args:
        values: (S, U) with at least two of each.
    """
    seeds, users = values.shape
    of_users, of_seeds, mean = values.mean(axis=0), values.mean(axis=1, keepdims=True), values.mean()
    rest = ((values - of_users - of_seeds + mean) ** 2).sum() / ((seeds - 1) * (users - 1))
    own = float(of_users.var(ddof=1)) / users - float(rest) / (seeds * users)
    return _Parts(float(of_seeds.var(ddof=1)) / seeds, max(0.0, own), seeds, users)


@lru_cache(maxsize=16)
def _noncentrality(df: int, alpha: float) -> float:
    """At which two-sided t at ``alpha`` has ``POWER``."""
    critical = float(special.stdtrit(df, 1 - alpha / 2))
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - POWER, 0, 10 + 10 * critical))


def _better_or_worse(difference: float, direction: Direction) -> str:
    if direction == "0":
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == (direction == "+") else "worse"


def _least(value: float, digits: int) -> str:
    """Never as 0."""
    text = f"{value:.{digits}f}"
    return text if float(text) else f"{value:.1g}"
