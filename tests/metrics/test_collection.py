"""RankingMetrics: batches, ranks and casts change nothing."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from metrics import RankedLists, RankingMetrics, match, rank
from metrics.accuracy import mrr, ndcg
from metrics.coverage import gini
from metrics.diversity import ild_jaccard
from metrics.novelty import novelty
from metrics.per_item import COUNTS
from recpeft.errors import RecpeftError

NUM_USERS, NUM_ITEMS, NUM_TRAIN_USERS = 60, 25, 80
ALL_NAMES = [
    *["ndcg", "recall", "precision", "hit_rate", "mrr", "map", "f1", "ild_jaccard", "novelty", "arp"],
    *["item_coverage", "gini", "shannon_entropy", "ndcg_gap", "recall_gap"],
]
GENERATOR = torch.Generator().manual_seed(5)
CATEGORIES = torch.rand(NUM_ITEMS, 4, generator=GENERATOR) < 0.4
TRAIN_COUNTS = torch.randint(0, NUM_TRAIN_USERS, (NUM_ITEMS,), generator=GENERATOR)
GENDER = torch.randint(-1, 2, (NUM_USERS,), generator=GENERATOR)
AGE = torch.randint(0, 3, (NUM_USERS,), generator=GENERATOR)
GROUPS = {"gender": (GENDER, ["F", "M"]), "age_group": (AGE, ["young", "middle", "old", "nobody"])}
SCORES = torch.randint(0, 40, (NUM_USERS, NUM_ITEMS), generator=GENERATOR).float()
SEEN = torch.rand(NUM_USERS, NUM_ITEMS, generator=GENERATOR) < torch.rand(NUM_USERS, 1, generator=GENERATOR)
SEEN[3] = True
RELEVANT = torch.rand(NUM_USERS, NUM_ITEMS, generator=GENERATOR) < 0.1
RELEVANT[7] = False


def build(**options: Any) -> RankingMetrics:
    options = {"ks": [5, 10], "groups": GROUPS, "names": ALL_NAMES, **options}
    return RankingMetrics(categories=CATEGORIES, train_counts=TRAIN_COUNTS, num_train_users=NUM_TRAIN_USERS, **options)


def lists_of(users: torch.Tensor) -> RankedLists:
    row, item = RELEVANT[users].nonzero(as_tuple=True)
    return rank(SCORES[users], users, SEEN[users], (row, item), 10, seed=0)


def assert_same(one: dict[str, float], other: dict[str, float]) -> None:
    assert list(one) == list(other)
    assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


EVERYONE = torch.arange(NUM_USERS)
WHOLE = lists_of(EVERYONE)


def test_compute_means_the_values_of_the_users_who_have_one() -> None:
    metrics = build()
    metrics.update(WHOLE)
    result = metrics.compute()
    values = ndcg(WHOLE, 5)
    assert values.isnan().any()
    assert result["ndcg@5"] == pytest.approx(values[~values.isnan()].mean().item())
    assert result["mrr@10"] == pytest.approx(mrr(WHOLE, 10).nanmean().item())
    assert result["ild_jaccard@10"] == pytest.approx(ild_jaccard(WHOLE, 10, CATEGORIES).nanmean().item())
    expected = novelty(WHOLE, 5, TRAIN_COUNTS, NUM_TRAIN_USERS).nanmean().item()
    assert result["novelty@5"] == pytest.approx(expected)
    listed = [i for row in WHOLE.item[:, :5].tolist() for i in row if i >= 0]
    counts = torch.tensor([listed.count(i) for i in range(NUM_ITEMS)])
    assert result["item_coverage@5"] == len(set(listed)) / NUM_ITEMS
    assert result["gini@5"] == pytest.approx(gini(counts).item())
    assert result["users"] == NUM_USERS
    assert result["users_with_relevant"] == RELEVANT.any(1).sum().item() < NUM_USERS
    assert 0 < result["tie_rate"] == WHOLE.tied.sum().item() / NUM_USERS < 1


def test_group_values_hold_the_users_of_the_group() -> None:
    metrics = build()
    metrics.update(WHOLE)
    result = metrics.compute()
    values = ndcg(WHOLE, 10).tolist()
    for attribute, (index, labels) in GROUPS.items():
        means = []
        for g, label in enumerate(labels):
            members = [v for v, i in zip(values, index.tolist(), strict=True) if i == g and not math.isnan(v)]
            value = result[f"ndcg_{attribute}={label}@10"]
            if members:
                means.append(sum(members) / len(members))
                assert value == pytest.approx(means[-1])
            else:
                assert label == "nobody"
                assert math.isnan(value)
        assert result[f"ndcg_gap_{attribute}@10"] == pytest.approx(max(means) - min(means))


def test_the_default_names_give_the_documented_keys() -> None:
    result = build(names=None, ks=[10], groups={"gender": GROUPS["gender"]})
    result.update(WHOLE)
    assert list(result.compute()) == [
        *["ndcg@10", "recall@10", "hit_rate@10", "mrr@10", "novelty@10", "ild_jaccard@10"],
        *["item_coverage@10", "gini@10", "ndcg_gap_gender@10", "ndcg_gender=F@10", "ndcg_gender=M@10"],
        *["tie_rate", "users", "users_with_relevant"],
    ]


@pytest.mark.parametrize("names", [["gini"], ["mrr"], ["recall_gap"], []])
def test_any_choice_of_names_computes(names: list[str]) -> None:
    for groups in (GROUPS, {}):
        metrics = build(names=names, groups=groups, keep_users=True)
        metrics.update(WHOLE)
        expected = {f"{name.removesuffix('_gap')}@{k}" for name in names for k in (5, 10)}
        assert expected <= metrics.compute().keys()
        assert torch.equal(metrics.per_user()["user"], EVERYONE)


def test_uneven_batches_equal_the_whole() -> None:
    whole, parts = build(), build()
    whole.update(WHOLE)
    for users in EVERYONE.split([1, 30, 7, 22]):
        parts.update(lists_of(users))
    assert_same(parts.compute(), whole.compute())


@pytest.mark.parametrize("sizes", [(13, 47), (0, 60)])
def test_states_summed_over_ranks_equal_the_single_run(sizes: tuple[int, int]) -> None:
    whole, first, second = (build(keep_users=True) for _ in range(3))
    whole.update(WHOLE)
    for metrics, users in zip((first, second), EVERYONE.split(list(sizes)), strict=True):
        if len(users):
            metrics.update(lists_of(users))
    first.merge_state(second)
    assert_same(first.compute(), whole.compute())
    one, other = first.per_user(), whole.per_user()
    assert all(torch.equal(one[key].nan_to_num(-1), other[key].nan_to_num(-1)) for key in other)


def test_gathering_over_processes_equals_the_single_run(tmp_path: Path) -> None:
    """Two processes, one of them without users."""
    whole = build(keep_users=True)
    whole.update(WHOLE)
    torch.save((whole.compute(), whole.per_user(), whole.group_sizes()), tmp_path / "whole.pt")
    torch.save((WHOLE, CATEGORIES, TRAIN_COUNTS, NUM_TRAIN_USERS, GROUPS, ALL_NAMES), tmp_path / "data.pt")
    script = textwrap.dedent(
        """
        import sys
        import pytest
        import torch
        from metrics import RankingMetrics

        torch.set_num_threads(1)
        folder, rank = sys.argv[1], int(sys.argv[2])
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
        )
        lists, categories, train_counts, users, groups, names = torch.load(
            f"{folder}/data.pt", weights_only=False
        )
        metrics = RankingMetrics([5, 10], categories, train_counts, users, groups, True, names)
        if rank == 1:
            metrics.update(lists)
        values, columns, sizes = torch.load(f"{folder}/whole.pt", weights_only=False)
        for _ in range(2):
            assert metrics.group_sizes() == sizes
            assert metrics.compute() == pytest.approx(values, abs=1e-12, nan_ok=True)
            found = metrics.per_user()
            assert found.keys() == columns.keys()
            for key, column in columns.items():
                assert torch.equal(found[key].nan_to_num(-1), column.nan_to_num(-1)), key
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


