"""Sequences of items: what a place may see, what the texts' gradient is, and what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from adapters import Adapter, frozen, lora
from adapters import none as no_text
from datamodules import RecDataset, Split, TextPairDataModule
from datamodules._batching import NO_ITEM, START, ItemSequences
from datamodules._histories import Histories
from datamodules._negatives import NegativesConfig
from datamodules._sequences import PositionExamples, SequenceMaker
from lightning_modules import RankingCallback, load, sequence
from lightning_modules._sequence_impl import Sequence
from metrics import RankingMetrics

pytestmark = pytest.mark.usefixtures("one_thread")

World = tuple[RecDataset, Split]
CAUSAL = ("transformer", "gru", "attention", "mean")


def make(
    world: World, backbone: str, adapter: Any = lora, data_options: dict[str, Any] | None = None, **options: Any
) -> tuple[Sequence, TextPairDataModule]:
    """A module with an untrained head, the catalogue encoded, and its data."""
    dataset, split = world
    config = sequence.Config(width=16, **{"ids": "add", "length": 6, "dropout": 0.0, **options})
    loaded = load(backbone)
    data = TextPairDataModule(
        dataset,
        split,
        loaded.tokenizer,
        form="items",
        sequence_length=config.length,
        rated_sequences=config.ratings,
        texts_per_step=config.encoded_per_step if adapter is lora else 0,
        **{"examples": "positions", "users_per_step": 8, "negatives": NegativesConfig(catalogue=True)}
        | (data_options or {}),
    )
    torch.manual_seed(0)
    bound = Adapter(adapter.Config())
    counts = np.bincount(split.train["item"].to_numpy(), minlength=dataset.num_items)
    module = sequence.build(
        bound.attach(loaded.model, 1),
        config,
        num_items=dataset.num_items,
        hidden_size=loaded.hidden_size,
        adapter=bound,
        learning_rate=1e-2,
        **sequence.prepare(config, loaded, data.prompt, dataset.items, counts),
    )
    assert isinstance(module, Sequence)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    encode(module, data)
    return module, data


@torch.no_grad()
def encode(module: Sequence, data: TextPairDataModule) -> None:
    module.eval()
    for batch in data.catalogue(7):
        module.encode_catalogue(batch)


def states(module: Sequence, item: Tensor) -> Tensor:
    """(U, L, D) of sequences of items, without ratings."""
    sequences = ItemSequences(item, torch.full(item.shape, torch.nan))
    every = torch.arange(module.num_items)
    history, _ = module._read(sequences, module._catalogue(), every)
    found: Tensor = module.head.users(history)
    return found


# What a place may see ------------------------------------------------------------------------------------


@pytest.mark.parametrize("user_encoder", CAUSAL)
def test_no_place_sees_what_follows(world: World, tiny_backbone: Path, user_encoder: str) -> None:
    module, _ = make(world, str(tiny_backbone), user_encoder=user_encoder)
    item = torch.tensor([[START, 3, 8, 1, 5, 2]])
    changed = item.clone()
    changed[0, 4:] = torch.tensor([9, NO_ITEM])
    with torch.no_grad():
        before, after = states(module, item), states(module, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
    assert (before[:, 4] - after[:, 4]).abs().max() > 1e-3


def test_targets_are_what_follows_their_place(world: World) -> None:
    dataset, split = world
    known = Histories.of(split.known(at_test=False), dataset.num_users)
    for length, next_items in ((4, 1), (100, 1), (5, 3)):
        examples = PositionExamples(
            known,
            split,
            SequenceMaker(length, None),
            next_items=next_items,
            users_per_step=8,
            seed=0,
            balance=None,
        )
        for index in range(4):
            drawn = examples.draw(index, np.random.default_rng(index))
            assert len(drawn.row) > 8
            for row, place, positives in zip(drawn.row, drawn.place, drawn.positives, strict=True):
                own = known.items(drawn.user[row]).tolist()
                window = drawn.sequences.item[row].tolist()
                seen = [item for item in window[: place + 1] if item != START]
                assert NO_ITEM not in seen
                begin = own.index(seen[0]) if seen else 0
                assert own[begin : begin + len(seen)] == seen
                follows = own[begin + len(seen) : begin + len(seen) + next_items]
                assert [item for item in positives.tolist() if item >= 0] == follows


def test_the_expected_share_of_each_item_is_that_of_many_draws(world: World) -> None:
    dataset, split = world
    known = Histories.of(split.known(at_test=False), dataset.num_users)
    for next_items in (1, 2):
        examples = PositionExamples(
            known, split, SequenceMaker(5, None), next_items=next_items, users_per_step=8, seed=0, balance=None
        )
        counts, draws = np.zeros(dataset.num_items), 400
        for index in range(draws):
            positives = examples.draw(index, np.random.default_rng(index)).positives
            counts += np.bincount(positives[positives >= 0], minlength=dataset.num_items)
        share, per_batch = examples.expected(dataset.num_items)
        assert counts.sum() / draws == pytest.approx(per_batch, rel=0.05)
        np.testing.assert_allclose(counts / counts.sum(), share, atol=0.008)


@pytest.mark.parametrize("user_encoder", [*CAUSAL, "target_attention"])
def test_padding_and_what_lies_beyond_the_window_change_nothing(
    world: World, tiny_backbone: Path, user_encoder: str
) -> None:
    module, data = make(world, str(tiny_backbone), user_encoder=user_encoder, data_options={"examples": "users"})
    long, short = [1, 4, 7, 2, 9, 3, 8, 5], [6, 0]
    cut = Histories.of_items([long, short, [11, *long], []])
    together = data.people(cut, np.arange(4))
    with torch.no_grad():
        scores = module.score(together)
        for row in range(4):
            alone = module.score(data.people(cut, np.asarray([row])))
            torch.testing.assert_close(scores[row : row + 1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[0], scores[2], rtol=0, atol=1e-5)
    assert scores[3].isfinite().all()
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_a_candidate_sees_no_other_one(world: World, tiny_backbone: Path) -> None:
    module, data = make(world, str(tiny_backbone), user_encoder="target_attention", data_options={"examples": "users"})
    batch = data.people(Histories.of_items([[1, 4, 7]]), np.asarray([0]))
    with torch.no_grad():
        every = module.score(batch)
        some = module.score(batch, torch.tensor([[5, 9]]))
    torch.testing.assert_close(some, every[:, [5, 9]], rtol=0, atol=1e-5)


# Texts -----------------------------------------------------------------------------------------------------


def gradient(module: Sequence, data: TextPairDataModule) -> Tensor:
    module.zero_grad()
    module.train()
    module.loss(data.train_batch(0)).backward()
    parts = [p.grad.flatten() for n, p in module.backbone.named_parameters() if p.grad is not None]
    return torch.cat(parts)


def test_all_texts_give_the_exact_gradient_and_some_a_part_of_it(world: World, tiny_backbone: Path) -> None:
    module, data = make(world, str(tiny_backbone))
    exact = gradient(module, data)
    # The same by hand: every item's text encoded anew in the very graph, no bank.
    module.zero_grad()
    batch = data.train_batch(0)
    every = torch.arange(module.num_items)
    text = module.encode(data._items(every.numpy()).texts)
    vectors = module.head.items(text, every)
    history, _ = module._read(batch.sequences, vectors, every)
    scores = module.head.users(history)[batch.targets.row, batch.targets.place] @ vectors.T
    logits = scores.masked_fill(batch.excluded, torch.finfo(torch.float32).min)
    (-logits.log_softmax(dim=1)[batch.positive]).mean().backward()
    by_hand = torch.cat([p.grad.flatten() for p in module.backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(exact, by_hand, rtol=1e-3, atol=1e-6)

    data._texts_per_step = 5
    part = gradient(module, data)
    cosine = torch.nn.functional.cosine_similarity(exact, part, dim=0)
    assert 0.05 < cosine < 0.999


def test_the_bank_holds_what_was_encoded_last(world: World, tiny_backbone: Path) -> None:
    module, data = make(world, str(tiny_backbone), texts_per_step=5)
    module.train()
    batch = data.train_batch(0)
    assert len(batch.text_item) == 5
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    before = module.bank.clone()
    module.loss(batch)
    changed = (module.bank - before).abs().amax(dim=1) > 1e-4
    assert changed.nonzero().flatten().tolist() == batch.text_item.tolist()
    assert module._bank_age.tolist() == [0 if item in batch.text_item.tolist() else 1 for item in range(len(before))]


def test_an_item_without_train_interactions_has_its_text_alone(world: World, tiny_backbone: Path) -> None:
    module, _ = make(world, str(tiny_backbone), ids="gate")
    module.head.has_id[4] = False
    every = torch.arange(module.num_items)
    with torch.no_grad():
        before = module.head.items(module.bank, every)
        module.head.ids.weight.add_(1.0)
        after = module.head.items(module.bank, every)
    assert torch.equal(before[4], after[4])
    assert (before[3] - after[3]).abs().max() > 1e-3


# Training --------------------------------------------------------------------------------------------------


def _metrics(world: World) -> RankingMetrics:
    dataset, split = world
    counts = np.bincount(split.train["item"].to_numpy(), minlength=dataset.num_items)
    categories = torch.zeros((dataset.num_items, 1), dtype=torch.bool)
    return RankingMetrics([10], categories, torch.from_numpy(counts), dataset.num_users, {}, names=["ndcg"])


def trained(world: World, backbone: str, folder: Path, steps: int = 60, **options: Any) -> float:
    """NDCG@10 at test after some steps."""
    seed_everything(0, verbose=False)
    adapter = options.pop("adapter", no_text)
    module, data = make(world, backbone, adapter, **options)
    if module.has_bank and adapter is frozen:
        module.take_bank(module.bank, fixed=True)
    ranking = RankingCallback(_metrics(world))
    trainer = Trainer(
        max_steps=steps,
        callbacks=[ranking],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    return ranking.test["ndcg@10"]


LEARNT = 0.55
"""NDCG@10 above which the taste is learnt: who ranks the user's own colour at random comes to about 0.6, and who ranks
all at random to about 0.23."""


@pytest.mark.parametrize("user_encoder", CAUSAL)
def test_the_planted_taste_is_learnt_by_ids_alone(world: World, tmp_path: Path, user_encoder: str) -> None:
    assert trained(world, "none", tmp_path, user_encoder=user_encoder) > LEARNT


@pytest.mark.parametrize("adapter", [frozen, lora])
def test_the_planted_taste_is_learnt_by_texts_alone(
    world: World, tiny_backbone: Path, tmp_path: Path, adapter: Any
) -> None:
    options = {"adapter": adapter, "ids": "none", "texts_per_step": 10}
    assert trained(world, str(tiny_backbone), tmp_path, **options) > LEARNT


def test_the_planted_taste_is_learnt_by_target_attention(world: World, tiny_backbone: Path, tmp_path: Path) -> None:
    examples = {"examples": "users", "negatives": NegativesConfig(uniform=10)}
    options = {"adapter": frozen, "user_encoder": "target_attention", "data_options": examples}
    assert trained(world, str(tiny_backbone), tmp_path, **options) > LEARNT
