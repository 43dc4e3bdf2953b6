"""AdaLoRA: its budget, its importance, its resume, under Lightning's real Trainer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)

from adapters import Adapter, adalora
from datamodules import RecDataset, Split, TextPairDataModule
from lightning_modules import BestCheckpoint, RankingCallback, ResumeCheckpoint, TwoTower, load
from lightning_modules._backbone import skeleton
from metrics import RankingMetrics
from recpeft.errors import RecpeftError

STEPS, PER_EPOCH = 12, 3
# 12 steps: 3 of full budget, 5 of reduction, 4 of fixed ranks.
CONFIG = adalora.Config(
    init_rank=6, target_rank=2, target_modules=("query", "value"), initial_phase=0.25, final_phase=1 / 3, dropout=0.1
)
LAST_REDUCTION, NUM_MATRICES = 8, 4
# By hand: int(16 * (1 - n / 5)^3) + 8 after n of 5 steps of reduction.
TOTAL_RANKS = [24, 24, 24, 8 + 8, 8 + 3, 8 + 1, 8, 8, 8, 8, 8, 8]
IDS = torch.tensor([[2, 10, 8, 3, 0], [2, 11, 9, 10, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def states(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return result


def learn(model: nn.Module, config: adalora.Config, steps: range, scale: float = 1.0) -> None:
    """Optimiser steps towards random states, each followed by the hook."""
    target = torch.randn(states(model).shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in steps:
        optimizer.zero_grad()
        (scale * ((states(model) - target) ** 2).mean()).backward()
        optimizer.step()
        adalora.after_step(model, config, step)


@pytest.fixture
def backbone(tiny_backbone: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_backbone).eval()


# Runs with the real Trainer ----------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for the kill."""


class Breaker(Callback):
    """Raises before the batch that follows ``step`` optimiser steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            raise Interrupted


class Watch(Callback):
    """What the model is after each optimiser step, and at each validation."""

    def __init__(self) -> None:
        self.total_ranks: list[int] = []
        self.values: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.values):
            self.values.append(singular_values(module))
            self.total_ranks.append(adalora.observe(module.backbone, CONFIG)["total_rank"])  # type: ignore[arg-type]

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated.append(singular_values(module))


def singular_values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if ".lora_E." in name}


pytestmark = pytest.mark.usefixtures("one_thread")


def run(
    world: tuple[RecDataset, Split],
    tiny_backbone: Path,
    folder: Path,
    *,
    resumed: bool = False,
    killed_before: int | None = None,
    plugin: Any = adalora,
    extra: tuple[Callback, ...] = (),
    accumulate: int = 1,
) -> tuple[TwoTower, Trainer, RankingCallback]:
    """Train as a process of its own would, from the start or from ``last.ckpt``."""
    dataset, parts = world
    seed_everything(0, verbose=False)
    backbone = load(str(tiny_backbone))
    seed_everything(0, verbose=False)
    adapter = Adapter(CONFIG, plugin=plugin)
    module = TwoTower(
        adapter.attach(backbone.model, STEPS, backbone.tokenizer),
        num_items=dataset.num_items,
        adapter=adapter,
        k=5,
        learning_rate=5e-3,
    )
    data = TextPairDataModule(
        dataset,
        parts,
        backbone.tokenizer,
        users_per_step=8,
        positives_per_user=3,
        steps_per_epoch=PER_EPOCH * accumulate,
        history=4,
        max_user_tokens=48,
    )
    counts = torch.bincount(torch.tensor(parts.train["item"].to_list()), minlength=dataset.num_items)
    metric = RankingMetrics(
        [5], torch.ones(dataset.num_items, 1, dtype=torch.bool), counts, dataset.num_users, {}, names=["ndcg"]
    )
    ranking = RankingCallback(metric)
    breaker = [Breaker(killed_before)] if killed_before is not None else []
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=accumulate,
        callbacks=[ranking, ResumeCheckpoint(folder / "last.ckpt", 1), *extra, *breaker],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, BestCheckpoint) for callback in extra),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    checkpoint = str(folder / "last.ckpt") if resumed else None
    if killed_before is None:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    else:
        with pytest.raises(Interrupted):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, trainer, ranking


@pytest.fixture
def start(world: tuple[RecDataset, Split], tiny_backbone: Path, tmp_path: Path) -> Callable[..., Any]:
    """``run`` in this test's folder."""
    return lambda **options: run(world, tiny_backbone, tmp_path, **options)


