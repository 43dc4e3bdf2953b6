"""The two-tower's scores and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_models import FAMILIES
from torch import Tensor, nn
from transformers import PretrainedConfig

from adapters import Adapter, frozen, lora, prefix_tuning, prompt_tuning, zero_shot
from datamodules._batching import ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from lightning_modules import two_tower
from lightning_modules._backbone import load
from lightning_modules._saved import load_head, save_head
from lightning_modules._two_tower_impl import CosineHead, TwoTower
from lightning_modules.losses._base import ScoredPairs
from recpeft.errors import RecpeftError

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
        rating=torch.full(positive.shape, math.nan),
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
        scores = head(users, items, batch.item)
        return model._loss_function(
            ScoredPairs(scores, batch.positive, batch.excluded, batch.log_q.double(), batch.rating)
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
        scores = model.head(model.encode(batch.users), model.encode(batch.items), batch.item)
        expected = loss(ScoredPairs(scores, batch.positive, batch.excluded, batch.log_q, batch.rating))
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


# Every score and every pooling ---------------------------------------------------------------------------

SCORES: dict[str, dict[str, Any]] = {
    "cosine": {"temperature": 1.0},
    "dot": {},
    "euclidean": {},
    "layer_weighted_dot": {},
    "mlp": {"mlp_hidden": 8},
    "attention": {"attention_heads": 2},
}
"""Score -> its options here; at temperature 1 all are of like size."""
VIRTUAL = {"num_virtual_tokens": 4, "init_text": None}
POOLINGS = ("mean", "first", "last", "weighted")
PAIRS = [(score, "mean") for score in SCORES] + [
    ("dot", "first"), ("dot", "last"), ("dot", "weighted"), ("layer_weighted_dot", "weighted"), ("attention", "last"),
]  # fmt: skip


def built(
    backbone: nn.Module, score: str, pooling: str = "mean", adapter: Any = lora, width: int = 64, **training: Any
) -> Any:
    """As a run builds it, with adapter and head that have moved from their start."""
    torch.manual_seed(0)
    bound = Adapter(adapter.Config(**VIRTUAL if adapter in (prompt_tuning, prefix_tuning) else {}))
    config = two_tower.Config(score=score, pooling=pooling, item_bias=True, **SCORES[score])  # type: ignore[arg-type]
    adapted = bound.attach(backbone, 1)
    model = two_tower.build(adapted, config, num_items=NUM_ITEMS, hidden_size=width, adapter=bound, **training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.startswith("head."):
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def bert(tiny_backbone: Path) -> nn.Module:
    return load(str(tiny_backbone)).model


def decoder(kind: str) -> nn.Module:
    from transformers import Gemma3TextConfig, Gemma3TextModel, LlamaConfig, LlamaModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.1,
        "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    if kind == "llama":
        return LlamaModel(LlamaConfig(**sizes))
    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextModel(Gemma3TextConfig(**sizes, head_dim=16, sliding_window=8, layer_types=layers))


def expected_scores(model: Any, score: str, pooling: str) -> Tensor:
    """(U, I) by a loop over users and items, each text encoded alone and without padding."""

    def layers(ids: list[int]) -> list[Tensor]:
        output = model.backbone(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            output_hidden_states=True,
        )
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        return [states[0, -len(ids) :] for states in output.hidden_states]  # behind virtual tokens

    def pooled(states: Tensor) -> Tensor:
        if pooling == "weighted":
            count = len(states)
            weighted = [(place + 1) / (count * (count + 1) / 2) * state for place, state in enumerate(states)]
            return torch.stack(weighted).sum(0)
        return {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]

    def embedding(states: list[Tensor]) -> Tensor:
        if score == "layer_weighted_dot":
            weights = head.layer_logits.exp() / head.layer_logits.exp().sum()
            return torch.stack([weight * pooled(layer) for weight, layer in zip(weights, states, strict=True)]).sum(0)
        return pooled(states[-1])

    def match(user: list[Tensor], item: Tensor) -> Tensor:
        width = len(item)
        if score == "attention":
            parts = []
            for part in item.new_tensor(range(width)).long().chunk(2):
                logits = (user[-1] @ head.key.T)[:, part] @ (head.query @ item)[part] / math.sqrt(width / 2)
                parts.append(logits.softmax(0) @ user[-1][:, part])
            return torch.cat(parts) @ item / math.sqrt(width)
        mine = embedding(user)
        if score == "cosine":
            return nn.functional.cosine_similarity(mine, item, dim=0)
        if score == "euclidean":
            return -(mine - item).norm()
        if score == "mlp":
            return head.network(torch.cat([mine, item, mine * item, (mine - item).abs()]))[0]
        return mine @ item / math.sqrt(width)

    head = model.head
    with torch.no_grad():
        scale = 1.0 if head.log_scale is None else head.log_scale.exp()
        users, items = [layers(ids) for ids in USER_TEXTS], [embedding(layers(ids)) for ids in ITEM_TEXTS]
        return torch.stack(
            [
                torch.stack([scale * match(user, item) + bias for item, bias in zip(items, head.bias, strict=True)])
                for user in users
            ]
        )


def near(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-5, atol=2e-5)


def check_scores(model: Any, expected: Tensor) -> None:
    """Under both sides of padding, several lengths and bucket sizes, other neighbours and another order."""
    assert expected.std() > 1e-3
    for padding_side in ("right", "left"):
        for length in (20, 41):
            users, items = (one_bucket(ids, length, padding_side) for ids in (USER_TEXTS, ITEM_TEXTS))
            assert near(scores(model, users, items), expected), (padding_side, length)
        for max_tokens in (1, 60):
            users, items = (pack(ids, max_tokens, padding_side) for ids in (USER_TEXTS, ITEM_TEXTS))
            assert near(scores(model, users, items), expected), (padding_side, max_tokens)
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(3)).tolist()
    found = scores(model, pack(USER_TEXTS[::-1]), pack([ITEM_TEXTS[i] for i in order]), order)
    assert near(found.flip(0), expected)
    with torch.no_grad():
        for n, text in enumerate(USER_TEXTS):
            assert near(model.score(user_batch(pack([text]))), expected[n : n + 1])


@pytest.mark.parametrize(("score", "pooling"), PAIRS)
def test_every_score_is_that_of_a_loop_over_texts_alone(tiny_backbone: Path, score: str, pooling: str) -> None:
    model = built(bert(tiny_backbone), score, pooling)
    check_scores(model, expected_scores(model, score, pooling))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_decoders_last_token_is_read_under_either_padding(kind: str, score: str) -> None:
    model = built(decoder(kind), score, "last", width=32)
    check_scores(model, expected_scores(model, score, "last"))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("adapter", [prompt_tuning, prefix_tuning])
def test_virtual_tokens_are_not_read(tiny_backbone: Path, adapter: Any, score: str) -> None:
    pooling = "first" if score == "dot" else "mean"
    model = built(bert(tiny_backbone), score, pooling, adapter)
    check_scores(model, expected_scores(model, score, pooling))
    assert gradients(model).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("score", SCORES)
def test_every_scores_candidates_are_the_catalogues_columns(tiny_backbone: Path, score: str) -> None:
    model = built(bert(tiny_backbone), score)
    full = scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
    users = user_batch(pack(USER_TEXTS, 60))
    shared = torch.tensor([7, 0, 7, 11])
    draw = torch.Generator().manual_seed(4)
    own = torch.stack([torch.randperm(NUM_ITEMS, generator=draw)[:5] for _ in USER_TEXTS])
    with torch.no_grad():
        assert near(model.score(users, shared), full[:, shared])
        assert near(model.score(users, own), full.gather(1, own))
        assert near(model.score(users, own.flip(1)), full.gather(1, own.flip(1)))


@pytest.mark.parametrize("score", SCORES)
def test_the_catalogue_is_encoded_anew_each_epoch(tiny_backbone: Path, score: str) -> None:
    model = built(bert(tiny_backbone), score)
    scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name != "head.bias":
                parameter.mul_(1.3)
    assert near(scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS)), expected_scores(model, score, "mean"))


@pytest.mark.parametrize("score", SCORES)
def test_gradients_reach_adapter_and_head_and_checkpointing_keeps_them(tiny_backbone: Path, score: str) -> None:
    """With and without checkpointing of layers or buckets, in training mode."""
    found = {}
    for checkpointing in ("none", "layers", "buckets"):
        model = built(bert(tiny_backbone), score, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(1)  # of the backbone's dropout
        found[checkpointing] = gradients(model)
        assert found[checkpointing].keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        assert all(gradient.any() for gradient in found[checkpointing].values())
    for checkpointing in ("layers", "buckets"):
        for name, gradient in found["none"].items():
            assert torch.allclose(found[checkpointing][name], gradient, rtol=1e-4, atol=1e-6), (checkpointing, name)


@pytest.mark.parametrize("score", SCORES)
def test_over_a_fixed_backbone_the_head_alone_learns(tiny_backbone: Path, score: str) -> None:
    model = built(bert(tiny_backbone), score, adapter=frozen, gradient_checkpointing="buckets").train()
    found = gradients(model)
    assert found.keys() == {f"head.{name}" for name, _ in model.head.named_parameters()}
    assert all(gradient.any() for gradient in found.values())
    model.head.requires_grad_(False)  # as zero_shot has it
    assert not model.loss(training_batch()).requires_grad


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("width", ["int8", "nf4"])
def test_every_score_trains_over_a_quantised_backbone(tiny_backbone: Path, width: Any, score: str) -> None:
    model = built(load(str(tiny_backbone), width).model, score).train()
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert scores(model.eval(), pack(USER_TEXTS), pack(ITEM_TEXTS)).isfinite().all()


@pytest.mark.parametrize("score", SCORES)
def test_every_score_works_under_autocast(tiny_backbone: Path, score: str) -> None:
    model = built(bert(tiny_backbone), score)
    expected = scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores(model, pack(USER_TEXTS), pack(ITEM_TEXTS))
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    if score != "cosine":
        assert found.dtype == torch.float32
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("score", SCORES)
def test_a_saved_head_scores_alike_in_a_module_built_anew(tiny_backbone: Path, score: str, tmp_path: Path) -> None:
    model = built(bert(tiny_backbone), score, adapter=frozen)
    save_head(model.head, tmp_path / "head.safetensors")
    config = two_tower.Config(score=score, item_bias=True, **SCORES[score])  # type: ignore[arg-type]
    again: Any = two_tower.build(bert(tiny_backbone), config, num_items=NUM_ITEMS, hidden_size=64)
    load_head(again.head, tmp_path / "head.safetensors")
    batches = pack(USER_TEXTS), pack(ITEM_TEXTS)
    assert torch.equal(scores(again.eval(), *batches), scores(model, *batches))


def test_the_default_draws_nothing_and_keeps_its_names(tiny_backbone: Path) -> None:
    backbone = bert(tiny_backbone)
    before = torch.get_rng_state()
    model: Any = two_tower.build(backbone, two_tower.Config(item_bias=True), num_items=3, hidden_size=64)
    assert torch.equal(torch.get_rng_state(), before)
    assert [name for name in model.state_dict() if not name.startswith("backbone.")] == ["head.log_scale", "head.bias"]
    assert type(model.head) is CosineHead


# What the config takes -----------------------------------------------------------------------------------


def test_temperature_starts_where_the_score_has_it() -> None:
    assert two_tower.Config().temperature == 0.05
    assert {two_tower.Config(score=score).temperature for score in SCORES if score != "cosine"} == {1.0}  # type: ignore[arg-type]
    assert two_tower.Config(score="dot", temperature=0.05).temperature == 0.05


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("score", SCORES)
def test_a_config_survives_json(score: Any, pooling: Any) -> None:
    for config in (two_tower.Config(score=score, pooling=pooling), two_tower.Config(score=score, **SCORES[score])):
        assert two_tower.Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "manhattan"}, "'cosine', 'dot', 'euclidean'"),
        ({"pooling": "max"}, "'mean', 'first', 'last' or 'weighted'"),
        ({"mlp_hidden": 32}, "mlp_hidden is 32 but score is cosine, .* leave it out or set score: mlp"),
        ({"score": "mlp", "attention_heads": 2}, "attention_heads is 2 but score is mlp, .* score: attention"),
        ({"score": "dot", "layer_norm": True}, "layer_norm is True but score is dot, .* score: layer_weighted_dot"),
        ({"score": "mlp", "temperature": 0.1}, "temperature is 0.1 but score is mlp, .* leave it out"),
        ({"score": "mlp", "mlp_hidden": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        two_tower.Config(**options)


def test_a_misspelt_score_is_the_only_thing_that_is_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        two_tower.Config.model_validate({"score": "dott"})
    assert [error["loc"] for error in caught.value.errors()] == [("score",)]


def test_build_hands_every_option_on(tiny_backbone: Path) -> None:
    def head(**options: Any) -> Any:
        config = two_tower.Config(**options)
        return two_tower.build(bert(tiny_backbone), config, num_items=3, hidden_size=64).head

    assert head(score="mlp", mlp_hidden=5).network[0].weight.shape == (5, 256)
    assert head(score="mlp", item_bias=True).bias.shape == (3,)
    assert head(score="attention", attention_heads=4).attention_heads == 4
    layered = head(score="layer_weighted_dot", layer_norm=True, temperature=0.5)
    assert layered.layer_norm
    assert layered.layer_logits.shape == (3,)  # two layers and the embeddings
    assert layered.log_scale.exp().item() == pytest.approx(2)
    with pytest.raises(RecpeftError, match="attention_heads is 3, which does not divide"):
        head(score="attention", attention_heads=3)


def checked(skeleton: Any, **options: Any) -> None:
    """Before a run: on the meta device, without prompt or tokenizer."""
    nothing: Any = None
    two_tower.check(two_tower.Config(**options), skeleton, nothing, nothing)


def without_weights(kind: str) -> nn.Module:
    with torch.device("meta"):
        return FAMILIES[kind]()


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_the_first_token_of_a_causal_decoder_is_refused(kind: str) -> None:
    with pytest.raises(RecpeftError, match=r"pooling is first but the backbone is causal: .* use .* last, weighted or"):
        checked(without_weights(kind), pooling="first")
    checked(without_weights(kind), pooling="last")
    checked(without_weights("bert"), pooling="first")


@pytest.mark.parametrize("kind", ["bert", "llama", "gemma3", "gpt2"])
def test_heads_that_do_not_divide_the_width_are_refused_before_the_run(kind: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(RecpeftError, match="attention_heads is 3, which does not divide the backbone's hidden_size 16"):
        checked(without_weights(kind), score="attention", attention_heads=3)
    for score, options in SCORES.items():
        checked(without_weights(kind), score=score, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_without_a_number_of_layers_is_refused_for_their_mean() -> None:
    skeleton: Any = nn.Linear(1, 1)
    with pytest.raises(RecpeftError, match="config of Linear does not say how many layers"):
        two_tower.build(skeleton, two_tower.Config(score="layer_weighted_dot"), num_items=3, hidden_size=64)
    skeleton.config = PretrainedConfig(hidden_size=16)
    with pytest.raises(RecpeftError, match="config of Linear does not say how many layers"):
        checked(skeleton, score="layer_weighted_dot")


def test_only_the_networks_head_starts_at_random(tiny_backbone: Path) -> None:
    """A head drawn at random differs from one build to the next."""
    for score, options in SCORES.items():
        config: Any = two_tower.Config.model_validate({"score": score, **options})
        heads = [two_tower.build(bert(tiny_backbone), config, num_items=3, hidden_size=64).head for _ in range(2)]
        one, other = (head.state_dict().values() for head in heads)
        alike = all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
        assert config.starts_at_random == (not alike) == (score == "mlp"), score
