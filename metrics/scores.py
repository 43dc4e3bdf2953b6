"""Metrics of the scores themselves, before they are cut to lists: AUC, and fairness between two groups of users.

Scores come in blocks of users; what does not fit one user is a function of sums, added up over blocks and processes
first. Ties in the scores count as half (AUC) or do not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from metrics._info import MetricInfo, Summed, same

if TYPE_CHECKING:
    from torch import Tensor


def user_auc(scores: Tensor, seen: Tensor | None, relevant: tuple[Tensor, Tensor]) -> Tensor:
    """Area under the ROC curve of each user over the unseen items; Rendle et al. 2009.

    Share of (relevant, other) pairs of unseen items in which the relevant one scores higher; equal scores
    count half. Its mean over users is the user AUC; the mean weighted by :func:`num_positives` is RecBole's GAUC.

    Args:
        scores: (U, I), higher is better; an item with -inf is no candidate.
        seen: (U, I) bool, items that are no candidates; None for none.
        relevant: row of ``scores`` and item id of each held-out pair, in any order; repeated pairs count once,
            pairs that are no candidates not at all.
    Returns:
        (U,) float64 in [0, 1], higher is better; NaN without a relevant or without another candidate.
    Raises:
        ValueError: scores are NaN.
    """
    import torch

    scores = _candidate_scores(scores, seen)
    row, item = _positives(scores, relevant)
    ordered = scores.sort(dim=1).values
    excluded = (ordered == -math.inf).sum(1)
    positives = torch.bincount(row, minlength=len(scores))
    # Each user's positives side by side, so that one search serves all.
    place = torch.arange(len(row), device=row.device) - (positives.cumsum(0) - positives)[row]
    wanted = scores.new_full((len(scores), int(positives.amax()) if len(positives) else 0), math.inf)
    wanted[row, place] = scores[row, item]
    below, up_to = (torch.searchsorted(ordered, wanted, right=right)[row, place] for right in (False, True))
    # Mean rank among the candidates, from 1; ranks of equal scores are averaged (Mann & Whitney 1947).
    mean_rank = (below + up_to + 1).double() / 2 - excluded[row]
    total = torch.bincount(row, weights=mean_rank, minlength=len(scores))
    others = scores.shape[1] - excluded - positives
    wins = total - positives * (positives + 1) / 2
    return wins / (positives * others)  # 0 / 0 is NaN


def num_positives(scores: Tensor, seen: Tensor | None, relevant: tuple[Tensor, Tensor]) -> Tensor:
    """Return (U,) int64: number of relevant candidates of each user, the weights of GAUC. See :func:`user_auc`."""
    import torch

    scores = _candidate_scores(scores, seen)
    return torch.bincount(_positives(scores, relevant)[0], minlength=len(scores))


def gauc(auc: Tensor, positives: Tensor) -> Tensor:
    """AUC of all users, weighted by their number of positives; Zhu et al. 2017, weighted as in RecBole.

    sum_u n_u AUC_u / sum_u n_u over the users who have an AUC. Both sums add up over blocks.

    Args:
        auc: (U,) float64, :func:`user_auc`; NaN for users without, who are left out.
        positives: (U,) int64, :func:`num_positives`.
    Returns:
        () float64 in [0, 1], higher is better; NaN without users.
    """
    weight = positives * ~auc.isnan()
    return (auc.nan_to_num(0) * weight).sum() / weight.sum()


def item_group_sums(
    group: Tensor, item: Tensor, values: Tensor, num_items: int, num_groups: int = 2
) -> tuple[Tensor, Tensor]:
    """Sums and counts of ``values`` (P,) by item and group of the pair's user: (I, G) float64, (I, G) int64.

    Args:
        group: (P,) int64 group of each pair's user; -1 for none, whose pairs are left out.
        item: (P,) int64.
    """
    import torch

    inside = group >= 0
    key, size = item[inside] * num_groups + group[inside], num_items * num_groups
    sums = torch.bincount(key, weights=values[inside].double(), minlength=size)
    # Of no pairs bincount makes int64.
    return sums.double().reshape(-1, num_groups), torch.bincount(key, minlength=size).reshape(-1, num_groups)


def unfairness(
    kind: Literal["value", "absolute", "underestimation", "overestimation"],
    score_sums: Tensor,
    label_sums: Tensor,
    counts: Tensor,
    absent: Literal["skip", "zero"] = "skip",
) -> Tensor:
    """Difference of an item's score errors between two groups of users, mean over items; Yao & Huang 2017.

    With e_g the mean score minus the mean label of the item among the pairs of group g: ``value`` is the mean of
    |e_0 - e_1|, ``absolute`` of ||e_0| - |e_1||, ``underestimation`` of |max(0, -e_0) - max(0, -e_1)|,
    ``overestimation`` of |max(0, e_0) - max(0, e_1)|.

    Args:
        score_sums: (I, 2) float64, scores by item and group; :func:`item_group_sums`.
        label_sums: (I, 2) float64, true labels (ratings) on the scores' scale.
        counts: (I, 2) int64, pairs.
        absent: ``skip`` takes the items that both groups have pairs of; ``zero`` takes all that have pairs, with
            means 0 for the group that has none (RecBole-FairRec).
    Returns:
        () float64, at least 0, lower is fairer; NaN without items.
    Raises:
        ValueError: there are not two groups.
    """
    if counts.shape[1] != 2:
        raise ValueError(f"unfairness of scores is defined between two groups of users; there are {counts.shape[1]}.")
    present = counts > 0
    items = present.all(1) if absent == "skip" else present.any(1)
    error = ((score_sums - label_sums) / counts.clamp(min=1))[items]
    part = {
        "value": error,
        "absolute": error.abs(),
        "underestimation": (-error).clamp(min=0),
        "overestimation": error.clamp(min=0),
    }[kind]
    return (part[:, 0] - part[:, 1]).abs().mean()


def nonparity(score_sums: Tensor, counts: Tensor) -> Tensor:
    """Difference of two groups' mean scores, |mean_0 - mean_1|; Kamishima et al. 2011, Yao & Huang 2017.

    Args:
        score_sums: (..., 2) float64, by group, or by item and group (then over all items).
        counts: (..., 2) int64, pairs.
    Returns:
        () float64, at least 0, lower is fairer; NaN where a group has no pairs.
    Raises:
        ValueError: there are not two groups.
    """
    if counts.shape[-1] != 2:
        raise ValueError(f"nonparity is defined between two groups of users; there are {counts.shape[-1]}.")
    means = score_sums.reshape(-1, 2).sum(0) / counts.reshape(-1, 2).sum(0)
    return (means[0] - means[1]).abs()


def differential_fairness(
    score_sums: Tensor, counts: Tensor, alpha: float = 1.0, outcomes: Literal["both", "positive"] = "both"
) -> Tensor:
    """Mean over items of epsilon, the largest log ratio of an outcome's probability between two groups.

    P_i(1 | g) = (sum of the group's scores + alpha) / (n_g + 2 alpha), P_i(0 | g) = 1 - P_i(1 | g), and epsilon_i is
    the largest |ln P_i(y | g) - ln P_i(y | h)| over all pairs of groups and both outcomes y; Foulds et al. 2020,
    Islam et al. 2021. ``alpha`` is the Dirichlet prior's value for each outcome.

    Args:
        score_sums: (I, G) float64: sums of the scores, as probabilities in [0, 1], over the users of each group.
        counts: (G,) or (I, G) int64, users in them.
        outcomes: ``positive`` looks at y = 1 alone, as RecBole-FairRec.
    Returns:
        () float64, at least 0, lower is fairer; NaN where fewer than two groups have users. Groups without
        users are left out.
    Raises:
        ValueError: scores are no probabilities.
    """
    import torch

    if ((score_sums < 0) | (score_sums > counts + 1e-6)).any():
        raise ValueError("differential fairness needs scores in [0, 1]; some are not, so pass them through a sigmoid.")
    counts = counts.expand(score_sums.shape)
    present = counts > 0
    positive = (score_sums + alpha) / (counts + 2 * alpha)
    epsilon = _log_spread(positive, present)
    if outcomes == "both":
        epsilon = torch.maximum(epsilon, _log_spread(1 - positive, present))
    return epsilon[present.sum(1) > 1].mean()


def _log_spread(probability: Tensor, present: Tensor) -> Tensor:
    """Return (I,): the log ratio of the highest and the lowest, which is the largest over all pairs."""
    logs = probability.log()
    return logs.masked_fill(~present, -math.inf).amax(1) - logs.masked_fill(~present, math.inf).amin(1)


def _candidate_scores(scores: Tensor, seen: Tensor | None) -> Tensor:
    if scores.isnan().any():
        raise ValueError("scores are NaN; the model has diverged.")
    return scores if seen is None else scores.masked_fill(seen, -math.inf)


def _positives(scores: Tensor, relevant: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the distinct relevant pairs that are candidates, ascending."""
    import torch

    pairs = torch.unique(relevant[0] * scores.shape[1] + relevant[1])
    row, item = pairs // scores.shape[1], pairs % scores.shape[1]
    kept = scores[row, item] > -math.inf
    return row[kept], item[kept]


def mean_user_auc(auc_sums: Tensor) -> Tensor:
    """Mean over users of the area under the ROC curve over their unseen items; Rendle et al. 2009.

    Of a user, the share of (relevant, other) pairs of unseen items in which the relevant one scores higher, a tie being
    half (:func:`user_auc`). Users without a relevant or without another candidate are left out.

    Args:
        auc_sums: :func:`sums_of_auc`, added up over blocks and ranks.
    Returns:
        () float64 in [0, 1], higher is better; NaN without users.
    """
    return auc_sums[0] / auc_sums[1]


def weighted_user_auc(auc_sums: Tensor) -> Tensor:
    """AUC of all users, weighted by their number of positives; Zhu et al. 2017, weighted as in RecBole.

    sum_u n_u AUC_u / sum_u n_u over the users who have an AUC. Arguments as :func:`mean_user_auc`.

    Returns:
        () float64 in [0, 1], higher is better; NaN without users.
    """
    return auc_sums[2] / auc_sums[3]


# What blocks of users add to sums ----------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreBlock:
    """The scores of some users."""

    scores: Tensor
    """(U, I) higher is better."""
    seen: Tensor | None
    """(U, I) bool: items that are no candidates of the AUC."""
    relevant: tuple[Tensor, Tensor]
    """Row and item of each held-out pair, (P,)."""
    chances: Tensor
    """(U, I) the scores as probabilities."""
    labels: Tensor | None
    """(P,) the pairs' true labels on the scale of ``chances``."""


def sums_of_auc(block: ScoreBlock) -> Tensor:
    """Return (4,) float64: sum and number of the users' AUCs, sum of AUCs times positives, number of positives."""
    import torch

    auc = user_auc(block.scores, block.seen, block.relevant)
    weight = num_positives(block.scores, block.seen, block.relevant) * ~auc.isnan()
    auc, users = auc.nan_to_num(0), (~auc.isnan()).sum()
    return torch.stack([auc.sum(), users.double(), (auc * weight).sum(), weight.sum().double()])


def sums_of_chances(block: ScoreBlock, groups: Tensor) -> Tensor:
    """Return (I, G) float64: sums of each item's probabilities over the users of each group.

    Args:
        groups: (U, G) bool, the users' membership.
    Raises:
        ValueError: they are no probabilities.
    """
    if ((block.chances < 0) | (block.chances > 1)).any():
        raise ValueError("differential fairness needs scores in [0, 1]; pass them through a sigmoid.")
    return block.chances.double().T @ groups.double()


def group_sizes(block: ScoreBlock, groups: Tensor) -> Tensor:
    """Return (G,) int64: number of users in each group."""
    return groups.double().sum(0).long()


def pair_scores(block: ScoreBlock, groups: Tensor) -> Tensor:
    """Return (I, G) float64: sums of the held-out pairs' probabilities, by item and group."""
    return _of_pairs(block, groups, block.chances[block.relevant])[0]


def pair_labels(block: ScoreBlock, groups: Tensor) -> Tensor:
    """Return (I, G) float64: sums of the held-out pairs' labels, by item and group.

    Raises:
        ValueError: there are no labels.
    """
    if block.labels is None:
        raise ValueError("the unfairness of scores needs the labels of the held-out pairs.")
    return _of_pairs(block, groups, block.labels)[0]


def pair_counts(block: ScoreBlock, groups: Tensor) -> Tensor:
    """Return (I, G) int64: number of held-out pairs, by item and group."""
    return _of_pairs(block, groups, block.chances[block.relevant])[1]


def _of_pairs(block: ScoreBlock, groups: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    row, item = block.relevant
    group = groups.long().argmax(1).masked_fill(~groups.any(1), -1)
    return item_group_sums(group[row], item, values, block.scores.shape[1], groups.shape[1])


_AUC = {"auc_sums": Summed(sums_of_auc)}
_BY_GROUP = same("groups")
_PAIRS = {
    "score_sums": Summed(pair_scores, _BY_GROUP, by_group=True),
    "counts": Summed(pair_counts, _BY_GROUP, by_group=True),
}
_LABELLED = _PAIRS | {"label_sums": Summed(pair_labels, _BY_GROUP, by_group=True)}
_CHANCES = {
    "score_sums": Summed(sums_of_chances, _BY_GROUP, by_group=True),
    "counts": Summed(group_sizes, _BY_GROUP, by_group=True),
}

METRICS = (
    MetricInfo("user_auc", mean_user_auc, "+", "relevant", "scores", _AUC),
    MetricInfo("gauc", weighted_user_auc, "+", "relevant", "scores", _AUC),
    *(
        MetricInfo(
            f"{kind}_unfairness",
            unfairness,
            "-",
            "pairs",
            "scores",
            _LABELLED,
            {"kind": kind},
            also_needs=("logits", "grades"),
            two_groups=True,
        )
        for kind in ("value", "absolute", "underestimation", "overestimation")
    ),
    MetricInfo(
        "nonparity_unfairness", nonparity, "-", "pairs", "scores", _PAIRS, also_needs=("logits",), two_groups=True
    ),
    MetricInfo(
        "differential_fairness",
        differential_fairness,
        "-",
        "all",
        "scores",
        _CHANCES,
        also_needs=("logits", "all_scores"),
    ),
)
