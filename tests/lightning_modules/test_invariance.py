"""Scores stay where they are: whatever is batched with them, however they are padded, however candidates come.

A bar of 1e-4 for every formulation at every width. LLM.int8 alone is not held to it at its default threshold, where
outlier columns are those of the batch: there the drift is measured, and at threshold 0 it is held to the bar too. Its
inputs are rounded to 8 bits there, so that 5e-7 in attention's sum over more padding rounds one of 15,000 the other
way now and then, which moves a cosine by some 4e-5: two_tower's are held to the bar before the temperature, which
makes logits of them, twenty times as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules import TextPairDataModule
from datamodules._batching import Bucket, TextBatch, UserBatch
from experiments.cell.assemble import make_data, make_module
from experiments.cell.data import Prepared, prepare
from experiments.config.run import TextRun, build_run
from lightning_modules import Backbone, RecModule
from lightning_modules import _backbone as backbones
from lightning_modules._diagnostics import diagnose
from metrics import RankingMetrics, rank
from recpeft import plugins
from tests.lightning_modules.test_listwise_verbalizer import WORDS, write_decoder

BAR = 1e-4
LIST = 6
CASES: dict[str, tuple[str, str]] = {
    "two_tower": ("two_tower", "bert"),
    "two_tower-decoder": ("two_tower", "gemma"),
    "verbalizer": ("verbalizer", "gemma"),
    "cross_encoder": ("cross_encoder", "bert"),
    "cross_encoder-decoder": ("cross_encoder", "llama"),
    "listwise_verbalizer": ("listwise_verbalizer", "gemma"),
}
"""Name of a case -> formulation and backbone."""
WIDTHS: dict[str, dict[str, Any]] = {
    "none": {},
    "nf4": {"width": "nf4"},
    "fp4": {"width": "fp4"},
    "int8-threshold0": {"width": "int8", "int8_threshold": 0.0},
}


@dataclass
class World:
    config: TextRun
    prepared: Prepared
    backbone: Backbone
    module: RecModule
    data: TextPairDataModule
    candidates: Tensor
    """(U, LIST) of the test users."""

    def served(self, **changes: Any) -> TextPairDataModule:
        """The data module with other settings of ``training`` and another side to pad on."""
        tokenizer = copy(self.backbone.tokenizer)
        tokenizer.padding_side = changes.pop("side", tokenizer.padding_side)
        training = self.config.training.model_copy(update=changes)
        return make_data(self.config.model_copy(update={"training": training}), self.prepared, tokenizer)

    @torch.no_grad()
    def scores(self, data: TextPairDataModule | None = None, users: Any = None, candidates: Any = None) -> Tensor:
        """(U, LIST) in batches of ``users``; all at once where none are given."""
        data = data or self.data
        for items in data.catalogue(size=7 if data is not self.data else 512):
            self.module.encode_catalogue(items)
        listed = self.candidates if candidates is None else candidates
        found = []
        for part in [np.arange(len(data.test_users))] if users is None else users:
            (batch,) = data.test_batches(data.test_users[part])
            found.append(self.module.score(batch, listed[part]))
        return torch.cat(found)


@pytest.fixture(scope="module", autouse=True)
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RECPEFT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def folders(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    llama = write_decoder(tmp_path_factory.mktemp("llama"))
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    ).save_pretrained(llama)
    return {
        "bert": str(tiny_backbone),
        "gemma": str(write_decoder(tmp_path_factory.mktemp("gemma"))),
        "llama": str(llama),
    }


@pytest.fixture(scope="module")
def make(folders: dict[str, str], tiny_data: Path) -> Callable[..., World]:
    """A formulation around a tiny random backbone at a width, with the small world's test users."""
    source: dict[str, Any] = {"source": "movielens", "path": str(tiny_data)}

    of_source: Prepared | None = None

    def made(case: str, **options: Any) -> World:
        nonlocal of_source
        name, family = CASES[case]
        training = options.pop("training", {})
        config = build_run(
            {
                "study": "invariance",
                "data": source,
                "prompt": {"history": 4, "max_user_tokens": 64},
                "backbone": {"name": folders[family], **options},
                "adapter": {"method": "frozen"},
                "formulation": {"name": name},
                "loss": {"name": "bpr"},
                "training": training,
                "evaluation": {"k": [5], "monitor": "ndcg@5", "candidates": {"kind": "uniform", "size": LIST}},
            }
        )
        assert isinstance(config, TextRun)
        prepared = of_source or prepare(config.data)
        of_source = prepared
        torch.manual_seed(0)
        backbone = backbones.load(**config.backbone.model_dump())
        data = make_data(config, prepared, backbone.tokenizer)
        data.test_users = data.test_users[:6]
        module = make_module(config, prepared, backbone.model, backbone, prompt=data.prompt).eval()
        if name == "cross_encoder":
            with torch.no_grad():
                module.head.linear.weight.normal_(std=0.2)  # type: ignore[union-attr,operator]
        drawn = np.random.default_rng(0)
        lists = [drawn.choice(prepared.dataset.num_items, LIST, replace=False) for _ in data.test_users]
        return World(config, prepared, backbone, module, data, torch.from_numpy(np.stack(lists)))

    return made


