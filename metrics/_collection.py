"""All ranking metrics in one pass over the lists."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from metrics import accuracy, association, calibration, catalog, fairness, novelty, per_item, serendipity
from metrics._exact import ExactMetric, moved
from metrics._history import History
from metrics._lists import RankedLists
from metrics.catalog import DEFAULT_NAMES, DERIVED, METRICS, MetricInfo
from recpeft import processes
from recpeft.errors import RecpeftError

ITEM_SLICED: dict[str, Callable[[RankedLists, int], Tensor]] = {"ndcg": accuracy.ndcg, "recall": accuracy.recall}
"""What is measured of each group of items alone."""
LISTS_ARE_ENOUGH = ("per_user", "per_item", "item_groups", "user_groups", "users", "impressions")
"""The kinds of metrics that are functions of ranked lists and of what RankingMetrics is given."""
PAIRED = {
    "pop_lift": ("recommended_popularity", "profile_popularity"),
    "delta_gap": ("recommended_popularity", "profile_popularity"),
    "eo_gap": ("hits", "num_relevant"),
}
"""Metrics that are functions of two sums over the same users."""
VECTORS: dict[str, tuple[torch.dtype, Callable[[RankedLists, int, int], Tensor]]] = {
    "counts": (torch.int64, per_item.counts),
    "hits": (torch.int64, per_item.hits),
    "exposure": (torch.float64, per_item.exposure),
    "cosine_weights": (torch.float64, per_item.cosine_weights),
}
"""Vectors over the catalogue at each cut-off."""


class RankingMetrics(ExactMetric):
    """Means over users, item coverage and group gaps at each ``k``, one fused update a batch.

    States are sums (float64) and counts (int64) that add up over batches and ranks, so uneven ranks and a
    rank without users are right. They keep their types when a parent module is cast to bfloat16.

    Every row handed to ``update`` counts, so a loader must not repeat users to fill up a rank or a batch.
    With ``keep_users`` a repeated user is noticed: ``per_user()`` holds it once, and ``compute()`` raises,
    as its sums would hold it twice.

    Args:
        ks: cut-offs, such as ``[5, 10, 20]``.
        categories: (I, C) bool.
        train_counts: (I,) int64, number of train users of each item.
        num_train_users: users with at least one train interaction.
        groups: attribute to (group index of each user (num_users,) int64, -1 for unknown; group names).
        slices: as ``groups``, for values by slice without a gap.
        item_groups: attribute to (membership (I, G) bool; group names); ndcg and recall of each group alone, the
            other items counting as not relevant.
        stamp: how the candidates were drawn, put behind each metric's name: ``/uniform100``; empty is the
            whole catalogue.
        keep_users: keep each user's values for ``per_user()``.
        names: of the metrics, from :data:`metrics.catalog.METRICS`. Of a per-user metric ``<name>_gap`` (or
            ``_ratio``, ``_std``, ``_mad``, ``_worst``, ``_users``) is its spread between the groups of each
            attribute, ``<name>_cvar50`` and ``<name>_user_gini`` its spread among all users (these with
            ``keep_users``); the metric itself is then reported too. None means ``DEFAULT_NAMES``.
        embeddings: (I, D) of the items, of one fixed source for all models compared.
        history: what each user had in train; of lists that do not say what could be listed, all but that could.
        main_category: (I,) int64, one label of each item, -1 for none, for the metrics ``..._single``.
        impressions: whether the lists say what was ``shown``, for the click-through rate.
    Raises:
        RecpeftError: a name is unknown or needs what is not given, a cut-off is below 1.
        ValueError: sizes do not agree, embeddings are NaN.
    """

    sums: Tensor
    counts: Tensor
    exposure: Tensor
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
    item_hits: Tensor
    attention: Tensor
    cosine_weights: Tensor
    num_lists: Tensor
    item_relevant: Tensor
    item_candidates: Tensor
    joint: Tensor

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
        self.groups = {attribute: list(labels) for attribute, (_, labels) in groups.items()}
        every = {**groups, **(slices or {})}
        self.slices = {attribute: list(labels) for attribute, (_, labels) in every.items()}
        self.register_buffer("membership", _membership(every), persistent=False)
        self.item_groups = {attribute: list(labels) for attribute, (_, labels) in (item_groups or {}).items()}
        parts = [membership for membership, _ in (item_groups or {}).values()]
        nothing = torch.zeros(len(train_counts), 0, dtype=torch.bool)
        self.register_buffer("item_membership", torch.cat([nothing, *parts], dim=1), persistent=False)

        self._split_names(DEFAULT_NAMES if names is None else names)
        self._fixed = {
            name: self._derive(name)
            for info in self._infos.values()
            for name in [*info.inputs.values(), *(PAIRED.get(info.name, ()))]
            if name in DERIVED and name not in ("num_train_users", "membership", "candidates")
        }

        per_user = (len(self.ks), len(self._columns))
        per_group = (len(self.ks), len(self._group_columns), self.membership.shape[1])
        per_item_group = (len(self.ks), len(ITEM_SLICED), self.item_membership.shape[1])
        for name, shape, dtype in [
            ("sums", per_user, torch.float64),
            ("counts", per_user, torch.int64),
            ("exposure", (len(self.ks), len(train_counts)), torch.int64),
            ("group_sums", per_group, torch.float64),
            ("group_counts", per_group, torch.int64),
            ("item_group_sums", per_item_group, torch.float64),
            ("item_group_counts", per_item_group, torch.int64),
            ("users", (), torch.int64),
            ("users_with_relevant", (), torch.int64),
            ("users_tied", (), torch.int64),
            *self._wanted_states(),
        ]:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        if keep_users:
            self.add_state("user_ids", [], dist_reduce_fx="cat")
            self.add_state("user_values", [], dist_reduce_fx="cat")

    def update(self, lists: RankedLists) -> None:
        """Add one batch; each user in it must be new.

        Raises:
            ValueError: the lists are shorter than the largest cut-off.
        """
        functions = {name: self._column(name) for name in self._columns}
        cut = lists.top(self.ks[-1])  # once for all
        history = self._given["history"]
        if cut.allowed is None and isinstance(history, History):
            cut = replace(cut, allowed=history.others(cut.user))
        values = self.sums.new_empty((len(lists.user), len(self.ks), len(self._columns)))
        for position, k in enumerate(self.ks):
            for column, name in enumerate(self._columns):
                values[:, position, column] = functions[name](cut, k)
        defined = ~values.isnan()
        filled = values.nan_to_num(0)
        # Never in place: states that reset() made under inference_mode could not be updated outside of it.
        self.sums = self.sums + filled.sum(0)
        self.counts = self.counts + defined.sum(0)
        self._add_vectors(cut)
        if self.slices and self._group_columns:
            base = [self._columns.index(name) for name in self._group_columns]
            member = self.membership[lists.user].double()
            in_group = torch.einsum("ukn,ug->kng", defined[:, :, base].double(), member)
            self.group_sums = self.group_sums + torch.einsum("ukn,ug->kng", filled[:, :, base], member)
            self.group_counts = self.group_counts + in_group.long()
        if self.item_groups:
            of_groups = self._of_item_groups(lists)
            self.item_group_sums = self.item_group_sums + of_groups.nan_to_num(0).sum(0)
            self.item_group_counts = self.item_group_counts + (~of_groups.isnan()).sum(0)
        self.users = self.users + len(lists.user)
        self.users_with_relevant = self.users_with_relevant + (lists.num_relevant > 0).sum()
        self.users_tied = self.users_tied + lists.tied.sum()
        if self.keep_users:
            self.user_ids.append(lists.user)
            self.user_values.append(values[:, :, : len(self.per_user_names)].flatten(1))

    def compute(self) -> dict[str, float]:
        """All values over all ranks, by keys such as ``ndcg@10``, ``ndcg_gap_gender@10``,
        ``ndcg_gender=F@10``, ``recall_item_popularity=tail@10``, ``tie_rate`` (share of users), ``users``,
        ``users_with_relevant``.

        NaN where no user has a value (for a gap: fewer than two groups).

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
        result |= self._among_users()
        for name in self.per_item_names:
            for position, k in enumerate(self.ks):
                result[self._key(name, k)] = self._of_vectors(METRICS[name], position).item()
        if "pop_lift" in self._infos:
            lifts = novelty.popularity_lift(*(means[:, self._columns.index(name)] for name in PAIRED["pop_lift"]))
            result |= {self._key("pop_lift", k): lifts[position].item() for position, k in enumerate(self.ks)}
        for attribute, labels, part in _parts(self.slices):
            result |= self._between_groups(attribute, labels, part)
        for attribute, labels, part in _parts(self.item_groups):
            values = fairness.group_means(self.item_group_sums[..., part], self.item_group_counts[..., part])
            result |= self._by_label(attribute, labels, list(ITEM_SLICED), values)
            result |= self._of_exposure(attribute, labels, part)
        result["tie_rate"] = (self.users_tied.double() / self.users).item()
        result["users"] = self.users.item()
        result["users_with_relevant"] = self.users_with_relevant.item()
        return result

    def _among_users(self) -> dict[str, float]:
        """CVaR and Gini over all users."""
        wanted = [info for info in self._infos.values() if info.kind == "users"]
        if not wanted:
            return {}
        none = self.sums.new_empty(0, len(self.ks) * len(self.per_user_names))
        table = dim_zero_cat(self.user_values) if len(self.user_values) else none
        values = table.reshape(-1, len(self.ks), len(self.per_user_names))
        return {
            self._key(info.name, k): _of_base(info)(values[:, position, self.per_user_names.index(info.base)]).item()
            for info in wanted
            for position, k in enumerate(self.ks)
        }

    def _between_groups(self, attribute: str, labels: list[str], part: slice) -> dict[str, float]:
        result: dict[str, float] = {}
        sums, counts = self.group_sums[..., part], self.group_counts[..., part]
        column = {name: place for place, name in enumerate(self._group_columns)}
        if attribute in self.groups:
            for info in self._infos.values():
                if info.is_spread:
                    values = _of_base(info)(sums[:, column[info.base]], counts[:, column[info.base]])
                elif info.name == "eo_gap":
                    values = fairness.user_gap(*(sums[:, column[name]] for name in PAIRED["eo_gap"]))
                elif info.name == "category_information" and self._lacks_input(info):
                    values = torch.full((len(self.ks),), torch.nan)
                elif info.name == "category_information":
                    values = torch.stack([association.mutual_information(joint) for joint in self.joint[:, part]])
                else:
                    continue
                for position, k in enumerate(self.ks):
                    result[self._key(f"{info.name}_{attribute}", k)] = values[position].item()
        means = fairness.group_means(sums, counts)
        result |= self._by_label(attribute, labels, self.gap_names, means[:, : len(self.gap_names)])
        for info in self._infos.values():
            if info.function == "fairness:by_group":
                result |= self._by_label(attribute, labels, [info.name], counts[:, [column[info.base]]])
        if "delta_gap" in self._infos:
            lifts = novelty.popularity_lift(*(means[:, [column[name]]] for name in PAIRED["delta_gap"]))
            result |= self._by_label(attribute, labels, ["delta_gap"], lifts)
        return result

    def _of_exposure(self, attribute: str, labels: list[str], part: slice) -> dict[str, float]:
        """Fairness to the groups of items: one value, or for shares one of each group."""
        result: dict[str, float] = {}
        for info in self._infos.values():
            if info.kind != "item_groups":
                continue
            values = torch.stack([self._of_vectors(info, position, part) for position in range(len(self.ks))])
            if values.dim() == 2:
                result |= self._by_label(attribute, labels, [info.name], values[:, None])
                continue
            for position, k in enumerate(self.ks):
                result[self._key(f"{info.name}_{attribute}", k)] = values[position].item()
        return result

    def gap_intervals(self, samples: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Bootstrap interval over users of each spread between groups that ``compute()`` reports, by its key.

        Raises:
            RuntimeError: constructed without ``keep_users``.
        """
        columns = self.per_user()
        result: dict[str, tuple[float, float]] = {}
        for attribute, _, part in _parts(self.slices):
            member = self.membership[columns["user"], part]
            for info in self._infos.values() if attribute in self.groups else ():
                if info.is_spread:
                    for k in self.ks:
                        values = columns[self._key(info.base, k)]
                        low, high = fairness.bootstrap_interval(values, member, _of_base(info), samples, level, seed)
                        result[self._key(f"{info.name}_{attribute}", k)] = (low.item(), high.item())
        return result

    def group_intervals(
        self, name: str = "ndcg", samples: int = 1000, level: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap interval over users of a per-user metric's mean in each group of users, by its key.

        Raises:
            RuntimeError: constructed without ``keep_users``.
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
        """Users behind the mean of each group, of each spread between groups that ``compute()`` reports, by its key."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, distributed_available=processes.several):
            everyones = self.group_counts
        result: dict[str, dict[str, int]] = {}
        for attribute, labels, part in _parts(self.slices):
            counts = everyones[..., part]
            for info in self._infos.values() if attribute in self.groups else ():
                if info.is_spread:
                    column = self._group_columns.index(info.base)
                    for position, k in enumerate(self.ks):
                        sizes = dict(zip(labels, counts[position, column].tolist(), strict=True))
                        result[self._key(f"{info.name}_{attribute}", k)] = sizes
        return result

    def _by_label(self, attribute: str, labels: list[str], names: Sequence[str], values: Tensor) -> dict[str, float]:
        """The entries ``<name>_<attribute>=<label>@<k>`` of values (K, N, G)."""
        return {
            self._key(f"{name}_{attribute}={label}", k): values[position, column, place].item()
            for column, name in enumerate(names)
            for position, k in enumerate(self.ks)
            for place, label in enumerate(labels)
        }

    def _key(self, name: str, k: int) -> str:
        return f"{name}@{k}{self.stamp}"

    def _of_item_groups(self, lists: RankedLists) -> Tensor:
        """(U, K, N, G) float64, NaN where nothing of a group is relevant to a user."""
        groups = []
        for membership in self.item_membership.T:
            only = lists.only(membership)
            values = [torch.stack([ITEM_SLICED[name](only, k) for name in ITEM_SLICED], dim=-1) for k in self.ks]
            groups.append(torch.stack(values, dim=1))
        return torch.stack(groups, dim=-1).double()

    def per_user(self) -> dict[str, Tensor]:
        """Over all ranks: ``user`` (ids ascending, each once) and each per-user metric, float64, as columns.

        Where a user was given more than once, its first row is kept.

        Raises:
            RuntimeError: constructed without ``keep_users``.
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

    def _add_vectors(self, lists: RankedLists) -> None:
        num_items = self.exposure.shape[1]
        for name, (_, function) in VECTORS.items():
            state = _STATE[name]
            if state in self._defaults:
                found = torch.stack([function(lists, k, num_items) for k in self.ks])
                setattr(self, state, getattr(self, state) + found)
        if "num_lists" in self._defaults:
            self.num_lists = self.num_lists + torch.stack([lists.top(k).listed.any(1).sum() for k in self.ks])
        if "item_relevant" in self._defaults:
            self.item_relevant = self.item_relevant + per_item.relevant(lists, num_items)
        if "item_candidates" in self._defaults:
            self.item_candidates = self.item_candidates + per_item.candidates(lists)
        if "joint" in self._defaults:
            joint = [association.group_category_sums(lists, k, self.categories, self.membership) for k in self.ks]
            self.joint = self.joint + torch.stack(joint)

    def _of_vectors(self, info: MetricInfo, position: int, part: slice | None = None) -> Tensor:
        """A function of vectors over the catalogue at one cut-off, for one attribute's groups of items."""
        found = {name: getattr(self, state)[position] for name, state in _STATE.items() if state in self._defaults}
        for name, state in [("relevant", "item_relevant"), ("candidates", "item_candidates")]:
            if state in self._defaults:
                found[name] = getattr(self, state)
        if "num_lists" in self._defaults:
            found["num_lists"] = self.num_lists[position]
        found["catalogue"] = torch.ones_like(self.train_counts)
        found["train_counts"] = self.train_counts
        if part is not None:
            found["membership"] = self.item_membership[:, part]
        return resolve(info)(**{argument: found[name] for argument, name in info.inputs.items()}, **info.options)

    def _lacks_input(self, info: MetricInfo) -> bool:
        """Whether all that is given of what the metric is computed from says nothing, as where no item has a category.

        Such a metric is NaN: 0 would say that it was measured.
        """
        main, embeddings = self._given["main_category"], self._given["embeddings"]
        return (
            ("categories" in info.needs and not self.categories.any())
            or ("train_counts" in info.needs and not self.train_counts.any())
            or ("main_category" in info.needs and isinstance(main, Tensor) and not (main >= 0).any())
            or ("embeddings" in info.needs and isinstance(embeddings, Tensor) and not embeddings.any())
        )

    def _column(self, name: str) -> Callable[[RankedLists, int], Tensor]:
        """The per-user function of a name, or of one of the two sums of a paired metric."""
        if name == "ctr":
            return _ctr
        if name in METRICS:
            info = METRICS[name]
            if self._lacks_input(info):
                return _undefined
            found = {
                "categories": self.categories,
                "train_counts": self.train_counts,
                "num_train_users": self.num_train_users,
                **self._given,
                **self._fixed,
            }
            inputs = {argument: found[source] for argument, source in info.inputs.items()}
            return partial(resolve(info), **inputs, **info.options)
        if name == "hits":
            return lambda lists, k: lists.top(k).hit.sum(1).double()
        if name == "num_relevant":
            return lambda lists, k: lists.num_relevant.double()
        profile = self._fixed["profile_popularity"]

        def popularity(lists: RankedLists, k: int) -> Tensor:
            recommended, had = novelty.arp(lists, k, self.train_counts), profile[lists.user]
            # Both over the same users: those with a list and a history.
            return (recommended if name == "recommended_popularity" else had).masked_fill(
                recommended.isnan() | had.isnan(), torch.nan
            )

        return popularity

    def _derive(self, name: str) -> Any:
        """What is computed once from what is given."""
        if name in self._given:
            return self._given[name]
        if name in ("categories", "train_counts"):
            return getattr(self, name)
        inputs = [self._derive(source) for source in DERIVED[name]]
        builders: dict[str, Callable[..., Any]] = {
            "tail": novelty.long_tail,
            "popularity_groups": novelty.popularity_groups,
            "main_categories": lambda label: label[:, None] == torch.arange(int(label.max()) + 1, device=label.device),
            "profile": calibration.category_profile,
            "main_profile": calibration.category_profile,
            "popularity_profile": calibration.category_profile,
            "profile_popularity": History.mean,
            "mean_embedding": serendipity.mean_unit_embedding,
        }
        return builders[name](*inputs)

    def _check_sizes(self) -> None:
        num_items = len(self.train_counts)
        for name, given in self._given.items():
            size = given.num_items if isinstance(given, History) else None if given is None else len(given)
            if size is not None and size != num_items:
                raise ValueError(f"{name} is of {size} items but train_counts of {num_items}.")
        embeddings = self._given["embeddings"]
        if isinstance(embeddings, Tensor) and not embeddings.isfinite().all():
            raise ValueError("embeddings are NaN or infinite for some items; their source has failed.")

    def _wanted_states(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """The states that only the chosen names need."""
        used = {name for info in self._infos.values() if not info.base for name in info.inputs.values()}
        num_items = len(self.train_counts)
        per_item = [
            (_STATE[name], (len(self.ks), num_items), dtype)
            for name, (dtype, _) in VECTORS.items()
            if name in used and name != "counts"
        ]
        others: dict[str, tuple[str, tuple[int, ...]]] = {
            "num_lists": ("num_lists", (len(self.ks),)),
            "relevant": ("item_relevant", (num_items,)),
            "candidates": ("item_candidates", (num_items,)),
        }
        found = [*per_item, *((*others[name], torch.int64) for name in others if name in used)]
        if "category_information" in self._infos:
            shape = (len(self.ks), self.membership.shape[1], self.categories.shape[1])
            found.append(("joint", shape, torch.float64))
        return found

    def _split_names(self, names: Sequence[str]) -> None:
        have = {"categories", "train_counts", "groups", "grades"}  # lists say themselves whether they are graded
        have |= {name for name, given in self._given.items() if given is not None}
        have |= {name for name, on in [("item_groups", self.item_groups), ("keep_users", self.keep_users)] if on}
        have |= {"impressions"} if self._impressions else set()
        self._infos: dict[str, MetricInfo] = {}
        for name in names:
            info = catalog.find(name)
            if info is None or info.kind not in LISTS_ARE_ENOUGH:
                known = [known for known, found in METRICS.items() if found.kind in LISTS_ARE_ENOUGH]
                raise RecpeftError(
                    f"unknown metric {name!r}; choose from {', '.join(known)}, or <name>_gap of a per-user metric, "
                    f"such as ndcg_gap, and so with {', '.join(catalog.SPREADS)}, cvar50 and user_gini."
                )
            missing = [need for need in info.needs if need not in have]
            if missing:
                raise RecpeftError(f"the metric {name} needs {' and '.join(missing)}; give them, or leave it out.")
            if info.base:
                self._infos.setdefault(info.base, METRICS[info.base])
            self._infos[name] = info
        infos = self._infos.values()
        self.per_user_names = [info.name for info in infos if info.kind in ("per_user", "impressions")]
        self.per_item_names = [info.name for info in infos if info.kind == "per_item"]
        self.gap_names = list(dict.fromkeys(info.base for info in infos if info.base and info.kind == "user_groups"))
        hidden = {column: None for name in PAIRED if name in self._infos for column in PAIRED[name]}
        self._columns = [*self.per_user_names, *hidden]
        by_group = {column: None for name in ("delta_gap", "eo_gap") if name in self._infos for column in PAIRED[name]}
        self._group_columns = [*self.gap_names, *by_group]

    def _type_empty_lists(self) -> None:
        if self.keep_users and len(self.user_ids) == 0:
            self.user_ids = [torch.empty(0, dtype=torch.int64, device=self.device)]
            width = len(self.ks) * len(self.per_user_names)
            self.user_values = [torch.empty(0, width, dtype=torch.float64, device=self.device)]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics would stand in a float32 (0,) for a rank without users, and gathering it with the
        # other ranks' int64 (U,) and float64 (U, n) fails or mixes up bytes.
        self._type_empty_lists()
        super()._sync_dist(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        self._fixed = {name: moved(value, fn) for name, value in self._fixed.items()}
        self._given = {name: moved(value, fn) for name, value in self._given.items()}
        return super()._apply(fn, exclude_state)


_STATE = {"counts": "exposure", "hits": "item_hits", "exposure": "attention", "cosine_weights": "cosine_weights"}
"""The states of VECTORS."""


def resolve(info: MetricInfo) -> Callable[..., Tensor]:
    """The function that computes a metric, without the options of its name."""
    module, _, name = info.function.partition(":")
    function: Callable[..., Tensor] = getattr(importlib.import_module(f"metrics.{module}"), name)
    return function


def _undefined(lists: RankedLists, k: int) -> Tensor:
    return torch.full((len(lists.user),), torch.nan, dtype=torch.float64, device=lists.user.device)


def _ctr(lists: RankedLists, k: int) -> Tensor:
    assert lists.shown is not None
    return accuracy.ctr(lists, k, lists.shown)


def _of_base(info: MetricInfo) -> Callable[..., Tensor]:
    """The function of a derived metric; the worst users or groups are the highest where less is better."""
    function = partial(resolve(info), **info.options)
    if METRICS[info.base].direction == "-" and info.function in ("fairness:cvar", "fairness:user_worst"):
        return partial(function, lower_is_better=True)
    return function


def _parts(groups: Mapping[str, list[str]]) -> Iterator[tuple[str, list[str], slice]]:
    """Each attribute, its labels, and their columns where the groups of all attributes stand side by side."""
    start = 0
    for attribute, labels in groups.items():
        yield attribute, labels, slice(start, start + len(labels))
        start += len(labels)


def _membership(groups: Mapping[str, tuple[Tensor, list[str]]]) -> Tensor:
    """(num_users, G) bool: the groups of all attributes side by side."""
    parts = []
    for attribute, (index, labels) in groups.items():
        if ((index < -1) | (index >= len(labels))).any():
            raise ValueError(f"group indices of {attribute} must be -1 or below {len(labels)}; some are not.")
        parts.append(index[:, None] == torch.arange(len(labels), device=index.device))
    return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0, dtype=torch.bool)
