"""The cross-encoder: a head's outputs over user and item as one text, exactly those of each pair read alone."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from pydantic import ValidationError
from small_models import FAMILIES
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RemBertConfig,
    RemBertModel,
    RobertaConfig,
    RobertaModel,
)

from datamodules import RecDataset, Split
from datamodules._assembler import PromptAssembler
from datamodules._batching import Bucket, ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from lightning_modules import cross_encoder
from lightning_modules._backbone import load
from lightning_modules._formulation import refusal
from lightning_modules._pair_module import is_causal
from lightning_modules._saved import load_head, save_head
from lightning_modules.losses import bpr, cross_entropy, level_bce, listwise_softmax, mse, weighted_sum
from lightning_modules.losses._base import LevelLogits, ScoredPairs
from recpeft.errors import RecpeftError
from recpeft.validation import build_plugin

SEP = 3
DRAW = np.random.default_rng(0)
USERS = [[2, *DRAW.integers(4, 16, length).tolist()] for length in (8, 13, 5, 8)]
ITEMS = [[SEP, *DRAW.integers(4, 16, length).tolist(), SEP] for length in (2, 5, 1, 4, 7)]
LEVELS = (1.0, 2.0, 4.0)
KINDS = ("bert", "llama", "gemma3")
SIZES: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, intermediate_size=24, type_vocab_size=1, pad_token_id=1)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=16, dim=16, n_layers=2, n_heads=4, hidden_dim=24, pad_token_id=0)
    ),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SIZES, intermediate_size=24, local_attention=8, pad_token_id=0, attn_implementation="sdpa")
    ),
    "deberta": lambda: DebertaV2Model(
        DebertaV2Config(**SIZES, intermediate_size=24, relative_attention=True, type_vocab_size=2)
    ),
}
"""Positions counted from the padding id, no segments, sliding windows, distances in place of positions."""
OUTPUTS = ("score", "rating", "classes", "labels")
ADAPTERS: dict[str, Any] = {
    "none": None,
    "lora": LoraConfig(r=4, target_modules=["query", "value", "q_proj", "v_proj", "up_proj"], init_lora_weights=False),
    "prefix": PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
    "prompt": PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3, num_attention_heads=4),
}


def config(output: str = "score", **options: Any) -> cross_encoder.Config:
    levels = {} if output == "score" else {"levels": LEVELS}
    return cross_encoder.Config.model_validate({"output": output, **levels, **options})


def module(kind: str = "bert", output: str = "score", adapter: str = "none", **options: Any) -> Any:
    """With wide weights, so that states differ from text to text and scores with them."""
    torch.manual_seed(0)
    backbone = (FAMILIES | OTHERS)[kind]()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    if ADAPTERS[adapter] is not None:
        backbone = get_peft_model(backbone, deepcopy(ADAPTERS[adapter]))  # type: ignore[assignment,arg-type]
    fields = {name: options.pop(name) for name in ("pooling", "dropout") if name in options}
    options = {"num_items": len(ITEMS), "hidden_size": 16, "loss": total, "num_separators": 1, **options}
    model = cross_encoder.build(backbone, config(output, **fields), **options)
    with torch.no_grad():
        model.head.linear.weight.normal_(std=0.1)  # type: ignore[union-attr,operator]
    return model.eval()


def total(pairs: ScoredPairs) -> Tensor:
    """A stand-in for a loss in which every score and every logit counts differently."""
    return sum(  # type: ignore[return-value]
        (values * torch.arange(1.0, values.numel() + 1).view_as(values)).sum() / values.numel()
        for values in (pairs.scores, pairs.logits)
        if values is not None
    )


def states_of(model: Any, ids: list[int], segments: list[int]) -> Tensor:
    """(L, H) of one text alone, what PEFT puts before it put there by hand."""
    backbone, peft_config = model.backbone, getattr(model.backbone, "active_peft_config", None)
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    virtual = 0
    if peft_config is not None and peft_config.is_prompt_learning:
        virtual, prompt, backbone = 3, backbone.get_prompt(1), backbone.get_base_model()
        if isinstance(peft_config, PrefixTuningConfig):
            inputs["past_key_values"] = prompt
        else:
            embeddings = backbone.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.cat([prompt, embeddings], dim=1)
            segments = [0] * virtual + segments
    inputs["attention_mask"] = torch.ones(1, virtual + len(ids), dtype=torch.int64)
    if getattr(backbone.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.tensor([segments])
    states: Tensor = backbone(**inputs).last_hidden_state[0, -len(ids) :]
    return states


def naive_logits(model: Any, pooling: str | None = None) -> Tensor:
    """(U, I, O): each pair's whole text through the backbone, one after another."""
    found = []
    for user, item in itertools.product(USERS, ITEMS):
        states = states_of(model, user + item, [0] * (len(user) + 1) + [1] * (len(item) - 1))
        causal = model.backbone.config.model_type in ("llama", "gemma3_text")
        read = pooling or ("last" if causal else "first")
        state = {"first": states[0], "mean": states.mean(0), "last": states[-1]}[read]
        found.append(model.head.linear.weight @ state + model.head.linear.bias)
    return torch.stack(found).view(len(USERS), len(ITEMS), -1)


