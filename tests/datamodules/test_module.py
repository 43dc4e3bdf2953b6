"""What the TextPairDataModule serves, against brute force over the split."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules import split as split_data
from datamodules import synthetic
from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from datamodules._dataset import RecDataset
from datamodules._module import TextPairDataModule
from datamodules._negatives import NegativesConfig
from datamodules._splits import Split
from datamodules.splits import per_user_temporal, user_holdout
from recpeft.errors import RecpeftError

NUM_USERS, NUM_ITEMS = 26, 80
ALONE = 25  # has one train item, so nothing to learn from


def world() -> tuple[RecDataset, Split, dict[str, list[list[int]]]]:
    """26 users; user u's first film is u, so that a history tells its user. Films from 60 on are held out only.

    Returns the data set, its split and each part's items by user, in order of time.
    """
    draw = np.random.default_rng(5)
    parts: dict[str, list[list[int]]] = {"train": [], "validation": [], "test": []}
    for user in range(NUM_USERS):
        length = 1 if user == ALONE else 2 + user % 12
        # Popular ones at the low end; without repeats.
        weights = 1.0 / np.arange(1, 31)
        later = draw.choice(np.arange(30, 60), length - 1, replace=False, p=weights / weights.sum())
        parts["train"].append([user, *later.tolist()])
        held_out = draw.permutation(np.arange(60, NUM_ITEMS))
        parts["validation"].append(held_out[: user % 3].tolist())
        parts["test"].append(held_out[5 : 5 + 1 + user % 2].tolist() if user != 7 else [])
    frames = {}
    for number, (name, users) in enumerate(parts.items()):
        rows = [
            (user, item, 5.0, 10_000 * number + place)
            for user, items in enumerate(users)
            for place, item in enumerate(items)
        ]
        schema = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
        frames[name] = pl.DataFrame(rows, schema=schema, orient="row")
    items = pl.DataFrame(
        {
            "item": pl.Series(range(NUM_ITEMS), dtype=pl.Int32),
            "raw_id": [str(n) for n in range(NUM_ITEMS)],
            "title": [f"film {n}" for n in range(NUM_ITEMS)],
            "year": pl.Series([None] * NUM_ITEMS, dtype=pl.Int32),
            "categories": [["Drama"]] * NUM_ITEMS,
        }
    )
    users = pl.DataFrame(
        {
            "user": pl.Series(range(NUM_USERS), dtype=pl.Int32),
            "raw_id": [str(n) for n in range(NUM_USERS)],
        }
    )
    split = Split(**frames)
    return RecDataset("small", pl.concat(frames.values()), users, items), split, parts


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_backbone)


def module(tokenizer: PreTrainedTokenizerBase, split: Split | None = None, **options: Any) -> TextPairDataModule:
    dataset, own, _ = world()
    chosen = {
        "users_per_step": 8,
        "positives_per_user": 3,
        "history": 50,
        "max_user_tokens": 500,
        "seed": 0,
        **options,
    }
    return TextPairDataModule(dataset, split or own, tokenizer, **chosen)


def texts_of(tokenizer: PreTrainedTokenizerBase, batch: TextBatch) -> list[str]:
    found: dict[int, str] = {}
    for bucket in batch.buckets:
        for ids, mask, row in zip(bucket.input_ids, bucket.attention_mask, bucket.row.tolist(), strict=True):
            found[row] = tokenizer.decode(ids[mask.bool()])
    return [found[row] for row in range(batch.size)]


def histories_of(tokenizer: PreTrainedTokenizerBase, batch: TextBatch) -> list[list[int]]:
    """The films each user's text names, in its order."""
    return [[int(n) for n in re.findall(r"film (\d+) ;", text)] for text in texts_of(tokenizer, batch)]


def positives_of(batch: PairBatch) -> list[list[int]]:
    return [batch.item[row].tolist() for row in batch.positive]


def same(one: PairBatch, other: PairBatch) -> bool:
    def flat(batch: PairBatch) -> list[torch.Tensor]:
        buckets = [*batch.users.buckets, *batch.items.buckets]
        texts = [t for b in buckets for t in (b.input_ids, b.attention_mask, b.row)]
        return [*texts, batch.item, batch.positive, batch.excluded, batch.log_q]

    a, b = flat(one), flat(other)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Training ----------------------------------------------------------------------------------------------


