"""Hard negatives: what the model itself confuses, mined at its time, and a run that resumes as if uninterrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from adapters import Adapter, lora
from datamodules import RecDataset, Split, TextPairDataModule, joint, split
from datamodules._negatives import NegativesConfig
from lightning_modules import HardNegatives, RankingCallback, ResumeCheckpoint, TwoTower, load
from metrics import RankingMetrics

STEPS, PER_EPOCH, POOL = 8, 2, 6
Pools = dict[int, list[int]]


class Interrupted(Exception):
    """Stands for the kill."""


class Breaker(Callback):
    """Raises before the batch behind ``step`` optimiser steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            raise Interrupted


class Listener(Callback):
    """What each epoch begins with, and what a loop over the model's scores says it should."""

    def __init__(self) -> None:
        self.pools: list[Pools] = []
        self.expected: list[Pools] = []
        self.training: list[bool] = []

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.training.append(module.training)
        self.pools.append(data.hard_pools())
        self.expected.append(best_unknown(module, data))  # type: ignore[arg-type]


def best_unknown(module: TwoTower, data: TextPairDataModule) -> Pools:
    """For each user the best items that are not in the user's train rows, by a sort in plain Python."""
    state = torch.get_rng_state()
    module.eval()
    found: Pools = {}
    with torch.no_grad():
        items = torch.cat([module.encode(batch.texts) for batch in data.catalogue()])
        for user in range(data.dataset.num_users):
            known = data._known.items(user).tolist()
            ids = data.prompt.user(known)
            embedding = module.encode(data._texts(ragged([ids])))
            scores = module.head(embedding, items, torch.arange(len(items)))[0].tolist()
            unknown = [item for item in range(len(scores)) if item not in known]
            found[user] = sorted(unknown, key=lambda item: -scores[item])[:POOL]
    module.train()
    torch.set_rng_state(state)
    return found


def ragged(rows: list[list[int]]) -> Any:
    from datamodules._ragged import Ragged

    return Ragged.of(rows)


@dataclass
class Process:
    """What one process of a run leaves behind."""

    module: TwoTower
    trainer: Trainer
    trace: list[dict[str, Any]]
    listener: Listener
    batches: dict[int, list[int]]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}


pytestmark = pytest.mark.usefixtures("one_thread")


def run(
    world: tuple[RecDataset, Split],
    tiny_backbone: Path,
    folder: Path,
    *,
    negatives: dict[str, Any],
    resumed: bool = False,
    broken: int | None = None,
    mines: bool = True,
    deaf: bool = False,
    max_steps: int = STEPS,
) -> Process:
    """Train from the start, or from ``last.ckpt`` where ``resumed``, as a process of its own would.

    Args:
        deaf: what is mined does not reach the data.
    """
    dataset, parts = world
    backbone = load(str(tiny_backbone))
    seed_everything(0, verbose=False)
    adapter = Adapter(lora.Config(rank=2, dropout=0.1, target_modules=("query", "value")), plugin=lora)
    module = TwoTower(
        adapter.attach(backbone.model, STEPS),
        num_items=dataset.num_items,
        item_bias=True,
        adapter=adapter,
        k=5,
        learning_rate=2e-2,
    )
    data = TextPairDataModule(
        dataset,
        parts,
        backbone.tokenizer,
        users_per_step=8,
        positives_per_user=3,
        steps_per_epoch=PER_EPOCH,
        history=4,
        max_user_tokens=48,
        negatives=NegativesConfig(**negatives),
    )
    if deaf:
        data.set_hard_pools = lambda pools: None  # type: ignore[method-assign]
    batches: dict[int, list[int]] = {}
    batch_of = data.train_batch

    def recorded(index: int) -> Any:
        batch = batch_of(index)
        batches[index] = batch.item.tolist()
        return batch

    data.train_batch = recorded  # type: ignore[method-assign]
    counts = torch.bincount(torch.tensor(parts.train["item"].to_list()), minlength=dataset.num_items)
    categories = torch.zeros(dataset.num_items, 1, dtype=torch.bool)
    ranking = RankingCallback(RankingMetrics([5], categories, counts, dataset.num_users, {}, names=["ndcg"]))
    resume = ResumeCheckpoint(folder / "last.ckpt", 1)
    listener = Listener()
    callbacks: list[Callback] = [ranking, *([HardNegatives()] if mines else []), resume]
    callbacks += [*([listener] if not deaf and mines else []), *([Breaker(broken)] if broken is not None else [])]
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    checkpoint = str(resume.path) if resumed else None
    if broken is None:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    else:
        with pytest.raises(Interrupted):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return Process(module, trainer, ranking.trace, listener, batches)


@pytest.fixture
def start(world: tuple[RecDataset, Split], tiny_backbone: Path, tmp_path: Path) -> Callable[..., Process]:
    """``run`` in this test's folder."""

    def started(**options: Any) -> Process:
        return run(world, tiny_backbone, tmp_path, **options)

    return started


