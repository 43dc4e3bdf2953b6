"""Load, filter and split the data of a ``data`` section, once for all cells that share it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from datamodules._dataset import RecDataset, frame_hash
from datamodules._filters import apply
from datamodules._source import SourceConfig
from datamodules._splits import Split, split
from recpeft import plugins


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set, filtered and split."""

    dataset: RecDataset
    split: Split
    record: dict[str, Any]
    """The record's entry on the data: sizes, hashes, filter steps, audit."""


@lru_cache(maxsize=2)
def prepare(config: SourceConfig) -> Prepared:
    """Load, filter and split the data that ``config`` names.

    Raises:
        RecpeftError: the data are missing, invalid, or empty after a step.
    """
    source = plugins.load("datamodules", config.source)
    dataset, steps = apply(source.load(config), config.filters)
    parts = split(dataset, config.split.below(getattr(config, "path", None)), config.liked_from)
    audit = parts.audit()
    if not dataset.clock:  # report the audit as for data without times
        audit |= {"train_max_time": None, "test_min_time": None, "test_rows_before_train_end": 0}
    record = {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": dataset.interactions.height,
        "hash": dataset.hash(),
        "dropped": dataset.dropped,
        "filters": steps,
        "split": {
            **config.split.model_dump(mode="json"),
            **({"remark": config.split.remark} if config.split.remark else {}),
            "train": parts.train.height,
            "validation": parts.validation.height,
            "test": parts.test.height,
            "hash": parts.hash(),
            "test_hash": frame_hash(parts.test),
            "audit": audit,
        },
        # Popularity, logQ, novelty and activity groups are all counted on these rows.
        "statistics": {"fitted_on": "train", "rows": parts.train.height, "hash": frame_hash(parts.train)},
    }
    return Prepared(dataset, parts, record)


def audit_line(record: dict[str, Any], candidates: str = "full", prompt: str | None = None) -> str:
    """Return one line that reports possible leaks and the hashes of the inputs.

    Args:
        record: ``Prepared.record``.
    """
    split, audit = record["split"], record["split"]["audit"]
    parts = [
        f"train ends {_day(audit['train_max_time'])}, test begins {_day(audit['test_min_time'])}",
        f"users out of order {audit['users_out_of_order']}",
        f"test rows before the last train row {audit['test_rows_before_train_end']:,} of {audit['test_rows']:,}",
        f"new in test {audit['users_new_in_test']} users, {audit['items_new_in_test']} items",
        f"duplicates across parts {audit['duplicates_across_splits']}",
        f"statistics from {record['statistics']['fitted_on']}",
    ]
    hashes = {"data": record["hash"], "split": split["hash"], "candidates": candidates, "prompt": prompt}
    named = " ".join(f"{name} {value}" for name, value in hashes.items() if value)
    return f"audit: {split['kind']}: {'; '.join(parts)}; {named}"


def warnings(record: dict[str, Any], mask_seen: bool) -> list[str]:
    """Return the audit's findings that readers of the results must know.

    Args:
        record: ``Prepared.record``.
        mask_seen: whether lists leave out the items of the user's history.
    """
    split, audit = record["split"], record["split"]["audit"]
    found = []
    if split.get("remark"):
        found.append(split["remark"])
    ahead, users = audit["test_rows_before_train_end"], audit["users_out_of_order"]
    if users:
        found.append(
            f"the split lets users' own future in: {users:,} users have train or validation rows later than rows "
            "they are tested on; split: per_user_temporal and global_temporal are free of that"
        )
    if ahead:
        found.append(
            f"the split lets the future of other users in: {ahead:,} of {split['test']:,} test rows are older than the "
            "last train row; split: global_temporal is free of that"
        )
    if audit["duplicates_across_splits"] and mask_seen:
        found.append(
            f"{audit['duplicates_across_splits']:,} pairs of user and item stand in more than one part, and "
            "evaluation.mask_seen leaves out what was met before, so that they cannot be found in test; set it to "
            "false where users come back to an item"
        )
    return found


def _day(seconds: int | None) -> str:
    return "without times" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
