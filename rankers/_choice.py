"""Hyper-parameter search and early stopping, both by the validation metric alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from rankers._base import Ranker

R = TypeVar("R", bound="Ranker")


def choose(
    name: str, lists: Mapping[str, Sequence[float]], fit: Callable[[dict[str, float]], tuple[R, float]]
) -> tuple[R, dict[str, float]]:
    """Choose one hyper-parameter after another, each from its list with the others at their best value so far.

    The search starts from the first value of each list. If values validate equally, the smaller one is kept; NaN is
    the worst.

    Args:
        name: name of the ranker.
        lists: candidate values of each hyper-parameter.
        fit: returns the ranker for the given values and its validation metric, higher is better.
    Returns:
        The best ranker; and the chosen values, with each candidate's ``validation_<hyper-parameter>=<value>``.
    Raises:
        RecpeftError: the validation metric is NaN for all values.
    """
    chosen = {key: values[0] for key, values in lists.items()}
    best: R | None = None
    best_value = -math.inf
    known: dict[tuple[float, ...], float] = {}
    validation: dict[str, float] = {}
    for key, values in lists.items():
        for value in sorted(set(values)):
            point = chosen | {key: value}
            at = tuple(point.values())
            if at not in known:
                ranker, known[at] = fit(point)
                if not math.isnan(known[at]) and (best is None or known[at] > best_value):
                    best, best_value, winner = ranker, known[at], point
            validation[f"validation_{key}={value}"] = known[at]
        chosen = chosen if best is None else winner
    if best is None:
        raise RecpeftError(
            f"the validation metric of {name} is NaN for every {' and '.join(lists)}; there may be no user with "
            "validation interactions."
        )
    return best, chosen | validation


def until_it_stops_improving(
    epoch: Callable[[], None], ranker: Callable[[], R], validate: Callable[[R], float], epochs: int, patience: int
) -> tuple[R, float, int]:
    """Train for at most ``epochs``, and end after ``patience`` epochs without a better validation.

    Args:
        epoch: trains for one epoch.
        ranker: returns the ranker learnt so far, unaffected by further epochs.
    Returns:
        The best epoch's ranker, its validation metric (NaN if it was never measurable), and its number, from 1.
    """
    best, best_value, best_epoch = ranker(), math.nan, 0
    for number in range(1, epochs + 1):
        epoch()
        found = ranker()
        if not all(tensor.isfinite().all() for tensor in found.tensors().values()):
            break  # training has diverged, and its scores cannot be measured
        value = validate(found)
        if value > best_value or (math.isnan(best_value) and not math.isnan(value)):
            best, best_value, best_epoch = found, value, number
        if number - best_epoch >= patience:
            break
    return best, best_value, best_epoch
