"""The listwise verbalizer: letters' logits over a list in one prompt, exactly those of the model's own head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from scipy.stats import kendalltau  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from datamodules._assembler import PromptAssembler
from datamodules._batching import ItemBatch, PairBatch, UserBatch, bucket
from lightning_modules import listwise_verbalizer
from lightning_modules._backbone import load
from lightning_modules._listwise_verbalizer_impl import ListwiseVerbalizer, shuffled
from lightning_modules.losses._base import ScoredPairs
from recpeft.errors import RecpeftError

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
DRAW = np.random.default_rng(0)
USERS = [DRAW.integers(1, 80, length).tolist() for length in (9, 14, 6, 9)]
ITEMS = [[*DRAW.integers(1, 70, length).tolist(), 70 + item] for item, length in enumerate((2, 4, 1, 3, 6, 3, 2, 3))]
SIZE = 4
LETTERS = [90, 91, 92, 93]
CHOICES = [[80, 81], [80, 82], [80, 83], [80, 84]]  # the second token is in no other text
TAIL = [85, 86]
NOWHERE = (torch.empty(0, dtype=torch.int64),) * 2


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES))


def gemma(softcap: float | None = None) -> Any:
    """A sliding window in every other layer; a cap of its own on logits where one is given."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    options = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(final_logit_softcapping=softcap, **options, **SIZES))


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gemma": gemma, "capped": lambda: gemma(softcap=2.0)}
ADAPTERS: dict[str, Any] = {
    "none": None,
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False),
    "prefix": PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
    "prompt": PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
}


class Seen:
    """A stand-in for a loss in which every score counts differently, and what it was given."""

    pairs: ScoredPairs

    def __call__(self, pairs: ScoredPairs) -> Tensor:
        self.pairs = pairs
        weight = torch.arange(1.0, pairs.scores.numel() + 1).view_as(pairs.scores) / pairs.scores.numel()
        return (pairs.scores * weight).masked_fill(pairs.excluded, 0.0).sum()


def module(model: str = "llama", adapter: str = "none", causal: Any = None, **options: Any) -> ListwiseVerbalizer:
    causal = causal or MODELS[model]()
    rows = causal.get_output_embeddings().weight[LETTERS].detach()
    config = ADAPTERS[adapter]
    made = ListwiseVerbalizer(
        causal.base_model if config is None else get_peft_model(causal.base_model, config),
        num_items=len(ITEMS),
        letter_rows=rows,
        softcap=causal.config.to_dict().get("final_logit_softcapping"),
        choices=CHOICES,
        tail=TAIL,
        pad_id=0,
        **{"loss": Seen(), "max_bucket_tokens": 70, **options},
    ).eval()
    with torch.no_grad():
        made.head.scale.fill_(1.5)
        made.head.bias.fill_(0.25)
    return made


def mix(value: int) -> int:
    """splitmix64 in Python's unbounded integers."""
    mask = 2**64 - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def dealt(user: int, items: list[int], number: int = 0) -> list[int]:
    """The items of a list in the order of their letters."""
    return sorted((item for item in items if item >= 0), key=lambda item: mix(mix(mix(user) ^ number) ^ item))


def text(user: list[int], items: list[int]) -> list[int]:
    ids = list(user)
    for letter, item in enumerate(items):
        ids += CHOICES[letter] + ITEMS[item]
    return ids + TAIL


def naive(made: ListwiseVerbalizer, user: list[int], items: list[int], causal: Any = None) -> dict[int, Tensor]:
    """Item -> score: the whole text on its own through the whole model, its own head included."""
    ids = torch.tensor([text(user, items)])
    if causal is not None:
        logits = causal(input_ids=ids).logits[0, -1, LETTERS]
    else:
        states = made.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        logits = made.head.rows @ states[0, -1]
    return {item: 1.5 * logits[letter] + 0.25 for letter, item in enumerate(items)}


def batch(users: list[int], candidates: Tensor | None = None) -> UserBatch:
    texts = bucket([USERS[user] for user in users], 0, 64)
    return UserBatch(torch.tensor(users), texts, NOWHERE, NOWHERE, candidates=candidates)


