"""Bottleneck adapters: where they stand, what they compute, that PEFT alone loads them."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraModel, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn
from torch.nn import functional

from adapters import bottleneck
from adapters._bottleneck_peft import BottleneckConfig, BottleneckLayer, BottleneckModel
from adapters._peft_types import register
from adapters._targets import adapted_names
from lightning_modules import load
from recpeft.errors import RecpeftError

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 4, 5]])
COMMON = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    # model class, its config, then attention output, feed-forward input and feed-forward output of layer {}
    "bert": (
        "Bert", COMMON,
        "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.intermediate.dense",
        "encoder.layer.{}.output.dense",
    ),
    "roberta": (
        "Roberta", COMMON,
        "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.intermediate.dense",
        "encoder.layer.{}.output.dense",
    ),
    "distilbert": (
        "DistilBert", {"vocab_size": 20, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        "transformer.layer.{}.attention.out_lin", "transformer.layer.{}.ffn.lin1", "transformer.layer.{}.ffn.lin2",
    ),
    "modernbert": (
        "ModernBert", COMMON | {"cls_token_id": 1, "sep_token_id": 2},
        "layers.{}.attn.Wo", "layers.{}.mlp.Wi", "layers.{}.mlp.Wo",
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
        "h.{}.attn.c_proj", "h.{}.mlp.c_fc", "h.{}.mlp.c_proj",
    ),
    "llama": (
        "Llama", COMMON, "layers.{}.self_attn.o_proj", "layers.{}.mlp.gate_proj", "layers.{}.mlp.down_proj",
    ),
    "qwen3": (  # two heads of 12 are not the hidden 16
        "Qwen3", COMMON | {"head_dim": 12, "num_key_value_heads": 1},
        "layers.{}.self_attn.o_proj", "layers.{}.mlp.gate_proj", "layers.{}.mlp.down_proj",
    ),
    "gemma3": (
        "Gemma3Text", COMMON | {"head_dim": 12, "num_key_value_heads": 1},
        "layers.{}.self_attn.o_proj", "layers.{}.mlp.gate_proj", "layers.{}.mlp.down_proj",
    ),
}  # fmt: skip
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


def tiny(family: str, **changes: Any) -> nn.Module:
    name, options, *_ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(options | changes))
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    return model


def attached(backbone: nn.Module, placement: str, **options: Any) -> Any:
    config = bottleneck.Config(placement=placement, **({"bottleneck_dim": 4} | options))
    return bottleneck.attach(backbone, config, total_steps=1).eval()


def shaken(model: Any, std: float = 0.3) -> Any:
    """As if it were trained: every adapter weight random."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bottleneck_" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=draw))
    return model


