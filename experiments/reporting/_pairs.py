"""Which rows of the table are compared with which, and the sentence that says of each pair what is shown."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.config.monitor import direction_of
from experiments.config.run import HOW_RUN
from experiments.reporting._runs import QUANTISATION, Run, leaves, name_seeds, pooled
from experiments.reporting.statistics import Correction, Side, adjust, compare_all, name_of, verdict

Compare = Literal["references", "all"]
"""What each cell is compared with: EASE, its control and itself at full width, or every other cell as well."""


@dataclass(frozen=True)
class Pair:
    """Two rows over the seeds they have in common."""

    cell: str
    less: str
    ours: list[Run]
    theirs: list[Run]

    @property
    def values(self) -> np.ndarray:
        """(U,) the difference of means over seeds; (B,) as ``Run.values``."""
        return np.asarray(mean(self.ours) - mean(self.theirs))

    @property
    def sides(self) -> tuple[Side, Side]:
        return _side(self.cell, self.ours), _side(self.less, self.theirs)


def mean(runs: list[Run]) -> np.ndarray:
    """(U,) over seeds."""
    return np.mean([run.values for run in runs], axis=0)


def find_pairs(rows: list[list[Run]], compare: Compare) -> list[Pair]:
    """Each cell less EASE, less its control and less itself at full width: those of them that there are.

    Reordered lists are compared with what they were made of, and nothing else.

    Args:
        compare: ``all`` compares the cells with one another too, those on the same split and candidates.
    """
    pairs, there = [], set[frozenset[int]]()
    for cell in rows:
        record = cell[0].record
        reordered = record.get("reordered", {}).get("run_id")
        if (record["reference"] and not reordered) or np.isnan(cell[0].values).all():
            continue
        for row in _bases(cell, rows, reordered) if reordered else _references(cell, rows):
            there.add(frozenset((id(cell), id(row))))
            pairs += _pair(cell, row, "its lists as they were" if reordered else "")
    if compare == "all":
        for cell, row in itertools.combinations(filter(_is_cell, rows), 2):
            if frozenset((id(cell), id(row))) not in there and _same_test(cell[0].record, row[0].record):
                pairs += _pair(cell, row, "")
    return pairs


def _pair(cell: list[Run], row: list[Run], less: str) -> list[Pair]:
    """``cell`` less ``row``, which the sentence calls ``less``; none without a seed in common, or with one user."""
    record, other = cell[0].record, row[0].record
    ours, theirs = {run.seed for run in cell}, {run.seed for run in row} - {None}
    common = ours & theirs if theirs else ours
    if not common:
        return []
    if not less:
        itself = _is_itself(other, record) and _belong(other, record)
        less = "width none" if itself else row[0].title + ("" if other["reference"] else f", width {other['width']}")
    less += "" if common == ours | theirs else f", over {name_seeds(common)} alone"
    own, others = ([run for run in runs if run.seed in {*common, None}] for runs in (cell, row))
    pair = Pair(f"{cell[0].title}, width {record['width']}", less, own, others)
    return [pair] if np.isfinite(pair.values).sum() > 1 else []  # of one user nothing can be said


def _is_cell(row: list[Run]) -> bool:
    record = row[0].record
    return not (record["reference"] or "reordered" in record or np.isnan(row[0].values).all())


def _same_test(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both records are of the same split and candidates."""
    same_split = one["data"]["split"]["hash"] == other["data"]["split"]["hash"]
    return bool(same_split and one["candidates"]["hash"] == other["candidates"]["hash"])


def _bases(cell: list[Run], rows: list[list[Run]], run_id: str) -> list[list[Run]]:
    return [row for row in rows if row[0].study == cell[0].study and any(run.record["run_id"] == run_id for run in row)]


def _references(cell: list[Run], rows: list[list[Run]]) -> list[list[Run]]:
    """What ``cell`` is compared with; of another study only what its own lacks."""
    record, found = cell[0].record, dict[str, list[Run]]()
    for row in sorted(rows, key=lambda row: row[0].study != cell[0].study):
        other = row[0].record
        of_kind = _is_itself(other, record) or other["method"] in ("ease", "frozen")
        if row[0].setting != cell[0].setting and of_kind and _belong(other, record):
            found.setdefault(row[0].setting, row)
    return list(found.values())


def _is_itself(other: dict[str, Any], cell: dict[str, Any]) -> bool:
    """Whether ``other`` is ``cell`` at full width, in all that makes the adapter."""
    return bool(other["width"] == "none" and other["config"].get("adapter") == cell["config"].get("adapter"))


def _side(name: str, runs: list[Run]) -> Side:
    """Runs that differ in their seed alone, as one side of a comparison."""
    seeds = tuple(run.seed for run in runs if run.seed is not None)
    record = runs[0].record
    split, candidates = record["data"]["split"]["hash"], record["candidates"]["hash"]
    return Side(name, np.stack([run.values for run in runs]), seeds, split, candidates)


def _belong(reference: dict[str, Any], cell: dict[str, Any]) -> bool:
    """Whether both have the same split and candidates, and what ``reference`` has of a config, but for adapter, width,
    seed and study."""
    apart = ("study", "seed", *HOW_RUN, *(f"backbone.{option}" for option in QUANTISATION))
    ours, theirs = dict(leaves(cell["config"])), dict(leaves(reference["config"]))
    return _same_test(reference, cell) and all(
        ours.get(key) == value
        for key, value in theirs.items()
        if key not in apart and not key.startswith(("adapter.", "ranker.", "distributed."))
    )


def sentences(
    pairs: list[Pair], bounds: np.ndarray, monitor: str, compare: Compare, correction: Correction
) -> list[str]:
    """A sentence a pair.

    Args:
        bounds: (pairs, 2) intervals of differences that are of all pairs at once.
    """
    if not pairs:
        return []
    sentences = []
    if pooled(monitor):
        for pair, (low, high) in zip(pairs, bounds, strict=True):
            ours, theirs = (
                statistics.mean(run.record["test"][monitor] for run in runs) for runs in (pair.ours, pair.theirs)
            )
            sentences.append(f"{_head(pair, monitor, ours - theirs, low, high)}")
        return [
            *sentences,
            "differences are over the same users; their 95% intervals are not corrected for their number",
        ]
    found = compare_all([pair.sides for pair in pairs])
    for pair, one, p in zip(pairs, found, adjust([one.p for one in found], correction), strict=True):
        said = verdict(one, p, len(found), correction, direction=direction_of(monitor), digits=4)
        sentences.append(f"{_head(pair, monitor, one.difference, one.low, one.high)}: {said}")
    note = (
        "differences are over the same users, by a randomisation test, corrected over all that stand here "
        f"({name_of(correction)}); their 95% intervals are not corrected"
    )
    if any(len(one.seeds) == 1 for one in found):
        note += "; one seed on either side tells of these trained models, and not of the methods"
    if compare == "references":
        note += "; recpeft report --compare all compares the cells with one another too"
    return [*sentences, note]


def _head(pair: Pair, monitor: str, value: float, low: float, high: float) -> str:
    value, low, high = (round(number, 4) + 0.0 for number in (value, low, high))  # and no -0.0000
    return f"{monitor} of {pair.cell}, less {pair.less}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
