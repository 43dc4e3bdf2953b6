"""Reordering against loops in plain Python, and what every method must do, a new one too."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules._groups import GroupConfig
from metrics._history import History
from metrics._lists import RankedLists, match
from metrics.calibration import category_profile, miscalibration
from metrics.diversity import ild_cosine, ild_jaccard
from rankers.diversify._base import DiversifyConfig, Given
from recpeft import plugins
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin

FOLDER = "rankers.diversify"
NAMES = plugins.names(FOLDER)
USERS, ITEMS, CATEGORIES, PLACES = 14, 40, 5, 12

NOTHING = torch.zeros(0, dtype=torch.int64)


def config_of(name: str, strength: float = 0.5, **options: Any) -> DiversifyConfig:
    config = build_plugin(FOLDER, "method", {"method": name, "strength": strength, **options}, "diversify")
    assert isinstance(config, DiversifyConfig)
    return config


def reordered(
    name: str,
    lists: tuple[Tensor, Tensor, Tensor],
    k: int,
    given: Given,
    strength: float = 0.5,
    **options: Any,
) -> Tensor:
    found = plugins.load(FOLDER, name).reorder(*lists, k, config_of(name, strength, **options), given)
    assert isinstance(found, Tensor)
    return found


def catalogue(seed: int, exclusive: bool = False, bare: bool = True) -> Given:
    """Items of which some have no category or are in no group (``bare``), and users of whom some have no profile."""
    draw = np.random.default_rng(seed)
    categories = draw.random((ITEMS, CATEGORIES)) < 0.35
    groups = draw.random((ITEMS, 3)) < 0.35
    if exclusive:
        groups = draw.choice(3, ITEMS, p=[0.2, 0.3, 0.5])[:, None] == np.arange(3)
    if bare:
        categories[::7] = False
        groups[3::9] = False
    else:
        categories[~categories.any(1), 0] = True
    embeddings = draw.normal(size=(ITEMS, 4)).astype(np.float32)
    embeddings[5] = 0
    user, item = (draw.random((USERS, ITEMS)) < 0.2).nonzero()
    kept = user != 2  # a user without history
    history = History.of(torch.tensor(user[kept]), torch.tensor(item[kept]), USERS, ITEMS)
    table = torch.tensor(categories)
    return Given(
        categories=table,
        embeddings=torch.tensor(embeddings),
        profile=category_profile(history, table),
        train_counts=history.train_counts,
        item_groups=torch.tensor(groups),
        group_names=["a", "b", "c"],
    )


def lists_of(seed: int, tied: bool, full: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """item (U, N), score (U, N), user (U,): short lists, an empty one, constant scores, users in no order."""
    draw = np.random.default_rng([seed, 1])
    item = np.stack([draw.permutation(ITEMS)[:PLACES] for _ in range(USERS)])
    drawn = draw.integers(-2, 3, item.shape) if tied else draw.normal(0, 3, item.shape)
    score = -np.sort(-drawn.astype(np.float32), 1)
    score[4] = 1.5
    if not full:
        for row, length in enumerate(draw.integers(1, PLACES + 1, USERS)):
            item[row, length:] = -1
        item[1] = -1
        item[3, 1:] = -1
    return torch.tensor(item), torch.tensor(score), torch.tensor(draw.permutation(USERS))


CASES = [(seed, tied) for seed in range(4) for tied in (False, True)]


def as_lists(item: Tensor, user: Tensor) -> RankedLists:
    return match(user, item, (NOTHING, NOTHING), ITEMS)


# The same by loops -------------------------------------------------------------------------------------


def by_loops(
    lists: tuple[Tensor, Tensor, Tensor],
    k: int,
    depth: int,
    choose: Callable[[int, list[int], dict[int, Fraction]], list[int]],
) -> list[list[int]]:
    """``choose`` orders one user's items (user, items best first, relevance of each); the rest is as all have it."""
    item, score, user = (column.tolist() for column in lists)
    result = []
    for row, items in enumerate(item):
        ids = [one for one in items if one >= 0]
        pool = ids[:depth]
        values = [Fraction(value) for value in score[row][: len(pool)]]
        low, high = min(values, default=Fraction(0)), max(values, default=Fraction(0))
        relevance = {
            one: (value - low) / (high - low) if high > low else Fraction(1)
            for one, value in zip(pool, values, strict=True)
        }
        found = (choose(user[row], pool, relevance) + ids[depth:])[:k]
        result.append(found + [-1] * (min(k, len(items)) - len(found)))
    return result


