"""Compute all metrics of a model together: of lists, scores and judged pairs, and a weighted sum of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metrics._collection import RankingMetrics
from metrics._judged import JudgedMetrics, JudgedPairs
from metrics._lists import RankedLists
from metrics._score_collection import ScoreMetrics
from recpeft import processes


@dataclass(frozen=True)
class Ranked:
    """Result of an evaluation step for a batch of users."""

    lists: RankedLists
    """(U, K), K at least the largest cut-off."""
    scores: Tensor | None = None
    """(U, I) float32, -inf for items that are not candidates; None if there are only lists."""
    judged: JudgedPairs | None = None
    """Judged pairs, if the batch has labels of likes."""


@dataclass(frozen=True)
class KeptLists:
    """The lists of all users, for writing to disk."""

    user: Tensor
    """(U,) int64."""
    item: Tensor
    """(U, K) int32, best first, -1 padding."""
    score: Tensor
    """(U, K) float32, NaN at padding."""


class Suite:
    """Pass each batch of users to every metric, and keep their lists.

    Args:
        ranking: receives lists cut at its largest cut-off.
        judged: receives the pairs of batches with labels of likes.
        scores: receives the scores of batches that have them.
        weighted: name of a weighted sum, and the weight of each value by its name in ``compute()``.
        keep_lists: keep the lists at full length for ``kept()``.
        top_grade: largest possible grade, which corresponds to a score of 1.
    """

    def __init__(
        self,
        ranking: RankingMetrics,
        judged: JudgedMetrics | None = None,
        scores: ScoreMetrics | None = None,
        weighted: tuple[str, Mapping[str, float]] | None = None,
        keep_lists: bool = False,
        top_grade: float = 1.0,
    ) -> None:
        self.ranking = ranking
        self.judged = judged
        self.scores = scores
        self._weighted = weighted
        self._keep = keep_lists
        self._top_grade = top_grade
        self._kept: list[KeptLists] = []

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Reset all metrics and move them to ``device``."""
        self._kept = []
        for metric in self._metrics():
            metric.to(device)
            metric.reset()

    def update(self, ranked: Ranked) -> None:
        """Add one batch; each user in it must be new."""
        lists = ranked.lists
        if ranked.judged is not None and ranked.judged.row is not None:
            lists = replace(lists, shown=(ranked.judged.row, ranked.judged.item))  # rated items were shown
        self.ranking.update(lists.top(min(max(self.ranking.ks), lists.item.shape[1])))
        if self.judged is not None and ranked.judged is not None:
            self.judged.update(ranked.judged)
        if self.scores is not None and ranked.scores is not None:
            self._of_scores(self.scores, lists, ranked.scores)
        if self._keep:
            score = torch.full(lists.item.shape, torch.nan)
            if ranked.scores is not None:
                score = ranked.scores.gather(1, lists.item.clamp(min=0)).float().cpu()
                score = score.masked_fill(~lists.listed.cpu(), torch.nan)
            self._kept.append(KeptLists(lists.user.cpu(), lists.item.int().cpu(), score))

    def _of_scores(self, metric: ScoreMetrics, lists: RankedLists, scores: Tensor) -> None:
        unlisted = ~lists.listable()
        assert lists.relevant is not None
        row, item = lists.relevant
        # Items that cannot be listed are left out of score metrics.
        scored = ~unlisted[row, item]
        labels = None if lists.grade is None else lists.grade[scored] / self._top_grade
        metric.update(lists.user, scores, unlisted, (row[scored], item[scored]), labels)

    def compute(self) -> dict[str, float]:
        """Return the values of all metrics and their weighted sum."""
        values = {name: value for metric in self._metrics() for name, value in metric.compute().items()}
        if self._weighted is not None:
            name, weights = self._weighted
            values[name] = math.fsum(weight * values[part] for part, weight in weights.items())
        return values

    def per_user(self) -> dict[str, Tensor]:
        """Return ``RankingMetrics.per_user``, with the weighted sum if all its parts are means over users."""
        values = self.ranking.per_user()
        if self._weighted is not None:
            name, weights = self._weighted
            if all(part in values for part in weights):
                values[name] = torch.stack([weight * values[part] for part, weight in weights.items()]).sum(dim=0)
        return values

    def kept(self) -> KeptLists:
        """Return all lists so far from all processes, in order of arrival; sorted by user with several processes."""
        everyones = processes.gathered(self._kept)
        parts = zip(*((part.user, part.item, part.score) for own in everyones for part in own), strict=True)
        lists = KeptLists(*(torch.cat(part) for part in parts))
        if len(everyones) == 1:
            return lists
        order = lists.user.argsort(stable=True)
        return KeptLists(lists.user[order], lists.item[order], lists.score[order])

    def _metrics(self) -> list[RankingMetrics | JudgedMetrics | ScoreMetrics]:
        return [metric for metric in (self.ranking, self.judged, self.scores) if metric is not None]
