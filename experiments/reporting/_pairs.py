"""Select the pairs of rows to compare, and format each pair's difference."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.config.monitor import direction_of
from experiments.config.run import HOW_RUN
from experiments.records.layout import FinishedRecord
from experiments.reporting._runs import LONG, QUANTISATION, Run, leaves, name_seeds, pooled
from experiments.reporting._table import Cell, Column
from experiments.reporting.statistics import (
    ALPHA,
    NOT_SHOWN,
    POWER,
    Comparison,
    Correction,
    Side,
    adjust,
    compare_all,
    could_show,
    name_of,
    result,
)

Compare = Literal["references", "all"]
"""Rows that each cell is compared with: EASE, its control and itself at full width, or every other cell as well."""


EFFECT = "Cohen's d"
"""Header of the effect column, which is left out in a terminal because it is too narrow."""

DIGITS = 4
"""Number of decimals of a difference."""


@dataclass(frozen=True)
class Difference:
    """Difference between two rows of the table, with its test."""

    compared: str
    """Names of both rows."""
    short: str
    """Short names of both rows."""
    value: float
    low: float
    """End of the 95% interval, which is not corrected for the number of comparisons."""
    high: float
    p: float | None = None
    """p-value corrected for the number of comparisons; None if nothing is tested."""
    effect: float | None = None
    """Cohen's d_z; NaN without deviation."""
    result: str = ""
    """Result in words, from ``statistics.result``."""
    could_show: str = ""
    """Smallest true difference that would likely be shown, if no difference is shown."""
    with_more_seeds: str = ""
    """Smallest true difference that would likely be shown with many more seeds, if that is smaller."""

    @property
    def interval(self) -> str:
        return f"[{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True)
class Pair:
    """Two rows over their common seeds."""

    minus: str
    """Name of the subtracted row, with the common seeds if either row has others."""
    short_minus: str
    """Short form of ``minus``."""
    ours: list[Run]
    theirs: list[Run]

    @property
    def compared(self) -> str:
        return f"{self.ours[0].label} minus {self.minus}"

    @property
    def short(self) -> str:
        return f"{self.ours[0].short} minus {self.short_minus}"

    @property
    def values(self) -> np.ndarray:
        """Return the difference of means over seeds: (U,), or (B,) as in ``Run.values``."""
        return np.asarray(mean(self.ours) - mean(self.theirs))

    @property
    def sides(self) -> tuple[Side, Side]:
        return _side(self.ours[0].label, self.ours), _side(self.minus, self.theirs)


def mean(runs: list[Run]) -> np.ndarray:
    """Return the mean over seeds, (U,)."""
    return np.mean([run.values for run in runs], axis=0)


def find_pairs(rows: list[list[Run]], compare: Compare) -> list[Pair]:
    """Return the pairs of each cell with EASE, its control and itself at full width, as far as they exist.

    Reordered lists are compared only with the lists that they were made from.

    Args:
        compare: ``all`` also compares cells with one another, if they share split and candidates.
    """
    pairs, there = [], set[frozenset[int]]()
    for cell in rows:
        record = cell[0].record
        reordered = record.reordered.run_id if record.reordered else None
        if (record.reference and not reordered) or np.isnan(cell[0].values).all():
            continue
        for row in _bases(cell, rows, reordered) if reordered else _references(cell, rows):
            there.add(frozenset((id(cell), id(row))))
            pairs += _pair(cell, row, "its lists as they were" if reordered else "")
    if compare == "all":
        for cell, row in itertools.combinations(filter(_is_cell, rows), 2):
            if frozenset((id(cell), id(row))) not in there and _same_test(cell[0].record, row[0].record):
                pairs += _pair(cell, row, "")
    return pairs


def _pair(cell: list[Run], row: list[Run], minus: str) -> list[Pair]:
    """Return the pair ``cell`` minus ``row``, named ``minus`` if given; empty without common seeds or with one user."""
    record, other = cell[0].record, row[0].record
    ours, theirs = {run.seed for run in cell}, {run.seed for run in row} - {None}
    common = ours & theirs if theirs else ours
    if not common:
        return []
    names = (minus, minus)
    if not minus:
        itself = _is_itself(other, record) and _belong(other, record)
        plain = row[0].title if other.reference else row[0].label
        names = ("itself at width none",) * 2 if itself else (plain, plain if len(plain) <= LONG else row[0].short)
    alone = "" if common == ours | theirs else f", over {name_seeds(common)} alone"
    own, others = ([run for run in runs if run.seed in {*common, None}] for runs in (cell, row))
    pair = Pair(names[0] + alone, names[1] + alone, own, others)
    return [pair] if np.isfinite(pair.values).sum() > 1 else []  # one user allows no statistics


def _is_cell(row: list[Run]) -> bool:
    record = row[0].record
    return not (record.reference or record.reordered is not None or np.isnan(row[0].values).all())


def _same_test(one: FinishedRecord, other: FinishedRecord) -> bool:
    """Return whether both records have the same split and candidates."""
    same_split = one.data.split.hash == other.data.split.hash
    return bool(same_split and one.candidates.hash == other.candidates.hash)


def _bases(cell: list[Run], rows: list[list[Run]], run_id: str) -> list[list[Run]]:
    return [row for row in rows if row[0].study == cell[0].study and any(run.record.run_id == run_id for run in row)]


