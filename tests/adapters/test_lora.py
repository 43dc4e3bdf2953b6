"""LoRA and its variants, and the layers that ``target_modules`` means."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
)

from adapters import Adapter, lora
from adapters._targets import block_names, blocks, linear_names, norm_names, resolve
from recpeft.errors import RecpeftError

IDS = torch.tensor([[2, 10, 8, 3, 0], [2, 11, 9, 10, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def pretrained(tiny_backbone: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_backbone).eval()


@pytest.fixture
def backbone(pretrained: nn.Module) -> nn.Module:
    """A copy: adapters change what they are given."""
    return copy.deepcopy(pretrained)


def attached(backbone: nn.Module, **options: Any) -> Any:
    torch.manual_seed(0)
    return Adapter(lora.Config(**options)).attach(backbone, 10)


def states(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return result


def adapted(model: nn.Module) -> set[str]:
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (2, 3.0), (8, 8.0)])
def test_loras_update_is_scaled_by_alpha_over_rank(backbone: nn.Module, rank: int, alpha: float) -> None:
    model = attached(backbone, rank=rank, alpha=alpha)
    layer = model.base_model.model.encoder.layer[0].attention.self.query
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (rank, 64)
    assert up.shape == (64, rank)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        up.copy_(torch.randn(up.shape, generator=draw))
        x = torch.randn(3, 64, generator=draw)
        # by hand: W x + b + alpha / rank * B (A x)
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        expected = x @ weight.T + bias + (alpha / rank) * ((x @ down.T) @ up.T)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_lora_goes_into_every_linear_layer_of_the_encoder(backbone: nn.Module) -> None:
    model = attached(backbone)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    per_layer = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert adapted == {f"base_model.model.encoder.layer.{n}.{part}" for n in range(2) for part in per_layer}


def test_lora_trains_its_two_matrices_and_nothing_else(pretrained: nn.Module, backbone: nn.Module) -> None:
    weights = list(backbone.parameters())
    model = attached(backbone)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_A" in name or "lora_B" in name)
    assert not any(weight.requires_grad for weight in weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, pretrained.parameters(), strict=True))


def test_no_pooler_is_adapted_in_a_deep_backbone() -> None:
    # From 20 names on PEFT shortens them to suffixes, and the pooler's layer is called "dense" too.
    deep = BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=5, num_attention_heads=1, intermediate_size=8)
    )
    model = attached(deep, rank=1)
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 5 * 6
    assert not [name for name in adapted if "pooler" in name]


def test_named_target_modules_are_adapted_and_no_others(backbone: nn.Module) -> None:
    model = attached(backbone, target_modules=("query", "output.dense"))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert adapted == {
        f"base_model.model.encoder.layer.{n}.{part}"
        for n in range(2)
        for part in ("attention.self.query", "attention.output.dense", "output.dense")
    }


@pytest.mark.parametrize("wanted", [("q_proj",), ("uery",), ("pooler",), ("attention",), ()])
def test_target_modules_that_match_nothing_list_the_names(backbone: nn.Module, wanted: tuple[str, ...]) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.target_modules is .* it has dense, key, query, value;"):
        lora.attach(backbone, lora.Config(target_modules=wanted), total_steps=1)


def test_the_pooler_is_out_of_reach_of_a_name_it_shares(backbone: nn.Module) -> None:
    assert "pooler.dense" in dict(backbone.named_modules())
    assert "pooler.dense" not in resolve(backbone, ("dense",))
    assert "pooler.dense" not in linear_names(backbone)


def test_a_backbone_without_linear_layers_is_said_so() -> None:
    with pytest.raises(RecpeftError, match="it has none"):
        resolve(nn.Sequential(nn.Embedding(3, 3)), "all-linear")


def test_loras_dropout_is_on_in_training_alone(backbone: nn.Module) -> None:
    model = attached(backbone, dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    for module in model.modules():  # the backbone's own dropout is another matter
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0
    with torch.no_grad():
        model.train()
        assert not torch.equal(states(model), states(model))
        model.eval()
        assert torch.equal(states(model), states(model))


# Variants ----------------------------------------------------------------------------------------------


def test_rslora_scales_by_alpha_over_the_root_of_rank(backbone: nn.Module) -> None:
    layer = attached(backbone, rank=4, alpha=6, rslora=True).base_model.model.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == pytest.approx(6 / 2)


def test_dora_is_the_weights_direction_times_a_learnt_length(backbone: nn.Module) -> None:
    layer = attached(backbone, rank=4, alpha=8, dora=True).base_model.model.encoder.layer[0].attention.self.query
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=draw)
        length = layer.lora_magnitude_vector["default"].weight
        length.mul_(1.5)
        x = torch.randn(3, 64, generator=draw)
        # by hand (Liu et al. 2024, eq. 5): m (W + s B A) / ||W + s B A|| row by row
        changed = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        expected = x @ (length[:, None] * changed / changed.norm(dim=1, keepdim=True)).T + layer.base_layer.bias
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_dora_starts_as_the_backbone(pretrained: nn.Module, backbone: nn.Module) -> None:
    with torch.no_grad():
        assert torch.allclose(states(attached(backbone, dora=True).eval()), states(pretrained), atol=1e-5)


def test_loraplus_gives_b_a_rate_of_its_own(backbone: nn.Module) -> None:
    config = lora.Config(loraplus_ratio=16)
    model = Adapter(config).attach(backbone, 10)
    others, up = Adapter(config).param_groups(model, 1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (others["lr"], up["lr"]) == (1e-3, pytest.approx(16e-3))
    assert all("lora_B" in names[id(p)] for p in up["params"])
    assert all("lora_A" in names[id(p)] for p in others["params"])
    assert len(up["params"]) == len(others["params"]) == 12


# Where -------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[Any, list[str], list[str]]] = {
    "bert": (
        lambda: BertModel(
            BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        ),
        ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
        ["attention.output.dense", "intermediate.dense", "output.dense"],
    ),
    "distilbert": (
        lambda: DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=16)),
        ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
        ["attention.out_lin", "ffn.lin1", "ffn.lin2"],
    ),
    "gpt2": (
        lambda: GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2)),
        ["attn.c_attn", "attn.c_proj"],
        ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    ),
    "llama": (
        lambda: LlamaModel(
            LlamaConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                intermediate_size=16,
            )
        ),
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ["self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"],
    ),
    "gemma3": (
        lambda: Gemma3TextModel(
            Gemma3TextConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                head_dim=6, intermediate_size=16,
            )
        ),
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ["self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layers_parts_are_found_by_structure(family: str) -> None:
    build, attention, ends = FAMILIES[family]
    with torch.device("meta"):
        model = build()
    names = block_names(model)
    assert [name.rpartition(".")[2] for name in names] == ["0", "1"]
    assert resolve(model, "attention") == [f"{name}.{part}" for name in names for part in attention]
    found = [(b.attention_output, b.feed_forward_input, b.feed_forward_output) for b in blocks(model)]
    assert found == [tuple(f"{name}.{part}" for part in ends) for name in names]
    assert norm_names(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layers_alone_are_adapted_where_asked_for(family: str) -> None:
    model = FAMILIES[family][0]()
    top = block_names(model)[-1]
    found = adapted(attached(model, rank=1, last_layers=1))
    assert found
    assert all(name.startswith(f"{top}.") for name in found)


def test_last_layers_without_a_target_in_them_is_a_sentence(backbone: nn.Module) -> None:
    with pytest.raises(RecpeftError, match=r"no target module stands in the backbone's last 1 layers"):
        attached(backbone, target_modules=("encoder.layer.0.output.dense",), last_layers=1)