def test_batches_carry_who_and_features_beside_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset, split, _ = world()
    vectors = [[float(n), -float(n)] for n in range(NUM_ITEMS)]
    items = dataset.items.with_columns(image=pl.Series(vectors), price=pl.Series(range(NUM_ITEMS)))
    groups = np.arange(NUM_USERS) % 3 - 1
    options: dict[str, Any] = {"user_groups": {"age": groups}, "item_features": ("image", "price"), "history": 50}
    served = TextPairDataModule(replace(dataset, items=items), split, tokenizer, users_per_step=8, **options)
    batch = served.train_batch(0)
    assert batch.user is not None
    assert [own[0] for own in histories_of(tokenizer, batch.users)] == batch.user.tolist()  # user u's first film is u
    assert batch.groups["age"].tolist() == groups[batch.user.numpy()].tolist()
    assert batch.item_features["image"].tolist() == [vectors[item] for item in batch.item.tolist()]
    assert batch.item_features["price"].tolist() == [[item] for item in batch.item.tolist()]
    parts = list(served.catalogue(32))
    assert torch.cat([part.features["image"] for part in parts]).tolist() == vectors


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (None, "the items have no column image; they have item, raw_id, title"),
        ([[1.0]] * (NUM_ITEMS - 1) + [[1.0, 2.0]], "needs equally many numbers for each item"),
        ([[1.0]] * (NUM_ITEMS - 1) + [None], "needs equally many numbers for each item"),
        ([1.0] * (NUM_ITEMS - 1) + [None], "has a missing number; fill it in"),
        (["red"] * NUM_ITEMS, "give a number or a list of numbers"),
    ],
)
def test_a_feature_that_is_no_vector_is_a_sentence(
    tokenizer: PreTrainedTokenizerBase, values: list[Any] | None, sentence: str
) -> None:
    dataset, split, _ = world()
    items = dataset.items if values is None else dataset.items.with_columns(image=pl.Series(values))
    with pytest.raises(RecpeftError, match=sentence):
        TextPairDataModule(replace(dataset, items=items), split, tokenizer, item_features=("image",))


def test_a_batch_is_a_function_of_seed_and_index(tokenizer: PreTrainedTokenizerBase) -> None:
    one, other = module(tokenizer), module(tokenizer)
    expected = [one.train_batch(index) for index in range(8)]
    # in any order, on another instance, whatever the global generators
    for index in (5, 0, 7, 3):
        torch.manual_seed(index)
        np.random.seed(index)
        assert same(other.train_batch(index), expected[index])
    assert not any(same(expected[a], expected[b]) for a in range(8) for b in range(a))


def test_another_seed_gives_other_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    zero, one = module(tokenizer, seed=0), module(tokenizer, seed=1)
    assert not any(same(zero.train_batch(index), one.train_batch(index)) for index in range(5))


def test_positives_come_after_the_history_in_time(tokenizer: PreTrainedTokenizerBase) -> None:
    _, _, parts = world()
    data = module(tokenizer)
    lengths = set()
    for index in range(30):
        batch = data.train_batch(index)
        for history, positives in zip(histories_of(tokenizer, batch.users), positives_of(batch), strict=True):
            train = parts["train"][history[0]]
            assert history == train[: len(history)]  # all that came before, oldest first
            assert positives
            assert set(positives) <= set(train[len(history) :])
            assert not set(positives) & set(history)
            assert len(positives) == min(3, len(train) - len(history))
            lengths.add(len(history) / len(train))
    assert min(lengths) < 0.2 < 0.8 < max(lengths)


def test_a_capped_history_still_hides_no_positive(tokenizer: PreTrainedTokenizerBase) -> None:
    # With 2 films in the prompt the others before the moment are left out of it, and are no positives either.
    data, full = module(tokenizer, history=2), module(tokenizer)
    for index in range(10):
        batch, whole = data.train_batch(index), full.train_batch(index)
        assert positives_of(batch) == positives_of(whole)
        shown, all_before = histories_of(tokenizer, batch.users), histories_of(tokenizer, whole.users)
        assert shown == [before[-2:] for before in all_before]


