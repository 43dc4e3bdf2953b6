"""Ranking: ties by a fair draw, seen items never listed, hits counted once."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from metrics import RankedLists, match, rank
from metrics.accuracy import hit_rate, ndcg, recall

SEED = 7
NOTHING = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


NUM_USERS, NUM_ITEMS = 40, 30


def random_case(seed: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores on few levels (many ties), user ids and seen masks, from nothing seen to everything seen."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (NUM_USERS, NUM_ITEMS), generator=draw).float()
    users = torch.randperm(1000, generator=draw)[:NUM_USERS]
    share = torch.rand(NUM_USERS, 1, generator=draw)
    seen = torch.rand(NUM_USERS, NUM_ITEMS, generator=draw) < share
    seen[0], seen[1] = True, False
    return scores, users, seen


@pytest.mark.parametrize("levels", [1, 3, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_lists_hold_the_best_unseen_items_and_name_their_ties(seed: int, levels: int) -> None:
    scores, users, seen = random_case(seed, levels)
    for k in (1, 5, 30, 50):
        lists = rank(scores, users, seen, NOTHING, k, SEED)
        assert lists.item.shape == (40, k)
        for u in range(40):
            unseen = [i for i in range(30) if not seen[u, i]]
            listed = [i for i in lists.item[u].tolist() if i != -1]
            assert lists.item[u].tolist() == listed + [-1] * (k - len(listed))
            assert len(set(listed)) == len(listed) == min(k, len(unseen))
            assert set(listed) <= set(unseen)
            by_score = sorted((scores[u, i].item() for i in unseen), reverse=True)
            assert [scores[u, i].item() for i in listed] == by_score[:k]
            touching = by_score[: k + 1]
            assert lists.tied[u].item() == any(a == b for a, b in pairwise(touching))


def test_untied_rows_are_ordered_by_score() -> None:
    lists = rank(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), torch.tensor([5]), None, NOTHING, 3, SEED)
    assert lists.item.tolist() == [[1, 2, 3]]
    assert lists.tied.tolist() == [False]
    assert lists.user.tolist() == [5]


@pytest.mark.parametrize("position", ["first", "last", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_constant_scorer_gets_chance_level(position: str, seed: int) -> None:
    num_users, num_items, k = 8000, 50, 10
    draw = torch.Generator().manual_seed(3)
    positive = {
        "first": torch.zeros(num_users, dtype=torch.int64),
        "last": torch.full((num_users,), num_items - 1),
        "random": torch.randint(0, num_items, (num_users,), generator=draw),
    }[position]
    users = torch.arange(num_users)
    lists = rank(torch.zeros(num_users, num_items), users, None, (users, positive), k, seed)
    assert lists.tied.all()
    chance = k / num_items
    assert hit_rate(lists, k).mean().item() == pytest.approx(
        chance, abs=4 * math.sqrt(chance * (1 - chance) / num_users)
    )
    # One relevant item, equally likely at each of the ranks: the gain's mean and standard error.
    gains = torch.tensor([1 / math.log2(r + 1) if r <= k else 0.0 for r in range(1, num_items + 1)])
    error = gains.std(correction=0).item() / math.sqrt(num_users)
    assert ndcg(lists, k).mean().item() == pytest.approx(gains.mean().item(), abs=4 * error)


def test_each_tied_item_is_equally_likely_at_each_rank() -> None:
    num_users, num_items = 6000, 6
    users = torch.arange(num_users)
    lists = rank(torch.ones(num_users, num_items), users, None, NOTHING, num_items, SEED)
    expected = num_users / num_items
    for place in range(num_items):
        count = torch.bincount(lists.item[:, place], minlength=num_items).double()
        chi_square = ((count - expected) ** 2 / expected).sum().item()
        assert chi_square < 20.5  # 99.9 % quantile at 5 degrees of freedom


def test_ties_across_the_boundary_leave_what_is_above_in_place() -> None:
    scores = torch.tensor([[1.0, 1.0, 9.0, 1.0, 5.0]]).expand(600, -1)
    lists = rank(scores, torch.arange(600), None, NOTHING, 3, SEED)
    assert lists.item[:, 0].unique().tolist() == [2]
    assert lists.item[:, 1].unique().tolist() == [4]
    assert lists.tied.all()
    counts = torch.bincount(lists.item[:, 2], minlength=5)[[0, 1, 3]]
    assert counts.min() > 150  # 200 expected, standard deviation 11.5


def test_the_tie_decision_depends_on_neither_batch_nor_k() -> None:
    scores, users, seen = random_case(0, levels=3)
    whole = rank(scores, users, seen, NOTHING, 10, SEED)
    for part in (slice(0, 1), slice(1, 8), slice(8, 40)):
        split = rank(scores[part], users[part], seen[part], NOTHING, 10, SEED)
        assert torch.equal(split.item, whole.item[part])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = rank(scores[order], users[order], seen[order], NOTHING, 10, SEED)
    assert torch.equal(shuffled.item, whole.item[order])
    assert torch.equal(rank(scores, users, seen, NOTHING, 4, SEED).item, whole.item[:, :4])


def test_the_draw_is_reproducible_and_differs_between_seeds_and_users() -> None:
    scores, users = torch.zeros(2, 20), torch.tensor([3, 4])
    lists = rank(scores, users, None, NOTHING, 20, 0).item
    assert torch.equal(lists, rank(scores, users, None, NOTHING, 20, 0).item)
    assert not torch.equal(lists, rank(scores, users, None, NOTHING, 20, 1).item)
    assert not torch.equal(lists[0], lists[1])


def test_the_draw_is_splitmix64() -> None:
    """Against the published algorithm in Python integers, for negative and large intermediate values."""
    from metrics._lists import _draw

    bits = 2**64

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % bits
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % bits
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    assert mix(gamma) == 0xE220A8397B1DCDAF  # first output of the reference splitmix64 for seed 0
    for seed, user, item in [(0, 0, 0), (1, 2, 3), (12345, 10**6, 999)]:
        expected = mix((mix((mix((seed + gamma) % bits) + user * gamma) % bits) + item * gamma) % bits)
        assert _draw(seed, torch.tensor([user]), torch.tensor([item])).item() % bits == expected


def test_barred_items_are_never_listed() -> None:
    scores = torch.tensor([[-math.inf, 2.0, math.inf, -math.inf]])
    lists = rank(scores, torch.tensor([0]), torch.tensor([[False, True, False, False]]), NOTHING, 3, SEED)
    assert lists.item.tolist() == [[2, -1, -1]]
    assert not lists.tied.item()


def test_hits_and_relevant_items_are_counted_once() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4]])
    seen = torch.zeros(3, 4, dtype=torch.bool)
    seen[1, 3] = True
    # User 0: items 0 and 2, pair (0, 2) twice. User 1: item 3, which is masked, and item 0. User 2: none.
    relevant = (torch.tensor([1, 0, 0, 0, 1]), torch.tensor([3, 2, 0, 2, 0]))
    lists = rank(scores, torch.tensor([8, 3, 6]), seen, relevant, 3, SEED)
    assert lists.item.tolist() == [[0, 1, 2], [2, 1, 0], [3, 2, 1]]
    assert lists.hit.tolist() == [[True, False, True], [False, False, True], [False, False, False]]
    assert lists.num_relevant.tolist() == [2, 2, 0]


@pytest.mark.parametrize("seed", range(3))
def test_hits_equal_a_loop_over_sets(seed: int) -> None:
    scores, users, seen = random_case(seed, levels=1000)
    draw = torch.Generator().manual_seed(seed)
    row = torch.randint(0, 40, (200,), generator=draw)
    item = torch.randint(0, 30, (200,), generator=draw)
    lists = rank(scores, users, seen, (row, item), 10, SEED)
    for u in range(40):
        wanted = {i for r, i in zip(row.tolist(), item.tolist(), strict=True) if r == u}
        assert lists.num_relevant[u] == len(wanted)
        assert lists.hit[u].tolist() == [i in wanted for i in lists.item[u].tolist()]


def test_padding_is_no_hit_for_the_last_item_of_the_row_before() -> None:
    lists = match(torch.tensor([0, 1]), torch.tensor([[0], [-1]]), (torch.tensor([0]), torch.tensor([4])), 5)
    assert lists.hit.tolist() == [[False], [False]]


def test_nan_scores_name_their_users() -> None:
    scores = torch.zeros(3, 2)
    scores[1, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN for users 17;"):
        rank(scores, torch.tensor([4, 17, 5]), None, NOTHING, 1, SEED)


@pytest.mark.parametrize(("row", "item"), [(2, 0), (-1, 0), (0, 5), (0, -1)])
def test_relevant_pairs_out_of_range_are_refused(row: int, item: int) -> None:
    with pytest.raises(ValueError, match="relevant"):
        rank(torch.zeros(2, 5), torch.arange(2), None, (torch.tensor([row]), torch.tensor([item])), 1, SEED)


def test_a_list_that_repeats_an_item_is_refused() -> None:
    with pytest.raises(ValueError, match=r"users \[9\] hold an item twice"):
        match(torch.tensor([8, 9]), torch.tensor([[1, -1, -1], [2, 0, 2]]), NOTHING, 5)
    with pytest.raises(ValueError, match="listed items"):
        match(torch.tensor([8]), torch.tensor([[5]]), NOTHING, 5)


@pytest.mark.parametrize("k", [0, 4])
def test_lists_cannot_be_cut_beyond_their_length(k: int) -> None:
    lists: RankedLists = rank(torch.zeros(2, 5), torch.arange(2), None, NOTHING, 3, SEED)
    with pytest.raises(ValueError, match=f"k is {k} but the lists hold 3"):
        lists.top(k)


def test_a_batch_without_users_ranks_to_empty_lists() -> None:
    lists = rank(torch.zeros(0, 5), torch.empty(0, dtype=torch.int64), None, NOTHING, 3, SEED)
    assert lists.item.shape == lists.hit.shape == (0, 3)


def by_hand(listed: list[int], relevant: set[int], k: int) -> tuple[float, float]:
    """ndcg and recall of one list; NaN where nothing is relevant."""
    if not relevant:
        return math.nan, math.nan
    gain = sum(1 / math.log2(place + 2) for place, item in enumerate(listed[:k]) if item in relevant)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return gain / ideal, len(set(listed[:k]) & relevant) / len(relevant)


@pytest.mark.parametrize("seed", range(3))
def test_only_counts_the_given_items_as_relevant_and_keeps_the_lists(seed: int) -> None:
    scores, users, seen = random_case(seed, 10_000)
    draw = torch.Generator().manual_seed(seed)
    relevant = torch.rand(NUM_USERS, NUM_ITEMS, generator=draw) < 0.2
    chosen = torch.rand(NUM_ITEMS, generator=draw) < 0.5
    lists = rank(scores, users, seen, relevant.nonzero(as_tuple=True), 10, SEED)
    only = lists.only(chosen)
    assert torch.equal(only.item, lists.item)
    assert torch.equal(only.user, lists.user)
    assert torch.equal(only.tied, lists.tied)
    for k in (1, 4, 10):
        for row, (gain, share) in enumerate(zip(ndcg(only, k).tolist(), recall(only, k).tolist(), strict=True)):
            left = {i for i in range(NUM_ITEMS) if relevant[row, i] and chosen[i]}
            assert (gain, share) == pytest.approx(by_hand(lists.item[row].tolist(), left, k), nan_ok=True)
    assert only.num_relevant.tolist() == (relevant & chosen).sum(1).tolist()
    assert not only.hit[lists.item < 0].any()


def test_only_of_only_is_what_both_hold_and_of_all_items_is_the_same_lists() -> None:
    scores, users, _ = random_case(1, 10_000)
    pairs = (torch.tensor([0, 0, 1, 5, 5, 5]), torch.tensor([3, 4, 3, 0, 1, 2]))
    lists = rank(scores, users, None, pairs, 30, SEED)
    same = lists.only(torch.ones(NUM_ITEMS, dtype=torch.bool))
    assert torch.equal(same.hit, lists.hit)
    assert torch.equal(same.num_relevant, lists.num_relevant)
    first, second = (torch.tensor([item in found for item in range(NUM_ITEMS)]) for found in ({1, 2, 3}, {3, 4, 1}))
    twice, once = lists.only(first).only(second), lists.only(first & second)
    assert torch.equal(twice.hit, once.hit)
    assert twice.num_relevant.tolist() == once.num_relevant.tolist() == [1, 1, 0, 0, 0, 1, *[0] * 34]
    none = lists.only(torch.zeros(NUM_ITEMS, dtype=torch.bool))
    assert not none.hit.any()
    assert not none.num_relevant.any()


def test_a_pair_that_repeats_counts_once_in_only_too() -> None:
    pairs = (torch.tensor([0, 0, 0]), torch.tensor([2, 2, 1]))
    lists = match(torch.tensor([7]), torch.tensor([[2, 0]]), pairs, 3)
    assert lists.only(torch.tensor([False, False, True])).num_relevant.tolist() == [1]


def test_lists_that_do_not_say_what_is_relevant_are_refused_by_only() -> None:
    lists = match(torch.tensor([7]), torch.tensor([[2, 0]]), NOTHING, 3)
    bare = RankedLists(lists.user, lists.item, lists.hit, lists.num_relevant, lists.tied)
    with pytest.raises(ValueError, match="do not say what is relevant"):
        bare.only(torch.ones(3, dtype=torch.bool))
