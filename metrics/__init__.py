"""What is measured: rank the scores, hand the lists to :class:`RankingMetrics`, read the numbers.

One file a metric family (``accuracy``, ``diversity``, ``novelty``, ``coverage``, ``fairness``), pure
functions, each with its formula and conventions in its docstring.
"""

from metrics._collection import RankingMetrics
from metrics._lists import RankedLists, match, rank

__all__ = ["RankedLists", "RankingMetrics", "match", "rank"]