def test_excluded_are_the_users_other_train_items_and_nothing_else(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    _, _, parts = world()
    data = module(tokenizer)
    some = 0
    for index in range(20):
        batch = data.train_batch(index)
        for row, history in enumerate(histories_of(tokenizer, batch.users)):
            for column, item in enumerate(batch.item.tolist()):
                known = item in parts["train"][history[0]]
                positive = bool(batch.positive[row, column])
                assert bool(batch.excluded[row, column]) == (known and not positive)
                some += known and not positive
    assert some > 50


def test_ratings_are_the_users_own_in_train_and_nan_elsewhere(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset, split, _ = world()
    # No two interactions have the same rating, every seventh has none, and those of validation and test are 1,000.
    given = pl.when(pl.int_range(pl.len()) % 7 != 0).then(pl.int_range(pl.len()) + 1).cast(pl.Float32)
    split = replace(
        split,
        train=split.train.with_columns(rating=given),
        validation=split.validation.with_columns(rating=pl.lit(1000.0, pl.Float32)),
        test=split.test.with_columns(rating=pl.lit(1000.0, pl.Float32)),
    )
    expected = {(user, item): rating for user, item, rating in split.train["user", "item", "rating"].iter_rows()}
    data = TextPairDataModule(dataset, split, tokenizer, users_per_step=25, history=50, max_user_tokens=500)
    kinds = Counter[str]()
    for index in range(10):
        batch = data.train_batch(index)
        assert batch.rating.dtype == torch.float32
        assert batch.rating.shape == batch.positive.shape
        for row, history in enumerate(histories_of(tokenizer, batch.users)):
            for column, item in enumerate(batch.item.tolist()):
                wanted, found = expected.get((history[0], item)), batch.rating[row, column].item()
                assert found == wanted if wanted is not None else np.isnan(found)
                kinds["rated" if wanted is not None else "unrated"] += 1
                kinds["positive"] += wanted is not None and bool(batch.positive[row, column])
                kinds["excluded"] += wanted is not None and bool(batch.excluded[row, column])
    assert min(kinds.values()) > 50


def test_an_item_liked_in_validation_or_test_alone_stays_a_negative(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    # Excluding it would tell the model about the future. Film 59's other lovers put it into the batch.
    dataset, split, parts = world()
    split = replace(split, test=split.test.with_columns(item=pl.lit(30, pl.Int32)))
    data = TextPairDataModule(dataset, split, tokenizer, users_per_step=25, history=50, max_user_tokens=500)
    checked = 0
    for index in range(10):
        batch = data.train_batch(index)
        columns = (batch.item == 30).nonzero().flatten().tolist()
        for row, history in enumerate(histories_of(tokenizer, batch.users)):
            if columns and 30 not in parts["train"][history[0]]:
                assert not batch.excluded[row, columns[0]]
                checked += 1
    assert checked


def test_held_out_items_are_never_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    # In this world the films from 60 on are in validation and test alone.
    data = module(tokenizer)
    for index in range(30):
        batch = data.train_batch(index)
        assert batch.item.max() < 60
        assert all(film < 60 for history in histories_of(tokenizer, batch.users) for film in history)


def test_the_items_of_a_batch_are_distinct_ascending_and_each_somebodys_positive(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    batch = module(tokenizer).train_batch(0)
    items = batch.item.tolist()
    assert items == sorted(set(items))
    assert batch.positive.any(0).all()
    assert [int(re.findall(r"film (\d+)", text)[0]) for text in texts_of(tokenizer, batch.items)] == items


def test_nothing_of_test_reaches_a_training_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    _, split, _ = world()
    other = replace(
        split,
        test=split.test.with_columns(item=(pl.col("item") * 7 % NUM_ITEMS).cast(pl.Int32)).head(5),
    )
    data, moved = module(tokenizer), module(tokenizer, other)
    assert all(same(data.train_batch(index), moved.train_batch(index)) for index in range(10))


def test_nothing_of_validation_reaches_a_training_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    _, split, _ = world()
    data, moved = module(tokenizer), module(tokenizer, replace(split, validation=split.validation.head(3)))
    assert all(same(data.train_batch(index), moved.train_batch(index)) for index in range(10))


@pytest.mark.parametrize("users_per_step", [5, 8, 25])
def test_a_pass_visits_each_user_once_up_to_the_remainder(
    tokenizer: PreTrainedTokenizerBase, users_per_step: int
) -> None:
    data = module(tokenizer, users_per_step=users_per_step)
    per_pass = 25 // users_per_step
    assert data.steps_per_epoch == per_pass
    orders = []
    for number in range(3):
        users = []
        for index in range(number * per_pass, (number + 1) * per_pass):
            histories = histories_of(tokenizer, data.train_batch(index).users)
            assert len(histories) == users_per_step
            users += [history[0] for history in histories]
        assert len(set(users)) == len(users) == per_pass * users_per_step
        orders.append(users)
    assert orders[0] != orders[1] != orders[2]


def test_users_left_out_of_one_pass_come_in_others(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, users_per_step=8)
    users = {history[0] for index in range(30) for history in histories_of(tokenizer, data.train_batch(index).users)}
    assert users == set(range(25))  # and never the one with a single item


def test_fewer_users_than_a_step_asks_for_are_all_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, users_per_step=100)
    assert data.steps_per_epoch == 1
    for index in range(3):
        assert data.train_batch(index).users.size == 25


def test_a_world_without_anything_to_learn_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    _, split, _ = world()
    bare = replace(split, train=split.train.unique("user", keep="first", maintain_order=True))
    with pytest.raises(RecpeftError, match="no user has two train interactions"):
        module(tokenizer, bare)


@pytest.mark.parametrize("positive_window", [None, 4])
def test_log_q_is_the_share_of_draws_that_fall_on_an_item(
    tokenizer: PreTrainedTokenizerBase, positive_window: int | None
) -> None:
    data = module(tokenizer, users_per_step=25, positive_window=positive_window)
    drawn: Counter[int] = Counter()
    stated: dict[int, float] = {}
    for index in range(400):
        batch = data.train_batch(index)
        for positives in positives_of(batch):
            drawn.update(positives)
        stated |= dict(zip(batch.item.tolist(), batch.log_q.double().exp().tolist(), strict=True))
    total = sum(drawn.values())
    for item, share in stated.items():
        # A share's standard error; draws without replacement vary less, those of one moment are tied.
        bound = 6 * (share * (1 - share) / total) ** 0.5
        assert drawn[item] / total == pytest.approx(share, abs=bound)


def test_log_q_orders_items_by_how_many_users_have_them(tokenizer: PreTrainedTokenizerBase) -> None:
    _, _, parts = world()
    batch = module(tokenizer, users_per_step=25).train_batch(0)
    users = Counter(item for items in parts["train"] for item in items)
    most, least = users.most_common(1)[0][0], min(batch.item.tolist(), key=users.__getitem__)
    log_q = dict(zip(batch.item.tolist(), batch.log_q.tolist(), strict=True))
    assert log_q[most] > log_q[least]
    assert all(value < 0 for value in log_q.values())


# The loader --------------------------------------------------------------------------------------------


def trainer_at(batches: int, rank: int = 0, world_size: int = 1) -> Any:
    """A trainer that has taken so many batches."""
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batches - 1))
    return SimpleNamespace(fit_loop=loop, global_rank=rank, world_size=world_size)


def test_the_loader_serves_an_epoch_from_where_the_trainer_stands(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, steps_per_epoch=4)
    assert len(data.train_dataloader()) == 4
    for step, indices in [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (6, [6, 7])]:
        data.trainer = trainer_at(step)
        served = list(data.train_dataloader())
        assert len(served) == len(indices)
        assert all(same(a, data.train_batch(b)) for a, b in zip(served, indices, strict=True))


def test_without_a_trainer_the_loader_starts_at_the_first_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, steps_per_epoch=2)
    served = list(data.train_dataloader())
    assert same(served[0], data.train_batch(0))
    assert same(served[1], data.train_batch(1))
    assert len(served) == 2


