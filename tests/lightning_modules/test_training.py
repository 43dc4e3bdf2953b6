"""RecModule, its callbacks and Lightning's real Trainer on a small world."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from adapters import Adapter, frozen, lora
from datamodules import RecDataset, Split, TextPairDataModule
from lightning_modules import RankingCallback, ResumeCheckpoint, TwoTower, load
from lightning_modules._callbacks import _is_whole
from metrics import RankingMetrics

STEPS, PER_EPOCH = 9, 3


class Interrupted(Exception):
    """Stands for the kill."""


class Breaker(Callback):
    """Raises in the hook ``where`` when ``step`` optimiser steps are done."""

    def __init__(self, where: str, step: int) -> None:
        setattr(self, where, self._raise)
        self._step = step

    def _raise(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self._step:
            raise Interrupted


@dataclass
class Process:
    """What one process of a run leaves behind."""

    module: TwoTower
    trainer: Trainer
    ranking: RankingCallback
    resume: ResumeCheckpoint
    served: list[int] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}


pytestmark = pytest.mark.usefixtures("one_thread")


def run(
    world: tuple[RecDataset, Split],
    tiny_backbone: Path,
    folder: Path,
    *,
    resumed: bool = False,
    broken: Breaker | None = None,
    first: bool = False,
    every_steps: int = 1,
    adapter: Any = lora,
    options: dict[str, Any] | None = None,
    trainer_options: dict[str, Any] | None = None,
    extra: list[Callback] | None = None,
    per_epoch: int = PER_EPOCH,
    fit: bool = True,
) -> Process:
    """Train from the start, or from ``last.ckpt`` where ``resumed``, as a process of its own would.

    Args:
        broken: interrupts it, behind the other callbacks or, with ``first``, before them.
        fit: False only builds.
    """
    dataset, parts = world
    seed_everything(0, verbose=False)
    backbone = load(str(tiny_backbone))
    seed_everything(0, verbose=False)
    few = lora.Config(rank=2, dropout=0.1, target_modules=("query", "value"))
    bound = Adapter(few if adapter is not frozen else frozen.Config(), plugin=adapter)
    module = TwoTower(
        bound.attach(backbone.model, STEPS),
        num_items=dataset.num_items,
        item_bias=True,
        adapter=bound,
        k=5,
        **{
            "learning_rate": 5e-3,
            "schedule": "linear",
            "warmup_steps": 2,
            "total_steps": STEPS,
            **(options or {}),
        },
    )
    data = TextPairDataModule(
        dataset,
        parts,
        backbone.tokenizer,
        users_per_step=8,
        positives_per_user=3,
        steps_per_epoch=per_epoch,
        history=4,
        max_user_tokens=48,
    )
    counts = torch.bincount(torch.tensor(parts.train["item"].to_list()), minlength=dataset.num_items)
    categories = torch.zeros(dataset.num_items, 2, dtype=torch.bool)
    categories[:, 0] = True
    metric = RankingMetrics([1, 5], categories, counts, dataset.num_users, {}, names=["ndcg", "recall"])
    resume = ResumeCheckpoint(folder / "last.ckpt", every_steps)
    ranking = RankingCallback(metric)
    callbacks: list[Callback] = [ranking, resume, *(extra or [])]
    if broken is not None:
        callbacks.insert(0 if first else len(callbacks), broken)
    trainer = Trainer(
        **{
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": callbacks,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **(trainer_options or {}),
        }
    )
    process = Process(module, trainer, ranking, resume)
    batch_of = data.train_batch

    def recorded(index: int) -> Any:
        process.served.append(index)
        return batch_of(index)

    data.train_batch = recorded  # type: ignore[method-assign]
    if not fit:
        return process
    checkpoint = str(resume.path) if resumed else None
    if broken is None:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    else:
        with pytest.raises(Interrupted):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return process


@pytest.fixture
def start(world: tuple[RecDataset, Split], tiny_backbone: Path, tmp_path: Path) -> Callable[..., Process]:
    """``run`` in this test's folder."""

    def started(folder: Path = tmp_path, **options: Any) -> Process:
        return run(world, tiny_backbone, folder, **options)

    return started


