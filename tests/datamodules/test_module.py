"""What the TextPairDataModule serves, against brute force over the split."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch
from datamodules._dataset import RecDataset
from datamodules._module import TextPairDataModule
from datamodules._splits import Split
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
    assert batch.num_tokens == batch.users.num_tokens + batch.items.num_tokens


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
    with pytest.raises(RecpeftError, match="no user of small has two train interactions"):
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
    data = module(tokenizer, steps_per_epoch=3)
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
    batches = list(data._ranked(data.test_users, data._known, data._test, None, size=4))
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
