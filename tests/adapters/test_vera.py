"""VeRA: its shared random matrices and the vectors that are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_models import FAMILIES, states
from torch import nn
from transformers import (
    AutoModel,
)

from adapters import Adapter, vera
from lightning_modules import TwoTower, load
from lightning_modules._backbone import skeleton
from recpeft.errors import RecpeftError

CONFIG = vera.Config(rank=8)


def vectors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def draw_vectors(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for vector in vectors(model).values():
            vector.copy_(torch.randn(vector.shape, generator=draw) / 3)


@pytest.fixture
def backbone(tiny_backbone: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_backbone).eval()


@pytest.mark.parametrize("part", ["attention.self.query", "intermediate.dense", "output.dense"])
def test_a_layer_adds_what_the_shared_matrices_and_its_vectors_say(backbone: nn.Module, part: str) -> None:
    """By hand: W x + c + b * (B (d * (A x))), with the part of A and B that the layer's shape needs."""
    model = vera.attach(backbone, CONFIG, 1)
    draw_vectors(model)
    shared: Any = model.base_model
    a, b = shared.vera_A["default"], shared.vera_B["default"]
    assert a.shape == (8, 128)  # the widest input is output.dense's
    assert b.shape == (128, 8)  # the widest output is intermediate.dense's
    layer: Any = shared.model.encoder.layer[1].get_submodule(part)
    base = layer.base_layer
    learnt_b, learnt_d = layer.vera_lambda_b["default"], layer.vera_lambda_d["default"]
    x = torch.randn(3, base.in_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        down, up = a[:, : base.in_features], b[: base.out_features]
        expected = x @ base.weight.T + base.bias + learnt_b * ((learnt_d * (x @ down.T)) @ up.T)
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert not torch.allclose(layer(x), base(x), atol=1e-2)


def test_each_layer_learns_rank_plus_out_features_numbers(backbone: nn.Module) -> None:
    model = vera.attach(backbone, CONFIG, 1)
    # two layers of five outputs of 64 and one of 128
    assert sum(p.numel() for p in vectors(model).values()) == 2 * (6 * 8 + 5 * 64 + 128)
    for name, vector in vectors(model).items():
        assert torch.equal(vector, torch.full_like(vector, 0.1 if ".vera_lambda_d." in name else 0.0))


def test_a_checkpoint_of_the_vectors_rebuilds_it_whatever_torchs_seed(tiny_backbone: Path) -> None:
    def module(seed: int, config: vera.Config) -> TwoTower:
        backbone = AutoModel.from_pretrained(tiny_backbone).eval()
        torch.manual_seed(seed)
        adapter = Adapter(config)
        return TwoTower(adapter.attach(backbone, 1), num_items=3, adapter=adapter)

    first = module(0, CONFIG)
    draw_vectors(first.backbone)
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    assert {n.split(".vera_lambda_")[1][0] for n in checkpoint["state_dict"] if n.startswith("backbone.")} == {"b", "d"}
    second = module(1, CONFIG)
    second.on_load_checkpoint(checkpoint)
    second.load_state_dict(checkpoint["state_dict"], strict=False)
    with torch.no_grad():
        assert torch.equal(states(second.backbone), states(first.backbone))
        other = module(0, CONFIG.model_copy(update={"projection_seed": 1}))
        other.load_state_dict(checkpoint["state_dict"], strict=False)
        assert not torch.allclose(states(other.backbone), states(first.backbone), atol=1e-2)


def test_a_saved_adapter_carries_its_matrices(backbone: nn.Module, tiny_backbone: Path, tmp_path: Path) -> None:
    # PEFT can draw them again, but promises it for the same torch alone.
    model = vera.attach(backbone, CONFIG, 1).eval()
    draw_vectors(model)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert {"base_model.vera_A", "base_model.vera_B"} <= load_file(tmp_path / "adapter_model.safetensors").keys()
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(states(again), states(model))


def test_dropout_is_on_in_training_alone(backbone: nn.Module) -> None:
    model = vera.attach(backbone, vera.Config(rank=8, dropout=0.5), 1)
    draw_vectors(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0  # the backbone's own
    with torch.no_grad():
        assert not torch.equal(states(model.train()), states(model))
        assert torch.equal(states(model.eval()), states(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_learns_and_merges(family: str) -> None:
    torch.manual_seed(0)
    backbone = FAMILIES[family]().eval()
    with torch.no_grad():
        plain = states(backbone)
    model = vera.attach(backbone, CONFIG, 1)
    with torch.no_grad():
        assert torch.equal(states(model), plain)
    draw_vectors(model)
    (states(model) * torch.randn(2, 5, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vectors(model).values())
    per_layer = {"bert": 6, "gpt2": 4}.get(family, 7)
    assert len(vera.describe(model, CONFIG)["target_modules"]) == 2 * per_layer
    with torch.no_grad():
        expected = states(model)
        assert not torch.allclose(expected, plain, atol=1e-2)
        merged = model.merge_and_unload()  # type: ignore[operator]
        assert torch.allclose(states(merged), expected, atol=1e-5)


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_a_quantised_backbone_learns(tiny_backbone: Path, width: Any, tmp_path: Path) -> None:
    def quantised() -> nn.Module:
        return load(str(tiny_backbone), width=width).model.eval()

    backbone = quantised()
    with torch.no_grad():
        expected = states(backbone)
    model = vera.attach(backbone, CONFIG, 1).eval()
    with torch.no_grad():
        assert torch.equal(states(model), expected)
    draw_vectors(model)
    # the sum of what a LayerNorm gives is constant
    (states(model) * torch.randn(2, 5, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vectors(model).values())
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.no_grad():
        assert (states(model) - expected).abs().max() > 0.1
        again = PeftModel.from_pretrained(quantised(), tmp_path).eval()
        assert torch.allclose(states(again), states(model), atol=1e-6)


def test_the_vectors_of_a_half_precision_backbone_are_float32(tiny_backbone: Path) -> None:
    model = vera.attach(load(str(tiny_backbone), compute_dtype="bfloat16").model.eval(), CONFIG, 1)
    draw_vectors(model)
    assert {p.dtype for p in vectors(model).values()} == {torch.float32}
    assert states(model).dtype == torch.bfloat16


def test_layers_are_chosen(backbone: nn.Module) -> None:
    config = vera.Config(rank=8, target_modules="attention", last_layers=1)
    assert vera.describe(vera.attach(backbone, config, 1), config) == {
        "target_modules": [
            f"encoder.layer.1.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")
        ]
    }


def test_what_matches_nothing_is_refused_before_any_weight_is_loaded(tiny_backbone: Path) -> None:
    bare = skeleton(str(tiny_backbone))
    vera.check(bare, CONFIG)
    with pytest.raises(RecpeftError, match=r"adapter\.target_modules is"):
        vera.check(bare, vera.Config(target_modules=("q_proj",)))
    with pytest.raises(RecpeftError, match=r"adapter\.last_layers is 3 but the backbone has 2 layers"):
        vera.check(bare, vera.Config(last_layers=3))
