"""The section ``search`` of an experiment file: space, sampler, pruner and trials. Imports no Optuna, no torch."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from experiments.config.grid import expand, overridden, read_file, set_value
from experiments.config.run import RunConfig, TextRun, build_run
from recpeft.config import Config, Seed, canonical_json, plain
from recpeft.errors import RecpeftError, cut, shown
from recpeft.validation import validate

SECTIONS = ("prompt", "backbone", "adapter", "formulation", "loss", "training")
"""Sections whose keys may be searched; with different data or evaluation, trials could not be compared."""

MOST_STEPS = 1_000_000
"""Maximum number of values of a range with ``step``; a larger one may as well have no step."""

MOST_COMBINATIONS = 100_000
"""Maximum number of combinations of sampler grid, which builds all of them before it takes one."""

MOST_PROBES = 1_000
"""Maximum number of choices and range ends in a space, each of which is validated beforehand."""


class RangeConfig(Config):
    """Numbers from ``low`` to ``high``, both included; integers if ``low``, ``high`` and ``step`` are integers."""

    low: int | float
    high: int | float
    step: int | float | None = Field(default=None, gt=0)
    """Distance between neighbouring values; null is 1 for integers, and continuous for other numbers."""
    log: bool = False
    """Whether to draw uniformly on a logarithmic scale, as suits a learning rate."""

    @model_validator(mode="after")
    def _there_is_a_range(self) -> RangeConfig:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be less")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is None:
            return self
        length, step = Decimal(str(self.high)) - Decimal(str(self.low)), Decimal(str(self.step))
        if length / step > MOST_STEPS:
            raise ValueError(f"step is {self.step}, which makes more than {MOST_STEPS:,} values; give a larger one")
        if length % step:
            raise ValueError(f"step is {self.step}, of which high - low must be a multiple")
        return self

    @property
    def whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def size(self) -> float:
        """Return the number of values in the range."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return math.inf
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(step))) + 1

    def at(self, place: int) -> int | float:
        """Return the value at a place, from 0, without the rounding errors of summed floats."""
        number = Decimal(str(self.low)) + place * Decimal(str(self.step or 1))
        return int(number) if self.whole else float(number)

    def nearest(self, drawn: int | float) -> int | float:
        """Return ``drawn`` rounded exactly to a step, so that equal values are equal runs."""
        if self.size == math.inf:
            return drawn
        return self.at(round((drawn - self.low) / (self.step or 1)))


class SearchConfig(Config):
    """Search space, and how values are chosen; each trial is a run that is trained and validated."""

    trials: PositiveInt
    """Number of trials; no default, since it sets the cost."""
    space: dict[str, RangeConfig | tuple[Any, ...]] = Field(min_length=1)
    """Search space: dotted keys, each mapped to a list of choices or to a range."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's default; random: independent draws; grid:
    every combination of lists and ranges with steps, once."""
    random_trials: PositiveInt = 10
    """Number of trials that tpe draws at random before it learns from them; 10 is Optuna's default."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Rule that ends a trial early. median: its best value is worse than the median of the others' at the same epoch;
    hyperband: successive halving in brackets (Li et al. 2018); none: never."""
    unpruned_trials: NonNegativeInt = 5
    """Number of trials that must have ended before median prunes one; 5 is Optuna's default."""
    seed: Seed = 0
    """Seed of the draws; a trial's draws depend on it, on the trial's number and on the trials that ended before."""

    @model_validator(mode="after")
    def _the_space_can_be_drawn_from(self) -> SearchConfig:
        for key, values in self.space.items():
            if key.partition(".")[0] not in SECTIONS:
                raise ValueError(f"space names {key}; search a key of {', '.join(SECTIONS)}")
            if isinstance(values, RangeConfig):
                if self.sampler == "grid" and values.size == math.inf:
                    raise ValueError(f"sampler is grid, but space.{key} has no step; give one, or a list")
                continue
            if not values:
                raise ValueError(f"space.{key} is an empty list; give at least one value")
            if len({_encoded(value, key) for value in values}) < len(values):
                raise ValueError(f"space.{key} is {shown(list(values))}, with a value twice; name it once")
            for other in self.space:
                if other != key and other.startswith(f"{key}."):
                    raise ValueError(f"space.{key} and space.{other} set the same values; leave one out")
        probes = sum(len(self.ends(key)) for key in self.space)
        if probes > MOST_PROBES:
            raise ValueError(f"space has {probes:,} choices and ends of ranges; give at most {MOST_PROBES:,}")
        combinations = math.prod(map(size, self.space.values())) if self.sampler == "grid" else 0
        if combinations > MOST_COMBINATIONS:
            raise ValueError(
                f"sampler is grid, and space has more than {MOST_COMBINATIONS:,} combinations; give fewer values, or "
                "another sampler"
            )
        return self

    @property
    def most_trials(self) -> int:
        """Return ``trials``; for a grid, at most the number of its combinations."""
        if self.sampler != "grid":
            return self.trials
        return int(min(self.trials, math.prod(map(size, self.space.values()))))

    def choices(self, key: str) -> list[str | int | float]:
        """Return all values of a key as Optuna stores them: a range's numbers, or the JSON of a list's values."""
        values = self.space[key]
        if isinstance(values, RangeConfig):
            return [values.at(place) for place in range(int(values.size))]
        return [_encoded(value) for value in values]

    def cell(self, number: int) -> dict[str, str | int | float]:
        """Return a grid trial's combination; the seed determines the order of combinations."""
        cells = list(itertools.product(*map(self.choices, self.space)))
        random.Random(self.seed).shuffle(cells)  # noqa: S311 (no cryptography)
        return dict(zip(self.space, cells[number % len(cells)], strict=True))

    def value(self, key: str, drawn: Any) -> Any:
        """Return the value that Optuna drew, as the file spells it."""
        values = self.space[key]
        if isinstance(values, RangeConfig):
            return values.nearest(drawn)
        return {_encoded(value): value for value in values}[drawn]

    def ends(self, key: str) -> tuple[Any, ...]:
        """Return the values to validate, so that all others are valid: a range's ends, or every choice of a list."""
        values = self.space[key]
        return (values.low, values.high) if isinstance(values, RangeConfig) else values


