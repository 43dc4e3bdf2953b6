"""Make graded lists from scores, for modules, rankers and lists of other systems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics._lists import RankedLists, match, rank

TIE_SEED = 0
"""Seed of the draw that orders equal scores; the same for every run, so that results are comparable."""

Pairs = tuple[Tensor, Tensor]
"""Row of a user and item of each pair, (N,) int64 each."""


@dataclass(frozen=True)
class Allowed:
    """Items that the lists of U users may hold."""

    seen: Tensor
    """(U, I) bool: items excluded from lists because the user has seen them."""
    elsewhere: Tensor | None = None
    """(U, I) bool: other excluded items, which are not candidates or of another domain; None is none."""

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        seen: Pairs | None = None,
        outside: Tensor | None = None,
        candidates: Pairs | None = None,
    ) -> Allowed:
        """Build for U users and I items.

        Args:
            seen: pairs to exclude because the user has seen the item; None excludes nothing.
            outside: (U, I) bool, items of other domains; None if there is only one domain.
            candidates: the only pairs that lists may hold; None is the whole catalogue.
        """
        found = torch.zeros(shape, dtype=torch.bool, device=None if seen is None else seen[0].device)
        if seen is not None:
            found[seen] = True
        elsewhere = outside
        if candidates is not None:
            elsewhere = torch.ones_like(found)
            elsewhere[candidates] = False
            elsewhere = elsewhere if outside is None else elsewhere | outside
        return cls(found, elsewhere)

    @property
    def masked(self) -> Tensor:
        """Return (U, I) bool: all items excluded from lists."""
        return self.seen if self.elsewhere is None else self.seen | self.elsewhere


@dataclass(frozen=True)
class Relevant:
    """Held-out items of U users."""

    pairs: Pairs
    """Row of the user and item of each held-out pair."""
    grade: Tensor | None = None
    """(R,) grade of each pair; if any is negative or NaN, all grades are ignored."""

    @classmethod
    def nothing(cls) -> Relevant:
        """Return an empty set, for lists that are not evaluated."""
        return cls((torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)))

    def grading(self, lists: RankedLists) -> RankedLists:
        """Return the lists with grades, if every pair has one."""
        if self.grade is None or not (self.grade >= 0).all():
            return lists
        return lists.graded(self.pairs, self.grade)


def best_lists(
    scores: Tensor,
    users: Tensor,
    allowed: Allowed,
    relevant: Relevant,
    k: int,
    seed: int = TIE_SEED,
    tied_within: int | None = None,
) -> RankedLists:
    """Return the ``k`` best allowed items of each user, matched with the relevant items and graded.

    Args:
        scores: (U, I) float32, higher is better; -inf is never listed.
        users: (U,) int64 user ids.
        seed, tied_within: as :func:`metrics.rank`.
    Raises:
        ValueError: as :func:`metrics.rank`.
    """
    return relevant.grading(rank(scores, users, allowed.masked, relevant.pairs, k, seed, tied_within))


def given_lists(
    users: Tensor, item: Tensor, allowed: Allowed, relevant: Relevant, tied: Tensor | None = None
) -> RankedLists:
    """Return lists from another source, matched with the relevant items and graded.

    Args:
        users, item, tied: as :func:`metrics.match`.
        allowed: items that could be listed.
    Raises:
        ValueError: as :func:`metrics.match`.
    """
    masked = allowed.masked
    return relevant.grading(match(users, item, relevant.pairs, masked.shape[1], tied, ~masked))
