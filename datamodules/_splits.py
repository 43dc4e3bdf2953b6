"""Train, validation and test by time.

Equal times are common (76 % of ML-100K's rows share user and second with another row), and their order
decides what is tested. It is drawn by a hash of the seed, the user's raw id and the item's raw id: never by
dense id or file order, so it is the same on every machine, after shuffling a file and after filters.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from datamodules._dataset import RecDataset, frame_hash
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from datamodules._source import SplitKind

COLUMNS = ["user", "item", "rating", "timestamp"]


@dataclass(frozen=True)
class Split:
    """Three frames with the columns user, item, rating, timestamp.

    Each is sorted by user, then time, then tie hash: a user's rows are their history in order.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    left_out: dict[str, int] = field(default_factory=dict)
    """What is in none of the three, by ``global_temporal``: users, validation_rows, test_rows."""

    def hash(self) -> str:
        """16 hex digits over the three frames, the order of their rows included."""
        return frame_hash(self.train, self.validation, self.test)

    def audit(self) -> dict[str, Any]:
        """Counts of what a leak would look like; times in seconds.

        ``users_out_of_order``: users with a row in train or validation later than one of theirs in a part
        after it; 0 by construction. ``test_rows_before_train_end``: test rows older than *anybody's* last
        train row; above 0, what is learnt from all users has seen the future of some of them.
        """
        spans = [
            part.group_by("user").agg(pl.min("timestamp").alias("first"), pl.max("timestamp").alias("last"))
            for part in (self.train, self.validation, self.test)
        ]
        out_of_order = [
            earlier.join(later, on="user", suffix="_later").filter(pl.col("last") > pl.col("first_later"))
            for earlier, later in ((spans[0], spans[1]), (spans[0], spans[2]), (spans[1], spans[2]))
        ]
        pairs = pl.concat(part.select("user", "item").unique() for part in (self.train, self.validation, self.test))
        train_end = self.train["timestamp"].max()
        return {
            "train_rows": self.train.height,
            "validation_rows": self.validation.height,
            "test_rows": self.test.height,
            "train_users": self.train["user"].n_unique(),
            "validation_users": self.validation["user"].n_unique(),
            "test_users": self.test["user"].n_unique(),
            "train_max_time": train_end,
            "test_min_time": self.test["timestamp"].min(),
            "users_out_of_order": pl.concat(frame.select("user") for frame in out_of_order).n_unique(),
            "test_rows_before_train_end": self.test.filter(pl.col("timestamp") < train_end).height,
            "users_new_in_test": _new_in_test(self, "user"),
            "items_new_in_test": _new_in_test(self, "item"),
            "duplicates_across_splits": pairs.height - pairs.n_unique(),
            "left_out": self.left_out,
        }


def split(
    dataset: RecDataset, kind: SplitKind, seed: int, ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
) -> Split:
    """Divide the interactions of ``dataset``.

    ``per_user_temporal``: each user's last rows are test, those before validation; with n rows a user gives
    ``max(1, floor(ratio * n))`` to either, and all to train where nothing would be left for it (n < 3).
    ``leave_one_out``: a user's last row is test, the one before validation; n < 3 is all train.
    ``global_temporal``: the times at 80 % and 90 % of all rows are the cuts. A second is never divided: the
    rows at a cut belong to the later part, so all of train is older than all of validation, and that older
    than all of test. Users without a train row are left out of validation and test, since nothing is
    known of them; they are counted in ``Split.left_out``. Items new in test stay: they have text.

    Args:
        seed: of the hash that orders equal times.
        ratios: train, validation, test; sum 1; ``leave_one_out`` does not use them.
    Raises:
        RecpeftError: an interaction has no time, or there is none, or a part is empty.
        ValueError: ``ratios`` are no shares.
    """
    if min(ratios) <= 0 or not math.isclose(sum(ratios), 1):
        raise ValueError(f"ratios are {ratios}; they must be above 0 and sum to 1.")
    rows = dataset.interactions
    if rows.is_empty():
        raise RecpeftError(f"split: {kind} finds no interactions in {dataset.name}; check data.path and data.filters.")
    untimed = rows["timestamp"].null_count()
    if untimed:
        raise RecpeftError(
            f"split: {kind} needs the time of every interaction, but {untimed} of {rows.height} have none; "
            "give data with a timestamp column or remove these rows."
        )
    # Rating comes last only so that file order cannot matter where a pair is there twice in a second.
    rows = rows.with_columns(tie=tie_hash(dataset, seed)).sort("user", "timestamp", "tie", "rating")
    rows = rows.select(COLUMNS)
    left_out: dict[str, int] = {}
    if kind == "global_temporal":
        part, left_out = _by_global_time(rows, ratios)
    else:
        part = _by_user_time(rows, None if kind == "leave_one_out" else ratios)
    train, validation, test = (rows.filter(part == number) for number in range(3))
    for name, frame in (("train", train), ("validation", validation), ("test", test)):
        if frame.is_empty():
            raise RecpeftError(
                f"split: {kind} leaves no {name} interactions of {rows.height} by {dataset.num_users} users"
                + (f" ({left_out['users']} users have none in train)" if left_out.get("users") else "")
                + "; use more data, weaker data.filters or another data.split."
            )
    return Split(train, validation, test, left_out)


