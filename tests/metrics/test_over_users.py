"""Metrics of the catalogue, of groups and of all users, through RankingMetrics, against loops; batches and ranks."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from metrics import RankingMetrics, match, per_item
from metrics._info import Summed
from metrics.catalog import METRICS, find
from recpeft.errors import RecpeftError

World = Any
SPREAD_NAMES = ["gap", "ratio", "std", "mad", "worst", "users", "user_gini", "cvar20", "cvar50", "cvar80", "cvar100"]
OVER_USERS = [
    *[name for name, info in METRICS.items() if info.kind in ("sums", "item_groups", "user_groups")],
    *[f"{base}_{ending}" for base in ("ndcg", "arp") for ending in SPREAD_NAMES],
]
EVERYTHING = [
    name for name, info in METRICS.items() if info.kind == "per_user" and "impressions" not in info.needs
] + OVER_USERS
KS = (1, 5, 12)
JOINT = METRICS["category_information"].inputs["joint"]


def pairs_of(world: World) -> list[tuple[int, int]]:
    return [(row, item) for row in range(len(world.users)) for item in world.grades[row]]


def computed(world: World) -> dict[str, float]:
    metrics = world.metrics(OVER_USERS)
    metrics.update(world.ranked)
    return metrics.compute()


def counted(world: World, k: int) -> list[int]:
    return [sum(item in listed[:k] for listed in world.lists) for item in range(30)]


def attention(world: World, k: int) -> list[float]:
    return [
        sum(1 / math.log2(listed.index(item) + 2) for listed in world.lists if item in listed[:k]) for item in range(30)
    ]


def relevance(world: World) -> list[int]:
    return [sum(item in graded for graded in world.grades) for item in range(30)]


def gini(values: list[float]) -> float:
    return sum(abs(a - b) for a in values for b in values) / (2 * len(values) * sum(values))


def by_kind(world: World, per_item: list[Any]) -> list[float]:
    return [sum(value for value, kind in zip(per_item, world.item_group, strict=True) if kind == g) for g in range(3)]


def spread(rates: list[float]) -> float:
    return statistics.pstdev(rates) / statistics.mean(rates)


@pytest.mark.parametrize("k", KS)
def test_values_of_the_catalogue_equal_loops(world: World, k: int) -> None:
    result = computed(world)
    counts, exposure, relevant = counted(world, k), attention(world, k), relevance(world)
    assert result[f"item_coverage@{k}"] == pytest.approx(sum(count > 0 for count in counts) / 30)
    assert result[f"gini@{k}"] == pytest.approx(gini(counts))
    assert result[f"gini_exposure@{k}"] == pytest.approx(gini(exposure))
    shares = [count / sum(counts) for count in counts if count]
    assert result[f"shannon_entropy@{k}"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
    cut = [set(listed[:k]) for listed in world.lists if listed]
    cosines = [len(a & b) / math.sqrt(len(a) * len(b)) for a, b in itertools.combinations(cut, 2)]
    assert result[f"inter_list_diversity@{k}"] == pytest.approx(1 - statistics.mean(cosines), abs=1e-9)
    expected = sum(abs(e / sum(exposure) - r / sum(relevant)) for e, r in zip(exposure, relevant, strict=True))
    assert result[f"iaa@{k}"] == pytest.approx(expected)


def test_inter_list_diversity_of_full_lists_is_the_share_that_two_lists_hold_in_common(full_world: World) -> None:
    result = computed(full_world)
    for k in KS:
        cut = [set(listed[:k]) for listed in full_world.lists]
        common = statistics.mean(len(a & b) / k for a, b in itertools.combinations(cut, 2))
        assert result[f"inter_list_diversity@{k}"] == pytest.approx(1 - common, abs=1e-9)


@pytest.mark.parametrize("k", KS)
def test_fairness_to_items_equals_loops(world: World, k: int) -> None:
    result = computed(world)
    exposure = by_kind(world, attention(world, k))
    size, train = by_kind(world, [1] * 30), by_kind(world, world.counts)
    relevant, counts = by_kind(world, relevance(world)), by_kind(world, counted(world, k))
    found = by_kind(
        world,
        [
            sum(item in listed[:k] and item in graded for listed, graded in zip(world.lists, world.grades, strict=True))
            for item in range(30)
        ],
    )
    candidates = by_kind(world, [sum(item not in history for history in world.history_of) for item in range(30)])
    share = [e / sum(exposure) for e in exposure]
    for label, value in zip("xyz", share, strict=True):
        assert result[f"exposure_share_item_kind={label}@{k}"] == pytest.approx(value)
    per_item = [e / n for e, n in zip(exposure, size, strict=True)]
    assert result[f"exposure_ratio_item_kind@{k}"] == pytest.approx(min(per_item) / max(per_item))
    per_pair = [e / n for e, n in zip(exposure, relevant, strict=True)]
    assert result[f"exposure_dtr_item_kind@{k}"] == pytest.approx(min(per_pair) / max(per_pair))
    for name, target in [("catalogue", size), ("train", train)]:
        expected = sum(t / sum(target) * math.log(t / sum(target) / s) for t, s in zip(target, share, strict=True))
        assert result[f"exposure_kl_{name}_item_kind@{k}"] == pytest.approx(expected)
    shown = [c / n for c, n in zip(counts, candidates, strict=True)]
    assert result[f"rsp_item_kind@{k}"] == pytest.approx(spread(shown))
    rates = [h / n for h, n in zip(found, relevant, strict=True)]
    assert result[f"reo_item_kind@{k}"] == pytest.approx(spread(rates))
    assert result[f"item_eo_gap_item_kind@{k}"] == pytest.approx(max(rates) - min(rates))


def values_by_user(world: World, name: str, k: int) -> list[float]:
    """By row, from the per-user metrics that test_per_user holds to loops of their own."""
    metrics = world.metrics([name])
    metrics.update(world.ranked)
    column = metrics.per_user()[f"{name}@{k}"].tolist()
    return [column[user] for user in world.users]


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("base", ["ndcg", "arp"])
def test_spreads_between_groups_of_users_equal_loops(world: World, base: str, k: int) -> None:
    result = computed(world)
    values = values_by_user(world, base, k)
    for attribute, index, labels in [("gender", world.gender, "FM"), ("age", world.age, "abcd")]:
        members = [
            [v for v, u in zip(values, world.users, strict=True) if index[u] == g and not math.isnan(v)]
            for g in range(len(labels))
        ]
        means = [statistics.mean(group) for group in members]
        for label, mean, group in zip(labels, means, members, strict=True):
            assert result[f"{base}_{attribute}={label}@{k}"] == pytest.approx(mean)
            assert result[f"{base}_users_{attribute}={label}@{k}"] == len(group) > 5
        found = {
            ending: result[f"{base}_{ending}_{attribute}@{k}"] for ending in ("gap", "ratio", "std", "mad", "worst")
        }
        assert found == pytest.approx(
            {
                "gap": max(means) - min(means),
                "ratio": min(means) / max(means),
                "std": statistics.pstdev(means),
                "mad": statistics.mean(abs(a - b) for a, b in itertools.combinations(means, 2)),
                "worst": max(means) if base == "arp" else min(means),
            }
        )


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("base", ["ndcg", "arp"])
def test_spreads_among_all_users_equal_loops(world: World, base: str, k: int) -> None:
    result = computed(world)
    # The worst served users first: of popularity less is better, so there they are the highest.
    values = sorted((v for v in values_by_user(world, base, k) if not math.isnan(v)), reverse=base == "arp")
    for percent in (20, 50, 80, 100):
        number = -(-percent * len(values) // 100)
        assert result[f"{base}_cvar{percent}@{k}"] == pytest.approx(statistics.mean(values[:number]))
    assert result[f"{base}_user_gini@{k}"] == pytest.approx(gini(values))


@pytest.mark.parametrize("k", KS)
def test_equal_opportunity_and_popularity_lift_equal_loops(world: World, k: int) -> None:
    result = computed(world)
    both = [row for row in range(70) if world.lists[row] and world.history_of[row]]
    assert len(both) < 70

    def lift(rows: list[int]) -> float:
        recommended = statistics.mean(statistics.mean(world.counts[i] for i in world.lists[row][:k]) for row in rows)
        had = statistics.mean(statistics.mean(world.counts[i] for i in world.history_of[row]) for row in rows)
        return (recommended - had) / had

    assert result[f"pop_lift@{k}"] == pytest.approx(lift(both))
    for attribute, index, labels in [("gender", world.gender, "FM"), ("age", world.age, "abcd")]:
        rates = []
        for g, label in enumerate(labels):
            members = [row for row in range(70) if index[world.users[row]] == g]
            assert result[f"delta_gap_{attribute}={label}@{k}"] == pytest.approx(
                lift([row for row in both if row in members])
            )
            found = sum(len(set(world.lists[row][:k]) & set(world.grades[row])) for row in members)
            rates.append(found / sum(len(world.grades[row]) for row in members))
        assert result[f"eo_gap_{attribute}@{k}"] == pytest.approx(max(rates) - min(rates))


def test_category_information_is_the_mutual_information_of_groups_and_recommended_labels(world: World) -> None:
    """Among users with full lists; there each recommendation is one draw, and sklearn counts them."""
    world.labels[3] = 0  # without a label a list would count for less draws
    labels = torch.tensor(world.labels)[:, None] == torch.arange(4)
    rows = [row for row in range(70) if len(world.lists[row]) == 12]
    metrics = world.metrics(["category_information"], categories=labels, ks=[12])
    metrics.update(rows_of(world, rows))
    result = metrics.compute()
    for attribute, index in [("gender", world.gender), ("age", world.age)]:
        drawn = [
            (index[world.users[row]], world.labels[item])
            for row in rows
            for item in world.lists[row]
            if index[world.users[row]] >= 0
        ]
        expected = mutual_info_score([group for group, _ in drawn], [label for _, label in drawn]) / math.log(2)
        assert result[f"category_information_{attribute}@12"] == pytest.approx(expected)


def rows_of(world: World, rows: list[int]) -> Any:
    """The lists of some rows alone, matched and graded anew."""
    pairs = [(place, item) for place, row in enumerate(rows) for item in world.grades[row]]
    relevant = (
        torch.tensor([place for place, _ in pairs], dtype=torch.int64),
        torch.tensor([item for _, item in pairs], dtype=torch.int64),
    )
    lists = match(world.ranked.user[rows], world.ranked.item[rows], relevant, 30)
    grades = [world.grades[rows[place]][item] for place, item in pairs]
    return lists.graded(relevant, torch.tensor(grades, dtype=torch.float64))


def test_batches_and_merged_ranks_equal_the_whole(world: World) -> None:
    whole, first, second = (world.metrics(EVERYTHING) for _ in range(3))
    whole.update(world.ranked)
    for metrics, rows in ((first, range(17)), (second, range(17, 70))):
        for start in rows[::20]:
            metrics.update(rows_of(world, [row for row in rows if start <= row < start + 20]))
    first.merge_state(second)
    assert first.compute() == pytest.approx(whole.compute(), abs=1e-9, nan_ok=True)
    intervals, expected = first.gap_intervals(50), whole.gap_intervals(50)
    assert list(intervals) == list(expected)
    assert all(intervals[key] == pytest.approx(expected[key], nan_ok=True) for key in expected)


@pytest.mark.parametrize("world", [0], indirect=True)
def test_two_processes_of_uneven_numbers_of_users_give_the_values_of_one(world: World, tmp_path: Path) -> None:
    whole = world.metrics(EVERYTHING)
    whole.update(world.ranked)
    # An empty share, a share of one user and the rest: three batches on the second rank.
    batches = [[], [rows_of(world, [3]), rows_of(world, list(range(3))), rows_of(world, list(range(4, 70)))]]
    options = world.metrics(EVERYTHING)
    torch.save((whole.compute(), batches, options), tmp_path / "data.pt")
    script = textwrap.dedent(
        """
        import sys
        import pytest
        import torch

        torch.set_num_threads(1)
        folder, rank = sys.argv[1], int(sys.argv[2])
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
        )
        values, batches, metrics = torch.load(f"{folder}/data.pt", weights_only=False)
        for lists in batches[rank]:
            metrics.update(lists)
        assert metrics.compute() == pytest.approx(values, abs=1e-9, rel=1e-9, nan_ok=True)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(r)], stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float64])