def test_two_processes_share_out_the_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, steps_per_epoch=6)
    served = []
    for rank in range(2):
        data.trainer = trainer_at(3, rank, 2)
        served.append(list(data.train_dataloader()))
    for step in range(3):
        for rank in range(2):
            assert same(served[rank][step], data.train_batch(6 + 2 * step + rank))


# Evaluation --------------------------------------------------------------------------------------------


def evaluation(data: TextPairDataModule, stage: str) -> tuple[list[ItemBatch], list[UserBatch]]:
    catalogue, users = data.val_dataloader() if stage == "validation" else data.test_dataloader()
    assert len(catalogue) == len(list(catalogue))
    assert len(users) == len(list(users))
    return list(catalogue), list(users)


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_the_catalogue_is_served_whole_and_first(tokenizer: PreTrainedTokenizerBase, stage: str) -> None:
    catalogue, _ = evaluation(module(tokenizer), stage)
    assert torch.cat([batch.item for batch in catalogue]).tolist() == list(range(NUM_ITEMS))
    for batch in catalogue:
        films = [int(re.findall(r"film (\d+)", text)[0]) for text in texts_of(tokenizer, batch.texts)]
        assert films == batch.item.tolist()


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("stage", ["validation", "test"])
def test_history_seen_and_relevant_pairs_are_the_splits(
    tokenizer: PreTrainedTokenizerBase, stage: str, mask_seen: bool
) -> None:
    _, _, parts = world()
    _, users = evaluation(module(tokenizer, mask_seen=mask_seen), stage)
    visited = []
    for batch in users:
        seen = {(int(row), int(item)) for row, item in zip(*batch.seen, strict=True)}
        relevant = {(int(row), int(item)) for row, item in zip(*batch.relevant, strict=True)}
        expected_seen, expected_relevant = set(), set()
        for row, (user, history) in enumerate(
            zip(batch.user.tolist(), histories_of(tokenizer, batch.texts), strict=True)
        ):
            before = list(parts["train"][user])
            if stage == "test":
                before += parts["validation"][user]
            assert history == before
            visited.append(user)
            if mask_seen:
                expected_seen |= {(row, item) for item in before}
            expected_relevant |= {(row, item) for item in parts[stage][user]}
        assert seen == expected_seen
        assert relevant == expected_relevant
    # every user that has something held out, once
    assert visited == [user for user in range(NUM_USERS) if parts[stage][user]]