def test_a_repeated_user_is_held_once_per_user_and_refused_in_the_means() -> None:
    padded, plain = build(keep_users=True), build(keep_users=True)
    plain.update(WHOLE)
    padded.update(lists_of(torch.tensor([41, 2, 41])))
    rest = EVERYONE[torch.tensor([u not in (2, 41) for u in range(NUM_USERS)])].flip(0)
    padded.update(lists_of(torch.cat([rest, torch.tensor([2])])))
    one, other = padded.per_user(), plain.per_user()
    assert list(one) == list(other)
    assert one["user"].tolist() == list(range(NUM_USERS))
    assert one["user"].dtype == torch.int64
    assert all(torch.equal(one[key].nan_to_num(-1), other[key].nan_to_num(-1)) for key in other)
    with pytest.raises(RuntimeError, match="2 of 62 evaluated users are repetitions"):
        padded.compute()


def test_per_user_columns_are_the_metric_functions() -> None:
    metrics = build(keep_users=True)
    metrics.update(WHOLE)
    columns = metrics.per_user()
    assert len(columns) == 1 + 2 * 10
    for k in (5, 10):
        assert torch.equal(columns[f"ndcg@{k}"].nan_to_num(-1), ndcg(WHOLE, k).nan_to_num(-1))
        assert torch.equal(columns[f"mrr@{k}"].nan_to_num(-1), mrr(WHOLE, k).nan_to_num(-1))