@pytest.fixture(scope="module")
def recorded() -> Any:
    """AdaLoRA, with the weights and gradients that each call of ``after_step`` was made with."""
    calls: list[tuple[int, dict[str, tuple[Tensor, Tensor]]]] = []

    def after_step(model: nn.Module, config: adalora.Config, step: int) -> None:
        found = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert p.grad is not None
                found[name] = (p.detach().double(), p.grad.double())
        calls.append((step, found))
        adalora.after_step(model, config, step)

    hooks = {name: getattr(adalora, name) for name in dir(adalora) if not name.startswith("_")}
    return SimpleNamespace(**{**hooks, "after_step": after_step, "calls": calls})


@pytest.fixture(scope="module")
def whole(
    world: tuple[RecDataset, Split], tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory, recorded: Any
) -> SimpleNamespace:
    """The run that nothing interrupts."""
    folder, watch = tmp_path_factory.mktemp("whole"), Watch()
    module, _, ranking = run(world, tiny_backbone, folder, plugin=recorded, extra=(watch,))
    return SimpleNamespace(module=module, ranking=ranking, watch=watch, folder=folder)


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


# The budget --------------------------------------------------------------------------------------------


def test_ranks_fall_along_the_cubic_schedule_to_the_budget(whole: SimpleNamespace) -> None:
    assert whole.watch.total_ranks == TOTAL_RANKS
    assert TOTAL_RANKS[-1] == CONFIG.target_rank * NUM_MATRICES
    for values, total in zip(whole.watch.values, TOTAL_RANKS, strict=True):
        assert sum(int(value.count_nonzero()) for value in values.values()) == total


def test_ranks_fall_with_optimiser_steps_when_gradients_accumulate(start: Callable[..., Any], recorded: Any) -> None:
    watch = Watch()
    before = len(recorded.calls)
    start(plugin=recorded, extra=(watch,), accumulate=2)
    assert [step for step, _ in recorded.calls[before:]] == list(range(1, STEPS + 1))
    assert watch.total_ranks == TOTAL_RANKS


def test_the_budget_is_spread_unevenly(whole: SimpleNamespace) -> None:
    ranks = adalora.observe(whole.module.backbone, CONFIG)["ranks"]
    assert set(ranks) == {f"encoder.layer.{n}.attention.self.{part}" for n in range(2) for part in ("query", "value")}
    assert len(set(ranks.values())) > 1


def test_in_the_final_phase_what_was_pruned_stays_zero_also_where_it_is_validated(whole: SimpleNamespace) -> None:
    kept = {name: value != 0 for name, value in whole.watch.values[LAST_REDUCTION - 1].items()}
    at_validation = whole.watch.validated[-2:]  # steps 9 and 12
    for values in [*whole.watch.values[LAST_REDUCTION:], *at_validation]:
        assert all(torch.equal(value != 0, kept[name]) for name, value in values.items())
    # and what was kept learns on
    first, last = whole.watch.values[LAST_REDUCTION - 1], whole.watch.values[-1]
    assert all((first[name] != last[name])[kept[name]].all() for name in kept)


def test_the_checkpoint_holds_the_pruned_values(whole: SimpleNamespace) -> None:
    stored = torch.load(whole.folder / "last.ckpt", weights_only=True)["state_dict"]
    values = [value for name, value in stored.items() if ".lora_E." in name]
    assert len(values) == NUM_MATRICES
    assert sum(int(value.count_nonzero()) for value in values) == TOTAL_RANKS[-1]


