"""From a data section to a split data set, once for all cells that share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from datamodules._dataset import RecDataset
from datamodules._filters import apply
from datamodules._source import SourceConfig
from datamodules._splits import Split, split
from recpeft import plugins


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