def test_per_user_before_any_update_is_empty_and_without_keep_users_refused() -> None:
    assert build(keep_users=True).per_user()["user"].tolist() == []
    with pytest.raises(RuntimeError, match="keep_users=True"):
        build().per_user()


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_a_parent_module_leaves_states_and_values_as_they_are(cast: torch.dtype) -> None:
    whole = build(keep_users=True)
    whole.update(WHOLE)
    parent = torch.nn.Module()
    parent.linear = torch.nn.Linear(2, 2)
    parent.metrics = build(keep_users=True)
    parent.metrics.update(lists_of(EVERYONE[:30]))
    parent.to(cast)
    parent.metrics.update(lists_of(EVERYONE[30:]))
    assert parent.linear.weight.dtype == cast
    assert parent.metrics.sums.dtype == parent.metrics.group_sums.dtype == torch.float64
    assert {t.dtype for t in parent.metrics.user_values} == {torch.float64}
    assert_same(parent.metrics.compute(), whole.compute())
    parent.metrics.reset()
    parent.metrics.update(WHOLE)
    assert parent.metrics.sums.dtype == torch.float64
    assert_same(parent.metrics.compute(), whole.compute())


def test_states_follow_the_device_of_a_parent_module() -> None:
    parent = torch.nn.Module()
    parent.metrics = build()
    parent.to("meta")
    assert {parent.metrics.sums.device.type, parent.metrics.categories.device.type} == {"meta"}


def test_counts_go_on_beyond_2_to_the_24() -> None:
    metrics = build()
    metrics.update(WHOLE)
    start = metrics.compute()
    listed = metrics._states[COUNTS]
    for state in ("sums", "counts", listed, "group_sums", "group_counts", "users"):
        setattr(metrics, state, getattr(metrics, state) + 2**24)
    before = {state: getattr(metrics, state).clone() for state in ("users", listed, "sums", "counts")}
    one = lists_of(torch.tensor([0]))
    assert (one.item >= 0).any()
    assert one.num_relevant.item() > 0
    metrics.update(one)
    assert metrics.users.item() == 2**24 + NUM_USERS + 1
    assert (getattr(metrics, listed) - before[listed]).sum(1).tolist() == [5, 10]
    assert (metrics.counts - before["counts"] == 1).all()
    column = metrics.per_user_names.index("novelty")
    added = (metrics.sums - before["sums"])[1, column].item()
    assert added == pytest.approx(novelty(one, 10, TRAIN_COUNTS, NUM_TRAIN_USERS).item(), abs=1e-6)
    assert start["users"] == NUM_USERS