def states(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    result: Tensor = model(input_ids=ids).last_hidden_state
    return result


def layers(model: nn.Module) -> list[BottleneckLayer]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


# Where they stand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_each_placement_adapts_the_layers_that_end_its_sub_layers(family: str) -> None:
    _, _, attention, begin, end = FAMILIES[family]
    backbone = tiny(family)
    found = {p: adapted_names(attached(copy.deepcopy(backbone), p)) for p in PLACEMENTS}
    assert found["houlsby"] == [name.format(n) for n in range(2) for name in (attention, end)]
    assert found["pfeiffer"] == found["parallel"] == [end.format(n) for n in range(2)]
    config = attached(backbone, "parallel").peft_config["default"]
    assert config.feed_forward_inputs == {end.format(n): begin.format(n) for n in range(2)}


def test_last_layers_keeps_to_the_topmost_ones() -> None:
    backbone = tiny("llama", num_hidden_layers=3)
    model = attached(copy.deepcopy(backbone), "houlsby", last_layers=2)
    assert adapted_names(model) == [
        f"layers.{n}.{end}" for n in (1, 2) for end in ("self_attn.o_proj", "mlp.down_proj")
    ]
    model = attached(backbone, "parallel", last_layers=1)
    assert adapted_names(model) == ["layers.2.mlp.down_proj"]
    assert model.peft_config["default"].feed_forward_inputs == {"layers.2.mlp.down_proj": "layers.2.mlp.gate_proj"}


def test_the_record_gets_the_resolved_names() -> None:
    config = bottleneck.Config(placement="parallel", bottleneck_dim=4)
    assert bottleneck.describe(bottleneck.attach(tiny("gpt2"), config, 1), config) == {
        "target_modules": ["h.0.mlp.c_proj", "h.1.mlp.c_proj"],
        "feed_forward_inputs": ["h.0.mlp.c_fc", "h.1.mlp.c_fc"],
    }
    config = bottleneck.Config(placement="pfeiffer", bottleneck_dim=4)
    assert bottleneck.describe(bottleneck.attach(tiny("gpt2"), config, 1), config) == {
        "target_modules": ["h.0.mlp.c_proj", "h.1.mlp.c_proj"]
    }


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_deep_backbone_is_adapted_by_full_names_and_loads_so(tmp_path: Path, placement: str) -> None:
    # From 20 names on PEFT would shorten them to suffixes, in no order; attention.output.dense has output.dense's.
    backbone = tiny("bert", num_hidden_layers=21)
    ends = [f"encoder.layer.{n}.output.dense" for n in range(21)]
    both = [f"encoder.layer.{n}.{end}" for n in range(21) for end in ("attention.output.dense", "output.dense")]
    expected = both if placement == "houlsby" else ends
    model = shaken(attached(copy.deepcopy(backbone), placement))
    assert adapted_names(model) == expected
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == expected
    again = PeftModel.from_pretrained(backbone, str(tmp_path)).eval()
    assert adapted_names(again) == expected
    assert torch.equal(states(again), states(model))


def test_a_target_is_a_full_name_and_no_suffix() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)
            self.inner = nn.Sequential()
            self.inner.dense = nn.Linear(4, 4)

    model = get_peft_model(Nested(), BottleneckConfig(target_modules=["dense"], bottleneck_dim=2))
    assert adapted_names(model) == ["dense"]


# What they compute --------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_the_output_is_the_backbones_to_the_bit(family: str, placement: str) -> None:
    backbone = tiny(family)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)  # attention kernels differ in rounding with what needs a gradient
    with torch.no_grad():
        assert torch.equal(states(attached(copy.deepcopy(backbone), placement)), states(backbone))


def weights(layer: nn.Module) -> list[Tensor]:
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    return [down.weight, down.bias, up.weight, up.bias]


