"""The two-tower's scores and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import Adapter, frozen, lora, zero_shot
from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from lightning_modules import two_tower
from lightning_modules._backbone import load
from lightning_modules._two_tower_impl import CosineHead, TwoTower

NUM_ITEMS = 12
PAD = 0


def texts(seed: int, count: int) -> list[list[int]]:
    """Ids of texts of 3 to 20 tokens, [CLS] first and [SEP] last."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 19, (count,), generator=draw).tolist()
    return [[2, *torch.randint(8, 110, (n,), generator=draw).tolist(), 3] for n in lengths]


ITEM_TEXTS, USER_TEXTS = texts(0, NUM_ITEMS), texts(1, 7)


def tower(tiny_backbone: Path, adapter: Any = lora, **options: Any) -> TwoTower:
    """With LoRA that has moved from its start, and biases that are not 0."""
    backbone = load(str(tiny_backbone)).model
    torch.manual_seed(0)
    bound = Adapter(adapter.Config())
    model = TwoTower(
        bound.attach(backbone, 1),
        num_items=NUM_ITEMS,
        **{"item_bias": True, "adapter": bound, **options},
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name == "head.bias":
                parameter.normal_(std=0.05)
    return model.eval()


def user_batch(batch: TextBatch) -> UserBatch:
    nothing = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    return UserBatch(torch.arange(batch.size), batch, nothing, nothing)


def pack(ids: list[list[int]], max_tokens: int = 4096, padding_side: str = "right") -> TextBatch:
    return bucket(ids, PAD, max_tokens, padding_side)


def one_bucket(ids: list[list[int]], length: int, padding_side: str) -> TextBatch:
    """All texts in one bucket, padded to ``length``."""
    from datamodules._batching import Bucket

    rows, masks = [], []
    for text in ids:
        padding = [PAD] * (length - len(text))
        zeros, ones = [0] * len(padding), [1] * len(text)
        rows.append(text + padding if padding_side == "right" else padding + text)
        masks.append(ones + zeros if padding_side == "right" else zeros + ones)
    part = Bucket(torch.tensor(rows), torch.tensor(masks), torch.arange(len(ids)))
    return TextBatch([part], len(ids), sum(map(len, ids)))


def scores(model: TwoTower, users: TextBatch, items: TextBatch, order: list[int] | None = None) -> Tensor:
    item = torch.tensor(order if order is not None else list(range(items.size)))
    with torch.no_grad():
        model.encode_catalogue(ItemBatch(item, items))
        return model.score(user_batch(users))


def by_hand(model: TwoTower, ids: list[int]) -> Tensor:
    """The unit-length mean of a text's states, encoded alone and without padding."""
    with torch.no_grad():
        states = model.backbone(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64)
        ).last_hidden_state[0]
    mean = states.mean(0)
    return mean / mean.norm()


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> TwoTower:
    return tower(tiny_backbone)


@pytest.fixture(scope="module")
def expected(model: TwoTower) -> Tensor:
    """Every score by hand: cosine / temperature + bias."""
    users = torch.stack([by_hand(model, ids) for ids in USER_TEXTS])
    items = torch.stack([by_hand(model, ids) for ids in ITEM_TEXTS])
    return (users @ items.T) / 0.05 + model.head.bias.detach()  # type: ignore[union-attr]


# At temperature 0.05 a score is 20 cosines, so 1e-5 of the cosine is 2e-4 of the score.
def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=0, atol=2e-4)


def test_scores_are_cosine_by_temperature_plus_bias(model: TwoTower, expected: Tensor) -> None:
    found = scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
    assert found.shape == (7, NUM_ITEMS)
    assert found.dtype == torch.float32
    assert close(found, expected)


