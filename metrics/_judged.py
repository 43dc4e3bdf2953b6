"""Pairs of user and item that are known to be liked or not, and how well scores tell the two apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from metrics.ratings import auc


@dataclass(frozen=True)
class JudgedPairs:
    """Scored pairs whose label is known."""

    user: Tensor
    """(R,) int64."""
    item: Tensor
    """(R,) int64."""
    score: Tensor
    """(R,) higher is better."""
    liked: Tensor
    """(R,) bool."""


def among(scores: Tensor, candidates: Tensor, owner: Tensor, num_users: int, num_items: int) -> Tensor:
    """(U, I) scores of users' candidates, -inf for all other items, which are then never listed.

    Args:
        scores: (T, C).
        candidates: (T, C) items; -1 is padding.
        owner: (T,) the user that each row is of.
    """
    everything = scores.new_full((num_users, num_items + 1), -torch.inf)
    # Padding goes to a column of its own, which is cut off.
    place = torch.where(candidates < 0, num_items, candidates)
    return everything.index_put((owner[:, None].expand_as(place), place), scores)[:, :-1]


class JudgedMetrics(Metric):
    """AUC over all judged pairs at once, as TALLRec's (Bao et al. 2023) and CTR studies' is.

    Args:
        stamp: how the pairs were drawn, put behind the name: ``/rated``.
    """

    full_state_update = False
    user: list[Tensor]
    item: list[Tensor]
    score: list[Tensor]
    liked: list[Tensor]

    def __init__(self, stamp: str = "") -> None:
        super().__init__()
        self.stamp = stamp
        for name in ("user", "item", "score", "liked"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, pairs: JudgedPairs) -> None:
        """Add one batch."""
        self.user.append(pairs.user)
        self.item.append(pairs.item)
        self.score.append(pairs.score.float())
        self.liked.append(pairs.liked)

    def compute(self) -> dict[str, float]:
        """``auc<stamp>``, and ``pairs<stamp>``, how many there are."""
        pairs = self.pairs()
        value = auc(pairs.score, pairs.liked)
        return {f"auc{self.stamp}": float(value), f"pairs{self.stamp}": float(len(pairs.user))}

    def names(self) -> list[str]:
        """The keys of ``compute()``."""
        return [f"auc{self.stamp}", f"pairs{self.stamp}"]

    def pairs(self) -> JudgedPairs:
        """All pairs so far, in the order they came."""
        return JudgedPairs(*(dim_zero_cat(part) for part in (self.user, self.item, self.score, self.liked)))


def replicates(pairs: JudgedPairs, draws: int = 1000, seed: int = 0) -> Tensor:
    """(draws,) float64 AUC over users drawn with replacement, each with all its pairs (bootstrap, Efron 1979).

    Pairs of one user are no independent draws, and few users may have most of them. NaN where a draw has one class.
    The same users are drawn for the same ``seed``, so that differences between models are paired.
    """
    users, of_pair = pairs.user.cpu().unique(return_inverse=True)
    score, liked = pairs.score.cpu(), pairs.liked.cpu()
    generator = torch.Generator().manual_seed(seed)
    values = []
    for part in torch.arange(draws).split(max(1, 10_000_000 // max(len(of_pair), 1))):
        drawn = torch.randint(len(users), (len(part), len(users)), generator=generator)
        times = torch.zeros(len(part), len(users)).scatter_add(1, drawn, torch.ones(drawn.shape))
        values.append(auc(score, liked, times[:, of_pair]))
    return torch.cat(values)
