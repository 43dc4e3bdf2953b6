"""Fairness to users: how a per-user metric differs between groups of users, and among all users.

Between groups, functions of sums and counts over the users of each group who have a value (:func:`by_group`), added
up over batches and processes first. So users without relevant items and empty lists take part as the base metric
says. Groups without data are left out. A gap between small groups means little: :func:`bootstrap_interval`.
Among all users, functions of their values. Directions are for a base metric of which more is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from metrics import coverage
from metrics._info import MetricInfo, PerUser, Reduced, Spread

if TYPE_CHECKING:
    from torch import Tensor

    from metrics._lists import RankedLists


def by_group(values: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts of each group over its users who have a value.

    Args:
        values: (U, ...) float64, NaN for users without.
        membership: (U, G) bool; a user may be in no group, or in several.
    Returns:
        (..., G) float64 and (..., G) int64.
    """
    import torch

    member = membership.double()
    defined = ~values.isnan()
    sums = torch.tensordot(values.nan_to_num(0), member, dims=([0], [0]))
    return sums, torch.tensordot(defined.double(), member, dims=([0], [0])).long()


def group_means(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Mean of each group, NaN for a group without data.

    Args:
        group_sums: (..., G) float64.
        group_counts: (..., G) int64.
    Returns:
        (..., G) float64.
    """
    return group_sums / group_counts  # 0 / 0 is NaN


def group_sizes(group_counts: Tensor) -> Tensor:
    """Number of users behind the mean of each group: those who have a value.

    Args:
        group_counts: (..., G) int64.
    Returns:
        (..., G) int64.
    """
    return group_counts


def user_gap(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Largest difference between group means, max - min; lower is fairer.

    NaN where fewer than two groups have data. For two groups the absolute difference, as in RecBole-FairRec.

    With hits and numbers of relevant items as sums and counts it is the equal-opportunity gap between the
    groups' true positive rates, (sum of hits) / (sum of relevant); Hardt et al. 2016.

    Args:
        group_sums: (..., G) float64.
        group_counts: (..., G) int64.
    Returns:
        (...) float64, at least 0.
    """
    low, high = _extremes(group_sums, group_counts)
    return _of_groups(high - low, group_counts, 2)


def user_ratio(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Lowest over highest group mean, in [0, 1] where no mean is negative; higher is fairer.

    NaN where fewer than two groups have data or all means are 0. Shapes as :func:`user_gap`.
    """
    low, high = _extremes(group_sums, group_counts)
    return _of_groups(low / high, group_counts, 2)


def user_std(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Population standard deviation of the group means, at least 0; lower is fairer.

    Every group counts the same, whatever its size. RecBole-FairRec's measure for more than two groups. NaN
    where fewer than two groups have data. Shapes as :func:`user_gap`.
    """
    means = group_means(group_sums, group_counts)
    centred = (means - means.nanmean(-1, keepdim=True)).square().nanmean(-1)
    return _of_groups(centred.sqrt(), group_counts, 2)


def user_mad(group_sums: Tensor, group_counts: Tensor) -> Tensor:
    """Mean absolute difference of the group means over unordered pairs of groups, at least 0; lower is fairer.

    Deldjoo et al. 2021. NaN where fewer than two groups have data. Shapes as :func:`user_gap`.
    """
    means = group_means(group_sums, group_counts)
    difference = (means[..., :, None] - means[..., None, :]).abs()
    groups = (group_counts > 0).sum(-1)
    # Each pair stands twice, and a group's difference to itself is 0.
    return _of_groups(difference.nansum((-2, -1)) / (groups * (groups - 1)).clamp(min=1), group_counts, 2)


def user_worst(group_sums: Tensor, group_counts: Tensor, lower_is_better: bool = False) -> Tensor:
    """Mean of the group that is served worst (Rawls' maximin): the lowest, or the highest of a base metric of
    which less is better. Direction of the base metric; NaN without data. Shapes as :func:`user_gap`."""
    low, high = _extremes(group_sums, group_counts)
    return _of_groups(high if lower_is_better else low, group_counts, 1)


def cvar(values: Tensor, alpha: float = 0.5, lower_is_better: bool = False) -> Tensor:
    """Mean of the ceil(alpha n) lowest of the n users' values; direction of the base metric.

    Conditional value at risk, Rockafellar & Uryasev 2000. At alpha 0.2 and a small k it is 0 for most data.

    Args:
        values: (U,) float64; NaN for users without a value, who are left out.
        alpha: in (0, 1]; 1 is the mean.
        lower_is_better: take the highest values instead, of a base metric of which less is better.
    Returns:
        () float64, NaN without users.
    Raises:
        ValueError: alpha is out of range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and at most 1.")
    ordered = values[~values.isnan()].sort(descending=lower_is_better).values
    return ordered[: math.ceil(alpha * len(ordered) - 1e-9)].mean()


def user_gini(values: Tensor) -> Tensor:
    """Gini index of the users' values, in [0, 1); lower is more equal. NaN where all are 0.

    Formula of :func:`metrics.coverage.gini`; users without a value (NaN) are left out.
    """
    return coverage.gini(values[~values.isnan()])


def num_hits(lists: RankedLists, k: int) -> Tensor:
    """Return (U,) float64: number of relevant items in each list."""
    return lists.top(k).hit.sum(1).double()


def num_relevant(lists: RankedLists, k: int) -> Tensor:
    """Return (U,) float64: number of relevant items of each user, listed or not."""
    return lists.num_relevant.double()


def bootstrap_interval(
    values: Tensor,
    membership: Tensor,
    spread: Callable[[Tensor, Tensor], Tensor] = user_gap,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of a spread between groups, by drawing users with replacement (Efron 1979).

    The users of each draw are the same for every metric and every groups of the same users and seed. A gap is
    never negative, so its interval lies above 0 even where groups do not differ: compare it with chance.

    Args:
        values: (U,) float64, NaN for users without a value.
        membership: (U, G) bool.
        spread: a function of sums and counts, such as :func:`user_gap`; of several values a draw, such as
            :func:`group_means`, each has its interval.
        samples: number of draws.
        level: share of the draws inside the interval.
        seed: of the draws.
    Returns:
        Lower and upper end, () float64 each, or as many as a draw has values; draws in which the spread is undefined
        are left out, NaN if all are.
    Raises:
        ValueError: level or samples is out of range.
    """
    import torch

    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level is {level} and samples {samples}; level must be inside (0, 1), samples at least 1.")
    generator = torch.Generator().manual_seed(seed)
    member = membership.double()
    table = torch.cat([values.nan_to_num(0)[:, None] * member, (~values.isnan())[:, None] * member], dim=1)
    found = []
    for start in range(0, samples, 64):  # 64 draws of 20,000 users: 10 MB
        size = min(64, samples - start)
        drawn = torch.randint(len(values), (size, len(values)), generator=generator).to(values.device)
        offset = torch.arange(size, device=values.device)[:, None] * len(values)
        times = torch.bincount((drawn + offset).flatten(), minlength=size * len(values)).reshape(size, -1)
        sums, counts = (times.double() @ table).chunk(2, dim=1)
        found.append(spread(sums, counts.long()))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=values.device)
    low, high = torch.cat(found).nanquantile(ends, dim=0)
    return low, high


def _extremes(group_sums: Tensor, group_counts: Tensor) -> tuple[Tensor, Tensor]:
    means, empty = group_means(group_sums, group_counts), group_counts == 0
    return means.masked_fill(empty, math.inf).amin(-1), means.masked_fill(empty, -math.inf).amax(-1)


def _of_groups(values: Tensor, group_counts: Tensor, least: int) -> Tensor:
    """Return ``values`` (...), NaN where fewer than ``least`` groups have data."""
    return values.masked_fill((group_counts > 0).sum(-1) < least, math.nan)


_SUMS: dict[str, Literal["mean", "sum", "count", "values"]] = {"group_sums": "sum", "group_counts": "count"}

SPREADS = (
    Spread("gap", user_gap, "-", _SUMS),
    Spread("ratio", user_ratio, "+", _SUMS),
    Spread("std", user_std, "-", _SUMS),
    Spread("mad", user_mad, "-", _SUMS),
    Spread("worst", user_worst, None, _SUMS),
    Spread("users", group_sizes, "0", {"group_counts": "count"}, per_group=True),
    Spread("cvar50", cvar, None, {"values": "values"}, "users", percent=True),
    Spread("user_gini", user_gini, "-", {"values": "values"}, "users"),
)
"""Metrics derived from every per-user metric; ``users`` is a count, of which no value is better."""

METRICS = (
    MetricInfo(
        "eo_gap",
        user_gap,
        "-",
        "groups",
        "user_groups",
        {"group_sums": Reduced(PerUser(num_hits), "sum"), "group_counts": Reduced(PerUser(num_relevant), "sum")},
    ),
)
