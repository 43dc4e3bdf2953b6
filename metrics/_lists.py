"""Ranked lists, the common format of rankers, modules and metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankedLists:
    """The top K of each user, best first, matched with the user's relevant items."""

    user: Tensor
    """(U,) int64: dense user ids."""
    item: Tensor
    """(U, K) int64: item ids, best first; -1 pads a list shorter than K or marks an empty place."""
    hit: Tensor
    """(U, K) bool: True if the item is relevant to the user; False on padding."""
    num_relevant: Tensor
    """(U,) int64: number of relevant held-out items, in the list or not."""
    tied: Tensor
    """(U,) bool: True if equal scores occurred in the user's top K (ordered by a seeded draw)."""
    relevant: tuple[Tensor, Tensor] | None = None
    """Row and item of each held-out pair, (R,) int64 each, distinct and ascending; needed by ``only``."""
    grade: Tensor | None = None
    """(R,) float64: grade of each pair of ``relevant``; see :meth:`graded`."""
    shown: tuple[Tensor, Tensor] | None = None
    """Row and item of each logged impression, if there are any."""
    allowed: Tensor | None = None
    """(U, I) bool: items that could be listed, as neither mask nor candidate set excluded them; None if unknown."""

    @property
    def listed(self) -> Tensor:
        """Return (U, K) bool: True if the place holds an item."""
        return self.item >= 0

    @property
    def places(self) -> Tensor:
        """Return (R,) int64: position of each pair of ``relevant`` among its user's pairs, from 0."""
        row, _ = self._pairs()
        first = torch.searchsorted(row, torch.arange(len(self.user), device=row.device))
        return torch.arange(len(row), device=row.device) - first[row]

    def graded(self, relevant: tuple[Tensor, Tensor], grade: Tensor) -> RankedLists:
        """Return the same lists with a grade (such as a rating) for each held-out pair.

        Args:
            relevant: row and item id of each held-out pair, as given to :func:`rank`, in any order.
            grade: (R,), at least 0. A repeated pair takes its last grade.
        Raises:
            ValueError: the pairs are not those of the lists, or a grade is negative or NaN.
        """
        row, item = self._pairs()
        if not (grade >= 0).all():
            raise ValueError("grades must be at least 0; some are not.")
        base = int(max(item.amax(), relevant[1].amax())) + 1 if len(item) and len(relevant[1]) else 1
        keys, wanted = row * base + item, relevant[0] * base + relevant[1]
        if not torch.equal(wanted.unique(), keys):
            raise ValueError("the graded pairs are not the held-out pairs of the lists; grade each of them.")
        order = wanted.sort(stable=True).indices
        last = torch.searchsorted(wanted[order], keys, right=True) - 1
        return replace(self, grade=grade.double()[order][last])

    def at_hits(self, values: Tensor) -> Tensor:
        """Return (U, K) float64: at each hit the value (R,) of its pair, 0 elsewhere."""
        row, item = self._pairs()
        place, rank = self.hit.nonzero(as_tuple=True)
        listed = self.item[place, rank]
        base = int(item.amax()) + 1 if len(item) else 1
        result = values.new_zeros(self.hit.shape, dtype=torch.float64)
        result[place, rank] = values.double()[torch.searchsorted(row * base + item, place * base + listed)]
        return result

    def _pairs(self) -> tuple[Tensor, Tensor]:
        if self.relevant is None:
            raise ValueError("the lists do not say what is relevant; make them with rank() or match().")
        return self.relevant

    def listable(self) -> Tensor:
        """Return ``allowed``.

        Raises:
            ValueError: ``allowed`` is unknown.
        """
        if self.allowed is None:
            raise ValueError("the lists do not say what could be listed; make them with rank(), or tell match() so.")
        return self.allowed

    def only(self, items: Tensor) -> RankedLists:
        """Return the same lists with only the ``items`` (I,) bool as relevant.

        Raises:
            ValueError: the lists do not hold ``relevant``.
        """
        row, item = self._pairs()
        kept = items[item]
        return replace(
            self,
            hit=self.hit & items[self.item.clamp(min=0)],
            num_relevant=torch.bincount(row[kept], minlength=len(self.user)),
            relevant=(row[kept], item[kept]),
            grade=None if self.grade is None else self.grade[kept],
        )

    def top(self, k: int) -> RankedLists:
        """Return the same lists cut at ``k``. ``tied`` stays that of the full lists.

        Raises:
            ValueError: ``k`` is below 1 or exceeds K.
        """
        if not 1 <= k <= self.item.shape[1]:
            raise ValueError(f"k is {k} but the lists hold {self.item.shape[1]} items; rank with a larger k.")
        if k == self.item.shape[1]:
            return self
        return replace(self, item=self.item[:, :k], hit=self.hit[:, :k])


