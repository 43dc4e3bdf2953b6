"""Test the differences between runs, paired over the same users, with each seed's runs as a block.

A difference must pass two tests. *For these trained models, does it exceed the chance of which users were tested?* A
randomisation test flips the signs of users' differences, each averaged over seeds (Smucker, Allan & Carterette 2007).
*Would the methods differ with other seeds too?* A training seed affects all of its users at once, so even many users
do not inform about it: with one seed only the first question can be asked, and the report says so. With several, the
difference must also exceed what users and seeds together produce by chance (``_Parts.reach``). The p-value is the
larger of the two: without a seed effect the first is exact, with one the second is valid, and the larger of two
p-values is valid whenever either is.

This requires several seeds: two or three show next to nothing once corrected, five are a start, and the minimal
detectable difference quantifies it. Seed variances are not pooled over methods, because some vary far more than others.
Signs of seeds are not flipped: the smallest p-value of 5 seeds is 1/16, which survives no correction. Seeds are not
resampled either: with few of them the intervals come out too narrow (``benchmarks/differences.py``).
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
"""Confidence level of intervals."""

ALPHA = 1 - LEVEL
"""Chance that a table reports any difference if there is none (with Holm's correction)."""

POWER = 0.8
"""Chance that the minimal detectable difference is shown (Cohen 1988's convention)."""

RESAMPLES = 10_000
"""Number of resamples of the bootstrap over users."""

FLIPS = 9_999
"""Number of draws of the randomisation test; counting the observation, p-values are multiples of 1/10,000."""

NOT_SHOWN = "not shown"
"""Result of a comparison whose difference may be due to chance."""

Correction = Literal["holm", "bh"]
_METHODS = {"holm": ("holm", "Holm"), "bh": ("fdr_bh", "Benjamini-Hochberg")}
"""Correction -> (statsmodels' name, name in a sentence)."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a method's runs, which differ only in their seed."""

    name: str
    values: np.ndarray
    """(S, U) each run's values, for the same users in the same order as on the other side; NaN if a user has none."""
    seeds: tuple[int, ...]
    """S seeds, one per run; empty for a ranker that draws nothing, whose one run is compared with each other one."""
    split: str
    """Hash of the split."""
    candidates: str | None
    """Hash of the candidates; None for the whole catalogue."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of two sides: ours minus theirs."""

    difference: float
    """Mean difference over users and seeds."""
    low: float
    high: float
    """Ends of the 95% interval; not corrected for the number of comparisons."""
    p: float
    """Two-sided p-value, not corrected (``adjust`` does that)."""
    p_users: float
    """p-value for these trained models, by randomisation over users alone. Equals ``p`` with one seed."""
    effect: float
    """Cohen's d_z: the mean of users' differences over their standard deviation; NaN without deviation."""
    higher: float
    """Share of users whose value is higher; they are better off if higher is better."""
    lower: float
    """Share of users whose value is lower; the rest have the same."""
    minimal: float
    """Minimal detectable difference: the smallest true one that a share ``POWER`` of such comparisons would show."""
    minimal_users: float
    """Minimal detectable difference for these trained models, which ``minimal`` approaches with more seeds."""
    span: float
    """Range of all users' values on both sides; no true difference is larger."""
    users: int
    seeds: tuple[int, ...]
    """Common seeds; empty if neither side draws anything."""


def compare(ours: Side, theirs: Side, comparisons: int = 1) -> Comparison:
    """Compare one pair, out of a table of ``comparisons``, by ``compare_all``."""
    return compare_all([(ours, theirs)], comparisons)[0]


def compare_all(
    pairs: Sequence[tuple[Side, Side]],
    comparisons: int | None = None,
    *,
    alpha: float = ALPHA,
    flips: int | None = None,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Compare each pair of sides; all pairs share one draw, because drawing takes longer than using it.

    With d (S, U), ours minus theirs at the common seeds, for the users with a value on both sides:

    - difference: the mean of d; its interval: at each end the farther of the percentile bootstrap over users of d's
      mean over seeds (Efron 1979) and, with several seeds, the difference -+ ``_Parts.reach``
    - p: the larger of the randomisation over users and, with several seeds, the level whose reach equals the difference
    - minimal: the larger of the differences that the two tests show with ``POWER`` at ``alpha / comparisons``. This is
      Bonferroni's level; Holm and Benjamini-Hochberg are never stricter. It uses estimated variances, which are a rough
      guess with few seeds

    Args:
        pairs: pairs of sides, all with the same number of users.
        comparisons: number of comparisons that ``adjust`` corrects for; the number of pairs unless given.
        flips: number of sign flips; unless given, enough that the smallest p-value is at most 0.01 once corrected.
        resamples: number of bootstrap resamples of users.
    Raises:
        RecpeftError: splits or candidates differ, a seed occurs twice, or there is no common seed or fewer than two
            common users.
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
    """Return p-values corrected for all comparisons of a table; NaN, meaning no test, stays NaN and is not counted.

    ``holm`` (Holm 1979) bounds the chance of any false difference in the table, however the tests depend on each other.
    ``bh`` (Benjamini & Hochberg 1995) bounds the expected share of false ones among those shown. It shows more, but its
    proof assumes independent or positively dependent tests, which comparisons that share a side need not be.
    """
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p_values, dtype=float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], method=_METHODS[method][0])[1]
    return [float(p) for p in adjusted]


def name_of(method: Correction) -> str:
    """Return the correction's name for use in sentences."""
    return _METHODS[method][1]