def tie_hash(dataset: RecDataset, seed: int) -> pl.Series:
    """One uint64 a row of the interactions, from the seed and the raw ids of user and item."""
    user = _hash_ids(dataset.users["raw_id"], seed)[dataset.interactions["user"].to_numpy()]
    item = _hash_ids(dataset.items["raw_id"], seed)[dataset.interactions["item"].to_numpy()]
    return pl.Series("tie", _splitmix64(_splitmix64(user) ^ item))  # (rows,)


def _hash_ids(raw_ids: pl.Series, seed: int) -> np.ndarray:
    """BLAKE2b with the seed as key, 8 bytes an id."""
    key = str(seed).encode()
    digests = (hashlib.blake2b(raw.encode(), digest_size=8, key=key).digest() for raw in raw_ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _splitmix64(value: np.ndarray) -> np.ndarray:
    """Steele, Lea & Flood 2014: a bijection of 64 bits in which each input bit moves half of the output's."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _by_user_time(rows: pl.DataFrame, ratios: tuple[float, float, float] | None) -> pl.Series:
    """0 train, 1 validation, 2 test for each of the sorted rows; without ``ratios`` one row each."""
    from_end = pl.len().over("user") - 1 - pl.int_range(pl.len()).over("user")
    count = pl.len().over("user")
    held = [
        # 1e-9: 0.29 * 100 is 28.999… in binary
        pl.lit(1) if ratios is None else (count * ratio + 1e-9).floor().cast(pl.Int64).clip(lower_bound=1)
        for ratio in (ratios or (0.0, 0.0, 0.0))[1:]
    ]
    validation, test = held
    part = (
        pl.when(validation + test >= count)
        .then(0)
        .when(from_end < test)
        .then(2)
        .when(from_end < validation + test)
        .then(1)
        .otherwise(0)
    )
    return rows.select(part=part)["part"]


def _by_global_time(rows: pl.DataFrame, ratios: tuple[float, float, float]) -> tuple[pl.Series, dict[str, int]]:
    """As ``_by_user_time``, with -1 for rows left out, and the counts of what is left out."""
    times = rows["timestamp"].sort()
    positions = (ratios[0] * times.len(), (ratios[0] + ratios[1]) * times.len())
    first, second = (times[min(int(position + 1e-9), times.len() - 1)] for position in positions)
    time = pl.col("timestamp")
    cut = rows.with_columns(part=pl.when(time < first).then(0).when(time < second).then(1).otherwise(2))
    cut = cut.with_columns(known=(pl.col("part") == 0).any().over("user"))
    unknown = cut.filter(~pl.col("known"))
    left_out = {
        "users": unknown["user"].n_unique(),
        "validation_rows": unknown.filter(pl.col("part") == 1).height,
        "test_rows": unknown.filter(pl.col("part") == 2).height,
    }
    return cut.select(part=pl.when("known").then("part").otherwise(-1))["part"], left_out


def _new_in_test(parts: Split, key: str) -> int:
    """How many users or items of test are not in train."""
    test = parts.test[key].unique()
    return int((~test.is_in(parts.train[key].unique().implode())).sum())
