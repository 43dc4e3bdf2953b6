"""Full fine-tuning: what is trained, and where it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from small_models import FAMILIES, states
from transformers import (
    AutoModel,
)

from adapters import Adapter, full
from experiments.config.run import build_run
from lightning_modules import load
from recpeft.errors import RecpeftError

CONFIG = full.Config()


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_the_states_pass_through_gets_a_gradient_and_nothing_else_is_trained(family: str) -> None:
    torch.manual_seed(0)
    backbone = FAMILIES[family]().requires_grad_(False)
    model = full.attach(backbone, CONFIG, 1)
    assert model is backbone
    (states(model) * torch.randn(2, 5, 16)).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == reached
    left = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert left == ({"pooler.dense.weight", "pooler.dense.bias"} if family == "bert" else set())


def test_the_backbones_own_files_hold_what_was_learnt(tiny_backbone: Path, tmp_path: Path) -> None:
    backbone = AutoModel.from_pretrained(tiny_backbone)
    before = copy.deepcopy(backbone.state_dict())
    model = full.attach(backbone, CONFIG, 1)
    assert not isinstance(model, PeftModel)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    (states(model) * torch.randn(2, 5, 64)).sum().backward()
    optimizer.step()
    model.eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)  # type: ignore[operator]  # as experiments do
    again = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(states(again), states(model))
    moved = {name for name, value in again.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith("pooler.")}


def test_what_was_saved_is_loaded_into_a_backbone(tiny_backbone: Path, tmp_path: Path) -> None:
    model = full.attach(AutoModel.from_pretrained(tiny_backbone), CONFIG, 1).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    backbone = AutoModel.from_pretrained(tiny_backbone).eval()
    again = Adapter(CONFIG).load(backbone, tmp_path)
    assert again is backbone
    assert not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        assert torch.equal(states(again), states(model))
    with pytest.raises(RecpeftError, match=r"lacks \d+ weights of GPT2Model, such as .*; give the folder of a run"):
        full.load(FAMILIES["gpt2"](), CONFIG, tmp_path)
    with pytest.raises(RecpeftError, match=r"go into no quantised backbone; use backbone\.width: none"):
        full.load(load(str(tiny_backbone), width="int8").model, CONFIG, tmp_path)


@pytest.mark.parametrize("width", ["nf4", "int8", "fp4"])
def test_a_quantised_width_is_refused_when_the_config_is_read(width: str) -> None:
    run = {
        "study": "s",
        "data": {"source": "movielens"},
        "backbone": {"name": "some/backbone", "width": width},
        "adapter": {"method": "full"},
        "formulation": {"name": "two_tower"},
        "loss": {"name": "listwise_softmax"},
    }
    with pytest.raises(RecpeftError, match=rf"cannot train weights quantised to {width}; use backbone\.width: none"):
        build_run(run)
    assert build_run(run | {"backbone": {"name": "some/backbone"}}).method == "full"


def test_a_quantised_backbone_is_refused(tiny_backbone: Path) -> None:
    with pytest.raises(RecpeftError, match=r"cannot train quantised weights; use backbone\.width: none"):
        full.attach(load(str(tiny_backbone), width="int8").model, CONFIG, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_refused(tiny_backbone: Path, dtype: Any) -> None:
    with pytest.raises(RecpeftError, match=rf"torch\.{dtype}, whose spacing .* use backbone\.compute_dtype: float32"):
        full.attach(load(str(tiny_backbone), compute_dtype=dtype).model, CONFIG, 1)
