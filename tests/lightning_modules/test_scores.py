"""The heads alone: each score against a loop over users and items, blocks, precision, saving."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules import _scores
from lightning_modules._saved import load_head, save_head
from lightning_modules._scores import (
    AttentionHead,
    CosineHead,
    DotHead,
    EuclideanHead,
    Head,
    LayerWeightedDotHead,
    MLPHead,
    TokenStates,
)
from recpeft.errors import RecpeftError

U, I, H, L, LAYERS = 5, 7, 12, 6, 4  # noqa: E741

HEADS: dict[str, Callable[[], Head]] = {
    "cosine": lambda: CosineHead(I, 0.5, item_bias=True),
    "dot": lambda: DotHead(I, 0.5, item_bias=True),
    "euclidean": lambda: EuclideanHead(I, 0.5, item_bias=True),
    "layer_weighted_dot": lambda: LayerWeightedDotHead(I, LAYERS, temperature=0.5, item_bias=True),
    "layer_weighted_dot, layer_norm": lambda: LayerWeightedDotHead(
        I, LAYERS, layer_norm=True, temperature=0.5, item_bias=True
    ),
    "mlp": lambda: MLPHead(I, H, 9, item_bias=True),
    "attention": lambda: AttentionHead(I, H, 1, 0.5, item_bias=True),
    "attention, 3 heads": lambda: AttentionHead(I, H, 3, 0.5, item_bias=True),
}
PAIRED = ["mlp", "attention", "attention, 3 heads"]


def make(name: str) -> Head:
    """A head whose parameters have moved from their start."""
    torch.manual_seed(0)
    head = HEADS[name]()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return head


def drawn(head: Head) -> tuple[Tensor, Any, Tensor]:
    """What pooling gives for users and for items, and users' tokens where they are read, in two buckets."""
    draw = torch.Generator().manual_seed(1)
    shape = (LAYERS, H) if head.reads_layers else (H,)
    users, items = torch.randn(U, *shape, generator=draw), torch.randn(I, *shape, generator=draw)
    if not head.reads_tokens:
        return users, users, items
    states, mask = torch.randn(U, L, H, generator=draw), torch.ones(U, L, dtype=torch.int64)
    for user in range(U):
        mask[user, user + 1 :] = 0
    rows = [torch.tensor([3, 0]), torch.tensor([4, 1, 2])]
    return states, TokenStates([states[r] for r in rows], [mask[r] for r in rows], rows), items


def by_hand(head: Any, user: Tensor, item: Tensor) -> Tensor:
    """The score of one user, whose tokens are without padding, and one item, before temperature and bias."""
    if isinstance(head, CosineHead):
        return (user * item).sum() / (user.square().sum().sqrt() * item.square().sum().sqrt())
    if isinstance(head, EuclideanHead):
        return -(user - item).square().sum().sqrt()
    if isinstance(head, MLPHead):
        hidden = head.network[0].weight @ torch.cat([user, item, user * item, abs(user - item)]) + head.network[0].bias
        return (head.network[2].weight[0] * hidden.clamp(min=0)).sum()
    if isinstance(head, AttentionHead):
        query, width, parts = head.query @ item, H // head.attention_heads, []
        for start in range(0, H, width):
            part = slice(start, start + width)
            logits = torch.stack([(query[part] * (head.key @ token)[part]).sum() / math.sqrt(width) for token in user])
            weights = logits.exp() / logits.exp().sum()
            parts.append(sum(weight * token[part] for weight, token in zip(weights, user, strict=True)))
        return (torch.cat(parts) * item).sum() / math.sqrt(H)
    if isinstance(head, LayerWeightedDotHead):
        weights = head.layer_logits.exp() / head.layer_logits.exp().sum()
        user, item = (sum(w * layer(one, head) for w, one in zip(weights, x, strict=True)) for x in (user, item))
    return (user * item).sum() / math.sqrt(H)