def by_hand(layer: nn.Module, h: Tensor, scale: float, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """scale * up(activation(down(h)))"""
    down, down_bias, up, up_bias = weights(layer)
    return scale * (activation(h @ down.T + down_bias) @ up.T + up_bias)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("tanh", lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x))),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_sequential_adapter_by_hand(activation: str, function: Callable[[Tensor], Tensor], scale: float) -> None:
    model = shaken(attached(tiny("bert"), "houlsby", activation=activation, scale=scale))
    block = model.base_model.model.encoder.layer[1]
    for layer, width in ((block.attention.output.dense, 16), (block.output.dense, 24)):
        x = torch.randn(3, width, generator=torch.Generator().manual_seed(2))
        y = x @ layer.base_layer.weight.T + layer.base_layer.bias
        assert weights(layer)[0].shape == (4, 16)
        assert torch.allclose(layer(x), y + by_hand(layer, y, scale, function), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_parallel_adapter_by_hand_in_a_gated_feed_forward(scale: float) -> None:
    model = shaken(attached(tiny("llama"), "parallel", activation="gelu", scale=scale))
    mlp = model.base_model.model.layers[0].mlp
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    gate = functional.silu(x @ mlp.gate_proj.weight.T)
    feed_forward = (gate * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.base_layer.weight.T
    assert torch.allclose(mlp(x), feed_forward + by_hand(mlp.down_proj, x, scale, functional.gelu), atol=1e-5)


def test_the_parallel_adapter_by_hand_in_berts_feed_forward() -> None:
    model = shaken(attached(tiny("bert"), "parallel", scale=4.0))
    block = model.base_model.model.encoder.layer[0]
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    dense, norm = block.output.dense.base_layer, block.output.LayerNorm
    inner = functional.gelu(x @ block.intermediate.dense.weight.T + block.intermediate.dense.bias)
    summed = inner @ dense.weight.T + dense.bias + by_hand(block.output.dense, x, 4.0, torch.relu) + x
    assert torch.allclose(
        block.feed_forward_chunk(x), functional.layer_norm(summed, (16,), norm.weight, norm.bias), atol=1e-5
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["distilbert", "modernbert", "gpt2", "qwen3", "gemma3"])
def test_the_whole_model_is_the_backbone_with_its_sub_layers_outputs_changed(family: str, placement: str) -> None:
    backbone = tiny(family)
    model = shaken(attached(copy.deepcopy(backbone), placement, scale=2.0))
    for name in adapted_names(model):
        layer = model.base_model.model.get_submodule(name)

        def sequential(_: nn.Module, args: Any, y: Tensor, layer: nn.Module = layer) -> Tensor:
            return y + by_hand(layer, y, 2.0, torch.relu)

        def parallel(_: nn.Module, args: Any, y: Tensor, layer: nn.Module = layer) -> Tensor:
            return y + by_hand(layer, args[0], 2.0, torch.relu)

        if placement == "parallel":  # around the whole feed-forward module
            backbone.get_submodule(name.rpartition(".")[0]).register_forward_hook(parallel)
        else:
            backbone.get_submodule(name).register_forward_hook(sequential)
    assert torch.allclose(states(model), states(backbone), atol=1e-5)


def test_dropout_falls_on_the_bottleneck_in_training_alone() -> None:
    layer = BottleneckLayer(nn.Linear(6, 8))
    layer.update_layer("default", 4, "relu", dropout=0.5, scale=1.0)
    with torch.no_grad():
        layer.bottleneck_down["default"].weight.zero_()
        layer.bottleneck_down["default"].bias.fill_(1.0)
        layer.bottleneck_up["default"].weight.copy_(torch.eye(8)[:, :4])
        x = torch.randn(50, 6)
        added = layer.train()(x) - layer.base_layer(x)
        assert set(added[:, :4].round(decimals=4).unique().tolist()) == {0.0, 2.0}  # kept ones scaled by 1 / (1 - 0.5)
        added = layer.eval()(x) - layer.base_layer(x)
        assert torch.allclose(added[:, :4], torch.ones(50, 4), atol=1e-5)


def test_up_starts_at_zero_and_down_within_loras_bound() -> None:
    layer = BottleneckLayer(nn.Linear(6, 100))
    layer.update_layer("default", 40, "relu", dropout=0.0, scale=1.0)
    down, down_bias, up, up_bias = weights(layer)
    assert not any(bool(zero.any()) for zero in (down_bias, up, up_bias))
    # kaiming_uniform_ with a = sqrt(5) is uniform within 1 / sqrt(fan_in)
    assert 0.09 < float(down.detach().abs().max()) <= 0.1


# What is trained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_the_adapters_are_trained(placement: str) -> None:
    backbone = tiny("bert")
    before = copy.deepcopy(backbone.state_dict())
    model = attached(backbone, placement)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("bottleneck_down" in name or "bottleneck_up" in name)
        assert parameter.dtype == torch.float32
    kept = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): v for name, v in model.state_dict().items()
    }
    assert all(torch.equal(before[name], kept[name]) for name in before)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_step_every_adapter_weight_has_a_gradient(family: str, placement: str) -> None:
    model = attached(tiny(family), placement, activation="gelu")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    target = torch.randn((*IDS.shape, 16), generator=torch.Generator().manual_seed(0))
    for step in range(2):
        optimizer.zero_grad()
        ((states(model) - target) ** 2).sum().backward()
        without = {name for name, p in trained.items() if p.grad is None or not p.grad.any()}
        # up is zero in the first step, so nothing reaches down
        assert without == ({name for name in trained if "bottleneck_down" in name} if step == 0 else set())
        optimizer.step()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "modernbert"])
