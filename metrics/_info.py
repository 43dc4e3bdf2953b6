"""Declarations of metrics beside their functions: name, direction and inputs.

Declarations are in the metrics' files and are read without importing torch, to check experiment files and label
tables.

A metric's ``inputs`` give each argument of its function a source:

- the name of an input common to all metrics (``GIVEN``);
- :class:`Derived`: computed once from other sources;
- :class:`Summed`: summed over all lists;
- :class:`Reduced`: per-user values, aggregated over all users or over those of each group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["+", "-", "0"]
"""Direction of better values: higher, lower, or nearer to zero."""
Population = Literal["relevant", "listed", "all", "items", "groups", "pairs"]
"""Population of the mean: users with relevant items, users with a non-empty list, or all users; or one value for the
whole catalogue, for groups (of users or items), or for held-out pairs."""
Kind = Literal["per_user", "sums", "item_groups", "user_groups", "users", "scores", "generated", "ratings"]
"""Arguments and result of the function, at one cut-off:

- ``per_user``: ``(lists, k, **inputs) -> (U,)``, NaN for users without a value; their mean is reported;
- ``sums``: sources over all users, ``-> ()``;
- ``item_groups``: sources and the ``item_groups`` of one attribute, ``-> ()``, or ``(G,)`` with ``per_group``;
- ``user_groups``: sources over the users of each group of one attribute, (G,) each, ``-> ()``, or ``(G,)`` with
  ``per_group``;
- ``users``: all users' values, ``-> ()``;
- ``scores``: sums over blocks of users' scores (:class:`metrics.ScoreMetrics`), ``-> ()``: ``Summed`` functions
  get a :class:`metrics.scores.ScoreBlock` instead of lists, and its users' ``groups`` of one attribute;
- ``generated``: generated lists before they are matched;
- ``ratings``: judged pairs, ``-> ()``.
"""

GIVEN = (
    "categories",
    "main_category",
    "embeddings",
    "train_counts",
    "num_train_users",
    "num_items",
    "history",
    "groups",
    "item_groups",
)
"""Inputs of metrics of lists: see :class:`metrics.RankingMetrics`. ``groups`` is the membership of users, bool
(num_users, G), in the groups of all attributes, ``item_groups`` that of items, (I, G), in the groups of one."""
OF_PAIRS = ("score", "liked", "threshold", "ratings", "predicted_ratings", "logits")
"""Inputs of metrics of judged pairs: raw scores, predicted ratings or probabilities, and labels; (R,) each."""
_ALWAYS = {"num_items", "num_train_users", "score", "liked", "threshold"}
_BY_KIND = {
    "user_groups": ("groups",),
    "users": ("keep_users",),
    "scores": ("scores",),
    "generated": ("generated",),
    "ratings": ("ratings",),
}


@dataclass(frozen=True, eq=False)
class Derived:
    """A source computed once: ``function(**inputs)``."""

    function: Callable[..., Any]
    inputs: Mapping[str, Source]


@dataclass(frozen=True, eq=False)
class Summed:
    """A source summed over batches of lists and over processes: ``function(lists, k, **inputs)``.

    The initial value is the function's result for zero lists, which must be zeros of its shape and type.
    """

    function: Callable[..., Any]
    inputs: Mapping[str, Source] = field(default_factory=dict)
    at_k: bool = True
    """True if the function takes ``k``; else the sum is the same at every cut-off."""
    by_group: bool = False
    """True if its first dimension is that of ``groups``; a metric gets those of one attribute."""


@dataclass(frozen=True, eq=False)
class PerUser:
    """A per-user value that is not a metric itself: ``function(lists, k, **inputs) -> (U,)``, NaN for no value."""

    function: Callable[..., Any]
    inputs: Mapping[str, Source] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reduced:
    """Aggregated users' values: (), or (G,) for ``user_groups``, or the ``values`` themselves, (U,).

    An aggregated metric is itself reported too, as is its mean in each group.
    """

    of: PerUser | MetricInfo
    by: Literal["mean", "sum", "count", "values"]
    """Aggregation; ``count`` is the number of users with a value."""


Source = str | Derived | Summed | Reduced


@dataclass(frozen=True, eq=False)
class MetricInfo:
    """Declaration of one metric."""

    name: str
    function: Callable[..., Any]
    direction: Direction
    population: Population
    kind: Kind = "per_user"
    inputs: Mapping[str, Source] = field(default_factory=dict)
    """Source of each argument of the function."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the function that differ from its defaults."""
    also_needs: tuple[str, ...] = ()
    """Requirements beside the inputs: ``grades``, ``history`` (for lists without ``allowed``), ``impressions``,
    ``logits`` (scores that are logits), ``all_scores`` (scores of the whole catalogue)."""
    per_group: bool = False
    """True if it has a value for each group instead of one for all; then it cannot be monitored."""
    item_slices: bool = False
    """True if a ``per_user`` metric is also reported for each group of items alone."""

    two_groups: bool = False
    """True if a ``scores`` metric is defined only for attributes with two groups."""

    @property
    def base(self) -> MetricInfo | None:
        """Return the per-user metric of which this is a spread; None if it is not one."""
        of = (source.of for source in self.inputs.values() if isinstance(source, Reduced))
        return next((base for base in of if isinstance(base, MetricInfo)), None)

    @property
    def is_spread(self) -> bool:
        """Return whether it is one number for the spread of a per-user metric between groups of users."""
        return self.kind == "user_groups" and not self.per_group and self.base is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """Return all requirements in alphabetical order: inputs, ``also_needs``, and those of its kind."""
        given = {source for source in sources(self) if isinstance(source, str)}
        return tuple(sorted({*given, *self.also_needs, *_BY_KIND.get(self.kind, ())} - _ALWAYS))