@pytest.fixture(scope="module")
def whole(world: tuple[RecDataset, Split], tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """The run that nothing interrupts."""
    return run(world, tiny_backbone, tmp_path_factory.mktemp("whole"))


def same_run(found: Process, expected: Process) -> None:
    assert found.trainer.global_step == expected.trainer.global_step == STEPS
    assert found.parameters.keys() == expected.parameters.keys()
    for name, value in expected.parameters.items():
        assert torch.equal(found.parameters[name], value), name
    assert found.ranking.trace == expected.ranking.trace
    assert found.resume.tokens_seen == expected.resume.tokens_seen


# One run -----------------------------------------------------------------------------------------------


def test_each_step_takes_its_batch_once_and_each_epoch_is_validated(whole: Process) -> None:
    assert whole.served == list(range(STEPS))
    assert [row["step"] for row in whole.ranking.trace] == [3, 6, 9]
    assert whole.resume.steps_run == STEPS
    assert all({"ndcg@5", "recall@1"} <= set(row["validation"]) for row in whole.ranking.trace)


def test_training_lowers_the_loss(whole: Process) -> None:
    losses = [row["train_loss"] for row in whole.ranking.trace]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_run(whole: Process, start: Callable[..., Process]) -> None:
    same_run(start(), whole)


def test_the_dropout_of_these_runs_matters(whole: Process, start: Callable[..., Process]) -> None:
    # or a resumed run could be right without its random generators

    class Disturb(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                torch.rand(1)

    disturbed = start(extra=[Disturb()])
    assert disturbed.ranking.trace[0] == whole.ranking.trace[0]
    assert disturbed.ranking.trace[1] != whole.ranking.trace[1]


def test_tokens_seen_are_those_of_the_batches(
    whole: Process, world: tuple[RecDataset, Split], tiny_backbone: Path
) -> None:
    data = TextPairDataModule(
        *world,
        load(str(tiny_backbone)).tokenizer,
        users_per_step=8,
        positives_per_user=3,
        history=4,
        max_user_tokens=48,
    )
    tokens = 0
    for index in range(STEPS):
        batch = data.train_batch(index)
        for texts in (batch.users, batch.items):
            tokens += sum(int(bucket.attention_mask.sum()) for bucket in texts.buckets)
    assert whole.resume.tokens_seen == tokens


def test_the_traces_train_loss_is_the_mean_over_the_epochs_steps(start: Callable[..., Process]) -> None:
    losses: list[float] = []

    class Listen(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    process = start(extra=[Listen()])
    for epoch, row in enumerate(process.ranking.trace):
        own = losses[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH]
        assert row["train_loss"] == pytest.approx(sum(own) / PER_EPOCH, rel=1e-6)


def test_a_frozen_backbone_does_not_move_and_its_head_does(start: Callable[..., Process]) -> None:
    process = start(fit=False, adapter=frozen)
    before = {name: p.detach().clone() for name, p in process.module.named_parameters()}
    process = start(adapter=frozen)
    assert set(process.parameters) == {"head.log_scale", "head.bias"}
    for name, parameter in process.module.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("head."), name
    assert not process.module.backbone.training


# Checkpoints -------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_exactly_what_is_trained_and_no_code(start: Callable[..., Process]) -> None:
    process = start()
    checkpoint = torch.load(process.resume.path, weights_only=True)
    assert checkpoint["state_dict"].keys() == process.parameters.keys()
    assert all(torch.equal(checkpoint["state_dict"][n], p) for n, p in process.parameters.items())
    assert any("lora_A" in name for name in process.parameters)
    assert checkpoint["global_step"] == STEPS
    assert not list(process.resume.path.parent.glob("*.writing"))


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_killed_before_any_step_ends_as_if_it_had_not_been(
    whole: Process, start: Callable[..., Process], step: int
) -> None:
    killed = start(broken=Breaker("on_train_batch_start", step))
    assert killed.resume.steps_run == step
    resumed = start(resumed=True)
    assert resumed.served == list(range(step, STEPS))  # each step's batch once
    assert resumed.resume.steps_run == STEPS - step
    same_run(resumed, whole)


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_killed_before_a_steps_checkpoint_takes_that_step_again(
    whole: Process, start: Callable[..., Process], step: int
) -> None:
    start(broken=Breaker("on_train_batch_end", step), first=True)
    resumed = start(resumed=True)
    assert resumed.served == list(range(step - 1, STEPS))
    same_run(resumed, whole)


@pytest.mark.parametrize(
    ("where", "step"), [("on_validation_start", 3), ("on_validation_batch_end", 9), ("on_validation_end", 3)]
)
def test_a_run_killed_in_validation_ends_as_if_it_had_not_been(
    whole: Process, start: Callable[..., Process], where: str, step: int
) -> None:
    start(broken=Breaker(where, step), every_steps=100)
    resumed = start(resumed=True, every_steps=100)
    assert resumed.served == list(range(step - 1, STEPS))  # the last but one is saved, and the last after validation
    same_run(resumed, whole)


@pytest.mark.parametrize("step", [3, 9])
def test_a_run_killed_between_epochs_ends_as_if_it_had_not_been(
    whole: Process, start: Callable[..., Process], step: int
) -> None:
    start(broken=Breaker("on_train_epoch_end", step))
    resumed = start(resumed=True)
    assert resumed.served == list(range(step, STEPS))
    same_run(resumed, whole)


class Draws(Callback):
    """Draws from the generators that a plug-in may use, once a batch."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float]] = []

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.drawn.append((random.random(), float(np.random.rand())))  # noqa: S311


def test_every_generator_goes_on_where_it_was(start: Callable[..., Process]) -> None:
    undisturbed, before, after = Draws(), Draws(), Draws()
    start(extra=[undisturbed])
    start(extra=[before], broken=Breaker("on_train_batch_end", 5))
    random.seed(9)
    np.random.seed(9)
    start(extra=[after], resumed=True)
    assert before.drawn + after.drawn == undisturbed.drawn
    assert len(set(undisturbed.drawn)) == STEPS


def test_a_run_killed_twice_ends_as_if_it_had_not_been(whole: Process, start: Callable[..., Process]) -> None:
    start(broken=Breaker("on_train_batch_start", 2))
    start(resumed=True, broken=Breaker("on_train_batch_start", 5))
    resumed = start(resumed=True)
    assert resumed.served == list(range(5, STEPS))
    same_run(resumed, whole)


@pytest.mark.parametrize(("step", "saved"), [(7, 6), (8, 8)])
def test_no_more_than_every_steps_are_lost(
    whole: Process, start: Callable[..., Process], step: int, saved: int
) -> None:
    start(broken=Breaker("on_train_batch_start", step), every_steps=2)
    resumed = start(resumed=True, every_steps=2)
    assert resumed.served == list(range(saved, STEPS))
    same_run(resumed, whole)


def test_a_finished_run_is_not_trained_further(whole: Process, start: Callable[..., Process]) -> None:
    start()
    again = start(resumed=True)
    assert again.served == []
    assert again.resume.steps_run == 0
    same_run(again, whole)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    whole: Process, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer.save_checkpoint

    def torn(self: Trainer, path: Any, *args: Any, **kwargs: Any) -> None:
        save(self, path, *args, **kwargs)
        if self.global_step == 5:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise Interrupted

    monkeypatch.setattr(Trainer, "save_checkpoint", torn)
    with pytest.raises(Interrupted):
        start()
    monkeypatch.undo()
    resumed = start(resumed=True)
    assert resumed.served == list(range(4, STEPS))
    same_run(resumed, whole)


def test_a_damaged_checkpoint_is_not_whole_wherever_the_damage_is(tmp_path: Path) -> None:
    path, draw = tmp_path / "last.ckpt", random.Random(0)  # noqa: S311
    torch.save({"weights": torch.arange(512.0)}, path)
    whole = path.read_bytes()
    assert _is_whole(path)
    for _ in range(200):
        place = draw.randrange(len(whole) - 64)
        path.write_bytes(whole[:place] + draw.randbytes(64) + whole[place + 64 :])
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            continue  # what was overwritten is padding that nothing reads
        assert not _is_whole(path)


def test_a_full_disk_is_a_sentence_and_leaves_the_checkpoint_before(
    start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from recpeft.errors import DiskError

    save = Trainer.save_checkpoint

    def full(self: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.global_step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(DiskError, match=r"the disk is full: could not write .*last\.ckpt"):
        start()
    monkeypatch.undo()
    assert start(resumed=True).served == list(range(1, STEPS))


def test_a_checkpoint_of_another_adapter_is_refused(start: Callable[..., Process]) -> None:
    start(adapter=frozen)
    with pytest.raises(RuntimeError, match=r"disagree on .* trained parameters"):
        start(resumed=True)


# The optimiser -----------------------------------------------------------------------------------------


def test_backbone_and_head_have_their_own_rate_and_the_head_no_decay(start: Callable[..., Process]) -> None:
    process = start(
        options={"head_learning_rate": 0.5, "weight_decay": 0.1, "schedule": "constant", "warmup_steps": 0},
        fit=False,
    )
    backbone, head = process.module.configure_optimizers().param_groups
    assert (backbone["lr"], backbone["weight_decay"]) == (5e-3, 0.1)
    assert (head["lr"], head["weight_decay"]) == (0.5, 0.0)
    grouped = [{id(p) for p in group["params"]} for group in (backbone, head)]
    named = dict(process.module.named_parameters())
    assert grouped[0] == {id(p) for n, p in named.items() if p.requires_grad and n.startswith("backbone.")}
    assert grouped[1] == {id(named["head.log_scale"]), id(named["head.bias"])}


def test_without_a_rate_of_its_own_the_head_has_the_backbones(start: Callable[..., Process]) -> None:
    process = start(options={"schedule": "constant", "warmup_steps": 0}, fit=False)
    assert [g["lr"] for g in process.module.configure_optimizers().param_groups] == [5e-3, 5e-3]


class Rates(Callback):
    """The learning rates each step was taken with."""

    def __init__(self) -> None:
        self.used: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])


def test_a_linear_schedule_warms_up_and_reaches_0_at_the_end(start: Callable[..., Process]) -> None:
    rates = Rates()
    process = start(extra=[rates], options={"head_learning_rate": 0.1})
    # by hand: 2 steps of warm-up from 0, then down to 0 after step 9
    shares = [0, 1 / 2, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert [used[0] for used in rates.used] == pytest.approx([5e-3 * share for share in shares])
    assert [used[1] for used in rates.used] == pytest.approx([0.1 * share for share in shares])
    assert [group["lr"] for group in process.trainer.optimizers[0].param_groups] == [0, 0]


def test_the_schedules_length_is_the_trainers_where_none_is_given(start: Callable[..., Process]) -> None:
    process = start(options={"total_steps": None, "warmup_steps": 0})
    assert process.trainer.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("warmup", "shares"), [(0, [1] * 9), (2, [0, 1 / 2, *[1] * 7])])
def test_a_constant_schedule_stays(start: Callable[..., Process], warmup: int, shares: list[float]) -> None:
    rates = Rates()
    start(extra=[rates], options={"schedule": "constant", "warmup_steps": warmup})
    assert [used[0] for used in rates.used] == pytest.approx([5e-3 * share for share in shares])


# An adapter's hooks ------------------------------------------------------------------------------------


def hooked() -> Any:
    """LoRA with every optional hook, which keeps a list of its calls."""
    calls: list[Any] = []

    def after_step(model: nn.Module, config: lora.Config, step: int) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        calls.append((step, all(p.grad is not None for p in trained), any(p.grad.any() for p in trained)))

    def penalty(model: nn.Module, config: lora.Config) -> Tensor:
        return 100.0 + sum((p**2).sum() for n, p in model.named_parameters() if "lora_A" in n) * 1e-3  # type: ignore[return-value]

    def param_groups(model: nn.Module, config: lora.Config, learning_rate: float) -> list[dict[str, Any]]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if "lora_A" in n], "lr": learning_rate},
            {"params": [p for n, p in named if "lora_B" in n], "lr": 16 * learning_rate, "weight_decay": 0.3},
        ]

    return SimpleNamespace(
        attach=lora.attach,
        after_step=after_step,
        penalty=penalty,
        param_groups=param_groups,
        state_dict=lambda model, config: {"steps": [step for step, *_ in calls]},
        load_state_dict=lambda model, config, state: calls.extend((step, True, True) for step in state["steps"]),
        calls=calls,
    )


def test_after_step_is_called_once_a_step_while_gradients_stand(start: Callable[..., Process]) -> None:
    adapter = hooked()
    start(adapter=adapter)
    assert adapter.calls == [(step, True, True) for step in range(1, STEPS + 1)]


def test_after_step_is_called_once_an_optimiser_step_when_gradients_accumulate(
    start: Callable[..., Process],
) -> None:
    adapter = hooked()
    process = start(adapter=adapter, per_epoch=4, trainer_options={"max_steps": 4, "accumulate_grad_batches": 2})
    assert adapter.calls == [(step, True, True) for step in range(1, 5)]
    assert process.served == list(range(8))
    assert process.resume.steps_run == 4


def test_the_penalty_is_added_to_the_loss(whole: Process, start: Callable[..., Process]) -> None:
    adapter = hooked()
    process = start(adapter=adapter)
    # 100 and a little for the weights
    added = process.ranking.trace[0]["train_loss"] - whole.ranking.trace[0]["train_loss"]
    assert 99 < added < 102


def test_the_adapters_groups_reach_the_optimiser(start: Callable[..., Process]) -> None:
    process = start(
        adapter=hooked(), options={"weight_decay": 0.1, "schedule": "constant", "warmup_steps": 0}, fit=False
    )
    groups = process.module.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == pytest.approx([5e-3, 16 * 5e-3, 5e-3])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.3, 0.0]


def test_an_adapters_own_state_goes_through_a_checkpoint(start: Callable[..., Process]) -> None:
    start(adapter=hooked(), broken=Breaker("on_train_batch_start", 4))
    adapter = hooked()
    start(adapter=adapter, resumed=True)
    # what was stored at step 4, with that step's own change in it, and then each further step
    assert [step for step, *_ in adapter.calls] == list(range(1, STEPS + 1))


# Accumulation ------------------------------------------------------------------------------------------


def test_the_traces_loss_is_the_batches_mean_when_gradients_accumulate(start: Callable[..., Process]) -> None:
    losses: list[float] = []

    class Listen(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    process = start(extra=[Listen()], per_epoch=4, trainer_options={"max_steps": 4, "accumulate_grad_batches": 2})
    assert len(losses) == 8
    for epoch, row in enumerate(process.ranking.trace):
        assert row["train_loss"] == pytest.approx(sum(losses[epoch * 4 : epoch * 4 + 4]) / 4, rel=1e-6)


@pytest.mark.parametrize("per_epoch", [3, 4])
def test_each_batch_is_served_once_when_gradients_accumulate(start: Callable[..., Process], per_epoch: int) -> None:
    process = start(per_epoch=per_epoch, trainer_options={"max_steps": 4, "accumulate_grad_batches": 2})
    # two epochs of two optimiser steps; an epoch's last batch steps even where it is alone
    assert process.served == list(range(2 * per_epoch))


class Gradients(Callback):
    """The gradients each step was taken with."""

    def __init__(self) -> None:
        self.used: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        named = module.named_parameters()
        self.used.append({name: p.grad.clone() for name, p in named if p.grad is not None})


@pytest.mark.parametrize(("batches", "accumulate"), [(1, 4), (5, 8)])
def test_a_short_last_groups_gradient_is_the_mean_over_what_is_there(
    start: Callable[..., Process], batches: int, accumulate: int
) -> None:
    short, full = Gradients(), Gradients()
    for gradients, every in ((short, accumulate), (full, batches)):
        options = {"max_steps": 1, "accumulate_grad_batches": every}
        process = start(per_epoch=batches, trainer_options=options, extra=[gradients])
        assert process.served == list(range(batches))
    assert any(gradient.any() for gradient in full.used[0].values())
    for name, gradient in full.used[0].items():
        torch.testing.assert_close(short.used[0][name], gradient)


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_accumulates_gradients_resumes_too(start: Callable[..., Process], tmp_path: Path, step: int) -> None:
    options: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 2}
    (tmp_path / "whole").mkdir()
    whole = start(per_epoch=4, trainer_options=options, folder=tmp_path / "whole")
    start(per_epoch=4, trainer_options=options, broken=Breaker("on_train_batch_start", step))
    resumed = start(per_epoch=4, trainer_options=options, resumed=True)
    assert resumed.served == list(range(2 * step, 8))
    assert resumed.ranking.trace == whole.ranking.trace
    assert all(torch.equal(resumed.parameters[n], p) for n, p in whole.parameters.items())
    assert resumed.resume.tokens_seen == whole.resume.tokens_seen


# Evaluation --------------------------------------------------------------------------------------------


def test_the_test_split_is_measured_only_when_asked_for(
    start: Callable[..., Process], world: tuple[RecDataset, Split], tiny_backbone: Path
) -> None:
    process = start()
    assert process.ranking.test == {}
    data = TextPairDataModule(*world, load(str(tiny_backbone)).tokenizer, history=4, max_user_tokens=48)
    trace = list(process.ranking.trace)
    *_, logged = process.trainer.test(process.module, data, verbose=False)
    assert process.ranking.trace == trace
    assert process.ranking.test["ndcg@5"] == pytest.approx(logged["test/ndcg@5"], rel=1e-6)


def test_validation_metrics_are_those_of_a_loop_over_scores(whole: Process, world: tuple[RecDataset, Split]) -> None:
    """recall@5 of the last epoch by brute force; the module still holds the catalogue it was ranked with."""
    _, parts = world
    data = whole.trainer.datamodule  # type: ignore[attr-defined]
    module = whole.module.eval()
    train: dict[int, set[int]] = {}
    for user, item in parts.train.select("user", "item").iter_rows():
        train.setdefault(user, set()).add(item)
    held_out: dict[int, set[int]] = {}
    for user, item in parts.validation.select("user", "item").iter_rows():
        held_out.setdefault(user, set()).add(item)
    recalls = []
    with torch.no_grad():
        catalogue, users = data.val_dataloader()
        for batch in catalogue:
            module.encode_catalogue(batch)
        for batch in users:
            for user, row in zip(batch.user.tolist(), module.score(batch).tolist(), strict=True):
                unseen = sorted(
                    (i for i in range(len(row)) if i not in train[user]), key=lambda i: row[i], reverse=True
                )
                recalls.append(len(set(unseen[:5]) & held_out[user]) / len(held_out[user]))
    assert whole.ranking.trace[-1]["validation"]["recall@5"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-6)