def test_recomputed_layers_give_the_same_gradients(family: str, placement: str) -> None:
    model = shaken(attached(tiny(family), placement))
    calls: list[int] = []
    layers(model)[0].base_layer.register_forward_hook(lambda *_: calls.append(1))

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.zero_grad()
        states(model).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(model)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    recomputed = gradients(model)
    assert len(calls) == 3  # once, then forward and again in backward
    assert plain.keys() == recomputed.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-5) for name in plain)
    assert all(layer._sub_layer_input is None for layer in layers(model))


# The parallel adapter's input ----------------------------------------------------------------------------


def test_forwards_in_a_row_do_not_mix_their_inputs() -> None:
    model = shaken(attached(tiny("llama"), "parallel"))
    alone = [states(copy.deepcopy(model), ids) for ids in (IDS, IDS[:1, :3], IDS.flip(1))]
    in_a_row = [states(model, ids) for ids in (IDS, IDS[:1, :3], IDS.flip(1))]
    assert all(torch.equal(a, b) for a, b in zip(alone, in_a_row, strict=True))


def test_no_activation_is_kept_after_a_forward() -> None:
    model = shaken(attached(tiny("llama"), "parallel"))
    seen: list[weakref.ref[Tensor]] = []
    model.base_model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(weakref.ref(args[0])))
    with torch.no_grad():
        states(model)
    gc.collect()
    assert seen[0]() is None


def test_what_a_failed_forward_leaves_is_never_used() -> None:
    model = shaken(attached(tiny("llama"), "parallel"))
    mlp = model.base_model.model.layers[0].mlp

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    handle = mlp.up_proj.register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        states(model)
    handle.remove()
    assert mlp.down_proj._sub_layer_input is None
    with pytest.raises(RuntimeError, match="has not seen the input of its feed-forward sub-layer"):
        mlp.down_proj(torch.zeros(2, 5, 24))


def test_an_input_of_another_shape_is_never_used() -> None:
    mlp = shaken(attached(tiny("llama"), "parallel")).base_model.model.layers[0].mlp
    mlp.gate_proj(torch.zeros(2, 5, 16))
    with pytest.raises(RuntimeError, match="has not seen the input of its feed-forward sub-layer"):
        mlp.down_proj(torch.zeros(3, 24))
    assert mlp.down_proj._sub_layer_input is None


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_copy_is_on_its_own(placement: str) -> None:
    model = shaken(attached(tiny("llama"), placement))
    before = states(model)
    other = copy.deepcopy(model)
    assert torch.equal(states(other), before)
    shaken(other, std=1.0)
    assert not torch.allclose(states(other), before, atol=1e-3)
    assert torch.equal(states(model), before)
    other.unload()  # takes the copy's hooks out, not the original's
    assert torch.equal(states(model), before)


# PEFT's ways --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_disabled_and_unloaded_it_is_the_backbone(placement: str) -> None:
    backbone = tiny("llama")
    model = shaken(attached(copy.deepcopy(backbone), placement))
    adapted = states(model)
    plain = states(backbone)
    with model.disable_adapter():
        assert torch.allclose(states(model), plain, rtol=0, atol=1e-6)
        assert all(layer._sub_layer_input is None for layer in layers(model))
    assert torch.equal(states(model), adapted)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    bare = model.unload()
    assert torch.allclose(states(bare), plain, rtol=0, atol=1e-6)
    assert not [m for m in bare.modules() if isinstance(m, BottleneckLayer) or m._forward_hooks or m._forward_pre_hooks]


def test_merging_is_refused() -> None:
    model = attached(tiny("llama"), "pfeiffer")
    for merge in (model.merge_and_unload, model.merge_adapter, layers(model)[0].merge):
        with pytest.raises(RecpeftError, match=r"not linear, so it cannot be merged .*; save it with save_pretrained"):
            merge()
    assert len(layers(model)) == 2


