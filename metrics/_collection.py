"""All ranking metrics in one pass over the lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from metrics import accuracy, coverage, diversity, fairness, novelty
from metrics._lists import RankedLists
from recpeft.errors import RecpeftError

ACCURACY: dict[str, Callable[[RankedLists, int], Tensor]] = {
    "ndcg": accuracy.ndcg,
    "recall": accuracy.recall,
    "precision": accuracy.precision,
    "hit_rate": accuracy.hit_rate,
    "mrr": accuracy.mrr,
    "map": accuracy.average_precision,
    "f1": accuracy.f1,
}
ITEM_SLICED = ("ndcg", "recall")
"""What is measured of each group of items alone."""
PER_ITEM: dict[str, Callable[[Tensor], Tensor]] = {
    "item_coverage": coverage.item_coverage,
    "gini": coverage.gini,
    "shannon_entropy": coverage.shannon_entropy,
}
DEFAULT_NAMES = (
    "ndcg",
    "recall",
    "hit_rate",
    "mrr",
    "item_coverage",
    "gini",
    "novelty",
    "ild_jaccard",
    "ndcg_gap",
)


class RankingMetrics(Metric):
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
        names: of the metrics; ``<name>_gap`` is the gap of a per-user metric between the groups of each
            attribute (the metric itself is then reported too). None means ``DEFAULT_NAMES``.
    Raises:
        RecpeftError: a name is unknown, a cut-off is below 1.
        ValueError: sizes do not agree.
    """

    full_state_update = False  # states only add up, so merge_state() and forward() may add them
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
        self._split_names(DEFAULT_NAMES if names is None else names)
        self.stamp = stamp
        self.groups = {attribute: list(labels) for attribute, (_, labels) in groups.items()}
        every = {**groups, **(slices or {})}
        self.slices = {attribute: list(labels) for attribute, (_, labels) in every.items()}
        self.register_buffer("membership", _membership(every), persistent=False)
        self.item_groups = {attribute: list(labels) for attribute, (_, labels) in (item_groups or {}).items()}
        parts = [membership for membership, _ in (item_groups or {}).values()]
        nothing = torch.zeros(len(train_counts), 0, dtype=torch.bool)
        self.register_buffer("item_membership", torch.cat([nothing, *parts], dim=1), persistent=False)

        per_user = (len(self.ks), len(self.per_user_names))
        per_group = (len(self.ks), len(self.gap_names), self.membership.shape[1])
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
        ]:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        # MetricCollection makes metrics share one state when theirs are equal after the first batch, though
        # they may differ later. NaN equals nothing, so this metric is never taken for another.
        self.add_state("unequal", torch.tensor(torch.nan), dist_reduce_fx="sum")
        if keep_users:
            self.add_state("user_ids", [], dist_reduce_fx="cat")
            self.add_state("user_values", [], dist_reduce_fx="cat")

    def update(self, lists: RankedLists) -> None:
        """Add one batch; each user in it must be new.

        Raises:
            ValueError: the lists are shorter than the largest cut-off.
        """
        functions = self._per_user_functions()
        values = self.sums.new_empty((len(lists.user), len(self.ks), len(self.per_user_names)))
        exposure = torch.empty_like(self.exposure)
        for position, k in enumerate(self.ks):
            for column, name in enumerate(self.per_user_names):
                values[:, position, column] = functions[name](lists, k)
            item = lists.top(k).item
            exposure[position] = torch.bincount(item[item >= 0], minlength=exposure.shape[1])
        defined = ~values.isnan()
        filled = values.nan_to_num(0)
        # Never in place: states that reset() made under inference_mode could not be updated outside of it.
        self.sums = self.sums + filled.sum(0)
        self.counts = self.counts + defined.sum(0)
        self.exposure = self.exposure + exposure
        if self.slices and self.gap_names:
            base = [self.per_user_names.index(name) for name in self.gap_names]
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
            self.user_values.append(values.flatten(1))

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
        for name in self.per_item_names:
            for position, k in enumerate(self.ks):
                result[self._key(name, k)] = PER_ITEM[name](self.exposure[position]).item()
        start = 0
        for attribute, labels in self.slices.items():
            part = slice(start, start + len(labels))
            start += len(labels)
            sums, counts = self.group_sums[..., part], self.group_counts[..., part]
            if attribute in self.groups:
                gaps = fairness.user_gap(sums, counts)
                for column, name in enumerate(self.gap_names):
                    for position, k in enumerate(self.ks):
                        result[self._key(f"{name}_gap_{attribute}", k)] = gaps[position, column].item()
            result |= self._by_label(attribute, labels, self.gap_names, fairness.group_means(sums, counts))
        start = 0
        for attribute, labels in self.item_groups.items():
            part = slice(start, start + len(labels))
            start += len(labels)
            values = fairness.group_means(self.item_group_sums[..., part], self.item_group_counts[..., part])
            result |= self._by_label(attribute, labels, ITEM_SLICED, values)
        result["tie_rate"] = (self.users_tied.double() / self.users).item()
        result["users"] = self.users.item()
        result["users_with_relevant"] = self.users_with_relevant.item()
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
            values = [torch.stack([ACCURACY[name](only, k) for name in ITEM_SLICED], dim=-1) for k in self.ks]
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
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            self._type_empty_lists()
            ids, values = dim_zero_cat(self.user_ids), dim_zero_cat(self.user_values)
        ids, order = ids.sort(stable=True)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        columns = values[order[first]].T
        keys = [self._key(name, k) for k in self.ks for name in self.per_user_names]
        return {"user": ids[first], **dict(zip(keys, columns, strict=True))}

    def _per_user_functions(self) -> dict[str, Callable[[RankedLists, int], Tensor]]:
        return {
            **ACCURACY,
            "ild_jaccard": partial(diversity.ild_jaccard, categories=self.categories),
            "novelty": partial(novelty.novelty, train_counts=self.train_counts, num_train_users=self.num_train_users),
            "arp": partial(novelty.arp, train_counts=self.train_counts),
        }

    def _split_names(self, names: Sequence[str]) -> None:
        known = self._per_user_functions()
        per_user, gaps, per_item = dict[str, None](), dict[str, None](), dict[str, None]()
        for name in names:
            base = name.removesuffix("_gap")
            if base in known:
                per_user[base] = None
                if base != name:
                    gaps[base] = None
            elif name in PER_ITEM:
                per_item[name] = None
            else:
                raise RecpeftError(
                    f"unknown metric {name!r}; choose from {', '.join([*known, *PER_ITEM])}, "
                    "or <name>_gap of a per-user metric, such as ndcg_gap."
                )
        self.per_user_names, self.gap_names, self.per_item_names = list(per_user), list(gaps), list(per_item)

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
        # `.to(torch.bfloat16)` of a parent casts torchmetrics' float states: follow devices only.
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)


def _membership(groups: Mapping[str, tuple[Tensor, list[str]]]) -> Tensor:
    """(num_users, G) bool: the groups of all attributes side by side."""
    parts = []
    for attribute, (index, labels) in groups.items():
        if ((index < -1) | (index >= len(labels))).any():
            raise ValueError(f"group indices of {attribute} must be -1 or below {len(labels)}; some are not.")
        parts.append(index[:, None] == torch.arange(len(labels), device=index.device))
    return torch.cat(parts, dim=1) if parts else torch.zeros(0, 0, dtype=torch.bool)
