"""What holds for every adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from adapters import Adapter, lora
from adapters._base import AdapterConfig
from adapters._targets import linear_names, resolve
from recpeft import plugins
from recpeft.errors import RecpeftError

METHODS = plugins.names("adapters")
NEEDED = {"peft_method": {"peft_type": "loha", "arguments": {"target_modules": "all-linear"}}}
"""Options that a method has no default for."""
IDS = torch.tensor([[2, 10, 8, 3, 0], [2, 11, 9, 10, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def pretrained(tiny_backbone: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_backbone).eval()


@pytest.fixture
def backbone(pretrained: nn.Module) -> nn.Module:
    """A copy: adapters change what they are given."""
    return copy.deepcopy(pretrained)


def attached(method: str, backbone: nn.Module, **options: Any) -> tuple[nn.Module, AdapterConfig]:
    config = plugins.config_class("adapters", method)(**(NEEDED.get(method, {}) | options))
    assert isinstance(config, AdapterConfig)
    torch.manual_seed(0)
    name = str(backbone.name_or_path)
    return Adapter(config).attach(backbone, 10, AutoTokenizer.from_pretrained(name) if name else None), config


def states(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return result[:, -IDS.shape[1] :]


@pytest.mark.parametrize("method", [m for m in METHODS if plugins.config_class("adapters", m).starts_as_backbone])
def test_at_the_start_an_adapted_backbone_computes_what_the_backbone_computes(
    method: str, pretrained: nn.Module, backbone: nn.Module
) -> None:
    model, _ = attached(method, backbone)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(states(model), states(pretrained), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_trained_where_the_config_says_so(method: str, backbone: nn.Module) -> None:
    model, config = attached(method, backbone)
    assert any(p.requires_grad for p in model.parameters()) == config.trains_backbone
    if config.trains_backbone:
        assert config.trains_head


@pytest.mark.parametrize("method", METHODS)
def test_the_pooler_is_never_adapted(method: str, backbone: nn.Module) -> None:
    model, _ = attached(method, backbone)
    assert not [name for name, p in model.named_parameters() if "pooler" in name and p.requires_grad]


@pytest.mark.parametrize("method", [m for m in METHODS if plugins.config_class("adapters", m).trains_backbone])
def test_everything_trained_gets_a_gradient_and_moves_the_output(
    method: str, pretrained: nn.Module, backbone: nn.Module
) -> None:
    model, _ = attached(method, backbone)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    target = torch.randn((*IDS.shape, 64), generator=torch.Generator().manual_seed(0))
    moved: list[bool] = [False] * len(trained)
    for _ in range(3):
        optimizer.zero_grad()
        ((states(model) - target) ** 2).mean().backward()
        for n, parameter in enumerate(trained):
            moved[n] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
    assert all(moved)
    with torch.no_grad():
        assert not torch.allclose(states(model.eval()), states(pretrained), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_adapter(method: str, pretrained: nn.Module) -> None:
    one, _ = attached(method, copy.deepcopy(pretrained))
    other, _ = attached(method, copy.deepcopy(pretrained))
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", METHODS)
def test_a_config_names_its_method(method: str) -> None:
    assert plugins.config_class("adapters", method)(**NEEDED.get(method, {})).method == method


# LoRA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (2, 3.0), (8, 8.0)])
def test_loras_update_is_scaled_by_alpha_over_rank(backbone: nn.Module, rank: int, alpha: float) -> None:
    model, _ = attached("lora", backbone, rank=rank, alpha=alpha)
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
    model, _ = attached("lora", backbone)
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
    model, _ = attached("lora", backbone)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_A" in name or "lora_B" in name)
    assert not any(weight.requires_grad for weight in weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, pretrained.parameters(), strict=True))


def test_no_pooler_is_adapted_in_a_deep_backbone() -> None:
    # From 20 names on PEFT shortens them to suffixes, and the pooler's layer is called "dense" too.
    deep = BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=5, num_attention_heads=1, intermediate_size=8)
    )
    model, _ = attached("lora", deep, rank=1)
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 5 * 6
    assert not [name for name in adapted if "pooler" in name]


def test_named_target_modules_are_adapted_and_no_others(backbone: nn.Module) -> None:
    model, _ = attached("lora", backbone, target_modules=("query", "output.dense"))
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
    model, _ = attached("lora", backbone, dropout=0.5)
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