def hard(every: int = 1, **options: Any) -> dict[str, Any]:
    return {"hard": 2, "hard_pool": POOL, "hard_refresh_epochs": every, **options}


@pytest.fixture(scope="module", params=[1, 2])
def whole(
    request: pytest.FixtureRequest,
    world: tuple[RecDataset, Split],
    tiny_backbone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, Process]:
    """Epochs between refreshes, and the run that nothing interrupts."""
    negatives = hard(request.param)
    return request.param, run(world, tiny_backbone, tmp_path_factory.mktemp("whole"), negatives=negatives)


def test_pools_are_the_items_the_model_scores_highest_of_those_a_user_does_not_know(whole: tuple[int, Process]) -> None:
    every, process = whole
    listener = process.listener
    for epoch in range(0, STEPS // PER_EPOCH, every):
        pools = listener.pools[epoch]
        data = process.trainer.datamodule  # type: ignore[attr-defined]
        batches = range(epoch * PER_EPOCH, (epoch + every) * PER_EPOCH)
        assert set(pools) == {user for index in batches for user in data.examples.users(index).tolist()}
        assert pools == {user: listener.expected[epoch][user] for user in pools}
        assert all(len(pool) == POOL for pool in pools.values())


def test_pools_are_mined_anew_as_often_as_asked_and_change_with_the_model(whole: tuple[int, Process]) -> None:
    every, process = whole
    pools = process.listener.pools
    assert len(pools) == STEPS // PER_EPOCH
    for epoch in range(1, len(pools)):
        assert (pools[epoch] != pools[epoch - 1]) == (epoch % every == 0)
    first, last = process.listener.expected[0], process.listener.expected[-1]
    assert sum(first[user] != last[user] for user in first) > 5  # the model has learnt something


def test_every_user_of_an_epoch_has_a_pool_and_gives_the_batch_some_of_it(
    whole: tuple[int, Process], world: tuple[RecDataset, Split], tiny_backbone: Path
) -> None:
    _, process = whole
    dataset, parts = world
    data = TextPairDataModule(dataset, parts, load(str(tiny_backbone)).tokenizer, users_per_step=8)
    for index, items in process.batches.items():
        pools = process.listener.pools[index // PER_EPOCH]
        for user in data.examples.users(index).tolist():
            assert len(set(pools[user]) & set(items)) >= 2


def test_the_model_goes_on_training_after_mining(whole: tuple[int, Process]) -> None:
    assert whole[1].listener.training == [True] * (STEPS // PER_EPOCH)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_a_run_interrupted_and_resumed_ends_bit_for_bit_as_if_it_had_not_been(
    whole: tuple[int, Process], start: Callable[..., Process], step: int
) -> None:
    every, expected = whole
    start(negatives=hard(every), broken=step)
    found = start(negatives=hard(every), resumed=True)
    assert sorted(found.batches) == list(range(step, STEPS))
    assert found.batches == {index: items for index, items in expected.batches.items() if index >= step}
    assert found.trace == expected.trace
    assert found.parameters.keys() == expected.parameters.keys()
    for name, value in expected.parameters.items():
        assert torch.equal(found.parameters[name], value), name


def test_mining_moves_no_other_random_draw(start: Callable[..., Process]) -> None:
    # What is mined does not reach the data here, so dropout and batches must be those of a run that mines nothing.
    plain = start(negatives={}, mines=False, max_steps=4)
    deaf = start(negatives=hard(), deaf=True, max_steps=4)
    assert deaf.batches == plain.batches
    assert deaf.trace == plain.trace
    assert all(torch.equal(deaf.parameters[name], value) for name, value in plain.parameters.items())


def test_hard_negatives_change_what_is_learnt(start: Callable[..., Process]) -> None:
    plain = start(negatives={}, mines=False, max_steps=4)
    mined = start(negatives=hard(), max_steps=4)
    assert mined.trace != plain.trace
    assert all(set(plain.batches[index]) < set(mined.batches[index]) for index in range(4))


def test_pools_are_of_the_users_own_domain(tiny_backbone: Path, tmp_path: Path) -> None:
    sizes = {"source": "synthetic", "num_users": 20, "num_items": 40, "interactions_per_user": 5}
    domains = {"films": {**sizes, "data_seed": 1}, "books": {**sizes, "data_seed": 2}}
    dataset = joint.load(joint.Config.model_validate({"source": "joint", "domains": domains}))
    world = dataset, split(dataset, "per_user_temporal")
    process = run(world, tiny_backbone, tmp_path, negatives=hard(), max_steps=PER_EPOCH)
    (pools,) = process.listener.pools
    assert len({dataset.users["domain"][user] for user in pools}) == 2
    for user, pool in pools.items():
        assert len(pool) == POOL
        assert {dataset.items["domain"][item] for item in pool} == {dataset.users["domain"][user]}
