"""The data set every source returns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import polars as pl


@dataclass(frozen=True)
class RecDataset:
    """Interactions, and the texts of their users and items.

    Dense ids are ranks among the sorted raw ids, so they do not depend on the order of a file.
    """

    name: str
    interactions: pl.DataFrame
    """user, item: dense Int32; rating: Float32 or null; timestamp: seconds since 1970 or null, Int64
    where all are whole (:func:`whole_seconds`), else Float64, which tells a microsecond apart."""
    users: pl.DataFrame
    """user: Int32 0..n-1, sorted; raw_id: String; attributes such as gender, age_group, occupation."""
    items: pl.DataFrame
    """item: Int32 0..n-1, sorted; raw_id, title: String; categories: List(String); further columns."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Counts of rows that the source dropped by data.duplicates, data.unknown_ids and data.empty_text."""
    optional: dict[str, pl.Expr] = field(default_factory=dict)
    """Item columns that an optional file or option adds, each with the value that a template which tests for it
    (``{% if tags %}``) reads if the table lacks it."""
    clock: bool = True
    """True if times are moments; False if they only count each user's interactions and do not compare users."""

    @property
    def num_users(self) -> int:
        return self.users.height

    @property
    def num_items(self) -> int:
        return self.items.height

    def hash(self) -> str:
        """Return 16 hex digits over all three tables' contents; row order of the interactions does not matter."""
        rows = self.interactions.select("user", "item", "rating", "timestamp")
        return frame_hash(rows.sort("user", "item", "timestamp", "rating"), self.users, self.items)


def whole_seconds(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``rows`` with ``timestamp`` as Int64 if all times are whole seconds, else as Float64."""
    time = rows["timestamp"].cast(pl.Float64)
    return rows.with_columns(timestamp=time.cast(pl.Int64) if (time == time.floor()).all() else time)


def frame_hash(*frames: pl.DataFrame) -> str:
    """Return 16 hex digits over names, types and values of ``frames``, stable between machines and versions.

    Numbers are hashed as little-endian bytes, text as its lengths and its UTF-8, lists as their lengths and their
    elements; none of this depends on how polars stores or prints values.
    """
    state = hashlib.sha256()
    for frame in frames:
        schema = [(name, str(dtype)) for name, dtype in frame.schema.items()]
        state.update(json.dumps([schema, frame.height]).encode())
        for column in frame:
            _hash_column(state, column)
    return state.hexdigest()[:16]


def _hash_column(state: hashlib._Hash, column: pl.Series) -> None:
    state.update(column.is_null().to_numpy().tobytes())
    if column.dtype.is_nested():
        _hash_column(state, column.list.len())
        _hash_column(state, column.drop_nulls().explode(empty_as_null=False))
    elif column.dtype.is_numeric() or isinstance(column.dtype, pl.Boolean):
        values = column.fill_null(False if isinstance(column.dtype, pl.Boolean) else 0).to_numpy()
        state.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).data)
    else:
        text = column.cast(pl.String).fill_null("")
        _hash_column(state, text.str.len_bytes())
        state.update("".join(text.to_list()).encode())