def test_casting_a_parent_module_changes_no_value(world: World, cast: torch.dtype) -> None:
    whole = world.metrics(EVERYTHING)
    whole.update(world.ranked)
    parent = torch.nn.Module()
    parent.metrics = world.metrics(EVERYTHING)
    parent.to(cast)
    parent.metrics.update(world.ranked)
    assert parent.metrics.compute() == pytest.approx(whole.compute(), abs=1e-12, nan_ok=True)
    parent.to("meta")
    attention = getattr(parent.metrics, parent.metrics._states[per_item.EXPOSURE])
    profile = parent.metrics._fixed[METRICS["calibration_kl"].inputs["profile"]]
    inputs = [attention, profile, parent.metrics._given["history"].item]
    assert {tensor.device.type for tensor in inputs} == {"meta"}


def test_states_are_float64_sums_and_int64_counts(world: World) -> None:
    metrics = world.metrics(EVERYTHING)
    types = {
        name: getattr(metrics, name).dtype for name in metrics._defaults if name not in ("user_ids", "user_values")
    }
    assert types.pop("unequal") == torch.float32
    assert {name for name, dtype in types.items() if dtype == torch.float64} == {
        *["sums", "group_sums", "item_group_sums"],
        *(metrics._states[of] for of in (per_item.EXPOSURE, per_item.COSINE_WEIGHTS, JOINT)),
    }
    assert set(types.values()) == {torch.float64, torch.int64}


