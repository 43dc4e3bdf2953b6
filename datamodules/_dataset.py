"""The data set every source returns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class RecDataset:
    """Interactions and the text of their users and items.

    Dense ids are ranks among the sorted raw ids, so they do not depend on the order of a file.
    """

    name: str
    interactions: pl.DataFrame
    """user, item: dense Int32; rating: Float32 or null; timestamp: Int64 seconds or null."""
    users: pl.DataFrame
    """user: Int32 0..n-1, sorted; raw_id: String; attributes such as gender, age_group, occupation."""
    items: pl.DataFrame
    """item: Int32 0..n-1, sorted; raw_id, title: String; categories: List(String); further columns."""

    @property
    def num_users(self) -> int:
        return self.users.height

    @property
    def num_items(self) -> int:
        return self.items.height

    def hash(self) -> str:
        """16 hex digits over all three tables' contents; row order of the interactions does not matter."""
        rows = self.interactions.select("user", "item", "rating", "timestamp")
        return frame_hash(rows.sort("user", "item", "timestamp", "rating"), self.users, self.items)


def frame_hash(*frames: pl.DataFrame) -> str:
    """16 hex digits over names, types and values of ``frames``, stable between machines and versions.

    Numbers enter as little-endian bytes, text and lists as JSON: neither depends on how polars prints.
    """
    state = hashlib.sha256()
    for frame in frames:
        schema = [(name, str(dtype)) for name, dtype in frame.schema.items()]
        state.update(json.dumps([schema, frame.height]).encode())
        for column in frame:
            if column.dtype.is_numeric():
                values = column.fill_null(0).to_numpy()
                state.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
                state.update(column.is_null().to_numpy().tobytes())
            else:
                state.update(json.dumps(column.to_list()).encode())
    return state.hexdigest()[:16]
