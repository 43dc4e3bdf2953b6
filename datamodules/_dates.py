"""Days as seconds."""

from __future__ import annotations

from datetime import UTC, date, datetime


def seconds(day: date) -> int:
    """Return the start of ``day`` (UTC) in seconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