def layer(one: Tensor, head: LayerWeightedDotHead) -> Tensor:
    return (one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt() if head.layer_norm else one


def expected(head: Any, users: Tensor, items: Tensor) -> Tensor:
    """(U, I) by a loop over users and items."""
    rows = []
    for n in range(U):
        user = users[n][: n + 1] if head.reads_tokens else users[n]  # user n has n + 1 tokens
        scale = 1.0 if head.log_scale is None else head.log_scale.exp()
        rows.append(torch.stack([scale * by_hand(head, user, items[i]) + head.bias[i] for i in range(I)]))
    return torch.stack(rows).detach()


def call(head: Head, users: Any, items: Tensor, item: Tensor) -> Tensor:
    users = users if head.reads_tokens else head.embed(users)
    return head(users, head.embed(items)[item] if item.ndim == 2 else head.embed(items[item]), item)


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_those_of_a_loop_over_users_and_items(name: str) -> None:
    head = make(name)
    own, users, items = drawn(head)
    found = call(head, users, items, torch.arange(I))
    assert found.shape == (U, I)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected(head, own, items), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", HEADS)
def test_candidates_are_scored_as_in_the_catalogue(name: str, count: int) -> None:
    head = make(name)
    _, users, items = drawn(head)
    full = call(head, users, items, torch.arange(I))
    shared = torch.tensor([6, 0, 6, 2])[:count]
    assert torch.allclose(call(head, users, items, shared), full[:, shared], rtol=1e-5, atol=1e-5)
    draw = torch.Generator().manual_seed(2)
    each = torch.stack([torch.randperm(I, generator=draw)[:count] for _ in range(U)])
    assert torch.allclose(call(head, users, items, each), full.gather(1, each), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_one_user_is_scored_as_among_others(name: str) -> None:
    head = make(name)
    own, users, items = drawn(head)
    full = call(head, users, items, torch.arange(I))
    for n in range(U):
        one: Any = own[n : n + 1]
        if head.reads_tokens:
            one = TokenStates([one[:, : n + 1]], [torch.ones(1, n + 1, dtype=torch.int64)], [torch.tensor([0])])
        assert torch.allclose(call(head, one, items, torch.arange(I)), full[n : n + 1], rtol=1e-5, atol=1e-5)


def gradients(head: Head, own: bool) -> dict[str, Tensor]:
    """Of a sum of the scores in which every one counts otherwise, by the parameters and by the users and items."""
    _, users, items = drawn(head)
    items.requires_grad_()
    inputs = users.states if head.reads_tokens else [users]
    for value in inputs:
        value.requires_grad_()
    head.zero_grad()
    item = torch.arange(I).expand(U, I) if own else torch.arange(I)
    scores = call(head, users, items, item)
    (scores * torch.linspace(-1, 2, scores.numel()).view(scores.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in head.named_parameters()}
    found |= {f"users{n}": value.grad for n, value in enumerate(inputs)} | {"items": items.grad}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_and_both_sides_get_gradients(name: str) -> None:
    for key, gradient in gradients(make(name), own=False).items():
        assert gradient.isfinite().all(), key
        assert gradient.any(), key


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_the_differences(name: str) -> None:
    """By central differences in float64, over users, items and parameters (torch.autograd.gradcheck)."""
    head = make(name).double()
    _, users, items = drawn(head)
    inputs = users.states if head.reads_tokens else [users]
    inputs = [value.double().requires_grad_() for value in inputs]
    names = list(dict(head.named_parameters()))

    def scores(items: Tensor, *values: Tensor) -> Tensor:
        some, parameters = values[: len(inputs)], dict(zip(names, values[len(inputs) :], strict=True))
        ours = TokenStates(list(some), users.masks, users.rows) if head.reads_tokens else some[0]

        class Called(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = head

            def forward(self) -> Tensor:
                return call(self.head, ours, items, torch.arange(I))

        renamed = {f"head.{name}": value for name, value in parameters.items()}
        found: Tensor = torch.func.functional_call(Called(), renamed, ())
        return found

    assert torch.autograd.gradcheck(scores, (items.double().requires_grad_(), *inputs, *head.parameters()))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_blocks_change_neither_scores_nor_gradients(name: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(name)
    _, users, items = drawn(head)
    item = torch.arange(I).expand(U, I) if own else torch.arange(I)
    with torch.no_grad():
        whole = call(head, users, items, item)
    by = gradients(head, own)
    for block_bytes in (1, 3000):
        monkeypatch.setattr(_scores, "BLOCK_BYTES", block_bytes)
        with torch.no_grad():
            assert torch.allclose(call(head, users, items, item), whole, rtol=1e-5, atol=1e-5)
        for key, gradient in gradients(head, own).items():
            assert torch.allclose(gradient, by[key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", PAIRED)
def test_no_tensor_grows_with_the_catalogue_beyond_a_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not out._is_view():
                self.bytes = max(self.bytes, out.numel() * out.element_size())
            return out

    block_bytes = 2**16
    monkeypatch.setattr(_scores, "BLOCK_BYTES", block_bytes)
    head = make(name)
    head.bias = None
    _, users, _ = drawn(head)
    items = torch.randn(2000, H)
    with torch.no_grad(), Largest() as largest:
        head(users, items, torch.arange(2000))
    # The items themselves are more than a block; what is computed for the pairs would be more than they.
    assert block_bytes < largest.bytes <= items.numel() * 4


@pytest.mark.parametrize("name", PAIRED)
def test_training_keeps_a_block_and_not_all_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(name)
    head.bias = None
    _, users, _ = drawn(head)
    kept = []
    for block_bytes in (2**30, 2**16):
        monkeypatch.setattr(_scores, "BLOCK_BYTES", block_bytes)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            head(users, torch.randn(2000, H), torch.arange(2000))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("name", [name for name in HEADS if name != "cosine"])
def test_scores_are_float32_under_autocast(name: str) -> None:
    head = make(name)
    _, users, items = drawn(head)
    plain = call(head, users, items, torch.arange(I))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(head, users, items, torch.arange(I))
    assert found.dtype == torch.float32
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    head = make(name)
    _, users, items = drawn(head)
    save_head(head, tmp_path / "head.safetensors")
    again = HEADS[name]()
    load_head(again, tmp_path / "head.safetensors")
    item = torch.arange(I)
    assert torch.equal(call(again, users, items, item), call(head, users, items, item))


def test_another_scores_head_is_refused(tmp_path: Path) -> None:
    save_head(make("dot"), tmp_path / "head.safetensors")
    with pytest.raises(RecpeftError, match="cannot be loaded"):
        load_head(HEADS["attention"](), tmp_path / "head.safetensors")


# Single heads ------------------------------------------------------------------------------------------


def test_the_default_heads_parameters_are_what_they_were_and_are_not_drawn() -> None:
    before = torch.get_rng_state()
    head = CosineHead(4, item_bias=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {"log_scale": (), "bias": (4,)}
    assert list(CosineHead(4).state_dict()) == ["log_scale"]
    assert head.log_scale is not None
    assert head.log_scale.item() == torch.tensor(math.log(1 / 0.05)).item()


def test_cosines_are_computed_as_they_were() -> None:
    """Bit for bit: what the two-tower did when cosine was its only score."""
    head = make("cosine")
    _, users, items = drawn(head)
    assert head.log_scale is not None
    assert head.bias is not None
    one, other = (torch.nn.functional.normalize(value, dim=-1) for value in (users, items))
    item = torch.arange(I)
    assert torch.equal(call(head, users, items, item), head.log_scale.exp() * (one @ other.T) + head.bias[item])
    each = torch.tensor([[3, 1]] * U)
    own = torch.einsum("uh,uch->uc", one, other[each])
    assert torch.equal(call(head, users, items, each), head.log_scale.exp() * own + head.bias[each])


def test_dot_is_over_the_root_of_the_width() -> None:
    found = DotHead(1)(torch.full((1, 16), 2.0), torch.full((1, 16), 3.0), torch.arange(1))
    assert found.item() == 24  # 16 * 6 / 4


def test_euclidean_is_the_negative_distance_and_exact_for_near_neighbours() -> None:
    users = torch.tensor([[3.0, 4.0]])
    assert EuclideanHead(1)(users, torch.zeros(1, 2), torch.arange(1)).item() == -5
    # From squares around 2e6, float32 would know a distance of 0.25 to two digits at best.
    far = torch.full((40, 2), 1000.0)
    near = far + torch.tensor([0.25, 0.0])
    assert (EuclideanHead(40)(far, near, torch.arange(40)) == -0.25).all()


def test_a_user_that_is_the_item_has_a_finite_gradient() -> None:
    users = torch.ones(2, 3, requires_grad=True)
    EuclideanHead(4)(users, torch.ones(4, 3), torch.arange(4)).sum().backward()
    assert users.grad is not None
    assert users.grad.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_layers_start_with_equal_weights() -> None:
    head = LayerWeightedDotHead(1, 3)
    assert torch.allclose(head.embed(torch.tensor([[[3.0], [6.0], [0.0]]])), torch.tensor([[3.0]]))


def test_layers_other_than_promised_are_refused() -> None:
    with pytest.raises(RecpeftError, match="states of 4 layers where its config promises 3"):
        LayerWeightedDotHead(1, 3).embed(torch.zeros(2, 4, 5))


def test_attention_starts_with_the_tokens_that_are_like_the_item() -> None:
    tokens = TokenStates([torch.eye(2)[None]], [torch.ones(1, 2, dtype=torch.int64)], [torch.tensor([0])])
    found = AttentionHead(1, 2)(tokens, torch.tensor([[2.0, 0.0]]), torch.arange(1))
    # logits (2, 0) / sqrt(2), so the first token has 1 / (1 + exp(-sqrt(2))) of the attention; dot 2, over sqrt(2)
    assert found.item() == pytest.approx(math.sqrt(2) / (1 + math.exp(-math.sqrt(2))), rel=1e-6)


def test_attention_does_not_read_padding() -> None:
    head = make("attention, 3 heads")
    _, users, items = drawn(head)
    expected = call(head, users, items, torch.arange(I))
    users.states = [torch.where(m[..., None] == 1, s, 1e4) for s, m in zip(users.states, users.masks, strict=True)]
    assert torch.equal(call(head, users, items, torch.arange(I)), expected)


def test_heads_of_attention_divide_the_width() -> None:
    with pytest.raises(RecpeftError, match="attention_heads is 5, which does not divide the backbone's hidden_size 12"):
        AttentionHead(1, 12, 5)


def test_drawn_parameters_are_a_function_of_the_seed() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(MLPHead(2, H).network[0].weight.clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