def ranked(made: ListwiseVerbalizer, candidates: Tensor, users: list[int] | None = None) -> Tensor:
    made.encode_catalogue(ItemBatch(torch.arange(2, len(ITEMS)), bucket(ITEMS[2:], 0, 64)))
    made.encode_catalogue(ItemBatch(torch.arange(2), bucket(ITEMS[:2], 0, 64)))
    return made.score(batch(list(range(len(USERS))) if users is None else users), candidates)


LISTS = torch.tensor([[2, 0, 4, 7], [1, -1, 3, -1], [4, 3, 0, 5], [-1, 6, 1, 0]])


# Scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "adapter"),
    [("llama", "none"), ("gemma", "none"), ("capped", "none"), ("llama", "lora"), ("gemma", "lora")],
)
@torch.no_grad()
def test_scores_are_the_letters_logits_of_the_models_own_head(model: str, adapter: str) -> None:
    causal = MODELS[model]()
    made = module(adapter=adapter, causal=causal)  # LoRA's layers stand in the model's own from here on
    found = ranked(made, LISTS)
    values = []
    for user, row in enumerate(LISTS.tolist()):
        for item, score in naive(made, USERS[user], dealt(user, row), causal).items():
            assert float(found[user, row.index(item)]) == pytest.approx(float(score), abs=1e-5)
            values.append(float(score))
    assert np.std(values) > 0.3
    if model == "capped":
        assert all(abs(value - 0.25) < 2 * 1.5 for value in values)


@pytest.mark.parametrize("adapter", ["prefix", "prompt"])
@torch.no_grad()
def test_scores_are_those_of_the_whole_list_behind_virtual_tokens(adapter: str) -> None:
    made = module("llama", adapter)
    found, plain = ranked(made, LISTS), ranked(module("llama"), LISTS)
    assert not torch.allclose(found, plain, atol=1e-3)
    for user, row in enumerate(LISTS.tolist()):
        for item, score in naive(made, USERS[user], dealt(user, row)).items():
            assert float(found[user, row.index(item)]) == pytest.approx(float(score), abs=1e-5)


@torch.no_grad()
def test_scores_do_not_depend_on_the_candidates_order_or_padding_nor_on_other_users() -> None:
    made = module("gemma")
    expected = ranked(made, LISTS)
    order = torch.tensor([3, 1, 0, 2])
    assert torch.allclose(ranked(made, LISTS[:, order]), expected[:, order], atol=1e-6)
    padded = torch.cat([torch.full((4, 2), -1), LISTS, torch.full((4, 3), -1)], dim=1)
    assert torch.allclose(ranked(made, padded)[:, 2:6], expected, atol=1e-6)
    for user in range(4):
        assert torch.allclose(ranked(made, LISTS[user : user + 1], [user]), expected[user], atol=1e-6)
    backwards = [3, 2, 1, 0]
    assert torch.allclose(ranked(made, LISTS[backwards], backwards), expected[backwards], atol=1e-6)


@torch.no_grad()
def test_one_list_of_candidates_is_for_all_users_and_several_texts_may_be_one_users() -> None:
    made = module()
    everyone = ranked(made, torch.tensor([5, 1, 2]))
    for user in range(4):
        scores = naive(made, USERS[user], dealt(user, [5, 1, 2]))
        assert everyone[user].tolist() == pytest.approx([float(scores[item]) for item in (5, 1, 2)], abs=1e-5)
    rolling = batch([0, 1, 2, 3], LISTS)
    rolling.user, rolling.owner = torch.tensor([1, 0]), torch.tensor([0, 0, 0, 1])
    found = made.score(rolling, LISTS)
    for row, owner in enumerate((1, 1, 1, 0)):  # letters are dealt by the user's id, not by the text's place
        for item, score in naive(made, USERS[row], dealt(owner, LISTS[row].tolist())).items():
            assert float(found[row, LISTS[row].tolist().index(item)]) == pytest.approx(float(score), abs=1e-5)


@torch.no_grad()
def test_orders_are_averaged() -> None:
    made = module(orders=3)
    found = ranked(made, LISTS)
    for user, row in enumerate(LISTS.tolist()):
        orders = [naive(made, USERS[user], dealt(user, row, number)) for number in range(3)]
        for item in orders[0]:
            mean = sum(float(scores[item]) for scores in orders) / 3
            assert float(found[user, row.index(item)]) == pytest.approx(mean, abs=1e-5)
    assert any(dealt(user, row) != dealt(user, row, 1) for user, row in enumerate(LISTS.tolist()))