def naive(model: Any, pooling: str | None = None) -> Tensor:
    """(U, I) by what each output promises."""
    logits = naive_logits(model, pooling)
    match model.head.output:
        case "classes":
            shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
            return sum(shares[..., k] * level for k, level in enumerate(LEVELS))  # type: ignore[return-value]
        case "labels":
            return (1 / (1 + (-logits).exp())).sum(-1)
        case _:
            return logits[..., 0]


def one_bucket(ids: list[list[int]], extra: int, padding_side: str) -> TextBatch:
    """All texts in one bucket, with ``extra`` padding more than needed."""
    length = max(map(len, ids)) + extra
    whole = torch.full((len(ids), length), 9)
    mask = torch.zeros_like(whole)
    for row, text in enumerate(ids):
        place = slice(0, len(text)) if padding_side == "right" else slice(length - len(text), None)
        whole[row, place], mask[row, place] = torch.tensor(text), 1
    return TextBatch([Bucket(whole, mask, torch.arange(len(ids)))], len(ids), int(mask.sum()))


def user_batch(texts: TextBatch) -> UserBatch:
    nothing = (torch.empty(0, dtype=torch.int64),) * 2
    return UserBatch(torch.arange(texts.size), texts, nothing, nothing)


def ranked(
    model: Any, users: TextBatch | None = None, items: TextBatch | None = None, candidates: Tensor | None = None
) -> Tensor:
    model.encode_catalogue(ItemBatch(torch.arange(len(ITEMS)), bucket(ITEMS, 0, 64) if items is None else items))
    found: Tensor = model.score(user_batch(bucket(USERS, 0, 64) if users is None else users), candidates)
    return found


def training_batch(rating: float = math.nan) -> PairBatch:
    positive = torch.zeros(len(USERS), len(ITEMS), dtype=torch.bool)
    positive[range(4), [0, 1, 2, 3]] = True
    excluded = torch.zeros_like(positive)
    excluded[0, 2] = excluded[3, 0] = True
    return PairBatch(
        users=bucket(USERS, 0, 64),
        items=bucket(ITEMS, 0, 64),
        item=torch.arange(len(ITEMS)),
        positive=positive,
        excluded=excluded,
        log_q=torch.zeros(len(ITEMS)),
        rating=torch.full(positive.shape, rating),
    )


# Scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_are_those_of_the_whole_text(kind: str, output: str, adapter: str) -> None:
    model = module(kind, output, adapter, max_pair_tokens=40)
    expected = naive(model)
    assert expected.std() > 0.01
    found = ranked(model)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_scores_are_those_of_the_whole_text_in_other_encoders(kind: str) -> None:
    model = module(kind)
    expected = naive(model)
    assert model.pooling == "first"
    assert expected.std() > 0.01
    assert torch.allclose(ranked(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapter", ["none", "prefix", "prompt"])
@torch.no_grad()
def test_the_mean_is_over_the_text_alone(adapter: str) -> None:
    model = module("bert", adapter=adapter, pooling="mean")
    expected = naive(model, "mean")
    assert not torch.allclose(expected, naive(model, "first"), atol=1e-2)
    assert torch.allclose(ranked(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_move_neither_with_padding_nor_with_the_batch(kind: str, pooling: str) -> None:
    model = module(kind, pooling=pooling if kind == "bert" else "auto")
    expected = ranked(model)
    for extra in (0, 5, 40):
        items = one_bucket(ITEMS, extra, "left")
        assert torch.allclose(ranked(model, one_bucket(USERS, extra, "right"), items), expected, rtol=0, atol=1e-6)
        if kind == "bert":  # a decoder's users are padded on the right
            assert torch.allclose(ranked(model, one_bucket(USERS, extra, "left"), items), expected, rtol=0, atol=1e-6)
    alone = torch.cat([ranked(model, bucket([user], 0, 64)) for user in USERS])
    assert torch.allclose(alone, expected, rtol=0, atol=1e-6)
    for max_pair_tokens in (1, 30):
        model._max_pair_tokens = max_pair_tokens
        assert torch.allclose(ranked(model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_of_candidates_are_the_catalogues_in_any_order(kind: str) -> None:
    model = module(kind, "labels")
    expected = ranked(model)
    own = torch.tensor([[2, 0, 4], [1, 1, 3], [4, 3, 0], [0, 2, 1]])
    for candidates in (own, own.flip(1)):
        assert torch.allclose(ranked(model, candidates=candidates), expected.gather(1, candidates), rtol=0, atol=1e-6)
    shared = torch.tensor([3, 1])
    assert torch.allclose(ranked(model, candidates=shared), expected[:, shared], rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_text(kind: str, output: str, adapter: str) -> None:
    model = module(kind, output, adapter, max_pair_tokens=40)
    batch = training_batch()

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients(model.loss(batch))
    kept = ~batch.excluded
    logits = naive_logits(model) * kept.unsqueeze(-1) if output in ("classes", "labels") else None
    expected = gradients(total(ScoredPairs.of(naive(model) * kept, batch, logits)))
    assert found.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert max(float(gradient.abs().max()) for name, gradient in expected.items() if "head" not in name) > 0.01
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-4), name


@torch.no_grad()
def test_an_encoder_reads_every_pair_once_in_blocks_of_like_length() -> None:
    model = module("bert", max_pair_tokens=150)
    masks: list[Tensor] = []
    model.backbone.register_forward_pre_hook(
        lambda _, args, options: masks.append(options["attention_mask"]), with_kwargs=True
    )
    ranked(model)
    read = sum(len(user) + len(item) for user in USERS for item in ITEMS)
    assert model.tokens_read == sum(int(mask.sum()) for mask in masks) == read
    assert sum(len(mask) for mask in masks) == len(USERS) * len(ITEMS)
    assert max(mask.numel() for mask in masks) <= 150
    assert max(len(mask) for mask in masks) > 1
    assert all(5 * mask.sum(1).min() >= 4 * mask.shape[1] - 5 for mask in masks)


@torch.no_grad()
def test_a_decoder_reads_each_user_once() -> None:
    model = module("llama")
    ranked(model)
    assert model.tokens_read < sum(map(len, USERS)) + len(USERS) * sum(map(len, ITEMS))
    behind = {tuple(item[: n + 1]) for item in ITEMS for n in range(len(item))}
    assert model.tokens_read == sum(map(len, USERS)) + len(USERS) * len(behind)


@torch.no_grad()
def test_the_segments_are_those_of_the_tokenizer(tiny_backbone: Path, world: tuple[RecDataset, Split]) -> None:
    dataset, _ = world
    backbone = load(str(tiny_backbone))
    prompt = PromptAssembler(backbone.tokenizer, dataset.items, form="closed_pair", question="film {{ item }} watched:")
    user, item = prompt.user([0, 1]), prompt.item(2)
    asked = cross_encoder.prepare(config(), backbone, prompt, pl.DataFrame(), np.empty(0))
    assert asked == {"num_separators": 1}
    model: Any = cross_encoder.build(backbone.model, config(), num_items=1, hidden_size=64, loss=total, **asked).eval()
    seen: list[dict[str, Tensor]] = []
    backbone.model.register_forward_pre_hook(lambda _, args, options: seen.append(options), with_kwargs=True)
    model.encode_catalogue(ItemBatch(torch.tensor([0]), bucket([item], 0, 64)))
    model.score(user_batch(bucket([user], 0, 64)))
    decode = backbone.tokenizer.decode
    one, other = decode(user, skip_special_tokens=True), decode(item, skip_special_tokens=True)
    expected = backbone.tokenizer(one, other, return_token_type_ids=True)
    assert seen[0]["input_ids"].tolist() == [expected["input_ids"]]
    assert seen[0]["token_type_ids"].tolist() == [expected["token_type_ids"]]


# Precision and what is trained -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_stays_float32_under_autocast_and_over_a_bf16_backbone(kind: str) -> None:
    exact = ranked(module(kind))
    model = module(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.head.logits(torch.randn(2, 16)).dtype == torch.float32
        assert (ranked(model) - exact).abs().max() < 0.1 * exact.abs().max()
        assert model.loss(training_batch()).isfinite()
    model = module(kind)
    model.backbone.to(torch.bfloat16)
    found = ranked(model)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()
    ties = len(found) * found.shape[1] - len(found.unique())
    assert ties == 0


@pytest.mark.parametrize("kind", KINDS)
def test_over_a_fixed_backbone_the_head_alone_learns(kind: str) -> None:
    model = module(kind, "classes")
    model.backbone.requires_grad_(False)
    model.train()
    assert not any(part.training for part in model.backbone.modules())
    model.loss(training_batch()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "head.linear.weight", "head.linear.bias",
    }  # fmt: skip
    batch = training_batch()
    row, item = (~batch.excluded).nonzero(as_tuple=True)
    from lightning_modules._shared_prefix import Texts

    assert model._states(batch.users, Texts(batch.items), row, item).grad_fn is None


def test_dropout_is_drawn_in_training_alone() -> None:
    states = torch.randn(3, 16)
    head = module(dropout=0.5).head
    assert torch.equal(head(states), head(states))
    head.train()
    assert not torch.equal(head(states), head(states))
    assert torch.equal(module(dropout=0.0).head.train()(states), module().head(states))


def test_the_head_starts_as_classification_heads_do() -> None:
    torch.manual_seed(0)
    head = cross_encoder.build(FAMILIES["bert"](), config("classes"), num_items=1, hidden_size=4000, loss=total).head
    weight: Any = head.linear.weight  # type: ignore[union-attr]
    assert weight.shape == (3, 4000)
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)  # BERT's initializer_range
    assert not head.linear.bias.any()  # type: ignore[union-attr,operator]
    wide = FAMILIES["bert"]()
    wide.config.initializer_range = 0.5  # type: ignore[union-attr]
    head = cross_encoder.build(wide, config("rating"), num_items=1, hidden_size=4000, loss=total).head
    assert head.linear.weight.std().item() == pytest.approx(0.5, rel=0.05)  # type: ignore[union-attr,operator]
    assert head.linear.bias.tolist() == [2.5]  # type: ignore[union-attr,operator]
    sizes = {output: module(output=output).head.linear.weight.shape[0] for output in OUTPUTS}
    assert sizes == {"score": 1, "rating": 1, "classes": 3, "labels": 2}


def test_a_saved_head_scores_alike(tmp_path: Path) -> None:
    model, other = module("bert", "classes"), module("bert", "classes")
    with torch.no_grad():
        other.head.linear.weight.zero_()
    save_head(model.head, tmp_path / "head.safetensors")
    load_head(other.head, tmp_path / "head.safetensors")
    assert torch.equal(ranked(other), ranked(model))


LESSONS: dict[str, Any] = {
    "score": listwise_softmax.loss,
    "rating": mse.loss,
    "classes": cross_entropy.loss,
    "labels": level_bce.loss,
    "both": lambda pairs: weighted_sum.loss(
        pairs, parts=[{"weight": 1.0, "loss": {"name": name}} for name in ("cross_entropy", "bpr")]
    ),
}


@pytest.mark.parametrize("lesson", LESSONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_output_learns_what_it_is_taught(kind: str, lesson: str) -> None:
    """The first two items are rated 4 by everybody, the others 1."""
    model = module(kind, {"both": "classes"}.get(lesson, lesson), dropout=0.0, loss=LESSONS[lesson])
    batch = training_batch(1.0)
    batch.excluded[:] = batch.positive[:] = False
    batch.positive[:, :2] = True
    batch.rating[:, :2] = 4.0
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = model.loss(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Two equal positives share a softmax, so that log 2 is the least that it can be.
    least = {"score": math.log(2)}.get(lesson, 0.0)
    assert losses[-1] - least < 0.3 * (losses[0] - least)
    with torch.no_grad():
        scores = ranked(model)
    assert (scores[:, :2].amin(dim=1) > scores[:, 2:].amax(dim=1)).all()


# Pooling -----------------------------------------------------------------------------------------------


def test_auto_is_first_for_an_encoder_and_last_for_a_decoder() -> None:
    for kind, pooling in {"bert": "first", "llama": "last", "gemma3": "last", "gpt2": "last"}.items():
        model = module(kind)
        assert model.pooling == pooling
        assert f"pooling={pooling}" in repr(model)


@pytest.mark.parametrize(
    ("kind", "pooling", "words"),
    [
        ("llama", "first", "is first but the backbone is causal: its last token alone .* use .*: last or auto"),
        ("gemma3", "mean", "is mean but the backbone is causal"),
        ("bert", "last", "is last but the backbone reads its text in both directions, .* use .*: first, mean or auto"),
    ],
)
def test_a_pooling_that_has_not_seen_both_texts_is_refused_without_weights(kind: str, pooling: str, words: str) -> None:
    prompt: Any = None
    with torch.device("meta"):
        skeleton: Any = FAMILIES[kind]()
    with pytest.raises(RecpeftError, match=words):
        cross_encoder.check(config(pooling=pooling), skeleton, prompt, None)
    cross_encoder.check(config(), skeleton, prompt, None)


def test_a_decoder_that_does_not_say_so_is_still_one() -> None:
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8}
    bloom = BloomModel(BloomConfig(n_layer=1, n_head=2, **sizes))
    assert not any(hasattr(part, "is_causal") for part in bloom.modules())
    assert is_causal(bloom)
    of_bert = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "input_embedding_size": 8}
    rembert = RemBertModel(RemBertConfig(**sizes, **of_bert))
    assert not any(hasattr(part, "is_causal") for part in rembert.modules())
    assert not is_causal(rembert)
    assert not is_causal(nn.Linear(1, 1))


# The config --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_config_survives_json(output: str) -> None:
    one = config(output)
    assert cross_encoder.Config.model_validate_json(one.model_dump_json()) == one
    assert one.starts_at_random
    assert one.FORM == "closed_pair"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "stars"}, "'score', 'rating', 'classes' or 'labels'"),
        ({"levels": [1, 2]}, "output is score, which has none; leave them out or set output"),
        ({"output": "classes", "levels": [1]}, "at least 2"),
        ({"output": "classes", "levels": [1, 3, 3]}, "do not ascend"),
        ({"output": "rating", "levels": [5, 1]}, "do not ascend"),
        ({"pooling": "weighted"}, "'auto', 'first', 'mean' or 'last'"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        cross_encoder.Config.model_validate(options)


def test_levels_that_are_the_default_may_be_written_out() -> None:
    assert cross_encoder.Config(levels=(1, 2, 3, 4, 5)) == cross_encoder.Config()


def test_the_logits_it_gives_are_the_levels() -> None:
    assert config("classes").level_logits == LevelLogits("classes", 3)
    assert config("labels").level_logits == LevelLogits("labels", 2)
    assert config("score").level_logits is config("rating").level_logits is None


FITS = {("classes", "cross_entropy"), ("labels", "level_bce")}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["cross_entropy", "level_bce", "bpr", "mse", "bce", "listwise_softmax"])
def test_a_loss_of_levels_needs_their_logits_and_other_losses_take_any_output(output: str, name: str) -> None:
    loss: Any = build_plugin("lightning_modules.losses", "name", {"name": name}, "loss")
    both: Any = weighted_sum.Config(parts=(weighted_sum.Part(loss=bpr.Config()), weighted_sum.Part(loss=loss)))
    clauses = [refusal(config(output), found) for found in (loss, both)]
    if (output, name) in FITS or name not in ("cross_entropy", "level_bce"):
        assert clauses == [None, None]
    else:
        kind = {"cross_entropy": "classes", "level_bce": "labels"}[name]
        given = f"those of {output}" if output in ("classes", "labels") else "scores alone"
        expected = (
            f"loss {name} learns logits of {kind} but formulation cross_encoder gives {given}; use formulation "
            f"{{name: cross_encoder, output: {kind}}}, or another loss"
        )
        assert clauses == [expected, expected]


@pytest.mark.parametrize(
    ("output", "loss", "words"),
    [
        ("classes", cross_entropy.Config(class_weights=(1, 2)), "are 2 .* has 3 classes; give one for each of its lev"),
        ("labels", level_bce.Config(label_weights=(1, 2, 3)), "are 3 .* has 2 labels; .* of its levels but the lowest"),
    ],
)
def test_weights_are_one_for_each_logit(output: str, loss: Any, words: str) -> None:
    clause = refusal(config(output), loss)
    assert clause is not None
    assert re.search(words, clause), clause
