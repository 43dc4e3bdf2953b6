"""Metrics: rank the scores, pass the lists to :class:`RankingMetrics`, read the values.

One file per metric family, pure functions, each with its formula and conventions in its docstring: ``accuracy``,
``diversity``, ``novelty``, ``serendipity``, ``calibration`` and ``coverage`` of lists, ``fairness`` to users and
``exposure`` of items, ``association`` of users' groups with their recommendations, ``scores`` before they are cut to
lists, ``generated`` lists before they are matched, ``ratings`` of pairs. ``per_item`` sums lists into vectors over the
catalogue. ``catalog`` lists them all, with direction and requirements, without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recpeft import lazy

if TYPE_CHECKING:
    from metrics._collection import RankingMetrics
    from metrics._history import History
    from metrics._lists import RankedLists, match, rank
    from metrics._score_collection import ScoreMetrics

__all__ = ["History", "RankedLists", "RankingMetrics", "ScoreMetrics", "match", "rank"]

__getattr__ = lazy.exports(
    __name__,
    {
        "History": "metrics._history:History",
        "RankedLists": "metrics._lists:RankedLists",
        "RankingMetrics": "metrics._collection:RankingMetrics",
        "ScoreMetrics": "metrics._score_collection:ScoreMetrics",
        "match": "metrics._lists:match",
        "rank": "metrics._lists:rank",
    },
)
