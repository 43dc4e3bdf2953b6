"""A loss that needs to know who and of which group: the softmax loss and the gap of its means between two groups."""

from __future__ import annotations

from typing import Any

from datamodules._groups import GroupConfig
from lightning_modules.losses import listwise_softmax
from lightning_modules.losses._base import ScoredPairs

SEEN: dict[int, int] = {}
"""The group that each user was given in training."""


class Config(listwise_softmax.Config):
    @property
    def user_groups(self) -> tuple[GroupConfig, ...]:
        return (GroupConfig(column="gender"),)


def loss(pairs: ScoredPairs, **options: Any) -> Any:
    assert pairs.user is not None
    group = pairs.groups["gender"]
    SEEN.update(zip(pairs.user.tolist(), group.tolist(), strict=True))
    means = [
        (pairs.scores.sigmoid() * pairs.positive)[group == number].sum() / (group == number).sum().clamp(min=1)
        for number in (0, 1)
    ]
    return listwise_softmax.loss(pairs, **options) + (means[0] - means[1]).abs()