def test_the_trace_says_the_ranks(whole: SimpleNamespace) -> None:
    assert [row["adapter"]["total_rank"] for row in whole.ranking.trace] == [24, 9, 8, 8]
    assert [sum(row["adapter"]["ranks"].values()) for row in whole.ranking.trace] == [24, 9, 8, 8]


def test_ranks_are_allocated_by_smoothed_sensitivity_times_uncertainty(whole: SimpleNamespace, recorded: Any) -> None:
    """The paper's equations 8 to 12 in a loop of our own, over the gradients of the real run."""
    average: dict[str, Tensor] = {}
    uncertainty: dict[str, Tensor] = {}
    for step, weights in recorded.calls[:STEPS]:
        if step >= LAST_REDUCTION:  # importance is what was measured before
            break
        for name, (weight, gradient) in weights.items():
            sensitivity = (weight * gradient).abs()
            average[name] = 0.85 * average.get(name, torch.zeros_like(weight)) + 0.15 * sensitivity
            distance = (sensitivity - average[name]).abs()
            uncertainty[name] = 0.85 * uncertainty.get(name, torch.zeros_like(weight)) + 0.15 * distance
    scores = {}
    for name in average:
        if ".lora_E." not in name:
            continue
        e, a, b = (
            average[n] * uncertainty[n]
            for n in (name, name.replace("lora_E", "lora_A"), name.replace("lora_E", "lora_B"))
        )
        for i in range(CONFIG.init_rank):
            scores[name, i] = float(e[i] + a[i].mean() + b[:, i].mean())
    best = set(sorted(scores, key=lambda triplet: scores[triplet], reverse=True)[: TOTAL_RANKS[-1]])
    left = whole.watch.values[LAST_REDUCTION - 1]
    kept = {(name.removeprefix("backbone."), int(i)) for name, value in left.items() for i in value.nonzero()[:, 0]}
    assert kept == best


# Importance --------------------------------------------------------------------------------------------


def test_sensitivity_and_its_uncertainty_are_smoothed_each_by_its_own_beta(backbone: nn.Module) -> None:
    config = CONFIG.model_copy(update={"beta1": 0.7, "beta2": 0.9})
    model = adalora.attach(backbone, config, STEPS)
    draw = torch.Generator().manual_seed(0)
    name = "encoder.layer.1.attention.self.value.lora_A.default"
    weight = model.get_parameter(f"base_model.model.{name}")
    average = uncertainty = torch.zeros_like(weight)
    for step in range(1, 4):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=draw)
        assert weight.grad is not None
        sensitivity = (weight * weight.grad).detach().abs()
        average = 0.7 * average + 0.3 * sensitivity
        uncertainty = 0.9 * uncertainty + 0.1 * (sensitivity - average).abs()
        adalora.after_step(model, config, step)
    state = adalora.state_dict(model, config)
    assert torch.allclose(state["exp_avg_ipt"][name], average, rtol=1e-5)
    assert torch.allclose(state["exp_avg_unc"][name], uncertainty, rtol=1e-5)