@pytest.mark.parametrize("length", [20, 21, 33, 100])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_scores_do_not_depend_on_padding(model: TwoTower, expected: Tensor, padding_side: str, length: int) -> None:
    # a BERT's positions are absolute, so padding on the left would move them
    users, items = (one_bucket(ids, length, padding_side) for ids in (USER_TEXTS, ITEM_TEXTS))
    assert close(scores(model, users, items), expected)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_scores_do_not_depend_on_the_buckets(
    model: TwoTower, expected: Tensor, max_tokens: int, padding_side: str
) -> None:
    users, items = (pack(ids, max_tokens, padding_side) for ids in (USER_TEXTS, ITEM_TEXTS))
    assert close(scores(model, users, items), expected)


def test_scores_do_not_depend_on_the_order_of_texts(model: TwoTower, expected: Tensor) -> None:
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(3)).tolist()
    users = list(reversed(USER_TEXTS))
    found = scores(model, pack(users), pack([ITEM_TEXTS[i] for i in order]), order)
    assert close(found.flip(0), expected)


def test_the_catalogue_may_come_in_parts(model: TwoTower, expected: Tensor) -> None:
    with torch.no_grad():
        for part in torch.arange(NUM_ITEMS).flip(0).split(5):
            model.encode_catalogue(ItemBatch(part, pack([ITEM_TEXTS[i] for i in part.tolist()])))
        assert close(model.score(user_batch(pack(USER_TEXTS))), expected)