def rank(
    scores: Tensor,
    users: Tensor,
    seen: Tensor | None,
    relevant: tuple[Tensor, Tensor],
    k: int,
    seed: int,
    tied_within: int | None = None,
) -> RankedLists:
    """Return the ``k`` best items of each user, with ties broken by a seeded draw.

    Equal scores are ordered by a hash of (seed, user id, item id): each tied item is equally likely to
    come first, whatever its id, and the order depends neither on the batch nor on ``k``. So a constant
    scorer gets chance level. The cost arises only for rows with equal scores in the top k.

    A relevant item that is masked as seen still counts in ``num_relevant`` and lowers the metrics, as it
    cannot be found.

    Args:
        scores: (U, I) float32, higher is better; an item with -inf is never listed.
        users: (U,) int64 user ids, one for each row of ``scores``.
        seen: (U, I) bool, True for items that must not be listed; None masks nothing.
        relevant: row of ``scores`` and item id of each held-out interaction, int64, in any order;
            repeated pairs count once.
        k: length of the lists; users with fewer items to list are padded by -1.
        seed: seed of the draw between equal scores.
        tied_within: number of first places in which ``tied`` looks for equal scores; None is all ``k``.
    Raises:
        ValueError: scores are NaN (the users are named), ``k`` is below 1, or ``relevant`` is out of range.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1.")
    broken = scores.isnan().any(1)
    if broken.any():
        ids = users[broken].tolist()
        more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
        raise ValueError(f"scores are NaN for users {', '.join(map(str, ids[:10]))}{more}; the model has diverged.")
    if seen is not None:
        scores = scores.masked_fill(seen, -torch.inf)
    num_items = scores.shape[1]
    length = min(k, num_items)
    # One item more than is listed shows a tie across the boundary.
    best, candidates = scores.topk(min(length + 1, num_items), dim=1)
    equal = (best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -torch.inf)
    item = scores.new_full((len(users), k), -1, dtype=torch.int64)
    item[:, :length] = candidates[:, :length].masked_fill(best[:, :length] == -torch.inf, -1)
    rows = equal.any(1).nonzero().squeeze(1)
    if len(rows):
        item[rows, :length] = _order_ties(scores[rows], users[rows], best[rows, length - 1], length, seed)
    return match(users, item, relevant, num_items, equal[:, :tied_within].any(1), scores > -torch.inf)


def match(
    users: Tensor,
    item: Tensor,
    relevant: tuple[Tensor, Tensor],
    num_items: int,
    tied: Tensor | None = None,
    allowed: Tensor | None = None,
) -> RankedLists:
    """Return lists from another source (reordered, generated), matched with the held-out items.

    Args:
        users: (U,) int64 user ids.
        item: (U, K) int64 item ids, best first, -1 is padding.
        relevant: row and item id of each held-out interaction, as in :func:`rank`.
        num_items: size of the catalogue.
        tied: (U,) bool; None for lists without ties.
        allowed: (U, I) bool, items that could be listed; None if unknown.
    Raises:
        ValueError: an id is out of range, or a list holds an item twice (its hit would count twice).
    """
    row, relevant_item = relevant
    num_users = len(users)
    for name, ids, low, high in [
        ("relevant rows", row, 0, num_users),
        ("relevant items", relevant_item, 0, num_items),
        ("listed items", item, -1, num_items),
    ]:
        if ids.numel():
            least, most = ids.aminmax()
            if least < low or most >= high:
                raise ValueError(f"{name} must be at least {low} and below {high}; some are not.")
    ascending = item.sort(1).values
    repeated = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    if repeated.any():
        raise ValueError(f"the lists of users {users[repeated.any(1)].tolist()[:10]} hold an item twice.")
    pairs = row * num_items + relevant_item
    if not (pairs[1:] > pairs[:-1]).all():  # sorted data need no sorting
        pairs = torch.unique(pairs)
        row = pairs // num_items
        relevant_item = pairs - row * num_items
    # A last key above all others makes every position from searchsorted valid.
    keys = torch.cat([pairs, pairs.new_full((1,), num_users * num_items)])
    wanted = torch.arange(num_users, device=item.device)[:, None] * num_items + item
    wanted.masked_fill_(item < 0, -1)
    hit = keys[torch.searchsorted(keys, wanted)] == wanted
    num_relevant = torch.bincount(row, minlength=num_users)
    if tied is None:
        tied = torch.zeros(num_users, dtype=torch.bool, device=item.device)
    return RankedLists(users, item, hit, num_relevant, tied, (row, relevant_item), allowed=allowed)


def _order_ties(scores: Tensor, users: Tensor, threshold: Tensor, length: int, seed: int) -> Tensor:
    """Return items (R, length) of rows (R, I) by descending score, then by the draw; -1 for scores of -inf."""
    # Only items with at least the last listed score can be listed: about `length` items, unless many are tied.
    row, item = ((scores >= threshold[:, None]) & (scores > -torch.inf)).nonzero(as_tuple=True)
    order = _draw(seed, users[row], item).argsort()
    order = order[scores[row, item][order].argsort(descending=True, stable=True)]
    order = order[row[order].argsort(stable=True)]
    row, item = row[order], item[order]
    first = torch.searchsorted(row, torch.arange(len(users), device=row.device))
    position = torch.arange(len(row), device=row.device) - first[row]
    listed = position < length
    result = item.new_full((len(users), length), -1)
    result[row[listed], position[listed]] = item[listed]
    return result


# Steele et al. 2014, "Fast splittable pseudorandom number generators" (splitmix64). Signed 64-bit
# arithmetic wraps around to the same bits as unsigned.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _draw(seed: int, user: Tensor, item: Tensor) -> Tensor:
    """Return an int64 hash of each (seed, user, item), distinct for the items of a user."""
    state = _mix(torch.full_like(user, seed) + _GAMMA)
    return _mix(_mix(state + user * _GAMMA) + item * _GAMMA)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's own shift repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