def test_only_the_states_that_names_need_are_kept(world: World) -> None:
    plain = RankingMetrics([5], world.categories, world.train_counts, world.num_train_users, {})
    assert list(plain._states) == [per_item.COUNTS]
    every = world.metrics(OVER_USERS)._states
    assert every.keys() == {JOINT, *(of for of in vars(per_item).values() if isinstance(of, Summed))}
    assert {*every.values()} < world.metrics(OVER_USERS)._defaults.keys()


def test_no_users_give_nan_and_no_failure(world: World) -> None:
    for updates in (0, 1):
        metrics = world.metrics(EVERYTHING)
        for _ in range(updates):
            metrics.update(rows_of(world, []))
        result = metrics.compute()
        for key, value in result.items():
            if "_users_" in key or key.startswith(("users", "item_coverage")):
                assert value == 0
            else:
                assert math.isnan(value), key


def test_names_that_lack_their_input_are_refused_with_what_they_need(world: World) -> None:
    for name, option, need in [
        ("ild_cosine", "embeddings", "embeddings"),
        ("calibration_kl", "history", "history"),
        ("category_entropy_single", "main_category", "main_category"),
        ("rsp", "item_groups", "item_groups"),
        ("ndcg_cvar50", "keep_users", "keep_users"),
        ("pop_lift_gap", None, None),
        ("user_auc", None, None),
        ("valid_ratio", None, None),
        ("ndcg_cvar0", None, None),
        ("ndcg_cvar101", None, None),
    ]:
        message = f"{name} needs {need}" if need else f"unknown metric {name!r}"
        with pytest.raises(RecpeftError, match=message.replace("'", ".")):
            world.metrics([name], **({option: None} if option else {}))
    bare = RankingMetrics([5], world.categories, world.train_counts, 60, {}, names=["ndcg_linear"])
    with pytest.raises(ValueError, match="needs grades"):
        bare.update(replace(world.ranked, grade=None))