def test_adapters_of_two_placements_are_switched_and_deleted() -> None:
    backbone = tiny("llama")
    plain, names = states(backbone), [f"layers.{n}.mlp.down_proj" for n in range(2)]
    pairs = {name: name.replace("down", "gate") for name in names}
    one = shaken(attached(copy.deepcopy(backbone), "pfeiffer"))
    expected = states(one)
    one.add_adapter(
        "other",
        BottleneckConfig(placement="parallel", target_modules=names, feed_forward_inputs=pairs, bottleneck_dim=8),
    )
    assert len(layers(one)) == 2  # none within another
    assert torch.equal(states(one), expected)
    assert {n for n, p in one.named_parameters() if p.requires_grad} == {
        n for n, _ in one.named_parameters() if ".default." in n
    }
    one.set_adapter("other")
    assert [n for n, p in one.named_parameters() if p.requires_grad] == [
        n for n, _ in one.named_parameters() if ".other." in n
    ]
    assert torch.allclose(states(one), plain, atol=1e-6)
    for parameter in one.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(states(one), plain, atol=1e-3)
    one.set_adapter("default")
    assert torch.equal(states(one), expected)
    one.delete_adapter("other")
    assert torch.equal(states(one), expected)
    assert not [m for m in one.modules() if m._forward_pre_hooks]


def test_a_second_adapter_is_loaded_beside_the_first(tmp_path: Path) -> None:
    backbone = tiny("gpt2")
    saved = shaken(attached(copy.deepcopy(backbone), "parallel"), std=0.5)
    saved.save_pretrained(tmp_path)
    model = attached(backbone, "pfeiffer")
    model.load_adapter(str(tmp_path), "second")
    model.set_adapter("second")
    assert torch.allclose(states(model), states(saved), rtol=0, atol=1e-6)


def test_loading_with_little_memory_keeps_float32(tmp_path: Path) -> None:
    backbone = tiny("llama").to(torch.bfloat16)
    model = shaken(attached(copy.deepcopy(backbone), "parallel"))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(backbone, str(tmp_path), low_cpu_mem_usage=True)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_in_a_bfloat16_backbone_the_adapter_is_float32(placement: str) -> None:
    backbone = tiny("llama").to(torch.bfloat16)
    model = attached(copy.deepcopy(backbone), placement)
    assert torch.equal(states(model), states(backbone))
    assert states(shaken(model)).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for layer in layers(model) for p in weights(layer))
    mlp = model.base_model.model.layers[0].mlp
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = backbone.get_submodule("layers.0.mlp")(x)
    h = x if placement == "parallel" else y
    expected = (y.float() + by_hand(mlp.down_proj, h.float(), 1.0, torch.relu)).bfloat16()
    assert torch.equal(mlp(x), expected)  # one rounding, at the end


