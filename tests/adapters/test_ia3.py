"""(IA)³: where its scales go and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from peft import IA3Config, PeftModel, get_peft_model
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from small_models import GATED, SMALL, SPECIAL, states
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MixtralConfig,
    MixtralModel,
    ModernBertConfig,
    ModernBertModel,
)

from adapters import ia3
from lightning_modules import load
from lightning_modules._backbone import skeleton
from recpeft.errors import RecpeftError

FAMILIES = small_models.FAMILIES | {
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SMALL, **SPECIAL, intermediate_size=24)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=16, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
    ),
}


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scale of each layer, by the layer's full name."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".ia3_l.default"): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def draw_scales(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for scale in scales(model).values():
            scale.copy_(0.5 + torch.rand(scale.shape, generator=draw))


# Where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_targets_are_those_of_pefts_table(family: str) -> None:
    theirs = get_peft_model(
        FAMILIES[family](),
        IA3Config(
            target_modules=TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[family],
            feedforward_modules=TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[family],
        ),
    )
    expected = {name: tuple(scale.shape) for name, scale in scales(theirs).items()}
    if family == "bert":  # its "output.dense" means the end of attention too, which the paper does not scale
        expected = {name: s for name, s in expected.items() if not name.endswith("attention.output.dense")}
    ours = ia3.attach(FAMILIES[family](), ia3.Config(), 1)
    assert {name: tuple(scale.shape) for name, scale in scales(ours).items()} == expected


@pytest.mark.parametrize(
    ("family", "attention", "feed_forward"),
    [
        ("bert", {"attention.self.key", "attention.self.value"}, "output.dense"),
        ("gpt2", {"attn.c_attn"}, "mlp.c_proj"),
        ("llama", {"self_attn.k_proj", "self_attn.v_proj"}, "mlp.down_proj"),
        ("qwen3", {"self_attn.k_proj", "self_attn.v_proj"}, "mlp.down_proj"),
        ("gemma3", {"self_attn.k_proj", "self_attn.v_proj"}, "mlp.down_proj"),
        ("modernbert", {"attn.Wqkv"}, "mlp.Wo"),
        ("distilbert", {"attention.k_lin", "attention.v_lin"}, "ffn.lin2"),
    ],
)
def test_keys_values_and_the_end_of_the_feed_forward_sub_layer_are_found(
    family: str, attention: set[str], feed_forward: str
) -> None:
    model = ia3.attach(FAMILIES[family](), ia3.Config(), 1)
    described = ia3.describe(model, ia3.Config())
    # "encoder.layer.0.attention.self.key" without the layer's own name
    found = {name.split(f".{n}.", 1)[1] for name in described["target_modules"] for n in "01" if f".{n}." in name}
    assert found == attention
    assert len(described["target_modules"]) == 2 * len(attention)
    assert len(described["feedforward_modules"]) == 2
    assert all(name.endswith(f".{feed_forward}") for name in described["feedforward_modules"])


def test_in_a_deep_backbone_the_same_layers_are_scaled_and_no_others(tmp_path: Path) -> None:
    # 36 names, and "layer.1" is the beginning of "layer.11"
    config = BertConfig(**SMALL | {"num_hidden_layers": 12}, intermediate_size=24)
    torch.manual_seed(0)
    backbone = BertModel(config).eval()
    backbone.save_pretrained(tmp_path / "backbone")
    model = ia3.attach(backbone, ia3.Config(), 1).eval()
    assert set(scales(model)) == {
        f"encoder.layer.{n}.{part}"
        for n in range(12)
        for part in ("attention.self.key", "attention.self.value", "output.dense")
    }
    described = ia3.describe(model, ia3.Config())
    assert described["feedforward_modules"] == [f"encoder.layer.{n}.output.dense" for n in range(12)]
    draw_scales(model)
    model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "backbone"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(states(again), states(model))


def test_only_the_last_layers_are_scaled_where_so_many_are_asked_for() -> None:
    model = ia3.attach(FAMILIES["llama"](), ia3.Config(last_layers=1), 1)
    assert set(scales(model)) == {
        f"layers.1.{part}" for part in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    }


# What --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_values_and_inner_activations_are_scaled(family: str) -> None:
    """Against the plain backbone with hooks that multiply."""
    torch.manual_seed(0)
    plain = FAMILIES[family]().eval()
    torch.manual_seed(0)
    model = ia3.attach(FAMILIES[family]().eval(), ia3.Config(), 1)
    with torch.no_grad():
        assert torch.equal(states(model), states(plain))
        draw_scales(model)
        feed_forward = ia3.describe(model, ia3.Config())["feedforward_modules"]
        for name, scale in scales(model).items():
            module, factor = plain.get_submodule(name), scale.flatten().detach()
            if name in feed_forward:
                module.register_forward_pre_hook(lambda module, inputs, factor=factor: (inputs[0] * factor,))
            else:
                module.register_forward_hook(lambda module, inputs, output, factor=factor: output * factor)
        expected = states(plain)
        assert torch.allclose(states(model), expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_scale_gets_a_gradient(family: str) -> None:
    torch.manual_seed(0)
    model = ia3.attach(FAMILIES[family](), ia3.Config(), 1).train()
    (states(model) * torch.randn(2, 5, 16)).sum().backward()
    assert all(scale.grad is not None and scale.grad.any() for scale in scales(model).values())
    assert sum(p.requires_grad for p in model.parameters()) == len(scales(model))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_merging_keeps_what_is_computed(family: str) -> None:
    torch.manual_seed(0)
    model = ia3.attach(FAMILIES[family](), ia3.Config(), 1).eval()
    draw_scales(model)
    with torch.no_grad():
        expected = states(model)
        merged = model.merge_and_unload()  # type: ignore[operator]
        assert not isinstance(merged, PeftModel)
        assert torch.allclose(states(merged), expected, atol=1e-5)


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_a_quantised_backbone_is_scaled(tiny_backbone: Path, width: Any, tmp_path: Path) -> None:
    def quantised() -> nn.Module:
        return load(str(tiny_backbone), width=width).model.eval()

    backbone = quantised()
    with torch.no_grad():
        expected = states(backbone)
    model = ia3.attach(backbone, ia3.Config(), 1).eval()
    with torch.no_grad():
        assert torch.equal(states(model), expected)
    # the sum of what a LayerNorm gives is constant
    (states(model) * torch.randn(2, 5, 64)).sum().backward()
    assert all(scale.grad is not None and scale.grad.any() for scale in scales(model).values())
    draw_scales(model)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with torch.no_grad():
        assert (states(model) - expected).abs().max() > 0.1
        again = PeftModel.from_pretrained(quantised(), tmp_path).eval()
        assert torch.allclose(states(again), states(model), atol=1e-6)


def test_the_scales_of_a_half_precision_backbone_are_float32(tiny_backbone: Path) -> None:
    model = ia3.attach(load(str(tiny_backbone), compute_dtype="bfloat16").model.eval(), ia3.Config(), 1)
    assert {scale.dtype for scale in scales(model).values()} == {torch.float32}
    assert states(model).dtype == torch.bfloat16


# Refused -----------------------------------------------------------------------------------------------


def test_attention_of_unknown_names_is_refused_with_the_names(tiny_backbone: Path) -> None:
    bare = skeleton(str(tiny_backbone))
    ia3.check(bare, ia3.Config())
    for layer in bare.encoder.layer:
        attention = layer.attention.self
        for part in ("query", "key", "value"):
            setattr(attention, f"{part}_x", getattr(attention, part))
            delattr(attention, part)
    with pytest.raises(RecpeftError, match=r"known to give keys or values; .* dense, key_x, query_x, value_x; name"):
        ia3.check(bare, ia3.Config())


def test_a_mixture_of_experts_is_refused() -> None:
    with torch.device("meta"):
        mixture = MixtralModel(MixtralConfig(**GATED, num_local_experts=2))
    with pytest.raises(RecpeftError, match=r"choose another adapter\.method"):
        ia3.check(mixture, ia3.Config())


def test_more_layers_than_there_are_are_refused(tiny_backbone: Path) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.last_layers is 3 but the backbone has 2 layers"):
        ia3.check(skeleton(str(tiny_backbone)), ia3.Config(last_layers=3))
