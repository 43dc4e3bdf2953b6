"""From scores to graded lists, for modules, rankers and lists of other systems alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics._lists import RankedLists, match, rank

TIE_SEED = 0
"""Seed of the draw that orders equal scores: the same for every run, so that tables compare like with like."""

Pairs = tuple[Tensor, Tensor]
"""Row of a user and item of each pair, (N,) int64 each."""


@dataclass(frozen=True)
class Allowed:
    """Which items the lists of U users may hold."""

    seen: Tensor
    """(U, I) bool: items that lists leave out since the user has met them."""
    elsewhere: Tensor | None = None
    """(U, I) bool: other items that lists leave out, as they are no candidates or of another domain; None is none."""

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        seen: Pairs | None = None,
        outside: Tensor | None = None,
        candidates: Pairs | None = None,
    ) -> Allowed:
        """Of U users and I items.

        Args:
            seen: what lists leave out since the user has met it; None leaves out nothing.
            outside: (U, I) bool, items of other domains; None where there is one.
            candidates: the only items that lists may hold; None is the whole catalogue.
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
        """(U, I) bool: the items that lists leave out."""
        return self.seen if self.elsewhere is None else self.seen | self.elsewhere


@dataclass(frozen=True)
class Relevant:
    """What is to be found of U users."""

    pairs: Pairs
    """Row of the user and item of each held-out pair."""
    grade: Tensor | None = None
    """(R,) how relevant each is; where one is negative or NaN none counts."""

    @classmethod
    def nothing(cls) -> Relevant:
        """Where lists are made and not judged."""
        return cls((torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)))

    def grading(self, lists: RankedLists) -> RankedLists:
        """The lists with grades, where every pair has one."""
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
    """The ``k`` best allowed items of each user, matched with what is relevant, and graded.

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
    """Lists that come from elsewhere, matched with what is relevant, and graded.

    Args:
        users, item, tied: as :func:`metrics.match`.
        allowed: what could be listed.
    Raises:
        ValueError: as :func:`metrics.match`.
    """
    masked = allowed.masked
    return relevant.grading(match(users, item, relevant.pairs, masked.shape[1], tied, ~masked))