def test_a_metric_collection_does_not_merge_metrics_that_agree_on_the_first_batch() -> None:
    """hit_rate and mrr agree while every first hit is at rank 1; torchmetrics would merge them for good."""
    item = torch.tensor([[1, 2]])
    first = match(torch.tensor([0]), item, (torch.tensor([0]), torch.tensor([1])), NUM_ITEMS)
    second = match(torch.tensor([1]), item, (torch.tensor([0]), torch.tensor([2])), NUM_ITEMS)
    collection = MetricCollection(
        {name: build(names=[name], ks=[2], groups={}) for name in ("hit_rate", "mrr")}, compute_groups=True
    )
    collection.update(first)
    collection.update(second)
    assert collection["hit_rate"].compute()["hit_rate@2"] == 1
    assert collection["mrr"].compute()["mrr@2"] == 0.75


def test_states_reset_under_inference_mode_can_be_updated_outside() -> None:
    metrics = build()
    with torch.inference_mode():
        metrics.reset()
        metrics.update(lists_of(EVERYONE[:10]))
    metrics.update(lists_of(EVERYONE[10:]))
    whole = build()
    whole.update(WHOLE)
    assert_same(metrics.compute(), whole.compute())


def test_no_users_give_nan_and_no_failure() -> None:
    metrics = build()
    metrics.update(lists_of(EVERYONE[:0]))
    result = metrics.compute()
    assert result["users"] == 0
    assert math.isnan(result["ndcg@5"])
    assert math.isnan(result["tie_rate"])


def test_unknown_names_and_cut_offs_are_refused() -> None:
    with pytest.raises(RecpeftError, match=r"unknown metric 'ndgc'; choose from ndcg, recall"):
        build(names=["ndgc"])
    with pytest.raises(RecpeftError, match="gini_gap"):
        build(names=["gini_gap"])
    with pytest.raises(RecpeftError, match="at least 1"):
        build(ks=[0, 5])
    with pytest.raises(ValueError, match="group indices of gender"):
        build(groups={"gender": (GENDER, ["F"])})
    with pytest.raises(ValueError, match="group indices of gender"):
        build(groups={"gender": (GENDER - 1, ["F", "M"])})
    with pytest.raises(ValueError, match="categories are of 24 items"):
        RankingMetrics([5], CATEGORIES[1:], TRAIN_COUNTS, NUM_TRAIN_USERS, {})
    with pytest.raises(ValueError, match="rank with a larger k"):
        build(ks=[11]).update(WHOLE)


# Slices, groups of items, stamps -----------------------------------------------------------------------

ACTIVITY = torch.randint(-1, 3, (NUM_USERS,), generator=GENERATOR)
SLICES = {"activity": (ACTIVITY, ["cold", "warm", "heavy"])}
# In any number of them: item 0 in none, item 1 in all.
GENRES = torch.rand(NUM_ITEMS, 3, generator=GENERATOR) < 0.4
GENRES[0], GENRES[1] = False, True
HEAD = TRAIN_COUNTS.median() < TRAIN_COUNTS
ITEM_GROUPS = {
    "item_genre": (GENRES, ["Drama", "War", "Western"]),
    "item_popularity": (torch.stack([HEAD, ~HEAD, torch.zeros_like(HEAD)], dim=1), ["head", "tail", "nothing"]),
}


def sliced(**options: Any) -> RankingMetrics:
    return build(slices=SLICES, item_groups=ITEM_GROUPS, **options)


def one_list(user: int, relevant: set[int], k: int) -> tuple[float, float] | None:
    """ndcg and recall of a user in plain Python; None where nothing is relevant."""
    if not relevant:
        return None
    listed = WHOLE.item[user, :k].tolist()
    gain = sum(1 / math.log2(place + 2) for place, item in enumerate(listed) if item in relevant)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return gain / ideal, len(set(listed) & relevant) / len(relevant)


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


RELEVANT_OF = [{item for item in range(NUM_ITEMS) if RELEVANT[user, item]} for user in range(NUM_USERS)]


