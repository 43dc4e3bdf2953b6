"""BitFit: which biases, that training their changes is training them, that PEFT alone loads and merges them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from adapters import bitfit
from adapters._bitfit_peft import BitFitConfig, BitFitLayer
from adapters._targets import adapted_names
from lightning_modules import load
from recpeft.errors import RecpeftError

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 4, 5]])
COMMON = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT_LAYER = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
BERT = ["embeddings.LayerNorm", *(f"encoder.layer.{n}.{part}" for n in range(2) for part in BERT_LAYER)]
DISTILBERT_LAYER = (
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1",
    "ffn.lin2", "output_layer_norm",
)  # fmt: skip
GPT2_LAYER = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    # model class, its config, names of all modules with a trained bias
    "bert": ("Bert", COMMON, BERT),
    "roberta": ("Roberta", COMMON, BERT),
    "distilbert": (
        "DistilBert",
        {"vocab_size": 20, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        ["embeddings.LayerNorm", *(f"transformer.layer.{n}.{part}" for n in range(2) for part in DISTILBERT_LAYER)],
    ),
    "gpt2": (
        "GPT2",
        {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
        [*(f"h.{n}.{part}" for n in range(2) for part in GPT2_LAYER), "ln_f"],
    ),
    "qwen2": (
        "Qwen2",
        COMMON | {"num_key_value_heads": 1},
        [f"layers.{n}.self_attn.{part}" for n in range(2) for part in ("q_proj", "k_proj", "v_proj")],
    ),
}


def tiny(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at one, biases at zero: nothing would tell them apart
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def family(name: str) -> nn.Module:
    return tiny(FAMILIES[name][0], **FAMILIES[name][1])


def attached(backbone: nn.Module) -> Any:
    return bitfit.attach(backbone, bitfit.Config(), total_steps=1).eval()


def shaken(model: Any, std: float = 0.3) -> Any:
    """As if it were trained: every change random."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bitfit_" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=draw))
    return model


def states(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS).last_hidden_state
    return result


def layers(model: nn.Module) -> list[BitFitLayer]:
    return [module for module in model.modules() if isinstance(module, BitFitLayer)]


# Which biases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_bias_before_the_hidden_states_is_trained_and_nothing_else(name: str) -> None:
    backbone = family(name)
    biases = {n for n, _ in backbone.named_parameters() if n.endswith(".bias") and "pooler" not in n}
    model = attached(backbone)
    assert adapted_names(model) == FAMILIES[name][2]
    assert {f"{n}.bias" for n in adapted_names(model)} == biases
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"base_model.model.{n}.bitfit_delta.default" for n in FAMILIES[name][2]]
    assert bitfit.describe(model, bitfit.Config()) == {"target_modules": FAMILIES[name][2]}


@pytest.mark.parametrize("name", FAMILIES)
def test_after_training_every_change_has_a_gradient(name: str) -> None:
    model = attached(family(name))
    states(model).sin().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama", COMMON),
        ("Qwen3", COMMON | {"head_dim": 12, "num_key_value_heads": 1}),
        ("Gemma3Text", COMMON | {"head_dim": 12, "num_key_value_heads": 1}),
        ("ModernBert", COMMON | {"cls_token_id": 1, "sep_token_id": 2}),
    ],
)
def test_a_backbone_without_biases_is_refused_before_weights_are_loaded(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        backbone = tiny(name, **options)
    with pytest.raises(RecpeftError, match=rf"bitfit but the layers of {name}Model have no bias .*; choose another"):
        bitfit.check(backbone, bitfit.Config())
    with pytest.raises(RecpeftError, match="have no bias terms"):
        attached(tiny(name, **options))
    with torch.device("meta"):
        bitfit.check(family("bert"), bitfit.Config())


# What they compute --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_start_the_output_is_the_backbones_to_the_bit(name: str) -> None:
    backbone = family(name)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)  # attention kernels differ in rounding with what needs a gradient
    with torch.no_grad():
        assert torch.equal(states(attached(copy.deepcopy(backbone))), states(backbone))