def test_a_layer_without_gradients_loses_its_ranks_to_the_others(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    for step in range(1, STEPS + 1):
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if ".layer.0.attention.self.query." in name else torch.rand_like(p)
                p.data.add_(0.1)
        adalora.after_step(model, CONFIG, step)
    ranks = adalora.observe(model, CONFIG)["ranks"]
    assert ranks.pop("encoder.layer.0.attention.self.query") == 0
    assert sum(ranks.values()) == CONFIG.target_rank * NUM_MATRICES


def test_importance_without_gradients_is_refused(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    with pytest.raises(RuntimeError, match="importance by gradients and there are none"):
        adalora.after_step(model, CONFIG, 1)


def test_a_parameter_that_no_gradient_reaches_does_not_stop_the_others(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    states(model).sum().backward()
    model.get_parameter("base_model.model.encoder.layer.0.attention.self.query.lora_A.default").grad = None
    adalora.after_step(model, CONFIG, 1)
    assert adalora.state_dict(model, CONFIG)["ipt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_overflowed_leaves_importance_finite_and_ranks_falling(backbone: nn.Module, value: float) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    learn(model, CONFIG, range(1, 5))
    for p in model.parameters():
        if p.grad is not None:
            p.grad.fill_(value)
    adalora.after_step(model, CONFIG, 5)  # float16's gradient scaler has skipped this step
    state = adalora.state_dict(model, CONFIG)
    assert all(average.isfinite().all() for name in ("exp_avg_ipt", "exp_avg_unc") for average in state[name].values())
    learn(model, CONFIG, range(6, STEPS + 1))
    assert adalora.observe(model, CONFIG)["total_rank"] == TOTAL_RANKS[-1]


def test_before_anything_is_learnt_every_rank_is_the_initial_one(backbone: nn.Module) -> None:
    observed = adalora.observe(adalora.attach(backbone, CONFIG, STEPS), CONFIG)
    assert set(observed["ranks"].values()) == {CONFIG.init_rank}
    assert observed["total_rank"] == TOTAL_RANKS[0]


def test_between_allocations_the_reported_rank_is_the_models(backbone: nn.Module) -> None:
    config = CONFIG.model_copy(update={"allocation_interval": 3})
    model = adalora.attach(backbone, config, STEPS)
    learn(model, config, range(1, 7))
    assert adalora.observe(model, config)["total_rank"] == TOTAL_RANKS[5]
    learn(model, config, range(7, 8))  # what was set to zero has learnt since
    assert adalora.observe(model, config)["total_rank"] == TOTAL_RANKS[0]
    learn(model, config, range(8, 10))
    assert adalora.observe(model, config)["total_rank"] == TOTAL_RANKS[-1]


# Resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, LAST_REDUCTION - 1, 10])
def test_a_run_killed_in_any_phase_ends_as_if_it_had_not_been(
    whole: SimpleNamespace, start: Callable[..., Any], step: int
) -> None:
    start(killed_before=step)
    module, trainer, ranking = start(resumed=True)
    assert trainer.global_step == STEPS
    expected = trained(whole.module)
    found = trained(module)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert ranking.trace == whole.ranking.trace  # ranks are in it
    ours, theirs = (adalora.state_dict(m.backbone, CONFIG) for m in (module, whole.module))
    assert ours == theirs


def test_importance_is_part_of_the_state(backbone: nn.Module, tiny_backbone: Path) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    learn(model, CONFIG, range(1, 6))
    state = adalora.state_dict(model, CONFIG)
    assert [len(state[name]) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")] == [3 * NUM_MATRICES] * 3
    assert any(average.any() for average in state["exp_avg_unc"].values())
    other = adalora.attach(AutoModel.from_pretrained(tiny_backbone), CONFIG, STEPS)
    adalora.load_state_dict(other, CONFIG, state)
    again = adalora.state_dict(other, CONFIG)
    assert again["rank_pattern"] == state["rank_pattern"]
    assert all(
        torch.equal(again[name][key], state[name][key]) for name in state if "ipt" in name for key in state[name]
    )


# The best epoch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "may"), [(1, False), (LAST_REDUCTION - 1, False), (LAST_REDUCTION, True), (12, True)])
def test_only_what_is_within_the_budget_may_be_best(backbone: nn.Module, step: int, may: bool) -> None:
    assert adalora.may_be_best(adalora.attach(backbone, CONFIG, STEPS), CONFIG, step) is may


class Falling(Callback):
    """A metric that is best in the first epoch."""

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("val/falling", -float(trainer.global_step))


def test_an_epoch_over_budget_is_not_the_best_however_good(start: Callable[..., Any], tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path / "best", "val/falling")
    _, _, ranking = start(extra=(Falling(), best))
    assert [row["may_be_best"] for row in ranking.trace] == [False, False, True, True]
    checkpoint = torch.load(tmp_path / "best" / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    assert best.best_model_score == -9
    values = [value for name, value in checkpoint["state_dict"].items() if ".lora_E." in name]
    assert sum(int(value.count_nonzero()) for value in values) == TOTAL_RANKS[-1]


# The penalty -------------------------------------------------------------------------------------------


def test_the_penalty_is_pefts(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    learn(model, CONFIG, range(1, 3))
    ours = adalora.penalty(model, CONFIG)
    # PEFT adds it where the model's output has a loss.
    tuner: Any = model.base_model
    tuner.model.forward = lambda: SimpleNamespace(loss=torch.zeros(()))
    theirs = tuner.forward().loss
    assert ours is not None
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    ours.backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n)  # type: ignore[union-attr]


def test_the_penalty_is_0_for_orthogonal_directions_and_by_hand_for_others(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    for name, p in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            nn.init.orthogonal_(p)
    assert float(adalora.penalty(model, CONFIG)) == pytest.approx(0, abs=1e-5)  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_parameter("base_model.model.encoder.layer.1.attention.self.value.lora_B.default").mul_(2)
    # P^T P = 4 I of rank 6, one of 8 matrices: 0.5 * sqrt(6 * 3^2) / 8
    assert float(adalora.penalty(model, CONFIG)) == pytest.approx(0.5 * 54**0.5 / 8, rel=1e-5)  # type: ignore[arg-type]


def test_the_penalty_is_float32_under_autocast(backbone: nn.Module) -> None:
    model = adalora.attach(backbone, CONFIG, STEPS)
    whole = adalora.penalty(model, CONFIG)
    with torch.autocast("cpu", torch.bfloat16):
        half = adalora.penalty(model, CONFIG)
    assert whole is not None
    assert half is not None
    assert torch.equal(whole, half)


def test_the_options_reach_peft(backbone: nn.Module) -> None:
    config = adalora.Config(alpha=5, dropout=0.25, orthogonal_weight=0.125, target_modules=("key",), last_layers=1)
    model: Any = adalora.attach(backbone, config, STEPS)
    found = model.peft_config["default"]
    assert (found.lora_alpha, found.lora_dropout, found.orth_reg_weight) == (5, 0.25, 0.125)
    assert adalora.describe(model, config)["target_modules"] == ["encoder.layer.1.attention.self.key"]


def test_a_weight_of_0_is_no_penalty(backbone: nn.Module) -> None:
    config = CONFIG.model_copy(update={"orthogonal_weight": 0.0})
    assert adalora.penalty(adalora.attach(backbone, config, STEPS), config) is None


# Saved, merged, quantised ------------------------------------------------------------------------------

LOAD = """
import sys, torch
torch.set_num_threads(1)
from peft import PeftModel
from transformers import AutoModel
backbone, folder = sys.argv[1:]
case = torch.load(folder + "/case.pt")
model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), folder).eval()
with torch.no_grad():
    found = model(input_ids=case["ids"], attention_mask=case["mask"]).last_hidden_state
print(float((found - case["states"]).abs().max() / found.abs().max()))
print(sorted(p.shape[0] for n, p in model.named_parameters() if ".lora_E." in n))
"""


@pytest.fixture
def pruned(backbone: nn.Module) -> nn.Module:
    """Trained to the end, one matrix at rank 0."""
    torch.manual_seed(0)
    model = adalora.attach(backbone, CONFIG, STEPS)
    learn(model, CONFIG, range(1, LAST_REDUCTION))
    for name, p in model.named_parameters():
        if p.requires_grad and ".layer.0.attention.self.query." in name:
            for average in ("exp_avg_ipt", "exp_avg_unc"):
                getattr(model.base_model.rankallocator, average)[name.removeprefix("base_model.model.")].zero_()  # type: ignore[union-attr]
    learn(model, CONFIG, range(LAST_REDUCTION, STEPS + 1))
    for name, p in model.named_parameters():  # so that what is left matters
        if ".lora_E." in name:
            p.data.mul_(200)
    return model.eval()


def test_a_saved_adapter_computes_the_same_in_a_new_process(
    pruned: nn.Module, backbone: nn.Module, tiny_backbone: Path, tmp_path: Path
) -> None:
    ranks = adalora.observe(pruned, CONFIG)["ranks"]
    assert ranks["encoder.layer.0.attention.self.query"] == 0
    with torch.no_grad():
        expected = states(pruned)
        with pruned.disable_adapter():  # type: ignore[operator]
            assert (states(pruned) - expected).abs().max() > 0.1
    pruned.save_pretrained(tmp_path)  # type: ignore[operator]
    torch.save({"ids": IDS, "mask": MASK, "states": expected}, tmp_path / "case.pt")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(tiny_backbone), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    difference, shapes = done.stdout.strip().splitlines()[-2:]
    assert float(difference) < 1e-6
    assert shapes == str(sorted(ranks.values()))  # the file is as small as the ranks


def test_a_finished_adapter_computes_what_is_saved_to_the_last_bit(
    pruned: nn.Module, tiny_backbone: Path, tmp_path: Path
) -> None:
    before, expected = adalora.observe(pruned, CONFIG), states(pruned)
    adalora.finish(pruned, CONFIG)
    assert adalora.observe(pruned, CONFIG) == before
    assert torch.allclose(states(pruned), expected, atol=1e-5)
    sizes = sum(p.numel() for name, p in pruned.named_parameters() if "lora_E" in name)
    assert sizes == before["total_rank"]
    pruned.save_pretrained(tmp_path)  # type: ignore[operator]
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone).eval(), str(tmp_path)).eval()
    assert torch.equal(states(again), states(pruned))


def test_training_goes_on_after_saving(pruned: nn.Module, tmp_path: Path) -> None:
    # PEFT cuts the adapter's name out of its rank pattern when it saves.
    before = adalora.observe(pruned, CONFIG)
    pruned.save_pretrained(tmp_path)  # type: ignore[operator]
    learn(pruned, CONFIG, range(STEPS + 1, STEPS + 3))
    assert adalora.observe(pruned, CONFIG) == before


def test_merging_keeps_what_is_computed(pruned: nn.Module) -> None:
    with torch.no_grad():
        expected = states(pruned)
        merged = pruned.merge_and_unload()  # type: ignore[operator]
        assert not isinstance(merged, PeftModel)
        assert torch.allclose(states(merged.eval()), expected, atol=1e-5)


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_ranks_fall_on_a_quantised_backbone(tiny_backbone: Path, width: Any, tmp_path: Path) -> None:
    backbone = load(str(tiny_backbone), width=width).model.eval()
    with torch.no_grad():
        expected = states(backbone)
    model = adalora.attach(backbone, CONFIG, STEPS).eval()
    with torch.no_grad():
        assert torch.equal(states(model), expected)
    learn(model, CONFIG, range(1, STEPS + 1))
    assert adalora.observe(model, CONFIG)["total_rank"] == TOTAL_RANKS[-1]
    with torch.no_grad():
        learnt = states(model)
        model.save_pretrained(tmp_path)  # type: ignore[operator]
        again = PeftModel.from_pretrained(load(str(tiny_backbone), width=width).model, tmp_path).eval()
        assert torch.allclose(states(again), learnt, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_the_adapter_of_a_half_precision_backbone_is_float32(tiny_backbone: Path, dtype: Any) -> None:
    model = adalora.attach(load(str(tiny_backbone), compute_dtype=dtype).model.eval(), CONFIG, STEPS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    learn(model, CONFIG, range(1, STEPS + 1))
    assert states(model).dtype == torch.bfloat16
    assert adalora.observe(model, CONFIG)["total_rank"] == TOTAL_RANKS[-1]


# Architectures -----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED: dict[str, Any] = SMALL | {
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(**SMALL, intermediate_size=24)),
    "gpt2": lambda: GPT2Model(GPT2Config(**SMALL, bos_token_id=0, eos_token_id=0)),
    "llama": lambda: LlamaModel(LlamaConfig(**GATED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GATED, head_dim=4)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**GATED, head_dim=4)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_fall_on_every_architecture(family: str) -> None:
    torch.manual_seed(0)
    config = adalora.Config(init_rank=3, target_rank=1, initial_phase=0.25, final_phase=0.25)
    model = adalora.attach(FAMILIES[family](), config, 4)
    described = adalora.describe(model, config)
    learn(model, config, range(1, 5))
    names = described["target_modules"]
    per_layer = {"bert": 6, "gpt2": 4}.get(family, 7)
    assert len(names) == 2 * per_layer
    assert described["phases"] == {"initial": 1, "reduction": 2, "final": 1}
    assert described["budget"] == len(names)
    assert adalora.observe(model, config)["total_rank"] == len(names)


# Configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [12, 13])
def test_ranks_that_would_not_fall_are_refused(target: int) -> None:
    with pytest.raises(ValidationError, match=rf"target_rank is {target} but init_rank is 12.*raise init_rank"):
        adalora.Config(target_rank=target)


def test_phases_longer_than_training_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"initial_phase 0.6 and final_phase 0.4 fill the training; lower one"):
        adalora.Config(initial_phase=0.6, final_phase=0.4)


def test_steps_too_few_for_the_phases_are_refused(backbone: nn.Module) -> None:
    def refusal(config: adalora.Config, max_steps: int) -> str | None:
        return config.refusal(width="none", max_steps=max_steps, gradient_checkpointing="none")

    crowded = adalora.Config(initial_phase=0.4, final_phase=0.5)
    # 5 steps: 2 initial, 2 final; 4: 2 and 2
    assert refusal(crowded, 5) is None
    assert "of training.max_steps 4 leave no step between them" in str(refusal(crowded, 4))
    # without an initial phase there must be two steps: one to measure, one to decide
    assert refusal(adalora.Config(initial_phase=0, final_phase=0), 2) is None
    assert refusal(adalora.Config(initial_phase=0, final_phase=0), 1) is not None
    with pytest.raises(RecpeftError, match="leave no step between them"):
        adalora.attach(backbone, crowded, 4)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (adalora.Config(init_rank=2, target_rank=1, initial_phase=0.4, final_phase=0.5), 5),
        (adalora.Config(init_rank=2, target_rank=1, initial_phase=0, final_phase=0), 2),
    ],
)
def test_the_fewest_steps_that_are_not_refused_reach_the_budget(
    backbone: nn.Module, config: adalora.Config, steps: int
) -> None:
    model = adalora.attach(backbone, config, steps)
    learn(model, config, range(1, steps + 1))
    assert adalora.observe(model, config)["total_rank"] == adalora.describe(model, config)["budget"]


def test_what_matches_nothing_is_refused_before_any_weight_is_loaded(tiny_backbone: Path) -> None:
    bare = skeleton(str(tiny_backbone))
    with pytest.raises(RecpeftError, match=r"adapter\.target_modules is"):
        adalora.check(bare, adalora.Config(target_modules=("q_proj",)))
    with pytest.raises(RecpeftError, match=r"adapter\.last_layers is 3 but the backbone has 2 layers"):
        adalora.check(bare, adalora.Config(last_layers=3))
    adalora.check(bare, adalora.Config(last_layers=1))
