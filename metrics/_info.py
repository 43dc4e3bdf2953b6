"""What is declared of a metric beside its function: its name, which values are better, and what it is computed from.

Infos stand in the metrics' files and are read without importing torch, so that experiment files are checked and tables
are labelled by them.

A metric's ``inputs`` give each argument of its function a source:

- a name of what is given to all metrics (``GIVEN``);
- :class:`Derived`: computed once from other sources;
- :class:`Summed`: added up over all lists;
- :class:`Reduced`: a value of each user, taken together over all users, or over those of each group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["+", "-", "0"]
"""Higher is better, lower is better, nearer to zero is better."""
Population = Literal["relevant", "listed", "all", "items", "groups", "pairs"]
"""The users with relevant items, with a list that is not empty, all users; or a value of the whole catalogue, of groups
(of users or items), of held-out pairs."""
Kind = Literal["per_user", "sums", "item_groups", "user_groups", "users", "scores", "generated", "ratings"]
"""What the function gets and returns, at one cut-off:

- ``per_user``: ``(lists, k, **inputs) -> (U,)``, NaN for users without a value; what is reported is their mean;
- ``sums``: sources over all users, ``-> ()``;
- ``item_groups``: sources and the ``item_groups`` of one attribute, ``-> ()``, or ``(G,)`` with ``per_group``;
- ``user_groups``: sources over the users of each group of one attribute, (G,) each, ``-> ()``, or ``(G,)`` with
  ``per_group``;
- ``users``: all users' values, ``-> ()``;
- ``scores``: what blocks of users' scores add up to (:class:`metrics.ScoreMetrics`), ``-> ()``: ``Summed`` functions
  get a :class:`metrics.scores.ScoreBlock` in place of lists, and its users' ``groups`` of one attribute;
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
"""What metrics of lists are given: see :class:`metrics.RankingMetrics`. ``groups`` are the membership of users, bool
(num_users, G), in the groups of all attributes, ``item_groups`` that of items, (I, G), in the groups of one."""
OF_PAIRS = ("score", "liked", "threshold", "ratings", "predicted_ratings", "logits")
"""What metrics of judged pairs are given: scores as they are, as predicted ratings or as probabilities; (R,) each."""
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
    """What is computed once: ``function(**inputs)``."""

    function: Callable[..., Any]
    inputs: Mapping[str, Source]


@dataclass(frozen=True, eq=False)
class Summed:
    """What is added up over batches of lists and over processes: ``function(lists, k, **inputs)``.

    The sum begins with what the function makes of no lists, which must be zeros of its shape and type.
    """

    function: Callable[..., Any]
    inputs: Mapping[str, Source] = field(default_factory=dict)
    at_k: bool = True
    """Whether the function takes ``k``; else it is the same at every cut-off."""
    by_group: bool = False
    """Whether its first dimension is that of ``groups``; a metric gets those of one attribute."""


@dataclass(frozen=True, eq=False)
class PerUser:
    """A value of each user that is no metric of its own: ``function(lists, k, **inputs) -> (U,)``, NaN for none."""

    function: Callable[..., Any]
    inputs: Mapping[str, Source] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reduced:
    """Users' values taken together: (), or of ``user_groups`` (G,), or the ``values`` themselves, (U,).

    A metric that is taken together is reported too, as is its mean in each group.
    """

    of: PerUser | MetricInfo
    by: Literal["mean", "sum", "count", "values"]
    """``count`` is of the users with a value."""


Source = str | Derived | Summed | Reduced


@dataclass(frozen=True, eq=False)
class MetricInfo:
    """One metric."""

    name: str
    function: Callable[..., Any]
    direction: Direction
    population: Population
    kind: Kind = "per_user"
    inputs: Mapping[str, Source] = field(default_factory=dict)
    """Argument of the function to what it gets."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the function, where they differ from its defaults."""
    also_needs: tuple[str, ...] = ()
    """What must be known beside the inputs: ``grades``, ``history`` where lists need not say what they could hold,
    ``impressions``, ``logits`` (as which scores are read), ``all_scores`` (those of the whole catalogue)."""
    per_group: bool = False
    """Whether it has a value for each group in place of one for all; then it cannot be monitored."""
    item_slices: bool = False
    """Of ``per_user``: whether it is reported of each group of items alone too."""

    two_groups: bool = False
    """Of ``scores``: whether it is of attributes with two groups alone."""

    @property
    def base(self) -> MetricInfo | None:
        """The per-user metric that this is a spread of."""
        of = (source.of for source in self.inputs.values() if isinstance(source, Reduced))
        return next((base for base in of if isinstance(base, MetricInfo)), None)

    @property
    def is_spread(self) -> bool:
        """Whether it is one number of how a per-user metric differs between groups of users."""
        return self.kind == "user_groups" and not self.per_group and self.base is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be given, in alphabetical order: inputs, ``also_needs``, and what its kind is of."""
        given = {source for source in sources(self) if isinstance(source, str)}
        return tuple(sorted({*given, *self.also_needs, *_BY_KIND.get(self.kind, ())} - _ALWAYS))


def sources(of: Derived | Summed | PerUser | MetricInfo) -> Iterator[Source]:
    """All sources of something, those of its sources included."""
    for source in of.inputs.values():
        yield source
        if isinstance(source, Reduced):
            yield from sources(source.of)
        elif not isinstance(source, str):
            yield from sources(source)


def same(*names: str) -> dict[str, Source]:
    """Arguments that get what they are called."""
    return {name: name for name in names}


@dataclass(frozen=True, eq=False)
class Spread:
    """What makes a further metric of every per-user metric: ``ndcg_gap`` of ``ndcg``."""

    ending: str
    """Of the metric's name, behind that of the per-user metric."""
    function: Callable[..., Any]
    direction: Direction | None
    """None is the per-user metric's own. The function then takes ``lower_is_better``."""
    inputs: Mapping[str, Literal["mean", "sum", "count", "values"]]
    """Argument of the function to how the users' values are taken together."""
    kind: Literal["user_groups", "users"] = "user_groups"
    per_group: bool = False
    percent: bool = False
    """Whether the number that ends ``ending`` is a percentage, ``alpha``, which may be another one."""

    def of(self, base: MetricInfo, ending: str) -> MetricInfo | None:
        """The metric ``<base>_<ending>``; None where ``ending`` is another one's."""
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