@pytest.mark.parametrize("width", ["nf4", "int8"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_learns_on_a_quantised_backbone_and_loads_onto_one(
    tmp_path: Path, tiny_backbone: Path, placement: str, width: Any
) -> None:
    plain = load(str(tiny_backbone), width=width).model.eval()
    model = attached(load(str(tiny_backbone), width=width).model.eval(), placement, activation="gelu")
    with torch.no_grad():
        assert torch.equal(states(model), states(plain))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        states(model).sin().sum().backward()
        optimizer.step()
    assert all(bool(p.grad is not None and p.grad.any()) for p in trained.values())
    with torch.no_grad():
        assert not torch.allclose(states(model), states(plain), atol=1e-3)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        assert torch.allclose(states(again), states(model), rtol=0, atol=1e-6)


def test_peft_alone_loads_what_was_saved_in_a_fresh_process(tmp_path: Path, tiny_backbone: Path) -> None:
    for placement in PLACEMENTS:
        backbone = transformers.AutoModel.from_pretrained(tiny_backbone).eval()
        model = shaken(attached(backbone, placement, activation="silu", scale=2.0))
        model.save_pretrained(tmp_path / placement)
        assert {path.name for path in (tmp_path / placement).iterdir()} == {
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        }  # fmt: skip
        assert json.loads((tmp_path / placement / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"
        with torch.no_grad():
            torch.save(states(model), tmp_path / f"{placement}.pt")
    script = f"""
import torch, transformers
from peft import PeftModel
from adapters.bottleneck import BottleneckConfig
for placement in {PLACEMENTS}:
    backbone = transformers.AutoModel.from_pretrained({str(tiny_backbone)!r}).eval()
    model = PeftModel.from_pretrained(backbone, {str(tmp_path)!r} + "/" + placement)
    assert isinstance(model.peft_config["default"], BottleneckConfig)
    with torch.no_grad():
        found = model(input_ids=torch.tensor({IDS.tolist()})).last_hidden_state
    saved = torch.load({str(tmp_path)!r} + f"/{{placement}}.pt")
    print(placement, torch.allclose(found, saved, rtol=0, atol=1e-6))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ.copy())
    assert done.stdout.split() == [word for placement in PLACEMENTS for word in (placement, "True")], done.stderr


def test_the_config_is_read_without_torch() -> None:
    script = (
        "import sys; from adapters import bottleneck; bottleneck.Config(); print({'torch', 'peft'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


def test_a_type_or_prefix_that_peft_has_already_is_not_overwritten() -> None:
    class LoraLike(BottleneckModel):
        prefix = "lora_"

    class New(BottleneckModel):
        prefix = "new_"

    for peft_type, tuner in (("LORA", New), ("BOTTLENECK", LoraLike)):
        with pytest.raises(RuntimeError, match="of its own; use peft"):
            register(peft_type, BottleneckConfig, tuner)
    assert PEFT_TYPE_TO_TUNER_MAPPING["LORA"] is LoraModel
    register("BOTTLENECK", BottleneckConfig, BottleneckModel)  # as a reload does
    assert PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"] is BottleneckModel


# What is refused ----------------------------------------------------------------------------------------


def test_a_bottleneck_wider_than_the_hidden_size_is_refused_before_weights_are_loaded() -> None:
    with torch.device("meta"):
        backbone = tiny("llama")
    with pytest.raises(RecpeftError) as caught:
        bottleneck.check(backbone, bottleneck.Config(bottleneck_dim=17))
    assert str(caught.value) == (
        "adapter.bottleneck_dim is 17 but the backbone's hidden_size is 16; choose a smaller bottleneck_dim."
    )
    bottleneck.check(backbone, bottleneck.Config(bottleneck_dim=16))
    with pytest.raises(RecpeftError, match="choose a smaller bottleneck_dim"):
        attached(tiny("llama"), "pfeiffer", bottleneck_dim=17)


def test_more_last_layers_than_there_are_is_refused() -> None:
    with torch.device("meta"):
        backbone = tiny("bert")
    with pytest.raises(RecpeftError, match=r"adapter\.last_layers is 3 but the backbone has 2 layers"):
        bottleneck.check(backbone, bottleneck.Config(bottleneck_dim=4, last_layers=3))


def test_another_backbone_is_refused_rather_than_adapted_in_part(tmp_path: Path) -> None:
    attached(tiny("llama", num_hidden_layers=3), "pfeiffer").save_pretrained(tmp_path)
    with pytest.raises(RecpeftError, match=r"belongs to 3 modules but LlamaModel lacks 1 .*layers\.2\.mlp\.down_proj"):
        PeftModel.from_pretrained(tiny("llama"), str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["mlp.down_proj"]}, "lacks 1 of them, such as mlp.down_proj"),
        ({"target_modules": "all-linear"}, "give a list of full module names"),
        ({"target_modules": ["layers.0.mlp.down_proj"], "placement": "parallel"}, "has 0 entries where 1 are needed"),
        ({"target_modules": ["layers.0.mlp.down_proj"], "placement": "before"}, "placement is 'before'; use one of"),
        ({"target_modules": ["layers.0.mlp.down_proj"], "activation": "relu6"}, "activation is 'relu6'; use one of"),
        ({}, "specify `target_modules`"),
    ],
)
def test_a_peft_config_that_cannot_be_built_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny("llama"), BottleneckConfig(**options))