def _references(cell: list[Run], rows: list[list[Run]]) -> list[list[Run]]:
    """Return the rows that ``cell`` is compared with; rows of another study only if its own study lacks them."""
    record, found = cell[0].record, dict[str, list[Run]]()
    for row in sorted(rows, key=lambda row: row[0].study != cell[0].study):
        other = row[0].record
        of_kind = _is_itself(other, record) or other.method in ("ease", "frozen")
        if row[0].setting != cell[0].setting and of_kind and _belong(other, record):
            found.setdefault(row[0].setting, row)
    return list(found.values())


def _is_itself(other: FinishedRecord, cell: FinishedRecord) -> bool:
    """Return whether ``other`` has ``cell``'s adapter config at full width."""
    ours, theirs = (record.config.json_values.get("adapter") for record in (cell, other))
    return bool(other.width == "none" and ours == theirs)


def _side(name: str, runs: list[Run]) -> Side:
    """Return runs that differ only in their seed as one side of a comparison."""
    seeds = tuple(run.seed for run in runs if run.seed is not None)
    record = runs[0].record
    split, candidates = record.data.split.hash, record.candidates.hash
    return Side(name, np.stack([run.values for run in runs]), seeds, split, candidates)


def _belong(reference: FinishedRecord, cell: FinishedRecord) -> bool:
    """Return whether both have the same split and candidates, and ``cell`` has all of ``reference``'s config except
    adapter, ranker, width, seed, study and ``HOW_RUN``."""
    apart = ("study", "seed", *HOW_RUN, *(f"backbone.{option}" for option in QUANTISATION))
    ours, theirs = dict(leaves(cell.config.json_values)), dict(leaves(reference.config.json_values))
    return _same_test(reference, cell) and all(
        ours.get(key) == value
        for key, value in theirs.items()
        if key not in apart and not key.startswith(("adapter.", "ranker.", "distributed."))
    )


def differences(
    pairs: list[Pair], bounds: np.ndarray, monitor: str, compare: Compare, correction: Correction
) -> tuple[list[Difference], list[str]]:
    """Return each pair's difference, the largest first, and notes that hold for all of them.

    Args:
        bounds: (pairs, 2) intervals of the differences, used for metrics over all pairs of user and item at once.
    """
    if not pairs:
        return [], []
    if pooled(monitor):
        apart = [_mean_of(pair.ours, monitor) - _mean_of(pair.theirs, monitor) for pair in pairs]
        parts = zip(pairs, apart, bounds.tolist(), strict=True)
        found = [Difference(pair.compared, pair.short, value, low, high) for pair, value, (low, high) in parts]
        return _largest_first(found), [
            "differences are over the same users; their 95% intervals are not corrected for their number"
        ]
    compared = compare_all([pair.sides for pair in pairs])
    found = []
    for pair, one, p in zip(pairs, compared, adjust([one.p for one in compared], correction), strict=True):
        said = result(one, p, direction=direction_of(monitor))
        could = could_show(one, DIGITS) if said == NOT_SHOWN else ("", "")
        names, ends = (pair.compared, pair.short), (one.low, one.high)
        found.append(Difference(*names, one.difference, *ends, p, one.effect, said, *could))
    return _largest_first(found), _about(compared, compare, correction)


def _mean_of(runs: list[Run], monitor: str) -> float:
    values = [run.record.test[monitor] for run in runs]
    return statistics.mean(np.nan if value is None else value for value in values)


def _largest_first(found: list[Difference]) -> list[Difference]:
    return sorted(found, key=lambda one: -abs(one.value))


def _about(found: list[Comparison], compare: Compare, correction: Correction) -> list[str]:
    """Return the notes that hold for all rows of the table of differences."""
    users = sorted({one.users for one in found})
    said = f"{users[0]:,}" if len(users) == 1 else f"{users[0]:,} to {users[-1]:,}"
    notes = [
        f"differences are over the same {said} users; p is by a randomisation test, corrected over all {len(found)} "
        f"that stand here ({name_of(correction)}); a difference is shown where p is below {ALPHA:.2f}; the 95% "
        "intervals are not corrected",
        f"could show: the least true difference that {POWER:.0%} of such comparisons would show; a smaller one may be "
        "there unseen",
    ]
    if any(len(one.seeds) == 1 for one in found):
        notes.append("one seed on either side tells of these trained models, and not of the methods")
    if compare == "references":
        notes.append("recpeft report --compare all compares the cells with one another too")
    return notes


def difference_columns(found: list[Difference], monitor: str, correction: Correction) -> list[Column]:
    """Return the columns of the table of differences; without test columns if nothing is tested."""
    columns = [
        Column("compared", [Cell(one.compared, one.compared) for one in found]),
        Column(f"difference of {monitor}", [Cell(signed(one.value), one.value) for one in found]),
        Column("95% interval", [Cell(one.interval, one.low) for one in found]),
    ]
    if all(one.p is None for one in found):
        return columns
    columns += [
        Column(f"p ({name_of(correction)})", [Cell(_p(one.p), _number(one.p)) for one in found]),
        Column(EFFECT, [Cell(_d(one.effect), _number(one.effect)) for one in found]),
        Column("result", [Cell(one.result, one.result) for one in found]),
        Column("could show", [_least(one.could_show) for one in found]),
    ]
    if any(one.with_more_seeds for one in found):
        columns.append(Column("with more seeds", [_least(one.with_more_seeds) for one in found]))
    return columns


def _least(text: str) -> Cell:
    return Cell(text or "–", float(text) if text not in ("", "none") else None)


def signed(value: float) -> str:
    return f"{round(value, DIGITS) + 0.0:+.{DIGITS}f}"  # and no -0.0000


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3g}"


def _d(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:+.2f}"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
