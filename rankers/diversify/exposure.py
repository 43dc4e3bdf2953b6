"""Exposure by minimum counts: each item group gets its share of the places, at every cut of the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from datamodules._groups import GroupConfig
from rankers.diversify._base import DiversifyConfig, Given

if TYPE_CHECKING:
    from torch import Tensor


class Config(DiversifyConfig):
    method: str = "exposure"
    group: GroupConfig = GroupConfig(column="popularity")
    """Item groups, as in evaluation.item_groups: a column of the item table, {column, bins}, popularity (head,
    mid, tail) or familiarity."""
    target: Literal["catalogue", "train"] = "catalogue"
    """Target share of a group at strength 1: its share of the catalogue's items, or of train interactions."""

    @field_validator("group", mode="before")
    @classmethod
    def _column_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @property
    def grouping(self) -> GroupConfig:
        return self.group


def reorder(item: Tensor, score: Tensor, user: Tensor, k: int, config: Config, given: Given) -> Tensor:
    """Reorder by minimum counts: Geyik, Ambler & Kenthapadi 2019, "Fairness-aware ranking in search & recommendation".

    Among the first r items of a list, group g has at least

        least_g(r) = min(floor(strength target_g r), items of g among the user's),   r = 1, …, min(depth, N),

    with target_g the group's share of the catalogue's items (or train interactions). Each place goes to the best item
    that keeps all minimum counts reachable, so relevance decides wherever they allow. The paper's DetGreedy acts when
    a group falls short at the next place; with three or more groups several can fall short at one place, and all but
    one then miss their count (hence its upper bounds, which help up to three groups). This method also looks at later
    places: as soon as the groups' needs up to some later place fill all places before it, one of those groups comes
    next. With two groups both rules are the same. There are no upper bounds, so that strength 0 keeps the order.

    An item in several groups counts for each; an item in no group counts for none. If no item is in two groups, all
    minimum counts are met. Otherwise they may be missed: the number of groups that one item can serve is then taken
    as the maximum over the user's items.

    Args:
        item: (U, N) int64, best first, -1 is padding at the end.
        score: (U, N) float32, descending; only the order matters.
        user: (U,) int64; unused.
        k: length of the new lists.
        given: ``item_groups`` of ``config.group``, and ``train_counts``.
    Returns:
        (U, min(k, N)) int64.
    Raises:
        ValueError: see the package; or ``item_groups`` is missing.
    """
    import torch

    from rankers.diversify._greedy import Greedy

    if given.item_groups is None:
        raise ValueError(f"exposure needs the item groups of {config.group.column}; give item_groups.")
    greedy = Greedy(item, score, k, config.depth)
    member = given.item_groups[greedy.item.clamp(min=0)] & greedy.listed.unsqueeze(2)  # (U, D, G)
    least = _least(_targets(given.item_groups, given.train_counts, config.target), member, config.strength)
    at_once = member.sum(2).amax(1, keepdim=True)  # (U, 1): number of groups that one item can serve
    count = torch.zeros_like(least[:, 0])  # (U, G), of the list so far
    for place in greedy.places:
        need = (least[:, place:] - count.unsqueeze(1)).clamp(min=0)  # (U, D - place, G), by each place ahead
        later = torch.arange(need.shape[1], device=need.device)  # number of places up to there, without this one
        # True where the later places alone could not serve all needs. Never true after a list's end, where the
        # remaining items can serve the remaining needs.
        tight = need.sum(2) > later * at_once
        # A group in need at the first tight place is in need at the others too. Without a tight place argmax is 0,
        # this place, at which nothing is needed then.
        due = need[greedy.rows, tight.byte().argmax(1)] > 0  # (U, G)
        # Takes the first item of a due group, or the first item of all.
        chosen = greedy.take((member & due.unsqueeze(1)).any(2).double())
        count = count + member[greedy.rows, chosen]
    return greedy.lists()


def _targets(groups: Tensor, train_counts: Tensor, target: str) -> Tensor:
    """Return each group's share of the items, or of train interactions, (G,) float64; groups (I, G).

    The sum exceeds 1 if items are in several groups: a list with the catalogue's mix still meets all shares.
    """
    import torch

    weight = train_counts.double() if target == "train" else torch.ones_like(train_counts, dtype=torch.float64)
    return weight @ groups.double() / weight.sum().clamp(min=1)


def _least(targets: Tensor, member: Tensor, strength: float) -> Tensor:
    """Return the minimum count of each group among the first 1, …, D items, (U, D, G) int64; member (U, D, G)."""
    import torch

    ranks = torch.arange(1, member.shape[1] + 1, dtype=torch.float64, device=member.device)
    # 30 / 52 * 26 is 14.999… in float64, and its floor would be one too low.
    share = (strength * targets * ranks.unsqueeze(1) + 1e-9).floor().long()
    return torch.minimum(share, member.sum(1, keepdim=True))
