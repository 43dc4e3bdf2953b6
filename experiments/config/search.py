"""``search:`` of an experiment file: what is tried, how, and how often. Nothing here imports Optuna or torch."""

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
"""Sections whose keys may be searched; under other data or another evaluation values could not be compared."""

MOST_STEPS = 1_000_000
"""Of a range with ``step``; it may as well have none."""

MOST_COMBINATIONS = 100_000
"""Of sampler grid, which are all made before one is taken."""

MOST_PROBES = 1_000
"""Choices and ends of ranges of a space, each of which is validated beforehand."""


class RangeConfig(Config):
    """Numbers from ``low`` to ``high``, both included; whole where ``low``, ``high`` and ``step`` are."""

    low: int | float
    high: int | float
    step: int | float | None = Field(default=None, gt=0)
    """Distance of neighbours; null is 1 for whole numbers and no grid for others."""
    log: bool = False
    """Draw evenly over the logarithm, as suits a learning rate."""

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
        """How many numbers it holds."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return math.inf
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(step))) + 1

    def at(self, place: int) -> int | float:
        """The number at a place, from 0, without the rounding errors of a sum of floats."""
        number = Decimal(str(self.low)) + place * Decimal(str(self.step or 1))
        return int(number) if self.whole else float(number)

    def nearest(self, drawn: int | float) -> int | float:
        """What was drawn, put onto the steps exactly, so that equal values are equal runs."""
        if self.size == math.inf:
            return drawn
        return self.at(round((drawn - self.low) / (self.step or 1)))


class SearchConfig(Config):
    """Values that are tried, each as a run that is trained and validated, and the way they are chosen."""

    trials: PositiveInt
    """How many are tried; no default: it is the cost."""
    space: dict[str, RangeConfig | tuple[Any, ...]] = Field(min_length=1)
    """Dotted keys, each to a list of choices or to a range."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's default; independent draws; or every
    combination once, of lists and ranges with steps."""
    random_trials: PositiveInt = 10
    """Of tpe: trials drawn at random before it learns from them; 10 is Optuna's default."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Ends a trial early: where its best value is worse than the median of the others' at the same epoch; by successive
    halving in brackets (Li et al. 2018); or never."""
    unpruned_trials: NonNegativeInt = 5
    """Of median: trials that must have ended before one is pruned; 5 is Optuna's default."""
    seed: Seed = 0
    """Of the draws; a trial's depend on it, the trial's number and what has ended before."""

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
        """``trials``, or of a grid no more than there are."""
        if self.sampler != "grid":
            return self.trials
        return int(min(self.trials, math.prod(map(size, self.space.values()))))

    def choices(self, key: str) -> list[str | int | float]:
        """All values of a key, as Optuna holds them: numbers of a range, and JSON of a list's values."""
        values = self.space[key]
        if isinstance(values, RangeConfig):
            return [values.at(place) for place in range(int(values.size))]
        return [_encoded(value) for value in values]

    def cell(self, number: int) -> dict[str, str | int | float]:
        """Of a grid: the combination that a trial has, in an order that is a function of the seed."""
        cells = list(itertools.product(*map(self.choices, self.space)))
        random.Random(self.seed).shuffle(cells)  # noqa: S311 (no cryptography)
        return dict(zip(self.space, cells[number % len(cells)], strict=True))

    def value(self, key: str, drawn: Any) -> Any:
        """What Optuna drew, as the file says it."""
        values = self.space[key]
        if isinstance(values, RangeConfig):
            return values.nearest(drawn)
        return {_encoded(value): value for value in values}[drawn]

    def ends(self, key: str) -> tuple[Any, ...]:
        """What must be possible for all between to be: the ends of a range, each choice of a list."""
        values = self.space[key]
        return (values.low, values.high) if isinstance(values, RangeConfig) else values


@dataclass(frozen=True)
class Search:
    """An experiment file with ``search:``, validated."""

    config: SearchConfig
    content: dict[str, Any]
    """The file's, without ``search``."""

    @property
    def file(self) -> dict[str, Any]:
        """The content as a file would hold it, of which ``build_search`` makes the same search."""
        content: dict[str, Any] = plain(self.content | {"search": self.config.model_dump()})
        return content

    def trial(self, values: Mapping[str, Any]) -> TextRun:
        """The run that is trained and validated for some values, with the first of the file's seeds.

        Raises:
            RecpeftError: they do not go together.
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
        """Return the keys whose value is at an end of what could be drawn, so that a better one may lie beyond.

        At an end is the outermost of three numbers or more, or of a range a twentieth of its width.
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
        """What is trained and tested where these values have won: with each of the file's seeds, and its references."""
        return expand(self._with(values))

    @property
    def base(self) -> TextRun:
        """The run that the search starts from."""
        return self.trial({})

    def probes(self) -> list[TextRun]:
        """The file's run with one value changed at a time, to each choice and to the ends of each range.

        Raises:
            RecpeftError: names the key and the value that cannot be.
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
    """How many values a key has."""
    return values.size if isinstance(values, RangeConfig) else len(values)


def load_search(path: Path, overrides: Sequence[str] = ()) -> Search | None:
    """The search of an experiment file; None where it has none.

    Raises:
        RecpeftError: names the file, the key, the value and what is allowed.
    """
    content = read_file(path)
    try:
        return build_search(overridden(content, overrides))
    except RecpeftError as error:
        raise RecpeftError(f"{path}: {error}") from None


def build_search(content: dict[str, Any]) -> Search | None:
    """As ``load_search``, from the file's content."""
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
    search.final({})  # what is wrong in the file itself is not put down to a value that is searched
    search.probes()
    return search


def _check_space(space: Any) -> None:
    """Each key has a list or a range; pydantic would say of a mistake how it misses both."""
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
