"""Random draws by a hash of ids: the same on every machine and for every file order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl


def hash_ids(raw_ids: pl.Series, seed: int) -> np.ndarray:
    """Hash each id by BLAKE2b with the seed as key, to a uint64."""
    key = str(seed).encode()
    digests = (hashlib.blake2b(raw.encode(), digest_size=8, key=key).digest() for raw in raw_ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def splitmix64(value: np.ndarray) -> np.ndarray:
    """Mix uint64 values (Steele, Lea & Flood 2014): a bijection in which each input bit moves half of the output."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def shares(raw_ids: pl.Series, ratios: Sequence[float], seed: int) -> pl.Series:
    """Draw TRAIN, VALIDATION or TEST for each id by its hash."""
    return share_of(splitmix64(hash_ids(raw_ids, seed)), ratios)


def share_of(hashes: np.ndarray, ratios: Sequence[float]) -> pl.Series:
    """Return TRAIN, VALIDATION or TEST for each uint64."""
    place = splitmix64(hashes.astype(np.uint64)) / 2.0**64  # uniform in [0, 1]
    part = np.searchsorted(np.cumsum(ratios)[:2], place, side="right")
    return pl.Series("part", part, dtype=pl.Int64)