def test_letters_follow_neither_the_items_number_nor_the_order_of_candidates() -> None:
    users = torch.arange(300)
    lists = torch.tensor([[0, 1, 2, 3]]).expand(300, 4)
    order = shuffled(users, lists, 0)
    for place in range(4):  # each item is first for about a quarter of the users: 4 standard deviations
        assert int((order[:, 0] == place).sum()) == pytest.approx(75, abs=30)
    turned = shuffled(users, lists.flip(1), 0)
    assert torch.equal(lists.flip(1).gather(1, turned), lists.gather(1, order))
    assert shuffled(torch.tensor([7]), torch.tensor([[-1, 5, -1, 9, 2]]), 1)[0].tolist()[3:] == [0, 2]


def test_more_candidates_than_letters_and_a_catalogue_that_is_not_whole_are_refused() -> None:
    made = module()
    with pytest.raises(RuntimeError, match="call encode_catalogue with every ItemBatch first"):
        made.score(batch([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="a list has 5 candidates, but letters are for 4"):
        ranked(made, torch.tensor([0, 1, 2, -1, 3, 4]))
    with pytest.raises(ValueError, match="a list has 8 candidates"):
        made.score(batch([0]))  # the whole catalogue
    assert made.tokens_read == 0


@torch.no_grad()
def test_tokens_read_are_those_of_the_lists() -> None:
    made = module(orders=2)
    ranked(made, LISTS)
    lengths = [len(text(USERS[user], [item for item in row if item >= 0])) for user, row in enumerate(LISTS.tolist())]
    assert made.tokens_read == 2 * sum(lengths)


# Training ----------------------------------------------------------------------------------------------


def pair_batch(positive: Any, excluded: Any) -> PairBatch:
    shape = (len(USERS), len(ITEMS))
    positive, excluded = (torch.tensor(part, dtype=torch.bool).expand(shape).clone() for part in (positive, excluded))
    return PairBatch(
        users=bucket(USERS, 0, 64),
        items=bucket(ITEMS, 0, 64),
        item=torch.arange(len(ITEMS)),
        positive=positive,
        excluded=excluded & ~positive,
        log_q=torch.zeros(len(ITEMS)),
        rating=torch.full(shape, torch.nan),
    )


MIXED = pair_batch(
    [[1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0]],
    [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0], [0] * 8, [1, 0, 1, 1, 1, 0, 1, 1]],
)
"""Two positives and one excluded; six positives and one negative; positives alone; one positive and one negative."""


def read_lists(made: ListwiseVerbalizer, step: Callable[[], Any]) -> list[list[int]]:
    """Each user's list in the order of its letters, taken from the texts that the backbone was given."""
    texts: list[list[int]] = []

    def take(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
        mask = options["attention_mask"].bool()
        texts.extend(ids[there].tolist() for ids, there in zip(options["input_ids"], mask, strict=True))

    hook = made.backbone.register_forward_pre_hook(take, with_kwargs=True)
    step()
    hook.remove()
    lists = []
    for user in USERS:
        (own,) = (ids for ids in texts if ids[: len(user) + 1] == [*user, 80])
        lists.append([token - 70 for token in own[len(user) :] if 70 <= token < 80])
        assert own == text(user, lists[-1])
    return lists


@pytest.mark.parametrize("adapter", ["none", "lora", "prompt"])
def test_training_learns_the_lists_that_were_read_and_their_gradients(adapter: str) -> None:
    seen = Seen()
    made = module("gemma", adapter, loss=seen)
    lists = read_lists(made, lambda: made.loss(MIXED).backward())
    found = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    there = ~seen.pairs.excluded
    assert [sorted(row) for row in lists] == [row.nonzero().squeeze(1).tolist() for row in there]
    made.zero_grad()
    scores = torch.zeros(MIXED.positive.shape)
    for user, row in enumerate(lists):
        of_user = naive(made, USERS[user], row)
        weight, bias = made.head.scale, made.head.bias
        for item, score in of_user.items():
            scores[user, item] = weight * (score - 0.25) / 1.5 + bias
    assert torch.allclose(seen.pairs.scores[there], scores[there], atol=1e-5)
    Seen()(ScoredPairs(scores, MIXED.positive, seen.pairs.excluded, MIXED.log_q, MIXED.rating)).backward()
    expected = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert {"head.scale", "head.bias"} <= found.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-4, rtol=1e-4), name


def test_a_list_has_the_positives_first_a_place_for_a_negative_and_nothing_excluded() -> None:
    made = module()
    chosen = []
    for seed in range(200):
        torch.manual_seed(seed)
        chosen.append(made._chosen(MIXED))
        assert not (chosen[-1] & MIXED.excluded).any()
    counts = torch.stack(chosen)
    assert (counts.sum(dim=2) == torch.tensor([4, 4, 4, 2])).all()
    positives = (counts & MIXED.positive).sum(dim=2)
    assert (positives == torch.tensor([2, 3, 4, 1])).all()
    # Each kind is drawn: 3 of 6 positives, 2 of 5 negatives, 4 of 8; 4 standard deviations of 200 draws.
    share = counts.double().mean(dim=0)
    assert share[1, :6].tolist() == pytest.approx([0.5] * 6, abs=0.15)
    assert share[0, [2, 4, 5, 6, 7]].tolist() == pytest.approx([0.4] * 5, abs=0.15)
    assert share[2].tolist() == pytest.approx([0.5] * 8, abs=0.15)


def test_letters_are_dealt_anew_each_step_and_alike_for_the_same_seed() -> None:
    made = module()
    full = pair_batch([1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])  # four cells a user: no draw but of letters
    torch.manual_seed(0)
    steps = [read_lists(made, lambda: made.loss(full)) for _ in range(12)]
    assert all(sorted(row) == [0, 1, 2, 3] for step in steps for row in step)
    assert len({str(step) for step in steps}) == 12
    assert {step[0].index(0) for step in steps} == {0, 1, 2, 3}  # the positive has had every letter
    assert any(row != step[0] for step in steps for row in step)
    torch.manual_seed(0)
    assert read_lists(made, lambda: made.loss(full)) == steps[0]


def test_a_fixed_backbone_learns_scale_and_bias_alone() -> None:
    made = module()
    made.backbone.requires_grad_(False)
    made.loss(MIXED).backward()
    assert made.head.scale.grad is not None
    assert made.head.bias.grad is not None
    assert float(made.head.scale.grad.abs()) > 0


# What is measured of orders ----------------------------------------------------------------------------


@torch.no_grad()
def test_diagnose_compares_two_orders_of_each_list() -> None:
    made = module("gemma", orders=2)
    lists = torch.tensor([[2, 0, 4, 7], [1, -1, -1, -1], [4, 3, 0, 5], [-1, 6, 1, 0]])  # one with nothing to order
    ranked(made, lists)
    found = made.diagnose(batch([0, 1, 2, 3], lists))["order"]
    changes, correlations = [], []
    for user, row in enumerate(lists.tolist()):
        first, second = (
            {item: float(score) for item, score in naive(made, USERS[user], dealt(user, row, number)).items()}
            for number in (0, 2)  # the first of its own, and one that it does not average
        )
        changes.append(max(first, key=first.__getitem__) != max(second, key=second.__getitem__))
        if len(first) > 1:
            correlations.append(kendalltau(list(first.values()), [second[item] for item in first]).statistic)
    assert found["lists"] == 4
    assert found["best_changes"] == np.mean(changes)
    assert 0 < found["best_changes"] < 1
    assert found["kendall_tau"] == pytest.approx(np.mean(correlations), abs=1e-6)


@torch.no_grad()
def test_where_letters_say_nothing_the_order_changes_nothing() -> None:
    """Letters whose rows are the same tie all items; a tie is half of agreement and half of its contrary."""
    made = module()
    made.head.rows[:] = made.head.rows[0].clone()
    ranked(made, LISTS)
    found = made.diagnose(batch([0, 1, 2, 3], LISTS))["order"]
    assert found["kendall_tau"] == 0
    assert found["best_changes"] == 0


# The plug-in -------------------------------------------------------------------------------------------

WORDS = [
    "[PAD]", "[UNK]", "[BOS]", ":", ";", "(", ")", "?", ".", "red", "blue", "film", "Watched", "Which", "Would", "of",
    "these", "this", "would", "person", "like", "best", "too", "Answer", "Yes", "No", *listwise_verbalizer.LETTERS,
    *(str(n) for n in range(100)), *(str(n) for n in range(1990, 2000)),
]  # fmt: skip


def write_decoder(folder: Path, words: list[str] | None = None, **options: Any) -> Path:
    """A random Gemma 3 whose sizes suit bitsandbytes' blocks, with a tokenizer of whole words, in ``folder``."""
    words = WORDS if words is None else words
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", padding_side="left"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **{
            "vocab_size": len(words),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 2,
            **options,
        }
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def items(count: int = 6) -> pl.DataFrame:
    titles = [f"{('blue', 'red')[n % 2]} film {n}" for n in range(count)]
    return pl.DataFrame({"item": range(count), "raw_id": [str(n) for n in range(count)], "title": titles})