@dataclass(frozen=True)
class Search:
    """A validated experiment file with ``search:``."""

    config: SearchConfig
    content: dict[str, Any]
    """Content of the file without ``search``."""

    @property
    def file(self) -> dict[str, Any]:
        """Return the content of a file from which ``build_search`` builds the same search."""
        content: dict[str, Any] = plain(self.content | {"search": self.config.model_dump()})
        return content

    def trial(self, values: Mapping[str, Any]) -> TextRun:
        """Return the run to train and validate for some values, with the first of the file's seeds.

        Raises:
            RecpeftError: the values are incompatible.
        """
        raw = self._with(values)
        seeds = raw.get("seeds")
        if isinstance(seeds, list) and seeds:
            raw["seed"] = seeds[0]
        run = build_run({key: value for key, value in raw.items() if key in TextRun.model_fields})
        run = run.undiversified
        assert isinstance(run, TextRun)
        return run

    def at_an_end(self, values: Mapping[str, Any]) -> list[str]:
        """Return the keys whose value is at an end of its space, so that a better value may lie beyond.

        The ends are the smallest and largest of three or more listed numbers, or the outer twentieths of a range.
        """
        found = []
        for key, value in values.items():
            space = self.config.space.get(key)
            numbers = self.config.ends(key) if space is not None else ()
            if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (value, *numbers)):
                continue
            if isinstance(space, RangeConfig):
                low, high, at = (math.log(each) if space.log else float(each) for each in (*numbers, value))
                if min(at - low, high - at) <= 0.05 * (high - low):
                    found.append(key)
            elif len(numbers) > 2 and value in (min(numbers), max(numbers)):
                found.append(key)
        return found

    def final(self, values: Mapping[str, Any]) -> list[RunConfig]:
        """Return the runs to train and test for the winning values: one per seed of the file, and its references."""
        return expand(self._with(values))

    @property
    def base(self) -> TextRun:
        """Return the run that the search starts from."""
        return self.trial({})

    def probes(self) -> list[TextRun]:
        """Return the file's run with one value changed at a time, to each choice and to the ends of each range.

        Raises:
            RecpeftError: a value is invalid; the message names the key and the value.
        """
        found = []
        for key in self.config.space:
            for value in self.config.ends(key):
                try:
                    self.final({key: value})
                    found.append(self.trial({key: value}))
                except RecpeftError as error:
                    raise RecpeftError(f"search.space.{key} with the value {shown(value)}: {error}") from None
        return found

    def _with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        raw = copy.deepcopy(self.content)
        for key, value in values.items():
            set_value(raw, key, copy.deepcopy(value))
        return raw


def size(values: RangeConfig | tuple[Any, ...]) -> float:
    """Return the number of values of a key."""
    return values.size if isinstance(values, RangeConfig) else len(values)


def load_search(path: Path, overrides: Sequence[str] = ()) -> Search | None:
    """Return the search of an experiment file; None if it has none.

    Raises:
        RecpeftError: the file is invalid; the message names the file, the key, the value and what is allowed.
    """
    content = read_file(path)
    try:
        return build_search(overridden(content, overrides))
    except RecpeftError as error:
        raise RecpeftError(f"{path}: {error}") from None


def build_search(content: dict[str, Any]) -> Search | None:
    """Do as ``load_search``, from the file's content."""
    content = dict(content)
    raw = content.pop("search", None)
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise RecpeftError(f"search is {shown(raw)}; give a mapping with trials and space.")
    for key in ("grid", "include", "exclude", "variants"):
        if content.get(key):
            raise RecpeftError(f"search and {key} both say what is run; leave {key} out, or give it a file of its own.")
    if "ranker" in content:
        raise RecpeftError("search is for runs that train on text, but the file names a ranker; leave one out.")
    _check_space(raw.get("space"))
    search = Search(validate(SearchConfig, raw, prefix="search."), content)
    if search.base.distributed.processes > 1:
        raise RecpeftError("search is for runs of one process each, but distributed asks for several; leave it out.")
    search.final({})  # first, so that a mistake in the file itself is not blamed on a searched value
    search.probes()
    return search


def _check_space(space: Any) -> None:
    """Check that each key has a list or a range; pydantic's message would report how a value fits neither."""
    if not isinstance(space, dict) or not all(isinstance(key, str) for key in space):
        raise RecpeftError(f"search.space is {shown(space)}; give a mapping of dotted keys to lists or ranges.")
    for key, values in space.items():
        if isinstance(values, dict):
            validate(RangeConfig, values, prefix=f"search.space.{key}.")
        elif not isinstance(values, list):
            raise RecpeftError(
                f"search.space.{cut(key)} is {shown(values)}; give a list, or a range such as {{low: 1, high: 8}}."
            )


def _encoded(value: Any, key: str = "") -> str:
    try:
        return canonical_json(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"space.{key} has the choice {shown(value)}, with a date, a number that is none, or a key that is no text; "
            "give numbers, text, true, false and null, or lists and mappings of them"
        ) from None
