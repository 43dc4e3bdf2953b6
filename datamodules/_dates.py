"""Days as seconds."""

from __future__ import annotations

from datetime import UTC, date, datetime


def seconds(day: date) -> int:
    """The first second of ``day``, UTC, since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