@pytest.mark.parametrize("need", ["categories", "main_category", "embeddings", "train_counts", "groups", "item_groups"])
def test_a_metric_whose_input_says_nothing_is_nan(world: World, need: str) -> None:
    nothing = {
        "categories": torch.zeros_like(world.categories),
        "main_category": torch.full((30,), -1),
        "embeddings": torch.zeros(30, 6),
        "train_counts": torch.zeros(30, dtype=torch.int64),
        "groups": {"gender": (torch.full((70,), -1), ["F", "M"])},
        "item_groups": {"item_kind": (torch.zeros(30, 3, dtype=torch.bool), ["x", "y", "z"])},
    }
    names = [name for name in EVERYTHING if "_users" not in name and need in find(name).needs]
    metrics = world.metrics(names, **{need: nothing[need]})
    metrics.update(world.ranked)
    result = metrics.compute()
    for name in names:
        keys = [key for key in result if key.startswith(name) and not any(key.startswith(other) for other in names
                if len(other) > len(name))]  # fmt: skip
        assert keys, name
        assert all(math.isnan(result[key]) for key in keys), name


def test_inputs_of_other_sizes_and_broken_embeddings_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="embeddings is of 29 items but train_counts of 30"):
        world.metrics(["ild_cosine"], embeddings=torch.ones(29, 2))
    broken = torch.ones(30, 2)
    broken[3, 1] = math.nan
    with pytest.raises(ValueError, match="embeddings are NaN"):
        world.metrics(["ild_cosine"], embeddings=broken)