def test_row_t_of_encode_is_text_t(model: TwoTower) -> None:
    with torch.no_grad():
        found = model.encode(pack(ITEM_TEXTS, max_tokens=30))
    assert found.shape == (NUM_ITEMS, 64)
    assert found.dtype == torch.float32
    for text, ids in enumerate(ITEM_TEXTS):
        assert torch.allclose(found[text], by_hand(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("item_bias", [True, False])
def test_scores_of_candidates_are_the_catalogues_columns(tiny_backbone: Path, item_bias: bool) -> None:
    model = tower(tiny_backbone, item_bias=item_bias)
    full = scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
    users = user_batch(pack(USER_TEXTS))
    shared = torch.tensor([7, 0, 7, 11])
    draw = torch.Generator().manual_seed(4)
    own = torch.stack([torch.randperm(NUM_ITEMS, generator=draw)[:5] for _ in USER_TEXTS])
    with torch.no_grad():
        assert torch.allclose(model.score(users, shared), full[:, shared], rtol=0, atol=1e-5)
        assert torch.allclose(model.score(users, own), full.gather(1, own), rtol=0, atol=1e-5)


def test_scores_need_the_catalogue(tiny_backbone: Path) -> None:
    with pytest.raises(RuntimeError, match="encode_catalogue"):
        tower(tiny_backbone).score(user_batch(pack(USER_TEXTS)))


# Training ----------------------------------------------------------------------------------------------


def training_batch() -> PairBatch:
    draw = torch.Generator().manual_seed(5)
    positive = torch.zeros(7, NUM_ITEMS, dtype=torch.bool)
    for row in range(7):
        positive[row, torch.randperm(NUM_ITEMS, generator=draw)[:2]] = True
    excluded = (torch.rand(7, NUM_ITEMS, generator=draw) < 0.2) & ~positive
    log_q = torch.full((NUM_ITEMS,), math.log(1 / NUM_ITEMS))
    return PairBatch(
        users=pack(USER_TEXTS, 60),
        items=pack(ITEM_TEXTS, 60),
        item=torch.arange(NUM_ITEMS),
        positive=positive,
        excluded=excluded,
        log_q=log_q,
    )


def gradients(model: TwoTower) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(training_batch()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", ["layers", "buckets"])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_backbone: Path, checkpointing: str) -> None:
    plain = tower(tiny_backbone)
    again = tower(tiny_backbone, gradient_checkpointing=checkpointing)
    for mode in (False, True):
        plain.train(mode)
        again.train(mode)
        torch.manual_seed(1)  # of the backbone's dropout
        expected = gradients(plain)
        torch.manual_seed(1)
        found = gradients(again)
        assert found.keys() == expected.keys()
        assert any("lora_A" in name for name in found)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-7), name


def test_gradient_checkpointing_keeps_less_for_the_backward_pass(tiny_backbone: Path) -> None:
    kept = []
    for checkpointing in ("none", "layers", "buckets"):
        model = tower(tiny_backbone, gradient_checkpointing=checkpointing).train()
        sizes: list[int] = []

        def pack_hook(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            model.loss(training_batch())
        kept.append(sum(sizes))
    none, layers, buckets = kept
    assert buckets < layers < none / 3


def test_the_trained_parameters_get_gradients_and_no_others(tiny_backbone: Path) -> None:
    model = tower(tiny_backbone)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == names
    assert {name for name in names if name.startswith("head.")} == {"head.log_scale", "head.bias"}


def test_the_heads_gradients_are_the_differences(tiny_backbone: Path) -> None:
    """d loss / d parameter by central differences, in float64 on fixed embeddings."""
    model = tower(tiny_backbone)
    batch = training_batch()
    with torch.no_grad():
        users, items = model.encode(batch.users).double(), model.encode(batch.items).double()
    head = model.head.double()

    def loss() -> Tensor:
        return model._loss_function(
            head(users, items, batch.item), batch.positive, batch.excluded, batch.log_q.double()
        )

    loss().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        for place in range(parameter.numel()):
            around = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    around.append(loss().item())
                    parameter.view(-1)[place] -= step
            difference = (around[0] - around[1]) / 2e-5
            assert parameter.grad.view(-1)[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("adapter", [frozen, zero_shot])
def test_a_fixed_backbone_stays_in_eval_mode_and_builds_no_graph(tiny_backbone: Path, adapter: Any) -> None:
    model = tower(tiny_backbone, adapter, gradient_checkpointing="buckets").train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    embeddings = model.encode(pack(USER_TEXTS))
    assert embeddings.grad_fn is None
    assert not embeddings.requires_grad
    assert gradients(model).keys() == {"head.log_scale", "head.bias"}


def test_a_trained_backbone_is_in_training_mode(tiny_backbone: Path) -> None:
    model = tower(tiny_backbone).train()
    assert all(module.training for module in model.backbone.modules())


def test_without_a_loss_it_is_the_listwise_softmax(tiny_backbone: Path) -> None:
    from lightning_modules.losses.listwise_softmax import loss

    batch = training_batch()
    model = tower(tiny_backbone)
    with torch.no_grad():
        expected = loss(
            model.head(model.encode(batch.users), model.encode(batch.items), batch.item),
            batch.positive,
            batch.excluded,
            batch.log_q,
        )
        assert model.loss(batch).item() == pytest.approx(expected.item(), rel=1e-6)


# The head and the plug-in ------------------------------------------------------------------------------


def test_the_head_starts_at_the_temperature_without_bias() -> None:
    head = CosineHead(4, temperature=0.1, item_bias=True)
    users, items = torch.eye(2, 3), torch.eye(4, 3)
    found = head(users, items, torch.arange(4))
    assert torch.allclose(found, 10 * users @ items.T)
    assert [name for name, _ in CosineHead(4).named_parameters()] == ["log_scale"]


def test_the_heads_bias_is_the_items_own() -> None:
    head = CosineHead(4, temperature=1.0, item_bias=True)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    users = torch.zeros(2, 3)
    assert head(users, torch.zeros(2, 3), torch.tensor([3, 1])).tolist() == [[3, 1], [3, 1]]
    own = torch.tensor([[3, 1], [0, 2]])
    assert head(users, torch.zeros(2, 2, 3), own).tolist() == [[3, 1], [0, 2]]


def test_build_takes_what_the_config_says(tiny_backbone: Path) -> None:
    build: Callable[..., Any] = two_tower.build
    backbone = load(str(tiny_backbone)).model
    config = two_tower.Config(temperature=0.5, item_bias=True)
    model = build(backbone, config, num_items=3, hidden_size=64, learning_rate=0.25)
    assert isinstance(model, TwoTower)
    assert isinstance(model.head, nn.Module)
    assert model.head.log_scale.exp().item() == pytest.approx(2)
    assert model.head.bias.shape == (3,)
    assert model.learning_rate == 0.25
