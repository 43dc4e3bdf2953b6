"""Metrics over judged pairs of user and item, which are known to be liked or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from metrics import ratings
from metrics._info import Source
from metrics.catalog import METRICS
from recpeft import processes

_STATES = {
    "user": torch.int64,
    "item": torch.int64,
    "score": torch.float32,
    "liked": torch.bool,
    "rating": torch.float32,
}


@dataclass(frozen=True)
class JudgedPairs:
    """Scored pairs with known labels."""

    user: Tensor
    """(R,) int64."""
    item: Tensor
    """(R,) int64."""
    score: Tensor
    """(R,) higher is better."""
    liked: Tensor
    """(R,) bool."""
    rating: Tensor | None = None
    """(R,) NaN for pairs without a rating."""
    row: Tensor | None = None
    """(R,) row of each pair's user in the batch's lists."""


def among(scores: Tensor, candidates: Tensor, owner: Tensor, num_users: int, num_items: int) -> Tensor:
    """Return the scores (U, I) of users' candidates, -inf for all other items, which are then never listed.

    Args:
        scores: (T, C).
        candidates: (T, C) items; -1 is padding.
        owner: (T,) user of each row.
    """
    everything = scores.new_full((num_users, num_items + 1), -torch.inf)
    # Padding goes to an extra column, which is cut off.
    place = torch.where(candidates < 0, num_items, candidates)
    return everything.index_put((owner[:, None].expand_as(place), place), scores)[:, :-1]


class JudgedMetrics(Metric):
    """Metrics over all judged pairs at once; AUC as in TALLRec (Bao et al. 2023) and in CTR studies.

    Decisions (accuracy, precision, recall, F1) use ``threshold``; if it is None, the threshold with the highest F1
    on the pairs themselves, which is for validation only.

    Args:
        stamp: suffix of each name for the choice of pairs, such as ``/rated``.
        names: further metrics of kind ``ratings`` from :data:`metrics.catalog.METRICS`.
        predicts: meaning of the scores: ``rating``, on the ratings' scale, for error metrics; ``logit``, whose sigmoid
            is the probability of a like, for log-loss and calibration; None is neither. Metrics that need another
            meaning are left out.
    """

    full_state_update = False
    user: list[Tensor]
    item: list[Tensor]
    score: list[Tensor]
    liked: list[Tensor]
    rating: list[Tensor]

    def __init__(
        self, stamp: str = "", names: Sequence[str] = (), predicts: Literal["rating", "logit"] | None = None
    ) -> None:
        super().__init__(distributed_available_fn=processes.several)
        self.stamp = stamp
        self._infos = [METRICS[name] for name in dict.fromkeys(names)]
        self._predicts = predicts
        self.threshold: float | None = None
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, pairs: JudgedPairs) -> None:
        """Add one batch."""
        self.user.append(pairs.user)
        self.item.append(pairs.item)
        self.score.append(pairs.score.float())
        self.liked.append(pairs.liked)
        none = torch.full(pairs.score.shape, torch.nan, device=pairs.score.device)
        self.rating.append(none if pairs.rating is None else pairs.rating.float())

    def compute(self) -> dict[str, float]:
        """Return ``auc<stamp>``, each ``rating_<name><stamp>``, ``threshold<stamp>`` if one was used, and
        ``pairs<stamp>``, the number of pairs."""
        pairs = self._pairs()
        found = {"auc": float(ratings.auc(pairs.score, pairs.liked))}
        if any("threshold" in info.inputs.values() for info in self._infos):
            found["threshold"] = self._threshold(pairs)
        for info in self._infos:
            inputs = {argument: self._input(source, pairs, found) for argument, source in info.inputs.items()}
            if all(value is not None for value in inputs.values()):
                found[info.name] = float(info.function(**inputs, **info.options))
        found["pairs"] = float(len(pairs.user))
        return {f"{name}{self.stamp}": value for name, value in found.items()}

    def _threshold(self, pairs: JudgedPairs) -> float:
        if self.threshold is not None:
            return self.threshold
        return ratings.best_threshold(pairs.score, pairs.liked) if pairs.liked.any() else math.nan

    def _input(self, source: Source, pairs: JudgedPairs, found: dict[str, float]) -> Tensor | float | None:
        """Return a metric's input from the pairs; None if the scores have another meaning than it needs."""
        if source == "threshold":
            return found["threshold"]
        if source in ("score", "liked"):
            return pairs.score if source == "score" else pairs.liked
        if source == "logits":
            return pairs.score.double().sigmoid() if self._predicts == "logit" else None
        assert pairs.rating is not None
        rated = ~pairs.rating.isnan()
        if source == "ratings":
            return pairs.rating[rated]
        assert source == "predicted_ratings"
        return pairs.score[rated] if self._predicts == "rating" else None

    def pairs(self) -> JudgedPairs:
        """Return all pairs so far from all processes, in order of arrival; sorted by user with several processes."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, distributed_available=processes.several):
            return self._pairs()

    def _pairs(self) -> JudgedPairs:
        """Return the pairs in the states; within ``compute()`` these are those of all processes."""
        parts = [dim_zero_cat(getattr(self, name)) for name in _STATES]
        if self._is_synced:
            order = parts[0].argsort(stable=True)
            parts = [part[order] for part in parts]
        return JudgedPairs(*parts)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # For a process without pairs torchmetrics would use float32, which cannot be gathered with int64.
        for name, dtype in _STATES.items():
            if len(getattr(self, name)) == 0:
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)


def replicates(pairs: JudgedPairs, draws: int = 1000, seed: int = 0) -> Tensor:
    """Return (draws,) float64 AUC over users drawn with replacement, each with all pairs (bootstrap, Efron 1979).

    Pairs of one user are not independent, and a few users may have most of them. NaN if a draw has only one class.
    The same users are drawn for the same ``seed``, so that differences between models are paired.
    """
    users, of_pair = pairs.user.cpu().unique(return_inverse=True)
    score, liked = pairs.score.cpu(), pairs.liked.cpu()
    generator = torch.Generator().manual_seed(seed)
    values = []
    for part in torch.arange(draws).split(max(1, 10_000_000 // max(len(of_pair), 1))):
        drawn = torch.randint(len(users), (len(part), len(users)), generator=generator)
        times = torch.zeros(len(part), len(users)).scatter_add(1, drawn, torch.ones(drawn.shape))
        values.append(ratings.auc(score, liked, times[:, of_pair]))
    return torch.cat(values)
