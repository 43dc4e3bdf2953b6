"""What holds for every adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from adapters import Adapter
from adapters._base import AdapterConfig
from lightning_modules._rec_module import RecModule
from recpeft import plugins

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
    optimizer = torch.optim.Adam(trained, lr=0.05)
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


@pytest.mark.parametrize(
    ("method", "options", "vectors"),
    [
        ("lora", {"rank": 1, "dora": True}, {"lora_magnitude_vector"}),
        ("adalora", {}, {"lora_E"}),
        ("ia3", {}, {"ia3_l"}),
        ("peft_method", {"peft_type": "ia3", "arguments": {"feedforward_modules": []}}, {"ia3_l"}),
        ("vera", {}, {"vera_lambda_b", "vera_lambda_d"}),
        ("bottleneck", {}, {"bias"}),
        ("layernorm", {}, {"weight", "bias"}),
        ("full", {}, {"bias", "LayerNorm"}),
        ("prompt_tuning", {}, set()),
    ],
)
def test_weight_decay_reaches_matrices_alone(
    method: str, options: dict[str, Any], vectors: set[str], backbone: nn.Module
) -> None:
    model, config = attached(method, backbone, **options)
    module = RecModule(model, nn.Linear(2, 2), num_items=1, adapter=Adapter(config), weight_decay=0.1)
    groups = module.configure_optimizers().param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name: decay[id(p)] for name, p in trained.items()} == {
        name: 0.1 if vectors.isdisjoint(name.split(".")) else 0.0 for name in trained
    }
    assert [decay[id(p)] for p in module.head.parameters()] == [0.0, 0.0]