def first_best(left: Sequence[int], value: Callable[[int], Any]) -> int:
    """Of equal values the first; logs and roots are only equal to within rounding."""
    values = [value(one) for one in left]
    return next(one for one, found in zip(left, values, strict=True) if found >= max(values) - 1e-12)


def greedily(pool: list[int], value: Callable[[list[int], int], Any]) -> list[int]:
    chosen: list[int] = []
    left = list(pool)
    while left:
        chosen.append(first_best(left, lambda one: value(chosen, one)))
        left.remove(chosen[-1])
    return chosen


def mmr_by_loops(given: Given, strength: float, similarity: str) -> Callable[..., list[int]]:
    sets = [frozenset(row.nonzero().flatten().tolist()) for row in given.categories]
    vectors = given.embeddings.double().numpy()

    def similar(a: int, b: int) -> Any:
        if similarity == "categories":
            union = len(sets[a] | sets[b])
            return Fraction(len(sets[a] & sets[b]), union) if union else Fraction(0)
        lengths = math.hypot(*vectors[a]) * math.hypot(*vectors[b])
        return math.fsum(vectors[a] * vectors[b]) / lengths if lengths else 0.0

    def choose(user: int, pool: list[int], relevance: dict[int, Fraction]) -> list[int]:
        def value(chosen: list[int], one: int) -> Any:
            nearest = max((similar(one, other) for other in chosen), default=0)
            return (1 - Fraction(strength)) * relevance[one] - Fraction(strength) * Fraction(nearest)

        return greedily(pool, value)

    return choose


def calibrated_by_loops(given: Given, strength: float) -> Callable[..., list[int]]:
    sets = [row.nonzero().flatten().tolist() for row in given.categories]

    def divergence(p: list[float], items: list[int]) -> float:
        told = [sets[one] for one in items if sets[one]]
        result = 0.0
        for g, share in enumerate(p):
            if share > 0:  # a NaN profile is none
                q = math.fsum(1 / len(own) for own in told if g in own) / len(told) if told else 0.0
                result += share * math.log(share / (0.99 * q + 0.01 * share))
        return result

    def choose(user: int, pool: list[int], relevance: dict[int, Fraction]) -> list[int]:
        p = given.profile[user].tolist()

        def value(chosen: list[int], one: int) -> float:
            total = float(sum(relevance[other] for other in (*chosen, one)))
            return (1 - strength) * total - strength * divergence(p, [*chosen, one])

        return greedily(pool, value)

    return choose


def least_counts(given: Given, strength: float, target: str, pool: list[int]) -> list[list[int]]:
    """Of each group at each length r = 0, 1, …, in exact fractions."""
    assert given.item_groups is not None
    member = given.item_groups.tolist()
    weight = given.train_counts.tolist() if target == "train" else [1] * ITEMS
    result = []
    for group in range(3):
        share = Fraction(sum(w for w, own in zip(weight, member, strict=True) if own[group]), sum(weight))
        available = sum(member[one][group] for one in pool)
        exact = Fraction(str(strength)) * share
        result.append([min(math.floor(exact * r), available) for r in range(len(pool) + 1)])
    return result


def exposure_by_loops(given: Given, strength: float, target: str) -> Callable[..., list[int]]:
    assert given.item_groups is not None
    member = given.item_groups.tolist()

    def choose(user: int, pool: list[int], relevance: dict[int, Fraction]) -> list[int]:
        least = least_counts(given, strength, target, pool)
        at_once = max((sum(member[one]) for one in pool), default=0)
        chosen: list[int] = []
        for place in range(1, len(pool) + 1):
            count = [sum(member[one][group] for one in chosen) for group in range(3)]
            left = [one for one in pool if one not in chosen]
            for later in range(place, len(pool) + 1):
                need = [max(0, least[group][later] - count[group]) for group in range(3)]
                if sum(need) > (later - place) * at_once:
                    left = [one for one in left if any(n and m for n, m in zip(need, member[one], strict=True))]
                    break
            chosen.append(left[0])
        return chosen

    return choose