def test_each_kind_of_layer_by_hand() -> None:
    model = shaken(attached(family("gpt2")))
    norm, conv = model.base_model.model.h[0].ln_1, model.base_model.model.h[0].attn.c_attn
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    centred = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = centred * norm.base_layer.weight + (norm.base_layer.bias + norm.bitfit_delta["default"])
    assert torch.allclose(norm(x), expected, atol=1e-5)
    expected = x @ conv.base_layer.weight + (conv.base_layer.bias + conv.bitfit_delta["default"])
    assert torch.allclose(conv(x), expected, atol=1e-5)
    linear = shaken(attached(family("qwen2"))).base_model.model.layers[0].self_attn.q_proj
    expected = x @ linear.base_layer.weight.T + (linear.base_layer.bias + linear.bitfit_delta["default"])
    assert torch.allclose(linear(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_the_changes_is_training_the_biases(name: str) -> None:
    """The backbone's own biases, unfrozen, are the oracle."""
    backbone = family(name)
    model = attached(copy.deepcopy(backbone))
    for n, parameter in backbone.named_parameters():
        parameter.requires_grad_(n.endswith(".bias") and "pooler" not in n)
    results = []
    for one in (backbone, model):
        trained = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            states(one).sin().sum().backward()
            optimizer.step()
        results.append(states(one).detach())
    assert torch.allclose(*results, atol=1e-4)
    with torch.no_grad():
        start = states(family(name))
    assert not torch.allclose(results[0], start, atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2"])
def test_recomputed_layers_give_the_same_gradients(name: str) -> None:
    model = shaken(attached(family(name)))

    def gradients() -> dict[str, Tensor]:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.zero_grad()
        states(model).sin().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[n], recomputed[n], atol=1e-4) for n in plain)


def test_a_copy_is_on_its_own() -> None:
    model = shaken(attached(family("bert")))
    before = states(model)
    other = copy.deepcopy(model)
    assert torch.equal(states(other), before)
    shaken(other, std=1.0)
    other.merge_and_unload()
    assert torch.equal(states(model), before)


# PEFT's ways --------------------------------------------------------------------------------------------


def test_disabled_it_is_the_backbone() -> None:
    backbone = family("bert")
    model = shaken(attached(copy.deepcopy(backbone)))
    adapted = states(model)
    with model.disable_adapter():
        assert torch.allclose(states(model), states(backbone), rtol=0, atol=1e-6)
    assert torch.equal(states(model), adapted)
    assert not torch.allclose(adapted, states(backbone), atol=1e-2)
    bare = model.unload()
    assert torch.allclose(states(bare), states(backbone), rtol=0, atol=1e-6)
    assert not layers(bare)


def test_a_merged_adapter_is_added_once_and_disabling_takes_it_out_of_the_biases() -> None:
    backbone = family("bert")
    model = shaken(attached(copy.deepcopy(backbone)))
    adapted = states(model)
    model.merge_adapter()
    assert torch.allclose(states(model), adapted, rtol=0, atol=1e-5)  # added once
    with model.disable_adapter():
        assert torch.allclose(states(model), states(backbone), rtol=0, atol=1e-6)
    assert torch.allclose(states(model), adapted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_the_biases_themselves_have_changed(name: str) -> None:
    assert bitfit.Config.can_merge
    backbone = family(name)
    model = shaken(attached(copy.deepcopy(backbone)))
    changes = {
        n.split(".bitfit")[0].removeprefix("base_model.model."): p for n, p in model.named_parameters() if "bitfit" in n
    }
    adapted = states(model)
    merged = model.merge_and_unload()
    assert type(merged) is type(backbone)
    ours, theirs = merged.state_dict(), backbone.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        owner, _, kind = key.rpartition(".")
        expected = value + changes[owner] if kind == "bias" and owner in changes else value
        assert torch.equal(ours[key], expected)
    assert torch.allclose(states(merged), adapted, atol=1e-5)


def test_unmerging_gives_the_biases_back_to_the_bit() -> None:
    model = shaken(attached(family("bert").to(torch.bfloat16)))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    adapted = states(model)
    model.merge_adapter()
    assert model.base_model.model.embeddings.LayerNorm.merged
    assert not torch.equal(
        model.state_dict()["base_model.model.embeddings.LayerNorm.base_layer.bias"],
        before["base_model.model.embeddings.LayerNorm.base_layer.bias"],
    )
    merged = states(model)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()  # not twice
    assert torch.equal(states(model), merged)
    model.unmerge_adapter()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert torch.equal(states(model), adapted)


def test_two_adapters_are_switched_merged_together_and_deleted() -> None:
    backbone = family("bert")
    model = shaken(attached(copy.deepcopy(backbone)))
    one = states(model)
    model.add_adapter("other", BitFitConfig(target_modules=["embeddings.LayerNorm"]))
    assert torch.equal(states(model), one)
    layer = model.base_model.model.embeddings.LayerNorm
    nn.init.ones_(layer.bitfit_delta["other"])
    model.set_adapter("other")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.model.embeddings.LayerNorm.bitfit_delta.other"
    ]
    with torch.no_grad():
        backbone.embeddings.LayerNorm.bias += 1
        assert torch.allclose(states(model), states(backbone), atol=1e-5)
        bias, own = layer.base_layer.bias.clone(), layer.bitfit_delta["default"]
        layer.merge(adapter_names=["default", "other"])
        assert torch.allclose(layer.base_layer.bias, bias + own + 1, atol=1e-6)
        layer.unmerge()
        assert torch.equal(layer.base_layer.bias, bias)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert torch.equal(states(model), one)


def test_a_broken_adapter_is_not_merged_where_that_is_asked() -> None:
    model = attached(family("bert"))
    nn.init.constant_(layers(model)[0].bitfit_delta["default"], float("inf"))
    with pytest.raises(ValueError, match="is not finite; the adapter is broken"):
        model.merge_adapter(safe_merge=True)
    assert torch.isfinite(layers(model)[0].bias).all()


def test_in_a_bfloat16_backbone_the_changes_are_float32(tmp_path: Path) -> None:
    backbone = family("bert").to(torch.bfloat16)
    model = shaken(attached(copy.deepcopy(backbone)))
    assert states(model).dtype == torch.bfloat16
    assert all(layer.bitfit_delta["default"].dtype == torch.float32 for layer in layers(model))
    uncast = get_peft_model(copy.deepcopy(backbone), BitFitConfig(target_modules=BERT), autocast_adapter_dtype=False)
    assert all(layer.bitfit_delta["default"].dtype == torch.float32 for layer in layers(uncast))
    layer = model.base_model.model.embeddings.LayerNorm
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (layer.base_layer(x).float() + layer.bitfit_delta["default"]).bfloat16()
    assert torch.equal(layer(x), expected)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(backbone, str(tmp_path), low_cpu_mem_usage=True)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_it_learns_on_a_quantised_backbone_loads_onto_one_and_merges(
    tmp_path: Path, tiny_backbone: Path, width: Any
) -> None:
    plain, quantised = (load(str(tiny_backbone), width=width).model.eval() for _ in range(2))
    for backbone in (plain, quantised):  # the folder's biases are zero
        draw = torch.Generator().manual_seed(0)
        for name, parameter in backbone.named_parameters():
            if name.endswith(".bias"):
                parameter.data.normal_(generator=draw)
    model = attached(quantised)
    with torch.no_grad():
        assert torch.equal(states(model), states(plain))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained)
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        states(model).sin().sum().backward()
        optimizer.step()
    assert all(bool(p.grad is not None and p.grad.any()) for p in trained)
    with torch.no_grad():
        adapted = states(model)
        assert not torch.allclose(adapted, states(plain), atol=1e-2)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        assert torch.allclose(states(again), adapted, rtol=0, atol=1e-6)
        changes = {
            name: layer.bitfit_delta["default"] for name, layer in model.named_modules() if name.endswith("query")
        }
        merged = model.merge_and_unload()
        assert not layers(merged)
        for name, change in changes.items():
            name = name.removeprefix("base_model.model.")
            bias = again.get_submodule(f"base_model.model.{name}.base_layer").bias
            assert torch.equal(merged.get_submodule(name).bias, bias + change)
        # int8 rounds its inputs to float16 and to 8 bits, so a last bit before it can move a code
        assert torch.allclose(states(merged), adapted, rtol=0, atol=1e-5 if width == "nf4" else 5e-2)


