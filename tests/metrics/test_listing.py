"""From scores to graded lists: what may be listed, and what is found."""

from __future__ import annotations

import torch

from metrics._listing import Allowed, Relevant, best_lists, given_lists

SEEN = torch.tensor([0, 1]), torch.tensor([3, 0])
OUTSIDE = torch.tensor([[False] * 4, [False, False, True, False]])
CANDIDATES = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 3, 0, 2, 3])
SCORES = torch.tensor([[1.0, 4, 3, 5], [9.0, 2, 8, 1]])
USERS = torch.tensor([7, 8])


def test_lists_hold_neither_what_was_seen_nor_other_domains_nor_what_is_no_candidate() -> None:
    """User 7 has seen item 3; user 8 item 0, and item 2 is of another domain."""
    allowed = {
        "everything": Allowed.of((2, 4)),
        "unseen": Allowed.of((2, 4), SEEN),
        "own domain": Allowed.of((2, 4), SEEN, OUTSIDE),
        "candidates": Allowed.of((2, 4), SEEN, OUTSIDE, CANDIDATES),
    }
    lists = {name: best_lists(SCORES, USERS, each, Relevant.nothing(), 4) for name, each in allowed.items()}
    assert {name: found.item.tolist() for name, found in lists.items()} == {
        "everything": [[3, 1, 2, 0], [0, 2, 1, 3]],
        "unseen": [[1, 2, 0, -1], [2, 1, 3, -1]],
        "own domain": [[1, 2, 0, -1], [1, 3, -1, -1]],
        "candidates": [[0, -1, -1, -1], [3, -1, -1, -1]],
    }
    for name, found in lists.items():
        assert torch.equal(found.listable(), ~allowed[name].masked)
        given = given_lists(USERS, found.item, allowed[name], Relevant.nothing())
        assert torch.equal(given.listable(), found.listable())


def test_lists_have_grades_where_each_held_out_pair_has_one() -> None:
    pairs = torch.tensor([1, 0]), torch.tensor([1, 2])
    for grade, expected in (([3.0, 5.0], [5.0, 3.0]), ([3.0, float("nan")], None), ([3.0, -1.0], None), (None, None)):
        relevant = Relevant(pairs, None if grade is None else torch.tensor(grade))
        lists = best_lists(SCORES, USERS, Allowed.of((2, 4)), relevant, 2)
        assert (None if lists.grade is None else lists.grade.tolist()) == expected
        assert given_lists(USERS, lists.item, Allowed.of((2, 4)), relevant).hit.tolist() == lists.hit.tolist()