def sources(of: Derived | Summed | PerUser | MetricInfo) -> Iterator[Source]:
    """Yield all sources of a metric or source, recursively."""
    for source in of.inputs.values():
        yield source
        if isinstance(source, Reduced):
            yield from sources(source.of)
        elif not isinstance(source, str):
            yield from sources(source)


def same(*names: str) -> dict[str, Source]:
    """Return a mapping of each name to itself, for arguments named like their sources."""
    return {name: name for name in names}


@dataclass(frozen=True, eq=False)
class Spread:
    """Declaration of a metric derived from every per-user metric, such as ``ndcg_gap`` from ``ndcg``."""

    ending: str
    """Suffix of the derived metric's name, after that of the per-user metric."""
    function: Callable[..., Any]
    direction: Direction | None
    """Direction; None is that of the per-user metric, and the function then takes ``lower_is_better``."""
    inputs: Mapping[str, Literal["mean", "sum", "count", "values"]]
    """Aggregation of the users' values for each argument of the function."""
    kind: Literal["user_groups", "users"] = "user_groups"
    per_group: bool = False
    percent: bool = False
    """True if the number at the end of ``ending`` is a percentage, ``alpha``, that the name may change."""

    def of(self, base: MetricInfo, ending: str) -> MetricInfo | None:
        """Return the metric ``<base>_<ending>``; None if ``ending`` belongs to another spread."""
        options: dict[str, Any] = {}
        if self.percent:
            number = re.fullmatch(self.ending.rstrip("0123456789") + r"([1-9]\d?|100)", ending)
            if number is None:
                return None
            options["alpha"] = int(number[1]) / 100
        elif ending != self.ending:
            return None
        if self.direction is None and base.direction == "-":
            options["lower_is_better"] = True
        return MetricInfo(
            f"{base.name}_{ending}",
            self.function,
            self.direction or base.direction,
            "groups" if self.kind == "user_groups" else base.population,
            self.kind,
            {argument: Reduced(base, by) for argument, by in self.inputs.items()},
            options,
            base.also_needs,
            self.per_group,
        )
