"""LN tuning: which layers are trained, and that they are, in half precision too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from small_models import FAMILIES, GATED, SMALL, states
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    OlmoConfig,
    OlmoModel,
)

from adapters import Adapter, layernorm
from lightning_modules import load
from lightning_modules._backbone import skeleton
from recpeft.errors import RecpeftError

# By hand: in each layer, and outside the layers.
IN_A_LAYER = {
    "bert": {"attention.output.LayerNorm", "output.LayerNorm"},
    "gpt2": {"ln_1", "ln_2"},
    "llama": {"input_layernorm", "post_attention_layernorm"},
    "qwen3": {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"},
    "gemma3": {
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    },
}
LAYERS = {"bert": "encoder.layer", "gpt2": "h"}
OUTSIDE = {"bert": "embeddings.LayerNorm", "gpt2": "ln_f"}
# weights (and biases) of norms as wide as the model, and of those of heads
NUMBERS = {
    "bert": 5 * 2 * 16,
    "gpt2": 5 * 2 * 16,
    "llama": 5 * 16,
    "qwen3": 5 * 16 + 4 * 4,
    "gemma3": 9 * 16 + 4 * 4,
}
CONFIG = layernorm.Config()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def move(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_is_trained_and_nothing_else(family: str) -> None:
    torch.manual_seed(0)
    backbone = FAMILIES[family]().eval()
    weights = dict(backbone.named_parameters())
    with torch.no_grad():
        plain = states(backbone)
    model = layernorm.attach(backbone, CONFIG, 1)
    layers = LAYERS.get(family, "layers")
    expected = {f"{layers}.{n}.{part}" for n in range(2) for part in IN_A_LAYER[family]} | {OUTSIDE.get(family, "norm")}
    assert set(layernorm.describe(model, CONFIG)["target_modules"]) == expected
    assert {
        name.split(".ln_tuning_layers.")[0].removeprefix("base_model.model.") for name in trained(model)
    } == expected
    assert sum(p.numel() for p in trained(model).values()) == NUMBERS[family]
    assert not any(p.requires_grad for p in weights.values())
    with torch.no_grad():
        assert torch.equal(states(model), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_gets_a_gradient_and_is_merged(family: str) -> None:
    torch.manual_seed(0)
    model = layernorm.attach(FAMILIES[family]().eval(), CONFIG, 1)
    with torch.no_grad():
        plain = states(model)
    move(model)
    (states(model) * torch.randn(2, 5, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(model).values())
    with torch.no_grad():
        expected = states(model)
        assert not torch.allclose(expected, plain, atol=1e-2)
        merged = model.merge_and_unload()  # type: ignore[operator]
        assert not isinstance(merged, PeftModel)
        assert torch.equal(states(merged), expected)
        assert all("ln_tuning" not in name for name, _ in merged.named_parameters())


def test_a_saved_adapter_computes_the_same_in_a_deep_backbone(tmp_path: Path) -> None:
    # 25 names, which PEFT shortens
    torch.manual_seed(0)
    backbone = BertModel(BertConfig(**SMALL | {"num_hidden_layers": 12}, intermediate_size=24)).eval()
    backbone.save_pretrained(tmp_path / "backbone")
    model = layernorm.attach(backbone, CONFIG, 1).eval()
    assert len(layernorm.describe(model, CONFIG)["target_modules"]) == 25
    move(model)
    model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "backbone"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(states(again), states(model))


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_a_quantised_backbone_learns(tiny_backbone: Path, width: Any, tmp_path: Path) -> None:
    def quantised() -> nn.Module:
        return load(str(tiny_backbone), width=width).model.eval()

    backbone = quantised()
    with torch.no_grad():
        expected = states(backbone)
    model = layernorm.attach(backbone, CONFIG, 1).eval()
    with torch.no_grad():
        assert torch.equal(states(model), expected)
    move(model)
    (states(model) * torch.randn(2, 5, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(model).values())
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.no_grad():
        assert (states(model) - expected).abs().max() > 0.1
        again = PeftModel.from_pretrained(quantised(), tmp_path).eval()
        assert torch.allclose(states(again), states(model), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_updates_below_its_spacing_add_up(family: str) -> None:
    torch.manual_seed(0)
    backbone = FAMILIES[family]().eval().to(torch.bfloat16)
    with torch.no_grad():
        plain = states(backbone)
    model = layernorm.attach(backbone, CONFIG, 1)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    with torch.no_grad():
        assert states(model).dtype == torch.bfloat16
        assert torch.allclose(states(model), plain, atol=0.1)
        for _ in range(100):  # bfloat16 has no number between 1 and 1 + 2^-7, and 1 + 0.001 would be 1
            for p in trained(model).values():
                p.add_(0.001)
        assert not torch.allclose(states(model), plain, atol=0.1)
        expected = states(model)
        assert torch.equal(states(model.merge_and_unload()), expected)  # type: ignore[operator]


def test_in_half_precision_a_norm_takes_input_and_weight_of_one_dtype(tiny_backbone: Path) -> None:
    # CUDA's takes no others, and CPU's does
    model = layernorm.attach(load(str(tiny_backbone), compute_dtype="bfloat16").model.eval(), CONFIG, 1)
    seen = []
    for name, module in model.named_modules():
        if name.endswith(".ln_tuning_layers.default"):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    states(model)
    assert seen == [torch.float32] * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_saved_is_loaded_as_it_was_learnt(tiny_backbone: Path, dtype: Any, tmp_path: Path) -> None:
    def backbone() -> nn.Module:
        return load(str(tiny_backbone), compute_dtype=dtype).model.eval()

    model = layernorm.attach(backbone(), CONFIG, 1)
    move(model)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = Adapter(CONFIG).load(backbone(), tmp_path).eval()
    assert not trained(again)
    with torch.no_grad():
        assert torch.equal(states(again), states(model))


def test_no_warning_is_given(tiny_backbone: Path) -> None:
    backbone = AutoModel.from_pretrained(tiny_backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        layernorm.attach(backbone, CONFIG, 1)


def test_norms_without_weights_are_refused(tiny_backbone: Path) -> None:
    layernorm.check(skeleton(str(tiny_backbone)), CONFIG)
    with torch.device("meta"):
        olmo = OlmoModel(OlmoConfig(**GATED))
    with pytest.raises(RecpeftError, match="OlmoModel has no normalisation layer with weights; choose another method"):
        layernorm.check(olmo, CONFIG)