def test_intervals_hold_their_gap_and_narrow_with_the_level(world: World) -> None:
    metrics = world.metrics(["ndcg_gap", "recall_std", "ndcg_users"])
    metrics.update(world.ranked)
    values = metrics.compute()
    wide, narrow = metrics.gap_intervals(400, 0.95), metrics.gap_intervals(400, 0.5)
    assert set(wide) == {f"{name}_{attribute}@{k}" for name in ("ndcg_gap", "recall_std")
                         for attribute in ("gender", "age") for k in KS}  # fmt: skip
    for key, (low, high) in wide.items():
        assert 0 <= low <= narrow[key][0] <= narrow[key][1] <= high
        assert low <= values[key] <= high
    assert wide == metrics.gap_intervals(400, 0.95)
    assert wide != metrics.gap_intervals(400, 0.95, seed=1)


def test_each_groups_mean_has_the_interval_that_scipys_bootstrap_gives_its_users(world: World) -> None:
    """Users are drawn from all groups at once, so that a group's size varies; of 60 users that moves little."""
    from scipy.stats import bootstrap

    metrics = world.metrics(["ndcg_gap"])
    metrics.update(world.ranked)
    values, per_user, found = metrics.compute(), metrics.per_user(), metrics.group_intervals()
    assert set(found) == {key for key in values if key.startswith("ndcg_") and "=" in key and "item" not in key}
    start, checked = 0, 0
    for attribute, labels in metrics.slices.items():
        for label in labels:
            inside = metrics.membership[per_user["user"], start].numpy()
            start += 1
            ndcg = per_user["ndcg@5"].numpy()[inside]
            ndcg = ndcg[~np.isnan(ndcg)]
            low, high = found[f"ndcg_{attribute}={label}@5"]
            if len(ndcg) >= 10:
                expected = bootstrap((ndcg,), np.mean, method="percentile", rng=0).confidence_interval
                width = expected.high - expected.low
                assert (low, high) == pytest.approx(tuple(expected), abs=0.15 * width)
                checked += 1
            elif len(ndcg) == 0:
                assert math.isnan(low)
    assert checked >= 2


def test_names_resolve_to_functions_and_derived_names_keep_their_needs() -> None:
    for info in METRICS.values():
        assert callable(info.function)
    cases = {
        "ndcg_gap": ("-", ("groups",)),
        "ild_cosine_worst": ("+", ("embeddings", "groups")),
        "arp_worst": ("-", ("groups", "train_counts")),
        "serendipity_cvar50": ("+", ("history", "keep_users", "train_counts")),
        "arp_user_gini": ("-", ("keep_users", "train_counts")),
        "calibration_kl": ("-", ("categories", "history")),
        "rsp": ("-", ("history", "item_groups")),
    }
    for name, (direction, needs) in cases.items():
        info = find(name)
        assert info is not None
        assert (info.name, info.direction, info.needs) == (name, direction, needs)
    assert [find(name) for name in ("gini_gap", "ndcg_gap_gap", "nothing", "cvar50", "")] == [None] * 5


def test_the_catalog_is_read_without_torch() -> None:
    script = "import sys, metrics.catalog, metrics; assert 'torch' not in sys.modules and metrics.catalog.METRICS"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_numpy_oracle_of_the_intervals_of_a_mean_gap() -> None:
    """Against the normal approximation: groups of 4,000 users, whose gap is far from 0."""
    from metrics.fairness import bootstrap_interval

    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(0.5, 0.1, 4000), draw.normal(0.2, 0.2, 4000)])
    member = torch.arange(8000)[:, None] // 4000 == torch.arange(2)
    low, high = bootstrap_interval(torch.from_numpy(values), member, samples=2000)
    gap = values[:4000].mean() - values[4000:].mean()
    half = 1.96 * math.sqrt(values[:4000].var() / 4000 + values[4000:].var() / 4000)
    assert low.item() == pytest.approx(gap - half, abs=half / 8)
    assert high.item() == pytest.approx(gap + half, abs=half / 8)