@pytest.mark.parametrize("k", [5, 10])
def test_values_by_slice_are_means_over_the_users_of_the_slice(k: int) -> None:
    metrics = sliced()
    metrics.update(WHOLE)
    result = metrics.compute()
    for place, label in enumerate(SLICES["activity"][1]):
        members = [one_list(user, RELEVANT_OF[user], k) for user in range(NUM_USERS) if ACTIVITY[user] == place]
        found = [values for values in members if values is not None]
        assert len(found) > 3
        assert result[f"ndcg_activity={label}@{k}"] == pytest.approx(mean_of([value for value, _ in found]))
        assert result[f"recall_activity={label}@{k}"] == pytest.approx(mean_of([value for _, value in found]))


def test_a_slice_has_no_gap_and_a_group_of_its_name_has() -> None:
    metrics = sliced()
    metrics.update(WHOLE)
    assert not [key for key in metrics.compute() if "gap_activity" in key or "gap_item" in key]
    both = build(groups={**GROUPS, **SLICES}, slices=SLICES)
    both.update(WHOLE)
    result = both.compute()
    means = [result[f"ndcg_activity={label}@5"] for label in SLICES["activity"][1]]
    assert result["ndcg_gap_activity@5"] == pytest.approx(max(means) - min(means))
    assert means == pytest.approx([metrics.compute()[f"ndcg_activity={label}@5"] for label in SLICES["activity"][1]])


def test_slices_and_item_groups_change_no_other_value() -> None:
    plain, metrics = build(), sliced()
    for each in (plain, metrics):
        each.update(WHOLE)
    expected, found = plain.compute(), metrics.compute()
    assert_same({key: found[key] for key in expected}, expected)
    added = [key for key in found if key not in expected]
    # ndcg and recall of 3 slices and of 6 groups of items, at 2 cut-offs
    assert len(added) == 2 * 2 * (3 + 6)


@pytest.mark.parametrize("k", [5, 10])
def test_values_by_item_group_take_only_its_items_as_relevant(k: int) -> None:
    metrics = sliced()
    metrics.update(WHOLE)
    result = metrics.compute()
    for attribute, (membership, labels) in ITEM_GROUPS.items():
        for place, label in enumerate(labels):
            own = {item for item in range(NUM_ITEMS) if membership[item, place]}
            values = [one_list(user, RELEVANT_OF[user] & own, k) for user in range(NUM_USERS)]
            found = [value for value in values if value is not None]
            assert bool(found) == (label != "nothing")
            for position, name in enumerate(("ndcg", "recall")):
                expected = mean_of([value[position] for value in found])
                assert result[f"{name}_{attribute}={label}@{k}"] == pytest.approx(expected, nan_ok=True)
    # A user whose relevant items are of several groups counts in each of them.
    several = sum(len({bool(HEAD[item]) for item in items}) == 2 for items in RELEVANT_OF)
    assert several > 10
    counts = metrics.item_group_counts[0, 0]
    assert counts[3] + counts[4] == sum(bool(items) for items in RELEVANT_OF) + several


def test_slices_and_item_groups_add_up_over_batches_and_ranks() -> None:
    whole, first, second = (sliced(keep_users=True) for _ in range(3))
    whole.update(WHOLE)
    for metrics, users in ((first, EVERYONE[:17]), (second, EVERYONE[17:])):
        for part in users.split(11):
            metrics.update(lists_of(part))
    first.merge_state(second)
    assert_same(first.compute(), whole.compute())
    first.reset()
    first.update(WHOLE)
    assert_same(first.compute(), whole.compute())


def test_the_stamp_is_behind_every_name_at_a_cut_off_and_no_other() -> None:
    plain, stamped = sliced(keep_users=True), sliced(keep_users=True, stamp="/uniform100")
    for metrics in (plain, stamped):
        metrics.update(WHOLE)
    expected = {f"{key}/uniform100" if "@" in key else key: value for key, value in plain.compute().items()}
    assert_same(stamped.compute(), expected)
    assert [key for key in stamped.compute() if "@" not in key] == ["tie_rate", "users", "users_with_relevant"]
    assert all(key.endswith("/uniform100") for key in stamped.per_user() if key != "user")