@pytest.mark.parametrize(("seed", "tied"), CASES)
@pytest.mark.parametrize("similarity", ["categories", "embeddings"])
@pytest.mark.parametrize(("strength", "k", "depth"), [(0.1, 5, 100), (0.3, 12, 100), (0.7, 20, 7), (1.0, 12, 100)])
def test_mmr_is_carbonell_and_goldsteins(
    seed: int, tied: bool, similarity: str, strength: float, k: int, depth: int
) -> None:
    given, lists = catalogue(seed), lists_of(seed, tied)
    expected = by_loops(lists, k, depth, mmr_by_loops(given, strength, similarity))
    assert reordered("mmr", lists, k, given, strength, similarity=similarity, depth=depth).tolist() == expected


@pytest.mark.parametrize(("seed", "tied"), CASES)
@pytest.mark.parametrize(("strength", "k", "depth"), [(0.1, 5, 100), (0.3, 12, 100), (0.7, 20, 7), (1.0, 12, 100)])
def test_calibrated_is_stecks(seed: int, tied: bool, strength: float, k: int, depth: int) -> None:
    given, lists = catalogue(seed), lists_of(seed, tied)
    expected = by_loops(lists, k, depth, calibrated_by_loops(given, strength))
    assert reordered("calibrated", lists, k, given, strength, depth=depth).tolist() == expected


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("target", ["catalogue", "train"])
@pytest.mark.parametrize(
    ("strength", "k", "depth"), [(0.3, 5, 100), (0.6, 12, 100), (0.9, 20, 7), (1.0, 5, 100), (1.0, 12, 100)]
)
def test_exposure_meets_needs_ahead_as_written(
    exclusive: bool, target: str, strength: float, k: int, depth: int
) -> None:
    for seed in range(6):
        given, lists = catalogue(seed, exclusive), lists_of(seed, tied=True)
        expected = by_loops(lists, k, depth, exposure_by_loops(given, strength, target))
        assert reordered("exposure", lists, k, given, strength, target=target, depth=depth).tolist() == expected


# By hand -----------------------------------------------------------------------------------------------


def four_items(categories: list[list[int]], profile: list[float], groups: list[list[int]] | None = None) -> Given:
    return Given(
        categories=torch.tensor(categories, dtype=torch.bool),
        embeddings=torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0, 1]]),
        profile=torch.tensor([profile], dtype=torch.float64),
        train_counts=torch.tensor([7, 1, 1, 1]),
        item_groups=None if groups is None else torch.tensor(groups, dtype=torch.bool),
    )


FOUR = (torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4.0, 3, 2, 1]]), torch.tensor([0]))


def test_mmr_by_hand() -> None:
    given = four_items([[1, 0], [1, 0], [1, 1], [0, 1]], [1, 0])
    # Relevance 1, 2/3, 1/3, 0. After item 0 at strength 1/2: 1/3 - 1/2, 1/6 - 1/4, 0 - 0: item 3. Then item 1 has
    # 1/3 - 1/2 = -1/6 and item 2 has 1/6 - 1/4 (its half of either) = -1/12.
    assert reordered("mmr", FOUR, 4, given).tolist() == [[0, 3, 2, 1]]
    # Cosines to item 0 are 1, -1, 0: the opposite one gains.
    assert reordered("mmr", FOUR, 3, given, 1.0, similarity="embeddings").tolist() == [[0, 2, 3]]


def test_an_item_without_categories_is_like_no_other() -> None:
    given = four_items([[1, 0], [1, 0], [0, 0], [0, 0]], [1, 0])
    # The second item without categories (3) comes before the second of category 0 (1).
    assert reordered("mmr", FOUR, 4, given, 1.0).tolist() == [[0, 2, 3, 1]]


