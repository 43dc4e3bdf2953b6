"""How often a comparison is wrong where no difference is, by seeds and how far a seed moves a run; and its time.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/differences.py    # three minutes

A thousand comparisons a line of two methods with the same distribution: 300 users whose NDCG@10 is mostly 0, each run
moved by its seed (in standard deviations of what orders a user's list). Shares of them that pass at 5%: by users alone,
as recpeft has it, and, with several seeds, by the two ways it does not take: Satterthwaite's degrees of freedom, and
the bootstrap that resamples users and seeds alike (Owen 2007).
"""

from __future__ import annotations

import time

import numpy as np
from scipy import stats

from experiments.reporting.statistics import Comparison, Side, compare, compare_all, intervals

USERS, TABLES, RESAMPLES = 300, 1_000, 500
_GAINS = np.array([0, *1 / np.log2(np.arange(10, 0, -1) + 1)])
_EDGES = stats.norm.ppf(np.linspace(0.7, 0.97, 10))


def runs(draw: np.random.Generator, seeds: int, moved: float) -> tuple[Side, Side]:
    """(seeds, USERS) NDCG@10 of one relevant item each: how easy a user is, for this method, in this run."""
    easy = np.sqrt(0.6) * draw.standard_normal(USERS)
    sides = []
    for name in ("ours", "theirs"):
        order = easy + np.sqrt(0.2) * draw.standard_normal(USERS) + np.sqrt(0.2) * draw.standard_normal((seeds, USERS))
        order += moved * draw.standard_normal((seeds, 1))
        values = _GAINS[np.searchsorted(_EDGES, order)]
        sides.append(Side(name, values, tuple(range(seeds)), "split", None))
    return sides[0], sides[1]


def satterthwaite(values: np.ndarray) -> float:
    """p with the same parts of variance."""
    seeds, users = values.shape
    of_users, of_seeds = values.mean(axis=0), values.mean(axis=1, keepdims=True)
    rest = ((values - of_users - of_seeds + values.mean()) ** 2).sum() / ((seeds - 1) * (users - 1)) / (seeds * users)
    parts = np.array([of_seeds.var(ddof=1) / seeds, max(0.0, of_users.var(ddof=1) / users - rest)])
    df = parts.sum() ** 2 / (parts**2 / [seeds - 1, users - 1]).sum()
    return float(2 * stats.t.sf(abs(values.mean()) / np.sqrt(parts.sum()), df))


def pigeonhole(values: np.ndarray, draw: np.random.Generator) -> bool:
    """Whether the 95% interval over resampled users and seeds leaves 0 out."""
    seeds, users = values.shape
    by_seed, by_user = (draw.multinomial(n, [1 / n] * n, RESAMPLES) for n in (seeds, users))
    low, high = np.quantile(((by_seed @ values) * by_user).sum(axis=1) / values.size, [0.025, 0.975])
    return not low <= 0 <= high


def line(seeds: int, moved: float) -> str:
    draw = np.random.default_rng(0)
    found: list[Comparison] = []
    others = []
    for _ in range(TABLES):
        ours, theirs = runs(draw, seeds, moved)
        found += compare_all([(ours, theirs)], flips=999, resamples=RESAMPLES)
        values = ours.values - theirs.values
        if seeds > 1:
            others.append((satterthwaite(values) < 0.05, pigeonhole(values, draw)))
    shares = [np.mean([c.p_users < 0.05 for c in found]), np.mean([c.p < 0.05 for c in found])]
    shares += [np.mean([not c.low <= 0 <= c.high for c in found]), *np.mean(others, axis=0)] if others else []
    minimal = np.median([c.minimal for c in found])
    return f"{seeds:5} {moved:6.2f} {minimal:8.3f}  " + " ".join(f"{share:13.1%}" for share in shares)


def main() -> None:
    names = ("users alone", "recpeft", "its interval", "Satterthwaite", "pigeonhole")
    print("seeds  moved  minimal  " + " ".join(f"{name:>13}" for name in names))
    for seeds in (1, 2, 3, 5, 10):
        for moved in (0.0, 0.05, 0.1, 0.3) if seeds > 1 else (0.0,):
            print(line(seeds, moved), flush=True)
    draw = np.random.default_rng(0)
    sides = [Side(str(n), draw.random((3, 943)), (0, 1, 2), "split", None) for n in range(12)]
    pairs = [(ours, theirs) for n, ours in enumerate(sides) for theirs in sides[n + 1 :]]
    compare(*pairs[0])
    start = time.perf_counter()
    compare_all(pairs)
    seconds = time.perf_counter() - start
    differences = np.stack([(ours.values - theirs.values).mean(axis=0) for ours, theirs in pairs], axis=1)
    start = time.perf_counter()
    intervals(differences)
    print(f"{len(pairs)} pairs of 943 users: {seconds:.2f} s, {time.perf_counter() - start:.2f} s of it the bootstrap")


if __name__ == "__main__":
    main()