def test_peft_alone_loads_what_was_saved_in_a_fresh_process(tmp_path: Path, tiny_backbone: Path) -> None:
    model = shaken(attached(transformers.AutoModel.from_pretrained(tiny_backbone).eval()))
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["target_modules"]) == ("BITFIT", BERT)
    with torch.no_grad():
        torch.save(states(model), tmp_path / "states.pt")
    script = f"""
import torch, transformers
from peft import PeftModel
from adapters.bitfit import BitFitConfig
backbone = transformers.AutoModel.from_pretrained({str(tiny_backbone)!r}).eval()
model = PeftModel.from_pretrained(backbone, {str(tmp_path / "adapter")!r})
assert isinstance(model.peft_config["default"], BitFitConfig)
with torch.no_grad():
    found = model(input_ids=torch.tensor({IDS.tolist()})).last_hidden_state
print(torch.allclose(found, torch.load({str(tmp_path / "states.pt")!r}), rtol=0, atol=1e-6))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ.copy())
    assert done.stdout == "True\n", done.stderr


def test_the_config_is_read_without_torch() -> None:
    script = "import sys; from adapters import bitfit; bitfit.Config(); print({'torch', 'peft'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


def test_another_backbone_is_refused_rather_than_adapted_in_part(tmp_path: Path) -> None:
    attached(tiny("Bert", **(COMMON | {"num_hidden_layers": 3}))).save_pretrained(tmp_path)
    with pytest.raises(
        RecpeftError, match=r"belongs to 25 modules but BertModel lacks 8 of them, such as encoder\.layer\.2"
    ):
        PeftModel.from_pretrained(family("bert"), str(tmp_path))


def test_a_module_without_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target_modules has layers\.0\.mlp\.up_proj, which has no bias"):
        get_peft_model(family("qwen2"), BitFitConfig(target_modules=["layers.0.mlp.up_proj"]))