def test_calibrated_by_hand() -> None:
    given = four_items([[1, 0], [1, 0], [1, 0], [0, 1]], [0.5, 0.5])
    # At 1: item 0 (ties with 3, is first); then 3 makes q = p; of 1 and 2 the first.
    assert reordered("calibrated", FOUR, 4, given, 1.0).tolist() == [[0, 3, 1, 2]]
    # At 1/4 place 2: item 1 has 2/3 * 3/4 - 1/4 KL(p || (.995, .005)) = 0.5 - 0.25 * 1.9585 = 0.0104 > 0 = item 3.
    assert reordered("calibrated", FOUR, 2, given, 0.25).tolist() == [[0, 1]]
    assert reordered("calibrated", FOUR, 2, given, 0.26).tolist() == [[0, 3]]


def test_an_item_without_categories_leaves_the_list_uncalibrated() -> None:
    given = four_items([[0, 0], [1, 0], [0, 1], [0, 0]], [0.5, 0.5])
    # Alone it has -ln 0.01, the most; behind others it changes nothing, so of the two the first comes first.
    assert reordered("calibrated", FOUR, 4, given, 1.0).tolist() == [[1, 2, 0, 3]]


@pytest.mark.parametrize("missing", [0.0, math.nan])
def test_a_user_without_profile_keeps_the_order(missing: float) -> None:
    given = four_items([[1, 0], [1, 0], [0, 1], [0, 1]], [missing, missing])
    assert reordered("calibrated", FOUR, 4, given, 1.0).tolist() == [[0, 1, 2, 3]]


def test_exposure_by_hand() -> None:
    given = four_items([[1]] * 4, [1], [[1, 0], [1, 0], [1, 0], [0, 1]])
    # Shares of the catalogue 3/4 and 1/4: item 3 is due at place 4. Of train 9/10 and 1/10: not yet.
    assert reordered("exposure", FOUR, 4, given, 1.0).tolist() == [[0, 1, 2, 3]]
    # Halves each: one of each in the first two places.
    halves = replace(given, item_groups=torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool())
    assert reordered("exposure", FOUR, 4, halves, 1.0).tolist() == [[0, 2, 1, 3]]
    # At half strength 1/4 of the places: one of four, so the order stands.
    assert reordered("exposure", FOUR, 4, halves, 0.5).tolist() == [[0, 1, 2, 3]]
    # Train: item 0 alone has 7/10, so its group has 8/10 and the other 2/10.
    assert reordered("exposure", FOUR, 4, halves, 1.0, target="train").tolist() == [[0, 1, 2, 3]]