def test_every_formulation_is_held_to_the_bar() -> None:
    # two_stage has no module of its own: it is its second stage's. Of sequences, test_sequence.py holds the users' side
    # to 1e-5, and items are encoded as two_tower's are.
    elsewhere = {"two_stage", "sequence"}
    assert {name for name, _ in CASES.values()} == set(plugins.names("lightning_modules")) - elsewhere


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_scores_move_with_neither_padding_nor_the_batch_nor_the_candidates_order(
    case: str, width: str, make: Callable[..., World]
) -> None:
    world = make(case, **WIDTHS[width])
    if width != "none":
        assert backbones.quantised_layers(world.backbone.model)
    expected = world.scores()
    assert float(expected.std()) > 100 * BAR
    everyone = len(world.data.test_users)
    drift = {
        "alone": world.scores(users=[[n] for n in range(everyone)]),
        "by threes": world.scores(users=[range(n, min(n + 3, everyone)) for n in range(0, everyone, 3)]),
        "backwards": world.scores(users=[range(everyone - 1, -1, -1)]).flip(0),
        "small buckets": world.scores(_few(world, world.served(max_bucket_tokens=40))),
        "candidates": world.scores(candidates=world.candidates.flip(1)).flip(1),
    }
    for side in ("left", "right"):
        served = _few(world, world.served(side=side))
        drift[f"padded {side}"] = world.scores(served)
        drift[f"padded {side} by 50"] = world.scores(_longer(served, 50))
    unit = 1.0
    if width.startswith("int8") and case.startswith("two_tower"):
        unit = float(world.module.head.log_scale.exp())  # type: ignore[operator]
        assert unit == pytest.approx(20)
    found = {name: float((scores - expected).abs().max()) / unit for name, scores in drift.items()}
    assert max(found.values()) <= BAR, found


def _few(world: World, data: TextPairDataModule) -> TextPairDataModule:
    data.test_users = world.data.test_users
    return data


def _longer(data: TextPairDataModule, extra: int) -> Any:
    """What ``data`` serves, with ``extra`` columns of padding on its side of every text."""
    width = (extra, 0) if data.padding_side == "left" else (0, extra)

    def texts(given: TextBatch) -> TextBatch:
        buckets = [Bucket(pad(b.input_ids, width, value=5), pad(b.attention_mask, width), b.row) for b in given.buckets]
        return TextBatch(buckets, given.size, given.num_tokens)

    longer = copy(data)
    longer.catalogue = lambda size=512: [replace(b, texts=texts(b.texts)) for b in data.catalogue(size)]  # type: ignore[method-assign,assignment,return-value]
    longer.test_batches = lambda users: [replace(b, texts=texts(b.texts)) for b in data.test_batches(users)]  # type: ignore[method-assign]
    return longer


@pytest.mark.parametrize("case", CASES)
def test_int8s_drift_is_measured_at_its_threshold(case: str, make: Callable[..., World]) -> None:
    world = make(case, width="int8")
    world.scores()
    batch = world.data.test_batches
    lists = dict(zip(world.data.test_users.tolist(), world.candidates, strict=True))

    def listed(users: Any) -> list[UserBatch]:
        (made,) = batch(users)
        return [replace(made, candidates=torch.stack([lists[user] for user in users.tolist()]))]

    world.data.test_batches = listed  # type: ignore[method-assign]
    with torch.no_grad():
        found = diagnose(world.module, world.data)
    assert math.isfinite(found["batch"])
    assert math.isfinite(found["padding"])
    assert found["standard_deviation"] > 100 * BAR
    assert found["batch"] < found["standard_deviation"]


# Ties --------------------------------------------------------------------------------------------------


def tie_rate(scores: Tensor) -> float:
    users = torch.arange(len(scores))
    metric = RankingMetrics(
        [5], torch.ones(scores.shape[1], 1, dtype=torch.bool), torch.ones(scores.shape[1]).long(), 9, {}
    )
    masked = torch.zeros(scores.shape, dtype=torch.bool)
    metric.update(rank(scores, users, masked, (users, users % scores.shape[1]), 5, 0))
    return metric.compute()["tie_rate"]


def test_ties_of_bfloat16_are_seen() -> None:
    torch.manual_seed(0)
    scores = 20 + torch.randn(200, 100)  # of 8 bits, between 16 and 32: steps of 1/8
    assert tie_rate(scores) < 0.02
    assert tie_rate(scores.bfloat16().float()) > 0.5
    assert tie_rate(torch.zeros(200, 100)) == 1


@pytest.mark.parametrize("options", [{}, {"compute_dtype": "bfloat16"}, {"width": "nf4"}])
@pytest.mark.parametrize("case", ["verbalizer", "cross_encoder", "listwise_verbalizer", "two_tower"])
def test_a_backbone_in_bfloat16_is_scored_in_float32(
    case: str, options: dict[str, Any], make: Callable[..., World]
) -> None:
    world = make(case, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled="compute_dtype" not in options):
        scores = world.scores()
    assert scores.dtype == torch.float32
    rounded = (scores == scores.bfloat16().float()).float().mean()
    assert rounded < 0.1
