"""Train, validation and test; the kinds are in ``datamodules/splits/``.

Equal times are common (76 % of ML-100K's rows share user and second with another row), and their order
decides which rows are tested. A hash of the seed, the user's raw id and the item's raw id draws this order, never
dense ids or file order, so it is the same on every machine, after shuffling a file and after filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from datamodules._dataset import RecDataset, frame_hash
from datamodules._hashing import hash_ids, splitmix64
from datamodules.splits._base import HISTORY, LEFT_OUT, TEST, TRAIN, VALIDATION, SplitConfig
from recpeft import plugins
from recpeft.errors import RecpeftError

SCHEMA = pl.Schema({"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64})


@dataclass(frozen=True)
class Split:
    """Parts of a data set: frames with the columns user, item, rating, timestamp.

    Each is sorted by user, then time, then tie hash: a user's rows are their history in order.
    """

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    history: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SCHEMA))
    """Interactions shown in users' prompts, in training and evaluation, but never learnt, neither as targets nor in
    statistics."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of rows and users that are in none of the parts."""
    places: tuple[pl.Series, pl.Series, pl.Series, pl.Series] | None = None
    """Positions of the rows of train, history, validation and test among all rows, by which ``known`` and ``ordered``
    order equal or missing times; None puts the parts one after another there."""
    liked_from: float | None = None
    """Lowest rating that counts as liked; None treats all interactions as liked."""

    def hash(self) -> str:
        """Return 16 hex digits over the frames, including the order of their rows."""
        return frame_hash(self.train, self.validation, self.test, self.history)

    def known(self, *, at_test: bool) -> pl.DataFrame:
        """Return the rows known when validation or test begins, by user and time; ``learnt`` marks train rows."""
        rows = self._ordered([TRAIN, HISTORY, *([VALIDATION] if at_test else [])])
        return rows.with_columns(learnt=pl.col("part") == TRAIN).drop("part")

    def ordered(self, *, at_test: bool = True) -> pl.DataFrame:
        """Return the rows by user and time, with the column ``part``.

        Args:
            at_test: include test; else return all other parts.
        """
        return self._ordered([TRAIN, HISTORY, VALIDATION, *([TEST] if at_test else [])])

    def _ordered(self, parts: Sequence[int]) -> pl.DataFrame:
        frames = {TRAIN: self.train, HISTORY: self.history, VALIDATION: self.validation, TEST: self.test}
        found = [frames[part].with_columns(part=pl.lit(part)) for part in parts]
        rows = pl.concat(found, how="vertical_relaxed")  # an empty frame's times may have the other type
        if self.places is None:
            return rows.sort("user", "timestamp", maintain_order=True)
        return rows.with_columns(place=pl.concat(self.places[: len(parts)])).sort("place").drop("place")

    def liked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the ``rows`` that are not rated below ``liked_from``."""
        if self.liked_from is None:
            return rows
        return rows.filter((pl.col("rating") >= self.liked_from).fill_null(True))

    def audit(self) -> dict[str, Any]:
        """Return counts that would reveal a leak; times in seconds.

        ``users_out_of_order``: users with a row in train, history or validation later than one of theirs in a part
        after it. ``duplicates_across_splits``: pairs of user and item in more than one of train or history,
        validation, and test. ``test_rows_before_train_end``: test rows older than *anybody's* last train row; if above
        0, a model trained on all users has seen the future of some of them.
        """
        spans = [
            part.group_by("user").agg(pl.min("timestamp").alias("first"), pl.max("timestamp").alias("last"))
            for part in (self.known(at_test=False), self.validation, self.test)
        ]
        out_of_order = [
            earlier.join(later, on="user", suffix="_later").filter(pl.col("last") > pl.col("first_later"))
            for earlier, later in ((spans[0], spans[1]), (spans[0], spans[2]), (spans[1], spans[2]))
        ]
        pairs = pl.concat(
            part.select(pair=pl.col("user").cast(pl.Int64) * 2**32 + pl.col("item")).unique()
            for part in (self.known(at_test=False), self.validation, self.test)
        )
        train_end = self.train["timestamp"].max()
        return {
            "train_rows": self.train.height,
            "validation_rows": self.validation.height,
            "test_rows": self.test.height,
            "history_rows": self.history.height,
            "train_users": self.train["user"].n_unique(),
            "validation_users": self.validation["user"].n_unique(),
            "test_users": self.test["user"].n_unique(),
            "train_max_time": train_end,
            "test_min_time": self.test["timestamp"].min(),
            "users_out_of_order": pl.concat(frame.select("user") for frame in out_of_order).n_unique(),
            "test_rows_before_train_end": self.test.filter(pl.col("timestamp") < pl.lit(train_end)).height,
            "users_new_in_test": _new_in_test(self, "user"),
            "items_new_in_test": _new_in_test(self, "item"),
            "duplicates_across_splits": pairs.height - pairs.n_unique(),
            "left_out": self.left_out,
        }


def split(dataset: RecDataset, config: SplitConfig | str, liked_from: float | None = None) -> Split:
    """Divide the interactions of ``dataset`` as ``config`` says; a name stands for that kind's defaults.

    Args:
        liked_from: as ``Split.liked_from``; it does not change the parts.
    Raises:
        RecpeftError: an interaction has no time and the kind needs one, there is no interaction, a part is
            empty, or there are fewer train interactions than ``few_shot``.
    """
    if isinstance(config, str):
        found = plugins.config_class("datamodules.splits", config)()
        assert isinstance(found, SplitConfig)
        config = found
    rows = dataset.interactions
    if rows.is_empty():
        raise RecpeftError(
            f"split: {config.kind} finds no interactions in {dataset.name}; check data.path and data.filters."
        )
    untimed = rows["timestamp"].null_count()
    if untimed and config.NEEDS_TIMES:
        raise RecpeftError(
            f"split: {config.kind} needs the time of every interaction, but {untimed} of {rows.height} have none; "
            "give data with a timestamp column, remove these rows, or use split: random_ratio."
        )
    if config.NEEDS_CLOCK and not dataset.clock:
        raise RecpeftError(
            f"split: {config.kind} compares times of users, but {dataset.name} has an order for each user alone; use "
            "split: per_user_temporal or leave_one_out."
        )
    rows = in_order(dataset, config.seed)
    part = plugins.load("datamodules.splits", config.kind).parts(rows, dataset, config)
    if config.few_shot is not None:
        part = _few_shot(rows, part, config.few_shot, config.few_shot_seed)
    outside = rows.filter(part == LEFT_OUT)
    left_out = {"rows": outside.height, "users": outside["user"].n_unique()} if outside.height else {}
    rows, places = rows.select(list(SCHEMA)), pl.int_range(rows.height, eager=True)
    train, validation, test, history = (rows.filter(part == number) for number in (TRAIN, VALIDATION, TEST, HISTORY))
    for name, frame in (("train", train), ("validation", validation), ("test", test)):
        if frame.is_empty():
            raise RecpeftError(
                f"split: {config.kind} leaves no {name} interactions of {rows.height} by {dataset.num_users} users"
                + (f" ({left_out['rows']} were left out)" if left_out else "")
                + "; use more data, weaker data.filters or another data.split."
            )
    of_train, of_history, of_validation, of_test = (
        places.filter(part == number) for number in (TRAIN, HISTORY, VALIDATION, TEST)
    )
    return Split(train, validation, test, history, left_out, (of_train, of_history, of_validation, of_test), liked_from)


def in_order(dataset: RecDataset, seed: int) -> pl.DataFrame:
    """Return all interactions by user and time, with ``tie``, the hash that orders equal times."""
    # Rating comes last, so that file order cannot matter if a pair occurs twice in a second.
    return dataset.interactions.with_columns(tie=tie_hash(dataset, seed)).sort("user", "timestamp", "tie", "rating")


def _few_shot(rows: pl.DataFrame, part: pl.Series, count: int, seed: int) -> pl.Series:
    """Return ``part`` with all but ``count`` train rows changed to history.

    A user's first known row, which has no history, is never among the ``count``.
    """
    order = pl.Series(splitmix64(rows["tie"].to_numpy() ^ np.uint64(0x2545F4914F6CDD1D ^ seed)))
    known = pl.col("part").is_in([TRAIN, HISTORY])
    numbered = rows.select("user", part=part, order=order).with_row_index("row")
    numbered = numbered.with_columns(target=(pl.col("part") == TRAIN) & (known.cum_sum().over("user") > 1))
    available = int(numbered["target"].sum())
    if available < count:
        raise RecpeftError(
            f"data.split.few_shot is {count}, but only {available} train interactions have one before them; lower it."
        )
    # Sorted by row last: repeated pairs have the same hash.
    chosen = numbered.filter("target").sort("order", "row").head(count)["row"]
    learnt = pl.col("row").is_in(chosen.implode())
    return numbered.select(part=pl.when((pl.col("part") == TRAIN) & ~learnt).then(HISTORY).otherwise("part"))["part"]


def tie_hash(dataset: RecDataset, seed: int) -> pl.Series:
    """Return a uint64 for each row of the interactions, from the seed and the raw ids of user and item."""
    user = hash_ids(dataset.users["raw_id"], seed)[dataset.interactions["user"].to_numpy()]
    item = hash_ids(dataset.items["raw_id"], seed)[dataset.interactions["item"].to_numpy()]
    return pl.Series("tie", splitmix64(splitmix64(user) ^ item))  # (rows,)


def _new_in_test(parts: Split, key: str) -> int:
    """Return the number of users or items of test that are not in train."""
    test = parts.test[key].unique()
    return int((~test.is_in(parts.train[key].unique().implode())).sum())