def test_more_users_than_a_block_are_each_served_once(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset, split, parts = world()
    data = TextPairDataModule(dataset, split, tokenizer)
    batches = list(data._ranked(data.test_users, data._known, data._liked_at_test, None, size=4))
    assert [user for batch in batches for user in batch.user.tolist()] == data.test_users.tolist()
    for batch in batches:
        for row, item in zip(*batch.relevant, strict=True):
            assert int(item) in parts["test"][int(batch.user[row])]


def test_validation_users_are_a_fixed_sample(tokenizer: PreTrainedTokenizerBase) -> None:
    _, _split, parts = world()
    all_users = [user for user in range(NUM_USERS) if parts["validation"][user]]

    def drawn(**options: Any) -> list[int]:
        _, users = evaluation(module(tokenizer, **options), "validation")
        return [user for batch in users for user in batch.user.tolist()]

    sample = drawn(validation_users=6)
    assert len(set(sample)) == 6
    assert set(sample) < set(all_users)
    assert sample == drawn(validation_users=6)
    assert sample == drawn(validation_users=6, users_per_step=3, history=1)
    assert sample == drawn(validation_users=6, seed=1)
    assert drawn() == drawn(validation_users=1000) == all_users
    data = module(tokenizer, validation_users=6)
    data.train_batch(3)
    assert data.validation_users.tolist() == sample
    # the sample is of validation alone: test is on everybody
    assert data.test_users.tolist() == [user for user in range(NUM_USERS) if parts["test"][user]]


def test_left_padding_is_the_tokenizers(tokenizer: PreTrainedTokenizerBase, tiny_backbone: Path) -> None:
    left = AutoTokenizer.from_pretrained(tiny_backbone, padding_side="left")
    data, right = module(left, users_per_step=25), module(tokenizer, users_per_step=25)
    one, other = data.train_batch(0), right.train_batch(0)
    assert texts_of(tokenizer, one.users) == texts_of(tokenizer, other.users)
    padded = [bucket for bucket in one.users.buckets if not bucket.attention_mask.all()]
    assert padded
    for bucket in padded:
        assert bucket.attention_mask[:, -1].all()
        assert (bucket.input_ids[bucket.attention_mask == 0] == left.pad_token_id).all()


def test_no_bucket_exceeds_the_limit(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, max_bucket_tokens=64)
    for batch in (data.train_batch(0).users, data.train_batch(0).items):
        for bucket in batch.buckets:
            assert bucket.input_ids.numel() <= 64 or len(bucket.row) == 1


# Negatives ---------------------------------------------------------------------------------------------


def train_items() -> list[set[int]]:
    _, _, parts = world()
    return [set(items) for items in parts["train"]]


def users_of(tokenizer: PreTrainedTokenizerBase, batch: PairBatch) -> list[int]:
    return [history[0] for history in histories_of(tokenizer, batch.users)]


def pools_of(data: TextPairDataModule) -> dict[int, list[int]]:
    """For each user three items that the user does not know, one of them without a train row."""
    known = train_items()
    return {user: [*[item for item in range(30, 60) if item not in known[user]][:2], 70] for user in range(ALONE)}


@pytest.mark.parametrize(
    "negatives",
    [
        {"uniform": 30},
        {"popularity": 20},
        {"uniform": 10, "popularity": 10, "hard": 2},
        {"hard": 3},
        {"uniform": 30, "in_batch": False},
        {"popularity": 20, "hard": 1, "in_batch": False},
    ],
)
def test_no_item_that_a_user_knows_is_a_negative_of_theirs(
    tokenizer: PreTrainedTokenizerBase, negatives: dict[str, Any]
) -> None:
    known = train_items()
    data, plain = module(tokenizer, negatives=NegativesConfig(**negatives)), module(tokenizer)
    data.set_hard_pools(pools_of(data))
    sampled = 0
    for index in range(15):
        batch, without = data.train_batch(index), plain.train_batch(index)
        items = batch.item.tolist()
        assert items == sorted(set(items))
        assert [int(re.findall(r"film (\d+)", text)[0]) for text in texts_of(tokenizer, batch.items)] == items
        # What is drawn beside them moves neither users, histories nor positives.
        assert positives_of(batch) == positives_of(without)
        assert texts_of(tokenizer, batch.users) == texts_of(tokenizer, without.users)
        sampled += len(set(items) - set(without.item.tolist()))
        for row, user in enumerate(users_of(tokenizer, batch)):
            for column, item in enumerate(items):
                if item in known[user]:
                    assert batch.positive[row, column] or batch.excluded[row, column]
                else:
                    assert not batch.positive[row, column]
    assert sampled > 15


def test_items_of_validation_and_test_may_be_drawn_as_negatives(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = module(tokenizer, negatives=NegativesConfig(uniform=NUM_ITEMS)).train_batch(0)
    assert batch.item.tolist() == list(range(NUM_ITEMS))
    assert not batch.excluded[:, 60:].any()


def test_without_in_batch_negatives_only_drawn_items_are_left(tokenizer: PreTrainedTokenizerBase) -> None:
    known = train_items()
    lone = 0
    for kind in ({"uniform": 12}, {"popularity": 12}):
        both = module(tokenizer, negatives=NegativesConfig(**kind))
        data = module(tokenizer, negatives=NegativesConfig(in_batch=False, **kind))
        for index in range(10):
            batch = data.train_batch(index)
            assert torch.equal(batch.item, both.train_batch(index).item)
            negative = ~batch.positive & ~batch.excluded
            shown = {tuple(batch.item[negative[row]].tolist()) for row in range(8)}
            # Every user's negatives are what was drawn but for what the user knows.
            drawn = set(batch.item[negative.any(0)].tolist())
            for row, user in enumerate(users_of(tokenizer, batch)):
                assert set(batch.item[negative[row]].tolist()) == drawn - known[user]
            assert len(drawn) <= 12
            assert shown
            lone += int((batch.positive.any(0) & ~negative.any(0)).sum())
    assert lone > 50  # positives that are nobody's negative


def test_without_in_batch_negatives_other_users_positives_are_excluded(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, negatives=NegativesConfig(uniform=1, in_batch=False))
    for index in range(5):
        batch = data.train_batch(index)
        assert int((~batch.positive & ~batch.excluded).any(0).sum()) <= 1


def test_hard_negatives_come_from_the_pools_so_many_a_user(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, negatives=NegativesConfig(hard=1))
    plain = module(tokenizer)
    assert all(same(data.train_batch(index), plain.train_batch(index)) for index in range(5))  # no pools yet
    data.set_hard_pools({user: [60 + user % 10, 70 + user % 10] for user in range(ALONE)})
    drawn: dict[int, set[int]] = defaultdict(set)
    for index in range(60):
        batch = data.train_batch(index)
        users = users_of(tokenizer, batch)
        added = {item for item in batch.item.tolist() if item >= 60}
        pools = {user: {60 + user % 10, 70 + user % 10} for user in users}
        assert added <= set().union(*pools.values())
        assert all(pools[user] & added for user in users)
        assert len(added) <= len(users)
        for item in added:
            drawn[item % 10].add(item)
    assert all(len(items) == 2 for items in drawn.values())  # either of a pool comes
    assert data.hard_pools()[3] == [63, 73]


def test_what_a_hard_negative_costs_is_bounded_by_the_rarest_drawn_item(tokenizer: PreTrainedTokenizerBase) -> None:
    # Films from 60 on have no train row; a share of 0 would lift their corrected score above all others'.
    data = module(tokenizer, negatives=NegativesConfig(hard=1), users_per_step=25)
    data.set_hard_pools({user: [70] for user in range(ALONE)})
    batch = data.train_batch(0)
    hard = batch.log_q[batch.item == 70]
    assert len(hard) == 1
    assert hard.item() >= min(module(tokenizer, users_per_step=25)._log_q[30:60].tolist()) - 1e-5


def test_negatives_are_a_function_of_seed_index_and_pools(tokenizer: PreTrainedTokenizerBase) -> None:
    negatives = NegativesConfig(uniform=5, popularity=5, hard=1)
    one, other = (module(tokenizer, negatives=negatives) for _ in range(2))
    for data in (one, other):
        data.set_hard_pools(pools_of(data))
    expected = [one.train_batch(index) for index in range(6)]
    for index in (4, 1, 5):
        np.random.seed(index)
        assert same(other.train_batch(index), expected[index])
    moved = module(tokenizer, negatives=negatives, seed=1)
    moved.set_hard_pools(pools_of(moved))
    assert not any(same(moved.train_batch(index), expected[index]) for index in range(6))


@pytest.mark.parametrize(
    "negatives",
    [
        {"uniform": 6},
        {"uniform": 4, "popularity": 8},
        {"popularity": 30, "popularity_exponent": 1.0},
        {"uniform": 6, "in_batch": False},
    ],
)
@pytest.mark.parametrize("users_per_step", [8, 40])
def test_log_q_of_a_mixture_is_the_share_of_a_batchs_draws(
    tokenizer: PreTrainedTokenizerBase, negatives: dict[str, Any], users_per_step: int
) -> None:
    """Positives by the batches of a plain module; the others by their definition, an item drawn once for each draw."""
    _, _, parts = world()
    config = NegativesConfig(**negatives)
    data, plain = (
        module(tokenizer, users_per_step=users_per_step, **options) for options in ({"negatives": config}, {})
    )
    counts = np.zeros(NUM_ITEMS)
    batches = 300
    if config.in_batch:
        for index in range(batches):
            for positives in positives_of(plain.train_batch(index)):
                counts[positives] += 1
    counts /= batches
    train = np.bincount([item for items in parts["train"] for item in items], minlength=NUM_ITEMS)
    weight = np.where(train > 0, train.astype(float) ** config.popularity_exponent, 0.0)
    counts += config.uniform / NUM_ITEMS + config.popularity * weight / weight.sum()
    expected = counts / counts.sum()
    found = np.exp(data._log_q.double().numpy())
    assert found[expected > 0.01] == pytest.approx(expected[expected > 0.01], rel=0.15)
    assert found[60:] == pytest.approx(expected[60:], rel=0.02) or not config.uniform
    first = expected[:30] > 0  # the first of histories, which are no positives
    assert found[:30][first].sum() == pytest.approx(expected[:30].sum(), abs=0.01)


# Few shots and held-out users ---------------------------------------------------------------------------


def small(tokenizer: PreTrainedTokenizerBase, config: Any, **options: Any) -> tuple[TextPairDataModule, Split]:
    """Synthetic data, whose items' texts end in their number."""
    dataset = synthetic.load(synthetic.Config(source="synthetic", num_users=60, num_items=80, interactions_per_user=10))
    items = dataset.items.with_columns(title=pl.format("film {}", pl.col("item")))
    parts = split_data(dataset, config)
    chosen = {"users_per_step": 8, "positives_per_user": 3, "history": 50, "max_user_tokens": 500, **options}
    return TextPairDataModule(replace(dataset, items=items), parts, tokenizer, **chosen), parts


def items_by_user(frame: pl.DataFrame) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for user, item in frame.select("user", "item").iter_rows():
        found[user].append(item)
    return found


def test_of_few_shots_only_those_are_positives_and_histories_name_all(tokenizer: PreTrainedTokenizerBase) -> None:
    data, parts = small(tokenizer, per_user_temporal.Config(few_shot=40))
    whole = items_by_user(split_data(data.dataset, "per_user_temporal").train)
    learnt = items_by_user(parts.train)
    assert sum(map(len, learnt.values())) == 40
    seen: set[tuple[int, int]] = set()
    unlearnt_shown = 0
    for index in range(150):
        batch = data.train_batch(index)
        for row, (history, user) in enumerate(
            zip(histories_of(tokenizer, batch.users), data.examples.users(index).tolist(), strict=True)
        ):
            assert user in learnt
            assert history == whole[user][: len(history)]
            assert history
            positives = batch.item[batch.positive[row]].tolist()
            later = [item for item in learnt[user] if item not in history]
            assert positives
            assert set(positives) <= set(later)
            assert len(positives) == min(3, len(later))
            unlearnt_shown += len(set(history) - set(learnt[user]))
            seen |= {(user, item) for item in positives}
            # What is known and not learnt is no negative either.
            for item in batch.item[~batch.positive[row] & ~batch.excluded[row]].tolist():
                assert item not in whole[user]
    assert seen == {(user, item) for user, items in learnt.items() for item in items}
    assert unlearnt_shown > 500


def test_of_few_shots_with_equal_times_every_one_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = synthetic.load(synthetic.Config(source="synthetic", num_users=60, num_items=80, interactions_per_user=10))
    tied = replace(dataset, interactions=dataset.interactions.with_columns(timestamp=pl.lit(5, pl.Int64)))
    parts = split_data(tied, per_user_temporal.Config(few_shot=40))
    data = TextPairDataModule(tied, parts, tokenizer, users_per_step=8)
    assert set(data.examples._trainable.tolist()) == set(parts.train["user"])
    drawn: set[tuple[int, int]] = set()
    for index in range(150):
        batch = data.train_batch(index)
        for row, user in enumerate(data.examples.users(index).tolist()):
            drawn |= {(user, item) for item in batch.item[batch.positive[row]].tolist()}
    assert drawn == set(parts.train.select("user", "item").rows())


def test_log_q_of_few_shots_is_the_share_of_draws(tokenizer: PreTrainedTokenizerBase) -> None:
    data, _ = small(tokenizer, per_user_temporal.Config(few_shot=25), users_per_step=100)
    drawn: Counter[int] = Counter()
    for index in range(500):
        for positives in positives_of(data.train_batch(index)):
            drawn.update(positives)
    total = sum(drawn.values())
    for item, share in enumerate(data._log_q.double().exp().tolist()):
        if item in drawn:
            assert drawn[item] / total == pytest.approx(share, abs=6 * (share * (1 - share) / total) ** 0.5)


def test_held_out_users_are_never_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    data, parts = small(tokenizer, user_holdout.Config())
    held_out = set(parts.validation["user"]) | set(parts.test["user"])
    trained = set(parts.train["user"])
    assert held_out
    assert not held_out & trained
    visited = {user for index in range(40) for user in data.examples.users(index).tolist()}
    assert visited == trained
    # They are shown what they did before, and of validation's users nothing becomes known at test.
    known = items_by_user(parts.history)
    for batches, frame in ((data.val_dataloader()[1], parts.validation), (data.test_dataloader()[1], parts.test)):
        expected = items_by_user(frame)
        for batch in batches:
            relevant = {(int(row), int(item)) for row, item in zip(*batch.relevant, strict=True)}
            for row, (user, shown) in enumerate(
                zip(batch.user.tolist(), histories_of(tokenizer, batch.texts), strict=True)
            ):
                assert shown == known[user]
                assert {item for place, item in relevant if place == row} == set(expected.pop(user))
        assert not expected


# Balance -----------------------------------------------------------------------------------------------


def balance_of(large: int, small: int, none: int) -> np.ndarray:
    """Groups of the 25 users that can be trained on, in no order of their ids, and of the one that cannot."""
    groups = np.asarray([0] * large + [1] * small + [-1] * none)
    assert len(groups) == ALONE
    return np.append(np.random.default_rng(0).permutation(groups), 0)


def test_balanced_batches_have_equally_many_users_of_each_group(tokenizer: PreTrainedTokenizerBase) -> None:
    group = balance_of(18, 4, 3)
    data = module(tokenizer, balance=group, users_per_step=8)
    visited: Counter[int] = Counter()
    for index in range(60):
        users = users_of(tokenizer, data.train_batch(index))
        assert users == data.examples.users(index).tolist()
        assert Counter(group[users].tolist()) == {0: 4, 1: 4}
        visited.update(users)
    assert set(visited) == set(np.flatnonzero(group[:ALONE] >= 0).tolist())


@pytest.mark.parametrize("sizes", [(18, 4, 3), (10, 0, 15), (24, 1, 0)])
def test_users_are_drawn_as_often_as_chances_say(
    tokenizer: PreTrainedTokenizerBase, sizes: tuple[int, int, int]
) -> None:
    group = balance_of(*sizes)
    data = module(tokenizer, balance=group, users_per_step=6)
    drawn: Counter[int] = Counter()
    for index in range(600):
        users = data.examples.users(index)
        assert len(users) == 6
        drawn.update(users.tolist())
    chances = data.examples._passes.chances()
    expected = chances / chances.sum() * 3600
    for user in range(ALONE):
        assert drawn[user] == pytest.approx(expected[user], abs=5 * expected[user] ** 0.5)
    members = np.bincount(group[:ALONE][group[:ALONE] >= 0], minlength=2)
    # By hand: a group's draws are shared alike by its members.
    for user in range(ALONE):
        share = 0 if group[user] < 0 else 1 / (members > 0).sum() / members[group[user]]
        assert expected[user] / 3600 == pytest.approx(share)


def test_log_q_follows_the_balance(tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(tokenizer, balance=balance_of(21, 4, 0), users_per_step=24)
    drawn: Counter[int] = Counter()
    for index in range(400):
        for positives in positives_of(data.train_batch(index)):
            drawn.update(positives)
    total = sum(drawn.values())
    for item, share in enumerate(data._log_q.double().exp().tolist()):
        if item in drawn:
            assert drawn[item] / total == pytest.approx(share, abs=6 * (share * (1 - share) / total) ** 0.5 + 0.002)


def test_one_group_of_all_users_is_no_balance(tokenizer: PreTrainedTokenizerBase) -> None:
    data, plain = module(tokenizer, balance=np.zeros(NUM_USERS, np.int64)), module(tokenizer)
    assert all(same(data.train_batch(index), plain.train_batch(index)) for index in range(6))


def test_a_balance_without_anybody_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RecpeftError, match=r"training\.balance: no user"):
        module(tokenizer, balance=np.full(NUM_USERS, -1))


# What stays as it was ----------------------------------------------------------------------------------


BATCHES = """
import sys
import numpy as np
from transformers import AutoTokenizer
from datamodules import TextPairDataModule, split, synthetic
from datamodules._negatives import NegativesConfig
dataset = synthetic.load(synthetic.Config(source="synthetic"))
negatives = NegativesConfig(uniform=5, popularity=5, hard=2)
data = TextPairDataModule(
    dataset, split(dataset, "per_user_temporal"), AutoTokenizer.from_pretrained(sys.argv[1]), negatives=negatives
)
data.set_hard_pools({user: [user % 160, (user + 7) % 160, (3 * user) % 160] for user in range(200)})
for index in (3, 0):
    batch = data.train_batch(index)
    print(batch.item.tolist(), batch.positive.nonzero().sum(0).tolist(), batch.excluded.nonzero().sum(0).tolist())
    print([bucket.input_ids.sum().item() for bucket in batch.users.buckets], batch.log_q.sum().item())
"""


def test_batches_are_those_of_every_process(
    tiny_backbone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["-c", str(tiny_backbone)]
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, arguments[0], BATCHES, arguments[1]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", arguments)
    exec(BATCHES, {})  # noqa: S102 (the same lines here)
    here = capsys.readouterr().out
    assert here == done.stdout
    assert here.count("\n") == 4


def test_the_draws_of_a_run_without_options_are_what_they_were(tokenizer: PreTrainedTokenizerBase) -> None:
    """An independent writing of users, moments and positives, as recorded results were drawn."""
    _, _, parts = world()
    data = module(tokenizer)
    for index in range(9):
        order = np.random.default_rng([0, 3, index // 3]).permutation(np.arange(25))
        users = order[index % 3 * 8 : index % 3 * 8 + 8]
        draw = np.random.default_rng([0, 2, index])
        batch = data.train_batch(index)
        histories = histories_of(tokenizer, batch.users)
        for row, user in enumerate(users.tolist()):
            train = parts["train"][user]
            moment = int(draw.integers(1, len(train)))
            positives = draw.choice(train[moment:], min(3, len(train) - moment), replace=False)
            assert histories[row] == train[:moment]
            assert positives_of(batch)[row] == sorted(positives.tolist())


def test_candidates_are_served_to_their_users_padded(tokenizer: PreTrainedTokenizerBase) -> None:
    _, _, parts = world()
    frames = []
    for part in ("validation", "test"):
        rows = [(user, item) for user, items in enumerate(parts[part]) for item in [*items, *range(user % 4)] if items]
        frames.append(pl.DataFrame(sorted(rows), {"user": pl.Int32, "item": pl.Int32}, orient="row"))
    data = module(tokenizer, candidates=(frames[0], frames[1]))
    for stage, frame in zip(("validation", "test"), frames, strict=True):
        expected = items_by_user(frame)
        _, users = evaluation(data, stage)
        for batch in users:
            assert batch.candidates is not None
            for user, row in zip(batch.user.tolist(), batch.candidates.tolist(), strict=True):
                listed = expected.pop(user)
                assert row == listed + [-1] * (len(row) - len(listed))
        assert not expected