def test_least_counts_are_not_missed_by_rounding() -> None:
    # A share of 30/52 is due 15 of 26 places, and 30 / 52 * 26 is 14.999… in float64.
    assert 30 / 52 * 26 < 15
    groups = torch.zeros(52, 1, dtype=torch.bool)
    groups[-30:] = True
    table = torch.ones(52, 1, dtype=torch.bool)
    given = Given(table, table.float(), torch.ones(1, 1).double(), torch.ones(52).long(), groups)
    lists = (torch.arange(52)[None], torch.arange(52, 0, -1)[None].float(), torch.tensor([0]))
    found = groups[reordered("exposure", lists, 52, given, 1.0)[0], 0].cumsum(0)
    assert found.tolist() == [r * 30 // 52 for r in range(1, 53)]


# What the methods are for ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 5, 8])
def test_mmr_raises_the_distance_between_items(k: int) -> None:
    given, lists = catalogue(0, bare=False), lists_of(0, tied=False, full=True)
    for similarity, measure, feature in [
        ("categories", ild_jaccard, given.categories),
        ("embeddings", ild_cosine, given.embeddings),
    ]:
        means = []
        for strength in (0.0, 0.5, 1.0):
            found = reordered("mmr", lists, k, given, strength, similarity=similarity)
            means.append(float(measure(as_lists(found, lists[2]), k, feature).mean()))
        assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("k", [3, 5, 8])
def test_calibrated_lowers_the_metrics_divergence(k: int) -> None:
    given, lists = catalogue(0), lists_of(0, tied=False, full=True)
    means = []
    for strength in (0.0, 0.5, 1.0):
        found = reordered("calibrated", lists, k, given, strength)
        means.append(float(miscalibration(as_lists(found, lists[2]), k, given.categories, given.profile).nanmean()))
    assert means[0] > means[1] > means[2]


def test_at_strength_1_each_item_is_the_best_calibrated_by_the_metric() -> None:
    given, (item, score, user) = catalogue(1, bare=False), lists_of(1, tied=False, full=True)
    found = reordered("calibrated", (item, score, user), 6, given, 1.0)
    for row in (row for row in range(USERS) if user[row] != 2):
        for place in range(6):
            before = found[row, :place].tolist()
            left = [one for one in item[row].tolist() if one not in before]
            ways = torch.tensor([[*before, one] for one in left])
            lists = as_lists(ways, user[row].repeat(len(left)))
            values = miscalibration(lists, place + 1, given.categories, given.profile)
            assert values[left.index(int(found[row, place]))] <= values.min() + 1e-12


@pytest.mark.parametrize("target", ["catalogue", "train"])
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_exposure_meets_all_least_counts_of_groups_that_do_not_overlap(strength: float, target: str) -> None:
    moved = 0
    for seed in range(10):
        given, lists = catalogue(seed, exclusive=True), lists_of(seed, tied=False)
        assert given.item_groups is not None
        found = reordered("exposure", lists, PLACES, given, strength, target=target)
        moved += int((found != lists[0]).any(1).sum())
        for items in found.tolist():
            pool = [one for one in items if one >= 0]
            for group, least in enumerate(least_counts(given, strength, target, pool)):
                count = itertools.accumulate((int(given.item_groups[one, group]) for one in pool), initial=0)
                assert all(has >= due for has, due in zip(count, least, strict=True))
    assert moved


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_exposure_gives_the_first_of_all_orders_that_meet_the_least_counts(groups: int) -> None:
    """Of six items' 720 orders; DetGreedy without look-ahead misses counts here from three groups on."""
    draw = np.random.default_rng(groups)
    for _ in range(8):
        index = draw.permutation(np.arange(6) % groups)
        member = index[:, None] == np.arange(groups)
        table = torch.ones(6, 1, dtype=torch.bool)
        one = Given(table, table.float(), torch.ones(1, 1).double(), torch.ones(6).long(), torch.tensor(member))
        strength = float(draw.choice([0.5, 0.75, 1.0]))
        due = [Fraction(strength) * Fraction(int(member[:, g].sum()), 6) for g in range(groups)]

        def meets(order: tuple[int, ...], member: Any = member, due: list[Fraction] = due) -> bool:
            return all(
                member[list(order[:r]), g].sum() >= math.floor(share * r)
                for r in range(1, 7)
                for g, share in enumerate(due)
            )

        # permutations() ascend, so the first has the best item at the first place at which orders differ.
        expected = next(order for order in itertools.permutations(range(6)) if meets(order))
        lists = (torch.arange(6)[None], torch.arange(6, 0, -1)[None].float(), torch.tensor([0]))
        assert tuple(reordered("exposure", lists, 6, one, strength)[0].tolist()) == expected


# What holds for every method ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_config_is_readable_without_torch(name: str) -> None:
    script = (
        "import sys; from recpeft import plugins; "
        f"plugins.config_class('{FOLDER}', '{name}')(method='{name}', strength=0.5); "
        "assert not {'torch', 'polars', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_documented_and_survives_json(name: str) -> None:
    config_class = plugins.config_class(FOLDER, name)
    assert issubclass(config_class, DiversifyConfig)
    config = config_of(name)
    assert config.method == name
    assert build_plugin(FOLDER, "method", json.loads(config.model_dump_json()), "diversify") == config
    assert all(field.description for key, field in config_class.model_fields.items() if key != "method")


@pytest.mark.parametrize("name", NAMES)
def test_reorder_has_the_contracts_signature(name: str) -> None:
    signature = inspect.signature(plugins.load(FOLDER, name).reorder)
    assert list(signature.parameters) == ["item", "score", "user", "k", "config", "given"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("seed", "tied"), CASES)
def test_strength_0_leaves_the_order_as_it_is(name: str, seed: int, tied: bool) -> None:
    lists = lists_of(seed, tied)
    for k in (1, 5, PLACES, PLACES + 3):
        for depth in (4, 100):
            found = reordered(name, lists, k, catalogue(seed), 0.0, depth=depth)
            assert torch.equal(found, lists[0][:, :k])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_lists_hold_the_users_own_items_each_once(name: str, strength: float) -> None:
    for seed, tied in CASES:
        lists = lists_of(seed, tied)
        for k in (1, 5, PLACES, PLACES + 3):
            found = reordered(name, lists, k, catalogue(seed), strength)
            assert found.shape == (USERS, min(k, PLACES))
            assert found.dtype == torch.int64
            for items, before in zip(found.tolist(), lists[0].tolist(), strict=True):
                own = {one for one in before if one >= 0}
                listed = [one for one in items if one >= 0]
                assert len(listed) == len(set(listed)) == min(k, len(own))
                assert own.issuperset(listed)
                assert items == listed + [-1] * (len(items) - len(listed))


@pytest.mark.parametrize("name", NAMES)
def test_strength_1_moves_something(name: str) -> None:
    lists = lists_of(0, tied=False)
    assert not torch.equal(reordered(name, lists, PLACES, catalogue(0), 1.0), lists[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_users_list_depends_neither_on_the_batch_nor_on_its_width(name: str, strength: float) -> None:
    given = catalogue(0)
    lists = item, score, user = lists_of(0, tied=True)
    whole = reordered(name, lists, PLACES, given, strength)
    order = torch.randperm(USERS, generator=torch.Generator().manual_seed(0))
    shuffled = reordered(name, (item[order], score[order], user[order]), PLACES, given, strength)
    assert torch.equal(shuffled, whole[order])
    wide = (torch.nn.functional.pad(item, (0, 5), value=-1), torch.nn.functional.pad(score, (0, 5)), user)
    assert torch.equal(reordered(name, wide, PLACES, given, strength), whole)
    for row in range(USERS):
        length = max(1, int((item[row] >= 0).sum()))
        alone = (item[row : row + 1, :length], score[row : row + 1, :length], user[row : row + 1])
        assert torch.equal(reordered(name, alone, PLACES, given, strength), whole[row : row + 1, :length])


@pytest.mark.parametrize("name", NAMES)
def test_no_users_give_no_lists(name: str) -> None:
    item, score, user = lists_of(0, tied=True)
    assert reordered(name, (item[:0], score[:0], user[:0]), 5, catalogue(0)).shape == (0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_k_only_cuts(name: str) -> None:
    given, lists = catalogue(0), lists_of(0, tied=False)
    for strength in (0.4, 1.0):
        whole = reordered(name, lists, PLACES, given, strength)
        for k in range(1, PLACES):
            assert torch.equal(reordered(name, lists, k, given, strength), whole[:, :k])


@pytest.mark.parametrize("name", NAMES)
def test_items_behind_depth_keep_their_places_and_have_no_say(name: str) -> None:
    given = catalogue(0)
    item, score, user = lists_of(0, tied=False)
    found = reordered(name, (item, score, user), PLACES, given, 0.8, depth=6)
    assert torch.equal(found[:, 6:], item[:, 6:])
    assert torch.equal(found[:, :6], reordered(name, (item[:, :6], score[:, :6], user), PLACES, given, 0.8))
    assert not torch.equal(found[:, :6], item[:, :6])


@pytest.mark.parametrize("name", NAMES)
def test_scores_count_by_their_place_between_the_users_best_and_worst(name: str) -> None:
    given = catalogue(0)
    item, score, user = lists_of(0, tied=True)
    found = reordered(name, (item, score, user), PLACES, given)
    # Whole numbers and halves, so that float32 holds each result exactly.
    assert torch.equal(reordered(name, (item, score * 1024 - 77, user), PLACES, given), found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_of_padding_are_ignored(name: str, value: float) -> None:
    given = catalogue(0)
    item, score, user = lists_of(0, tied=False)
    found = reordered(name, (item, score, user), PLACES, given)
    assert torch.equal(reordered(name, (item, score.masked_fill(item < 0, value), user), PLACES, given), found)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name: str) -> None:
    given = catalogue(0)
    lists = lists_of(0, tied=False)
    tensors = [*lists, *(value for value in vars(given).values() if isinstance(value, Tensor))]
    before = [tensor.clone() for tensor in tensors]
    reordered(name, lists, 5, given)
    for tensor, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


# Each of these would reorder by nonsense without a word.
BROKEN: list[tuple[list[list[int]], list[list[float]], int, str]] = [
    ([[0, 1]], [[math.inf, 0.0]], 2, "NaN or infinite"),
    ([[0, 1]], [[0.0, -math.inf]], 2, "NaN or infinite"),
    ([[0, 1]], [[math.nan, 0.0]], 2, "NaN or infinite"),
    ([[0, 1]], [[0.0, 1.0]], 2, "do not descend"),
    ([[0, -1, 1]], [[2.0, 1.0, 0.0]], 2, "padding before an item"),
    ([[0, 1]], [[1.0]], 2, "a score for each item"),
    ([[0, 1]], [[1.0, 0.0]], 0, "k is 0"),
    ([[]], [[]], 1, "no places"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("item", "score", "k", "message"), BROKEN)
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_lists_that_cannot_be_reordered_are_refused(
    name: str, item: list[list[int]], score: list[list[float]], k: int, message: str, strength: float
) -> None:
    lists = (torch.tensor(item, dtype=torch.int64), torch.tensor(score), torch.tensor([0]))
    with pytest.raises(ValueError, match=message):
        reordered(name, lists, k, catalogue(0), strength)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "diversify.strength is -0.1"),
        ({"strength": 1.5}, "diversify.strength is 1.5"),
        ({"strength": math.nan}, "diversify.strength is nan"),
        ({"strength": 0.5, "depth": 0}, "diversify.depth is 0"),
        ({}, "diversify.strength is missing"),
        ({"strength": 0.5, "lambda": 1}, "unknown key diversify.lambda"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecpeftError, match=message):
        build_plugin(FOLDER, "method", {"method": name, **options}, "diversify")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mmr", "similarity": "titles"}, "diversify.similarity is 'titles'"),
        ({"method": "exposure", "target": "equal"}, "diversify.target is 'equal'"),
        ({"method": "exposure", "group": {"columns": "year"}}, "unknown key diversify.group.columns"),
        ({"method": "xquad"}, "choose one of calibrated, exposure, mmr"),
    ],
)
def test_a_methods_own_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecpeftError, match=message):
        build_plugin(FOLDER, "method", {"strength": 0.5, **options}, "diversify")


def test_a_column_alone_is_a_group_and_only_exposure_needs_one() -> None:
    assert config_of("exposure").grouping == GroupConfig(column="popularity")
    assert config_of("exposure", group="year").grouping == GroupConfig(column="year")
    binned = config_of("exposure", group={"column": "year", "bins": [1990, 2000]})
    assert binned.grouping == GroupConfig(column="year", bins=(1990, 2000))
    assert config_of("mmr").grouping is None
    assert config_of("calibrated").grouping is None


def test_exposure_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="item groups of popularity"):
        reordered("exposure", FOUR, 4, four_items([[1]] * 4, [1]))


def test_what_is_given_must_agree() -> None:
    given = catalogue(0)
    assert given.item_groups is not None
    with pytest.raises(ValueError, match="embeddings 39"):
        replace(given, embeddings=given.embeddings[1:])
    with pytest.raises(ValueError, match="item_groups 39"):
        replace(given, item_groups=given.item_groups[1:])
    with pytest.raises(ValueError, match="profile has 4 categories but the items have 5"):
        replace(given, profile=given.profile[:, 1:])
    with pytest.raises(ValueError, match="embeddings are NaN"):
        replace(given, embeddings=given.embeddings.index_fill(0, torch.tensor([0]), math.nan))
