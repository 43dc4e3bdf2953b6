"""Sampled candidate sets: drawn from a seed, the same on every machine and for every run."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from datamodules._dataset import RecDataset
from datamodules._hashing import hash_ids, splitmix64
from datamodules._splits import Split
from recpeft.errors import RecpeftError

Weighting = Literal["uniform", "popularity"]


def sampled(
    dataset: RecDataset,
    parts: Split,
    *,
    at_test: bool,
    size: int,
    seed: int,
    weighting: Weighting,
) -> pl.DataFrame:
    """Return each user's held-out items and ``size`` others, drawn without replacement.

    The others exclude the user's items up to the end of the ranked part. Validation's others may include the user's
    test items: excluding them would leak which they are. A draw depends only on the seed and the user's own id and
    uses only integer arithmetic, so neither other users nor a library's version change it.

    Args:
        at_test: draw for test; else for validation.
    Returns:
        user, item (dense), sorted by user and item.
    Raises:
        RecpeftError: a user has fewer than ``size`` such items (for ``popularity``, such items with a train row).
    """
    rows = parts.test if at_test else parts.validation
    held_out = parts.liked(rows)
    taken = pl.concat([part.select("user", "item") for part in (rows, parts.known(at_test=at_test))]).unique()
    users = held_out["user"].unique().sort()
    weight = np.ones(dataset.num_items)
    if weighting == "popularity":
        weight = np.bincount(parts.train["item"].to_numpy(), minlength=dataset.num_items).astype(np.float64)
    own = _own_items(dataset, weight)
    pieces = []
    of_user = taken.filter(pl.col("user").is_in(users.implode())).sort("user")
    bounds = np.searchsorted(of_user["user"].to_numpy(), [users.to_numpy(), users.to_numpy() + 1])
    items = of_user["item"].to_numpy()
    hashes = hash_ids(dataset.users["raw_id"].gather(users), seed)
    domains = _domains(dataset.users).gather(users).to_list()
    short = []
    for user, user_hash, domain, start, stop in zip(users.to_list(), hashes, domains, *bounds, strict=True):
        pool, shares = own[domain]
        drawn = _draw(user_hash, pool, shares, items[start:stop], size)
        if len(drawn) < size:
            short.append((user, len(drawn)))
        pieces.append(pl.DataFrame({"user": [user] * len(drawn), "item": drawn}, {"user": pl.Int32, "item": pl.Int32}))
    if short:
        user, found = short[0]
        raise RecpeftError(
            f"evaluation.candidates.size is {size}, but {len(short)} of {len(users)} users have fewer items to draw "
            f"from, such as user {dataset.users['raw_id'][user]!r} with {found}; lower size or use candidates: full."
        )
    positives = held_out.select("user", "item").unique()
    return pl.concat([*pieces, positives]).sort("user", "item")


def unavailable(dataset: RecDataset, users: np.ndarray) -> np.ndarray | None:
    """Return (U, I) bool: items outside the user's domain; None without domains."""
    if "domain" not in dataset.items.columns:
        return None
    return outside(dataset, dataset.users["domain"].gather(users))


def outside(dataset: RecDataset, domain: pl.Series) -> np.ndarray:
    """Return (n, I) bool: items outside each of ``domain`` (n,)."""
    return np.asarray(domain.to_numpy()[:, None] != dataset.items["domain"].to_numpy()[None, :])


def _domains(table: pl.DataFrame) -> pl.Series:
    return table["domain"] if "domain" in table.columns else pl.repeat("", table.height, eager=True)


def _own_items(dataset: RecDataset, weight: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each domain's items that can be drawn, and the cumulative sum of their weights."""
    domain = _domains(dataset.items).to_numpy()
    found = {}
    for name in np.unique(domain):
        pool = np.flatnonzero((domain == name) & (weight > 0))
        found[str(name)] = (pool, np.cumsum(weight[pool]))
    return found


def _draw(key: np.uint64, pool: np.ndarray, shares: np.ndarray, taken: np.ndarray, size: int) -> np.ndarray:
    """Draw ``size`` distinct items of ``pool`` that are not ``taken``, from the user's stream of random numbers.

    Drawing with replacement and skipping repeated items is equivalent to drawing without replacement.
    """
    free = len(pool) - int(np.isin(pool, taken).sum())
    wanted = min(size, free)
    drawn = np.empty(0, np.int64)
    start, block = 0, 2 * size + 16
    while len(drawn) < wanted:
        counter = np.arange(start, start + block, dtype=np.uint64)
        place = (splitmix64(splitmix64(counter) ^ key) >> np.uint64(11)) * 2.0**-53 * shares[-1]
        more = pool[np.searchsorted(shares, place, side="right")]
        drawn = np.concatenate([drawn, more[~np.isin(more, taken)]])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        start += block
        if start > 1000 * (len(pool) + size):
            # The weights are so uneven that the last items would hardly ever be drawn: take them in order.
            rest = pool[~np.isin(pool, taken) & ~np.isin(pool, drawn)]
            drawn = np.concatenate([drawn, rest])
    return drawn[:wanted]
