"""Compute all ranking metrics in one pass over the lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from metrics import catalog, fairness
from metrics._exact import ExactMetric, moved
from metrics._history import History
from metrics._info import Derived, MetricInfo, PerUser, Reduced, Source, Summed, sources
from metrics._lists import RankedLists
from metrics.catalog import DEFAULT_NAMES, METRICS
from recpeft import processes
from recpeft.errors import RecpeftError

LISTS_ARE_ENOUGH = ("per_user", "sums", "item_groups", "user_groups", "users")
"""Kinds of metrics that need only ranked lists and the arguments of RankingMetrics."""
_UNKNOWN = {"main_category": -1}
"""Value in an input for an item without information, if it is not 0."""


class RankingMetrics(ExactMetric):
    """Means over users, item coverage and group gaps at each ``k``, with one fused update per batch.

    States are sums (float64) and counts (int64) that add up over batches and processes, so results are correct for
    uneven shares and for processes without users. They keep their types if a parent module is cast to bfloat16.

    Every row given to ``update`` counts, so a loader must not repeat users to fill a process or a batch.
    With ``keep_users`` repeated users are detected: ``per_user()`` returns each once, and ``compute()`` raises,
    as its sums would count them twice.

    Args:
        ks: cut-offs, such as ``[5, 10, 20]``.
        categories: (I, C) bool.
        train_counts: (I,) int64, number of train users of each item.
        num_train_users: number of users with at least one train interaction.
        groups: attribute to (group index of each user (num_users,) int64, -1 for unknown; group names).
        slices: as ``groups``, for values by slice without a gap.
        item_groups: attribute to (membership (I, G) bool; group names); metrics with ``item_slices`` are also computed
            for each group alone, with the other items as not relevant.
        stamp: suffix of each metric's name for the sampling of candidates, such as ``/uniform100``; empty is the
            whole catalogue.
        keep_users: keep each user's values for ``per_user()``.
        names: names of the metrics, from :data:`metrics.catalog.METRICS`. For a per-user metric ``<name>_gap`` (or
            ``_ratio``, ``_std``, ``_mad``, ``_worst``, ``_users``) is its spread between the groups of each
            attribute, ``<name>_cvar50`` and ``<name>_user_gini`` its spread among all users (these need
            ``keep_users``); the metric itself is then reported too. None means ``DEFAULT_NAMES``.
        embeddings: (I, D) item embeddings, from one fixed source for all models compared.
        history: each user's train items; lists without ``allowed`` are taken to allow all other items.
        main_category: (I,) int64, one label per item, -1 for none, for the metrics ``..._single``.
        impressions: the lists hold ``shown``, for the click-through rate.
    Raises:
        RecpeftError: a name is unknown or needs an input that is missing, or a cut-off is below 1.
        ValueError: sizes do not agree, or embeddings are NaN or infinite.
    """

    sums: Tensor
    counts: Tensor
    group_sums: Tensor
    group_counts: Tensor
    users: Tensor
    users_with_relevant: Tensor
    users_tied: Tensor
    user_ids: list[Tensor]
    user_values: list[Tensor]
    categories: Tensor
    train_counts: Tensor
    membership: Tensor
    item_group_sums: Tensor
    item_group_counts: Tensor
    item_membership: Tensor

    def __init__(
        self,
        ks: Sequence[int],
        categories: Tensor,
        train_counts: Tensor,
        num_train_users: int,
        groups: Mapping[str, tuple[Tensor, list[str]]],
        keep_users: bool = False,
        names: Sequence[str] | None = None,
        slices: Mapping[str, tuple[Tensor, list[str]]] | None = None,
        item_groups: Mapping[str, tuple[Tensor, list[str]]] | None = None,
        stamp: str = "",
        embeddings: Tensor | None = None,
        history: History | None = None,
        main_category: Tensor | None = None,
        impressions: bool = False,
    ) -> None:
        super().__init__()
        self.ks = sorted(set(ks))
        if not self.ks or self.ks[0] < 1:
            raise RecpeftError(f"k is {list(ks)}; give at least one cut-off, each at least 1.")
        if len(categories) != len(train_counts):
            raise ValueError(f"categories are of {len(categories)} items but train_counts of {len(train_counts)}.")
        if num_train_users < 1:
            raise ValueError(f"num_train_users is {num_train_users}; it must be at least 1.")
        self.num_train_users = num_train_users
        self.keep_users = keep_users
        self.register_buffer("categories", categories, persistent=False)
        self.register_buffer("train_counts", train_counts, persistent=False)
        self.stamp = stamp
        self._impressions = impressions
        self._given = {"embeddings": embeddings, "history": history, "main_category": main_category}
        self._check_sizes()
        told = {"categories": categories, "train_counts": train_counts, **self._given}
        self._silent = {
            name for name, given in told.items() if isinstance(given, Tensor) and (given == _UNKNOWN.get(name, 0)).all()
        }
        self.groups = {attribute: list(labels) for attribute, (_, labels) in groups.items()}
        every = {**groups, **(slices or {})}
        self.slices = {attribute: list(labels) for attribute, (_, labels) in every.items()}
        self.register_buffer("membership", _membership(every), persistent=False)
        self.item_groups = {attribute: list(labels) for attribute, (_, labels) in (item_groups or {}).items()}
        parts = [membership for membership, _ in (item_groups or {}).values()]
        nothing = torch.zeros(len(train_counts), 0, dtype=torch.bool)
        self.register_buffer("item_membership", torch.cat([nothing, *parts], dim=1), persistent=False)

        self._split_names(DEFAULT_NAMES if names is None else names)
        found = [source for info in (*self._infos.values(), *self._sliced) for source in sources(info)]
        self._fixed: dict[Derived, Any] = {}
        for source in found:
            if isinstance(source, Derived):
                self._derive(source)
        summed = dict.fromkeys(source for source in found if isinstance(source, Summed))
        self._states = {source: f"sum_{number}_of_{source.function.__name__}" for number, source in enumerate(summed)}

        per_user = (len(self.ks), len(self._columns))
        per_group = (len(self.ks), len(self._group_columns), self.membership.shape[1])
        per_item_group = (len(self.ks), len(self._sliced), self.item_membership.shape[1])
        for name, state in [
            ("sums", torch.zeros(per_user, dtype=torch.float64)),
            ("counts", torch.zeros(per_user, dtype=torch.int64)),
            ("group_sums", torch.zeros(per_group, dtype=torch.float64)),
            ("group_counts", torch.zeros(per_group, dtype=torch.int64)),
            ("item_group_sums", torch.zeros(per_item_group, dtype=torch.float64)),
            ("item_group_counts", torch.zeros(per_item_group, dtype=torch.int64)),
            *((name, torch.zeros((), dtype=torch.int64)) for name in ("users", "users_with_relevant", "users_tied")),
            *((state, self._sum(summed, self._no_lists())) for summed, state in self._states.items()),
        ]:
            self.add_state(name, state, dist_reduce_fx="sum")
        if keep_users:
            self.add_state("user_ids", [], dist_reduce_fx="cat")
            self.add_state("user_values", [], dist_reduce_fx="cat")

    def update(self, lists: RankedLists) -> None:
        """Add one batch; each user in it must be new.

        Raises:
            ValueError: the lists are shorter than the largest cut-off.
        """
        functions = [self._per_user(column) for column in self._columns]
        cut = lists.top(self.ks[-1])  # cut once for all metrics
        history = self._given["history"]
        if cut.allowed is None and isinstance(history, History):
            cut = replace(cut, allowed=history.others(cut.user))
        values = self.sums.new_empty((len(lists.user), len(self.ks), len(self._columns)))
        for position, k in enumerate(self.ks):
            for column, function in enumerate(functions):
                values[:, position, column] = function(cut, k)
        defined = ~values.isnan()
        filled = values.nan_to_num(0)
        # Never in place: states that reset() created under inference_mode cannot be updated in place outside of it.
        self.sums = self.sums + filled.sum(0)
        self.counts = self.counts + defined.sum(0)
        for summed, state in self._states.items():
            setattr(self, state, getattr(self, state) + self._sum(summed, cut))
        if self.slices and self._group_columns:
            base = [self._columns[column] for column in self._group_columns]
            member = self.membership[lists.user].double()
            in_group = torch.einsum("ukn,ug->kng", defined[:, :, base].double(), member)
            self.group_sums = self.group_sums + torch.einsum("ukn,ug->kng", filled[:, :, base], member)
            self.group_counts = self.group_counts + in_group.long()
        if self.item_groups:
            of_groups = self._by_item_group(lists)
            self.item_group_sums = self.item_group_sums + of_groups.nan_to_num(0).sum(0)
            self.item_group_counts = self.item_group_counts + (~of_groups.isnan()).sum(0)
        self.users = self.users + len(lists.user)
        self.users_with_relevant = self.users_with_relevant + (lists.num_relevant > 0).sum()
        self.users_tied = self.users_tied + lists.tied.sum()
        if self.keep_users:
            self.user_ids.append(lists.user)
            self.user_values.append(values[:, :, : len(self.per_user_names)].flatten(1))

    def compute(self) -> dict[str, float]:
        """Return all values over all processes, by keys such as ``ndcg@10``, ``ndcg_gap_gender@10``,
        ``ndcg_gender=F@10``, ``recall_item_popularity=tail@10``, ``tie_rate`` (share of users), ``users``,
        ``users_with_relevant``.

        A value is NaN if no user has a value (for a gap: fewer than two groups).

        Raises:
            RuntimeError: ``keep_users`` is on and a user was counted twice.
        """
        if self.keep_users and len(self.user_ids):
            ids = dim_zero_cat(self.user_ids)
            if len(ids.unique()) < len(ids):
                raise RuntimeError(
                    f"{len(ids) - len(ids.unique())} of {len(ids)} evaluated users are repetitions; "
                    "use a sampler that does not pad, and reset() between evaluations."
                )
        result: dict[str, float] = {}
        means = self.sums / self.counts
        for column, name in enumerate(self.per_user_names):
            for position, k in enumerate(self.ks):
                result[self._key(name, k)] = means[position, column].item()
        for info in self._infos.values():
            if info.kind in ("sums", "users"):
                result |= self._at_each_k(info.name, [self._value(info, position) for position in range(len(self.ks))])
        for kind, groups in (("user_groups", self.slices), ("item_groups", self.item_groups)):
            for attribute, labels, part in _parts(groups):
                for info in self._infos.values():
                    if info.kind == kind:
                        result |= self._of_groups(info, attribute, labels, part)
        for attribute, labels, part in _parts(self.slices):
            means = fairness.group_means(self.group_sums[..., part], self.group_counts[..., part])
            result |= self._by_label(attribute, labels, self.gap_names, means[:, : len(self.gap_names)])
        for attribute, labels, part in _parts(self.item_groups):
            means = fairness.group_means(self.item_group_sums[..., part], self.item_group_counts[..., part])
            result |= self._by_label(attribute, labels, [info.name for info in self._sliced], means)
        result["tie_rate"] = (self.users_tied.double() / self.users).item()
        result["users"] = self.users.item()
        result["users_with_relevant"] = self.users_with_relevant.item()
        return result

    def _of_groups(self, info: MetricInfo, attribute: str, labels: list[str], part: slice) -> dict[str, float]:
        """Return the values for one attribute: one per group, or one over all groups, which slices do not have."""
        if not info.per_group and info.kind == "user_groups" and attribute not in self.groups:
            return {}
        values = [self._value(info, position, part) for position in range(len(self.ks))]
        if info.per_group:
            return self._by_label(attribute, labels, [info.name], torch.stack(values)[:, None])
        return self._at_each_k(f"{info.name}_{attribute}", values)

    def gap_intervals(self, samples: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return a bootstrap interval over users for each spread between groups that ``compute()`` reports, by its key.

        Raises:
            RuntimeError: the metric was constructed without ``keep_users``.
        """
        columns = self.per_user()
        result: dict[str, tuple[float, float]] = {}
        for attribute, _, part in _parts(self.slices):
            member = self.membership[columns["user"], part]
            for info in self._infos.values() if attribute in self.groups else ():
                if info.is_spread and info.base is not None:
                    spread = partial(info.function, **info.options)
                    for k in self.ks:
                        values = columns[self._key(info.base.name, k)]
                        low, high = fairness.bootstrap_interval(values, member, spread, samples, level, seed)
                        result[self._key(f"{info.name}_{attribute}", k)] = (low.item(), high.item())
        return result

    def group_intervals(
        self, name: str = "ndcg", samples: int = 1000, level: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return a bootstrap interval over users for a per-user metric's mean in each group of users, by its key.

        Raises:
            RuntimeError: the metric was constructed without ``keep_users``.
        """
        columns = self.per_user()
        result: dict[str, tuple[float, float]] = {}
        for attribute, labels, part in _parts(self.slices):
            member = self.membership[columns["user"], part]
            for k in self.ks:
                values = columns[self._key(name, k)]
                low, high = fairness.bootstrap_interval(values, member, fairness.group_means, samples, level, seed)
                for place, label in enumerate(labels):
                    key = self._key(f"{name}_{attribute}={label}", k)
                    result[key] = (low[place].item(), high[place].item())
        return result

    def group_sizes(self) -> dict[str, dict[str, int]]:
        """Return the number of users in each group mean of each spread in ``compute()``, by the spread's key."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, distributed_available=processes.several):
            everyones = self.group_counts
        result: dict[str, dict[str, int]] = {}
        for attribute, labels, part in _parts(self.slices):
            counts = everyones[..., part]
            for info in self._infos.values() if attribute in self.groups else ():
                if info.is_spread and info.base is not None:
                    column = self._group_columns[info.base]
                    for position, k in enumerate(self.ks):
                        sizes = dict(zip(labels, counts[position, column].tolist(), strict=True))
                        result[self._key(f"{info.name}_{attribute}", k)] = sizes
        return result

    def _by_label(self, attribute: str, labels: list[str], names: Sequence[str], values: Tensor) -> dict[str, float]:
        """Return the entries ``<name>_<attribute>=<label>@<k>`` of values (K, N, G)."""
        return {
            self._key(f"{name}_{attribute}={label}", k): values[position, column, place].item()
            for column, name in enumerate(names)
            for position, k in enumerate(self.ks)
            for place, label in enumerate(labels)
        }

    def _at_each_k(self, name: str, values: Sequence[Tensor]) -> dict[str, float]:
        return {self._key(name, k): value.item() for k, value in zip(self.ks, values, strict=True)}

    def _key(self, name: str, k: int) -> str:
        return f"{name}@{k}{self.stamp}"

    def _by_item_group(self, lists: RankedLists) -> Tensor:
        """Return (U, K, N, G) float64, NaN if no item of a group is relevant to a user."""
        functions = [self._per_user(info) for info in self._sliced]
        groups = []
        for membership in self.item_membership.T:
            only = lists.only(membership)
            values = [torch.stack([function(only, k) for function in functions], dim=-1) for k in self.ks]
            groups.append(torch.stack(values, dim=1))
        return torch.stack(groups, dim=-1).double()

    def per_user(self) -> dict[str, Tensor]:
        """Return columns over all processes: ``user`` (ids ascending, each once) and each per-user metric, float64.

        For a user given more than once, the first row is kept.

        Raises:
            RuntimeError: the metric was constructed without ``keep_users``.
        """
        if not self.keep_users:
            raise RuntimeError("per-user values were not kept; construct RankingMetrics(keep_users=True).")
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, distributed_available=processes.several):
            self._type_empty_lists()
            ids, values = dim_zero_cat(self.user_ids), dim_zero_cat(self.user_values)
        ids, order = ids.sort(stable=True)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        columns = values[order[first]].T
        keys = [self._key(name, k) for k in self.ks for name in self.per_user_names]
        return {"user": ids[first], **dict(zip(keys, columns, strict=True))}

    def _per_user(self, column: PerUser | MetricInfo) -> Callable[[RankedLists, int], Tensor]:
        """Return the metric as a function of lists and ``k`` only."""
        if self._says_nothing(column):
            return _undefined
        inputs = {argument: self._source(source) for argument, source in column.inputs.items()}
        return partial(column.function, **inputs, **column.options)

    def _sum(self, summed: Summed, lists: RankedLists) -> Tensor:
        """Return the contribution of one batch to a sum."""
        inputs = {argument: self._source(source) for argument, source in summed.inputs.items()}
        if not summed.at_k:
            return summed.function(lists, **inputs)
        return torch.stack([summed.function(lists, k, **inputs) for k in self.ks])

    def _value(self, info: MetricInfo, position: int, part: slice | None = None) -> Tensor:
        """Return a metric over all users at one cut-off, or over one attribute's groups."""
        if any(self._says_nothing(source) for source in info.inputs.values() if not isinstance(source, Reduced)):
            return torch.full((part.stop - part.start,) if part and info.per_group else (), torch.nan)
        inputs = {argument: self._source(source, position, part) for argument, source in info.inputs.items()}
        value: Tensor = info.function(**inputs, **info.options)
        return value

    def _source(self, source: Source, position: int = 0, part: slice | None = None) -> Any:
        """Return the value of a source, at one cut-off if it is summed by ``k``, for one attribute's groups."""
        if isinstance(source, Derived):
            return self._fixed[source]
        if isinstance(source, Summed):
            state = getattr(self, self._states[source])
            state = state[position] if source.at_k else state
            return state[part] if source.by_group else state
        if isinstance(source, Reduced):
            return self._reduced(source, position, part)
        if source == "item_groups":
            return self.item_membership if part is None else self.item_membership[:, part]
        if source in self._given:
            return self._given[source]
        return {
            "categories": self.categories,
            "train_counts": self.train_counts,
            "num_train_users": self.num_train_users,
            "num_items": len(self.train_counts),
            "groups": self.membership,
        }[source]

    def _reduced(self, source: Reduced, position: int, part: slice | None) -> Tensor:
        if source.by == "values":
            none = self.sums.new_empty(0, len(self.ks) * len(self.per_user_names))
            table = dim_zero_cat(self.user_values) if len(self.user_values) else none
            return table.reshape(-1, len(self.ks), len(self.per_user_names))[:, position, self._columns[source.of]]
        if part is None:
            column = self._columns[source.of]
            total, count = self.sums[position, column], self.counts[position, column]
        else:
            column = self._group_columns[source.of]
            total, count = self.group_sums[position, column, part], self.group_counts[position, column, part]
        return {"sum": total, "count": count, "mean": total / count}[source.by]

    def _derive(self, source: Derived) -> None:
        """Compute a derived source and the ones it needs, once."""
        if source not in self._fixed:
            for other in source.inputs.values():
                if isinstance(other, Derived):
                    self._derive(other)
            inputs = {argument: self._source(other) for argument, other in source.inputs.items()}
            self._fixed[source] = source.function(**inputs)

    def _says_nothing(self, of: str | Derived | Summed | PerUser | MetricInfo) -> bool:
        """Return whether one of its inputs is given but empty, as when no item has a category.

        Its value is then NaN, since 0 would suggest a measurement.
        """
        names = [of] if isinstance(of, str) else [source for source in sources(of) if isinstance(source, str)]
        return any(name in self._silent for name in names)

    def _no_lists(self) -> RankedLists:
        """Return lists of zero users."""
        device = self.train_counts.device
        nobody = torch.empty(0, dtype=torch.int64, device=device)
        item = torch.empty(0, self.ks[-1], dtype=torch.int64, device=device)
        allowed = torch.empty(0, len(self.train_counts), dtype=torch.bool, device=device)
        pairs = (nobody, nobody)
        return RankedLists(nobody, item, item.bool(), nobody, nobody.bool(), pairs, nobody.double(), pairs, allowed)

    def _check_sizes(self) -> None:
        num_items = len(self.train_counts)
        for name, given in self._given.items():
            size = given.num_items if isinstance(given, History) else None if given is None else len(given)
            if size is not None and size != num_items:
                raise ValueError(f"{name} is of {size} items but train_counts of {num_items}.")
        embeddings = self._given["embeddings"]
        if isinstance(embeddings, Tensor) and not embeddings.isfinite().all():
            raise ValueError("embeddings are NaN or infinite for some items; their source has failed.")

    def _split_names(self, names: Sequence[str]) -> None:
        have = {"categories", "train_counts", "groups", "grades"}  # lists know themselves whether they are graded
        have |= {name for name, given in self._given.items() if given is not None}
        have |= {name for name, on in [("item_groups", self.item_groups), ("keep_users", self.keep_users)] if on}
        have |= {"impressions"} if self._impressions else set()
        self._infos: dict[str, MetricInfo] = {}
        for name in names:
            info = catalog.find(name)
            if info is None or info.kind not in LISTS_ARE_ENOUGH:
                known = [known for known, found in METRICS.items() if found.kind in LISTS_ARE_ENOUGH]
                *endings, last = (spread.ending for spread in catalog.SPREADS)
                raise RecpeftError(
                    f"unknown metric {name!r}; choose from {', '.join(known)}, or <name>_gap of a per-user metric, "
                    f"such as ndcg_gap, and so with {', '.join(endings)} and {last}."
                )
            missing = [need for need in info.needs if need not in have]
            if missing:
                raise RecpeftError(f"the metric {name} needs {' and '.join(missing)}; give them, or leave it out.")
            if info.base is not None:
                self._infos.setdefault(info.base.name, info.base)
            self._infos[name] = info
        infos = self._infos.values()
        reduced = [(info.kind, source.of) for info in infos for source in sources(info) if isinstance(source, Reduced)]
        of_groups = [of for kind, of in reduced if kind == "user_groups"]
        # Metrics come first, as their values are reported.
        self._columns = _numbered([*(info for info in infos if info.kind == "per_user"), *(of for _, of in reduced)])
        self._group_columns = _numbered([*(of for of in of_groups if isinstance(of, MetricInfo)), *of_groups])
        self.per_user_names = [column.name for column in self._columns if isinstance(column, MetricInfo)]
        self.gap_names = [column.name for column in self._group_columns if isinstance(column, MetricInfo)]
        default = {*DEFAULT_NAMES, *self._infos}
        self._sliced = [info for info in METRICS.values() if info.item_slices and info.name in default]

    def _type_empty_lists(self) -> None:
        if self.keep_users and len(self.user_ids) == 0:
            self.user_ids = [torch.empty(0, dtype=torch.int64, device=self.device)]
            width = len(self.ks) * len(self.per_user_names)
            self.user_values = [torch.empty(0, width, dtype=torch.float64, device=self.device)]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics would use a float32 (0,) for a process without users, and gathering it with the
        # other processes' int64 (U,) and float64 (U, n) fails or corrupts values.
        self._type_empty_lists()
        super()._sync_dist(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        self._fixed = {name: moved(value, fn) for name, value in self._fixed.items()}
        self._given = {name: moved(value, fn) for name, value in self._given.items()}
        return super()._apply(fn, exclude_state)


def _numbered(columns: Iterable[PerUser | MetricInfo]) -> dict[PerUser | MetricInfo, int]:
    return {column: number for number, column in enumerate(dict.fromkeys(columns))}


def _undefined(lists: RankedLists, k: int) -> Tensor:
    return torch.full((len(lists.user),), torch.nan, dtype=torch.float64, device=lists.user.device)


def _parts(groups: Mapping[str, list[str]]) -> Iterator[tuple[str, list[str], slice]]:
    """Yield each attribute, its labels, and their columns among the groups of all attributes."""
    start = 0
    for attribute, labels in groups.items():
        yield attribute, labels, slice(start, start + len(labels))
        start += len(labels)


def _membership(groups: Mapping[str, tuple[Tensor, list[str]]]) -> Tensor:
    """Return (num_users, G) bool: membership in the groups of all attributes, concatenated."""
    parts = []
    for attribute, (index, labels) in groups.items():
        if ((index < -1) | (index >= len(labels))).any():
            raise ValueError(f"group indices of {attribute} must be -1 or below {len(labels)}; some are not.")
        parts.append(index[:, None] == torch.arange(len(labels), device=index.device))
    return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0, dtype=torch.bool)