def result(found: Comparison, adjusted: float, *, alpha: float = ALPHA, direction: Direction = "+") -> str:
    """Return a comparison's result in words: ``shown: better`` or similar, ``NOT_SHOWN``, or ``the same for all``.

    Args:
        adjusted: p-value after ``adjust``; only this one decides whether a difference is shown.
        direction: the metric's direction; with "0", a difference is higher or lower and neither is better.
    """
    if adjusted < alpha:
        return f"shown: {_better_or_worse(found.difference, direction)}"
    return "the same for all" if found.minimal == 0 == found.difference else NOT_SHOWN


def could_show(found: Comparison, digits: int = 3) -> tuple[str, str]:
    """Return the minimal detectable difference, and that with many more seeds, or "" if it is the same.

    The first is ``none`` if it exceeds the range of all values.
    """
    could, with_more = (_least(value, digits) for value in (found.minimal, found.minimal_users))
    if len(found.seeds) < 2 or with_more == could:
        with_more = ""
    return "none" if found.minimal >= found.span > 0 else could, with_more


def intervals(values: np.ndarray, level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return percentile bootstrap intervals of means over users (Efron 1979); NaN users are left out.

    Columns with the same users share one draw, because drawing takes longer than averaging.

    Args:
        values: (U, C) values of U users in C columns.
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
    """Return means over resampled users: (U, C) -> (resamples, C)."""
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
    """Return the differences (S, U) at the common seeds, NaN for users without a value in each run; seeds; and span."""
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
    """Return two-sided p-values of means over users by sign flips (Fisher 1935; Smucker, Allan & Carterette 2007).

    If two models do not differ, a user's two values are exchangeable. With k users whose values differ, all 2**k flips
    are tried if they are at most ``flips + 1``. Otherwise ``flips`` are drawn and p is (b + 1) / (flips + 1), where b
    of them are as far from zero as the observation, which itself counts as one (Phipson & Smyth 2010: b / flips would
    reject too often, and could be 0).

    Args:
        differences: (U, C); NaN users are left out.
    Returns:
        (C,)
    """
    differences = np.nan_to_num(differences)
    seen = np.abs(differences.sum(axis=0))
    # Sums in another order differ in their last bits, but must count as equally far from zero.
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
    """Estimated variance components of a mean over users and seeds; ``of_users`` excludes ``of_seeds``' part."""

    of_seeds: float
    of_users: float
    seeds: int
    users: int

    def reach(self, alpha: float) -> float:
        """Return the critical difference at ``alpha``: sqrt(t(seeds - 1)**2 * of_seeds + t(users - 1)**2 * of_users).

        Banerjee 1961: whatever the true components are, at most ``alpha`` of null differences exceed it. Degrees of
        freedom by Satterthwaite 1946, used in studies with several readers of the same cases (Hillis 2007), become
        large when two or three seeds happen to agree: in benchmarks/differences.py, 7 to 11% of null differences then
        pass at 5%.
        """
        of_seeds, of_users = special.stdtrit([self.seeds - 1, self.users - 1], alpha / 2)
        return float(np.hypot(of_seeds * math.sqrt(self.of_seeds), of_users * math.sqrt(self.of_users)))

    def p(self, difference: float) -> float:
        """Return the ``alpha`` at which ``reach`` equals the difference."""
        if abs(difference) <= self.reach(1.0):
            return 1.0
        least = 1e-12
        if abs(difference) >= self.reach(least):
            return least
        exponent = optimize.brentq(lambda x: self.reach(math.exp(x)) - abs(difference), math.log(least), 0.0)
        return math.exp(exponent)

    def minimal(self, alpha: float) -> float:
        """Return the true difference that exceeds ``reach`` with chance ``POWER``; ``reach`` varies with the seeds."""
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
"""Quantiles of the distribution of a variance between seeds, over which ``minimal`` averages."""


def _parts(values: np.ndarray) -> _Parts:
    """Estimate the variance of the mean when both users and seeds are samples (Clark 1973: subjects and words).

    With d[s, u] = D + a[s] + b[u] + e[s, u], it is var(a)/S + var(b)/U + var(e)/(S U). The seeds' means estimate the
    first and third terms together, the users' means the second and third, and the residual the third, which is
    subtracted from the latter.

    Args:
        values: (S, U) with at least two seeds and two users.
    """
    seeds, users = values.shape
    of_users, of_seeds, mean = values.mean(axis=0), values.mean(axis=1, keepdims=True), values.mean()
    rest = ((values - of_users - of_seeds + mean) ** 2).sum() / ((seeds - 1) * (users - 1))
    own = float(of_users.var(ddof=1)) / users - float(rest) / (seeds * users)
    return _Parts(float(of_seeds.var(ddof=1)) / seeds, max(0.0, own), seeds, users)


@lru_cache(maxsize=16)
def _noncentrality(df: int, alpha: float) -> float:
    """Return the noncentrality at which a two-sided t-test at ``alpha`` has ``POWER``."""
    critical = float(special.stdtrit(df, 1 - alpha / 2))
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - POWER, 0, 10 + 10 * critical))


def _better_or_worse(difference: float, direction: Direction) -> str:
    if direction == "0":
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == (direction == "+") else "worse"


def _least(value: float, digits: int) -> str:
    """Format a value, with more digits if it would round to 0."""
    text = f"{value:.{digits}f}"
    return text if float(text) else f"{value:.1g}"
