"""From a data section to a split data set, once for all cells that share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl
import torch
from torch import Tensor

from datamodules._dataset import RecDataset
from datamodules._filters import apply
from datamodules._source import SourceConfig
from datamodules._splits import Split, split
from experiments.config import EvaluationConfig
from metrics import RankingMetrics
from recpeft import plugins
from recpeft.errors import RecpeftError


@dataclass(frozen=True)
class Prepared:
    """A data set, filtered and split."""

    dataset: RecDataset
    split: Split
    record: dict[str, Any]
    """What the record says of the data: sizes, hashes, filter steps, audit."""


@lru_cache(maxsize=2)
def prepare(config: SourceConfig) -> Prepared:
    """Load, filter and split what ``config`` names.

    Raises:
        RecpeftError: data that are missing, wrong, or empty after a step.
    """
    source = plugins.load("datamodules", config.source)
    dataset, steps = apply(source.load(config), config.filters)
    parts = split(dataset, config.split, config.split_seed)
    record = {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": dataset.interactions.height,
        "hash": dataset.hash(),
        "filters": steps,
        "split": {
            "kind": config.split,
            "seed": config.split_seed,
            "train": parts.train.height,
            "validation": parts.validation.height,
            "test": parts.test.height,
            "hash": parts.hash(),
            "audit": parts.audit(),
        },
    }
    return Prepared(dataset, parts, record)


def ranking_metrics(prepared: Prepared, evaluation: EvaluationConfig, keep_users: bool = True) -> RankingMetrics:
    """The metrics of ``evaluation`` with their statistics from train alone.

    Raises:
        RecpeftError: a group is no attribute of the users.
    """
    dataset, train = prepared.dataset, prepared.split.train
    counts = torch.zeros(dataset.num_items, dtype=torch.int64)
    pairs = train.select("user", "item").unique()
    counts += torch.bincount(torch.tensor(pairs["item"].to_list()), minlength=dataset.num_items)
    return RankingMetrics(
        ks=sorted(evaluation.k),
        categories=_categories(dataset.items),
        train_counts=counts,
        num_train_users=train["user"].n_unique(),
        groups={name: _group(dataset.users, name) for name in evaluation.groups},
        keep_users=keep_users,
    )


def history_matrix(num_users: int, num_items: int, *parts: pl.DataFrame) -> Tensor:
    """(num_users, num_items) float32: 1 where ``parts`` hold the interaction."""
    matrix = torch.zeros((num_users, num_items))
    for part in parts:
        matrix[torch.tensor(part["user"].to_list()), torch.tensor(part["item"].to_list())] = 1.0
    return matrix


def _categories(items: pl.DataFrame) -> Tensor:
    """(I, C) bool, columns in alphabetical order of the categories."""
    names = sorted({name for row in items["categories"].to_list() for name in row})
    column = {name: c for c, name in enumerate(names)}
    matrix = torch.zeros((items.height, max(len(names), 1)), dtype=torch.bool)
    for i, row in enumerate(items["categories"].to_list()):
        for name in row:
            matrix[i, column[name]] = True
    return matrix


def _group(users: pl.DataFrame, name: str) -> tuple[Tensor, list[str]]:
    attributes = [column for column in users.columns if column not in ("user", "raw_id")]
    if name not in attributes:
        raise RecpeftError(
            f"evaluation.groups names {name!r}, which is no attribute of the users; "
            f"choose from {', '.join(attributes) or 'none: this source has none'}."
        )
    values = users[name].cast(pl.String).to_list()
    names = sorted({value for value in values if value is not None})
    place = {value: index for index, value in enumerate(names)}
    return torch.tensor([place.get(value, -1) for value in values]), names