def test_what_the_backbone_reads_is_the_text_as_written(tmp_path: Path) -> None:
    backbone = load(str(write_decoder(tmp_path)))
    prompt = PromptAssembler(backbone.tokenizer, items(), form="list")
    config = listwise_verbalizer.Config(size=3)
    listwise_verbalizer.check(config, backbone.model, prompt, backbone.tokenizer)
    given = listwise_verbalizer.prepare(config, backbone, prompt, pl.DataFrame(), np.empty(0))
    made = listwise_verbalizer.build(backbone.model, config, num_items=6, hidden_size=64, loss=Seen(), **given).eval()
    weight = Gemma3ForCausalLM.from_pretrained(tmp_path).lm_head.weight
    letters = [WORDS.index(letter) for letter in "ABC"]
    assert torch.equal(given["letter_rows"], weight[letters])
    made.encode_catalogue(ItemBatch(torch.arange(6), bucket([prompt.item(n) for n in range(6)], 0, 64)))
    texts: list[str] = []

    def take(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
        texts.append(backbone.tokenizer.decode(options["input_ids"][0], skip_special_tokens=True))

    backbone.model.register_forward_pre_hook(take, with_kwargs=True)
    users = UserBatch(torch.tensor([9]), bucket([prompt.user([1, 4])], 0, 64), NOWHERE, NOWHERE)
    with torch.no_grad():
        made.score(users, torch.tensor([[3, 0, 5]]))
    first, second, third = (items()["title"][item] for item in dealt(9, [3, 0, 5]))
    written = (
        "Watched: red film 1; blue film 4; Which of these would this person like best? "
        f"A: {first} B: {second} C: {third} Answer:"
    )
    assert texts[0].replace(" ", "") == written.replace(" ", "")


def test_an_encoder_is_refused() -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    config, nothing = listwise_verbalizer.Config(), SimpleNamespace()
    with pytest.raises(RecpeftError, match=r"formulation\.name is listwise_verbalizer, which needs a decoder"):
        listwise_verbalizer.check(config, BertModel(BertConfig(vocab_size=10, **sizes)), nothing, nothing)  # type: ignore[arg-type]


def test_letters_that_the_tokenizer_does_not_tell_apart_are_refused(tmp_path: Path) -> None:
    without = [word for word in WORDS if word not in ("C", "D")]
    backbone = load(str(write_decoder(tmp_path, without)))
    prompt = PromptAssembler(backbone.tokenizer, items(), form="list")
    listwise_verbalizer.check(listwise_verbalizer.Config(size=3), backbone.model, prompt, backbone.tokenizer)
    with pytest.raises(RecpeftError, match=r"the letters are .* of which ' C' and ' D' begin with the same token"):
        listwise_verbalizer.check(listwise_verbalizer.Config(size=4), backbone.model, prompt, backbone.tokenizer)


@pytest.mark.parametrize("size", [1, 21])
def test_a_list_has_2_to_20_letters(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        listwise_verbalizer.Config(size=size)
    assert listwise_verbalizer.Config(size=20).max_candidates == len(listwise_verbalizer.LETTERS) == 20
