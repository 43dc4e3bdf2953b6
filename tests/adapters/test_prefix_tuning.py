"""Prefix tuning: where the prefix goes, what it starts from, and which backbones would not notice it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from adapters import Adapter, lora, prefix_tuning
from adapters.prefix_tuning import Config, check
from lightning_modules import load
from lightning_modules._backbone import enable_layer_checkpointing
from recpeft.errors import RecpeftError

VOCAB = 130
TEXT = "red blue film watched 7"
START = [2, 8, 9, 10, 11, 19, 8]
"""TEXT for 7 virtual tokens, by hand: [CLS], the five words, and the first word again."""
NUM = len(START)
TEXTS = [[2, 20, 30, 40, 3], [2, 21, 3], [2, *range(60, 80), 3]]

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "pad_token_id": None}
GEMMA = SIZES | {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "llama": ("Llama", SIZES),
    "grouped": ("Llama", SIZES | {"num_key_value_heads": 2}),
    "multi_query": ("GPTBigCode", GPT),
    "wide_heads": ("Qwen3", SIZES | {"num_key_value_heads": 2, "head_dim": 16}),
    "window": ("Mistral", SIZES | {"num_key_value_heads": 2, "sliding_window": 10}),
    "gemma3": ("Gemma3Text", GEMMA | {"sliding_window": 10}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES | {"pad_token_id": 1}),
    "embeddinggemma": ("Gemma3Text", GEMMA | {"sliding_window": 100, "use_bidirectional_attention": True}),
}


def config_of(kind: str, sizes: dict[str, Any]) -> Any:
    common: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 128, "initializer_range": 0.3}
    name = {"Gemma3Text": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    return getattr(transformers, name)(**(common | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3} | sizes))


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config_of(*(CAUSAL | ENCODERS)[name])).eval()
    for parameter in model.parameters():  # norms and biases too, which would hide mistakes at 1 and 0
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model


def skeleton(config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config)
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture(scope="module")
def attach(tokenizer: Any) -> Callable[..., Any]:
    def attach(backbone: nn.Module, **options: Any) -> Any:
        torch.manual_seed(1)
        config = Config(**({"num_virtual_tokens": NUM, "init_text": TEXT} | options))
        return Adapter(config).attach(backbone, 10, tokenizer).eval()

    return attach


def padded(texts: list[list[int]]) -> dict[str, Tensor]:
    length = max(len(text) for text in texts)
    ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def states(model: nn.Module, texts: list[list[int]]) -> list[Tensor]:
    """Each text's own states, from one padded batch."""
    with torch.no_grad():
        rows = model(**padded(texts)).last_hidden_state
    assert rows.shape[1] == max(len(text) for text in texts)
    return [row[: len(text)].float() for row, text in zip(rows, texts, strict=True)]


def behind_start(model: nn.Module, text: list[int], **mask: Any) -> Tensor:
    """The states of ``text`` where it stands behind ``START`` in the plain backbone."""
    with torch.no_grad():
        result: Tensor = model(input_ids=torch.tensor([START + text]), **mask).last_hidden_state[0, NUM:]
    return result.float()


def randomised(model: Any) -> Any:
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_(generator=torch.Generator().manual_seed(2))
    return model


def close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(ours, theirs, strict=True))


def same_directions(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether states agree but for rounding to half precision."""
    pairs = zip(ours, theirs, strict=True)
    return all(nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.99 for a, b in pairs)


# Where it starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_in_a_causal_backbone_texts_start_as_if_they_stood_behind_init_text(
    name: str, projection: bool, attach: Callable[..., Any]
) -> None:
    plain = tiny(name)
    expected = [behind_start(plain, text) for text in TEXTS]
    model = attach(tiny(name), projection=projection, projection_dim=24)
    assert close(states(model, TEXTS), expected)
    assert not close(states(plain, TEXTS), expected, atol=1e-2)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_in_an_encoder_texts_start_seeing_an_init_text_that_does_not_see_them(
    name: str, projection: bool, attach: Callable[..., Any]
) -> None:
    plain = tiny(name)
    expected = []
    for text in TEXTS:
        length = NUM + len(text)
        sees = torch.ones(1, 1, length, length, dtype=torch.bool)
        sees[..., :NUM, NUM:] = False
        gemma = {"full_attention": sees, "sliding_attention": sees}
        expected.append(behind_start(plain, text, attention_mask=gemma if name == "embeddinggemma" else sees))
    model = attach(tiny(name), projection=projection, projection_dim=24)
    assert close(states(model, TEXTS), expected)
    assert not close(states(plain, TEXTS), expected, atol=1e-2)


def test_a_prefix_changes_attention_as_worked_by_hand(attach: Callable[..., Any]) -> None:
    model = randomised(attach(tiny("bert"), init_text=None))
    layer = model.base_model.encoder.layer[0].attention.self
    seen: list[Any] = []
    layer.register_forward_hook(lambda _, args, output: seen.append((args[0], output[0])))
    states(model, [TEXTS[0]])
    inputs, output = seen[0]  # (1, L, 32), (1, L, 32)
    # (layer, key or value, head, virtual token, head_dim): PEFT lays out each virtual token's row as 2 * layers, heads
    prefix = model.prompt_encoder["default"].embedding.weight.reshape(NUM, 3, 2, 4, 8).permute(1, 2, 3, 0, 4)
    by_hand = []
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        query, key, value = (
            inputs[0] @ linear.weight[rows].T + linear.bias[rows] for linear in (layer.query, layer.key, layer.value)
        )
        key, value = torch.cat([prefix[0, 0, head], key]), torch.cat([prefix[0, 1, head], value])
        by_hand.append((query @ key.T / 8**0.5).softmax(-1) @ value)
    assert torch.allclose(output[0], torch.cat(by_hand, dim=-1), rtol=0, atol=1e-5)


def test_the_start_opens_as_the_tokenizer_does_and_repeats_the_text(tokenizer: Any) -> None:
    adapter = Adapter(Config(num_virtual_tokens=NUM, init_text=TEXT))
    model = adapter.attach(tiny("grouped"), 10, tokenizer)
    assert adapter.describe(model) == {
        "num_layers": 3,
        "num_key_value_heads": 2,
        "token_dim": 16,
        "init_tokens": ["[CLS]", "red", "blue", "film", "watched", "7", "red"],
    }
    cut = Adapter(Config(num_virtual_tokens=3, init_text=TEXT))
    assert cut.describe(cut.attach(tiny("bert"), 10, tokenizer))["init_tokens"] == ["[CLS]", "red", "blue"]


def test_a_random_start_needs_no_tokenizer_and_a_text_does() -> None:
    adapter = Adapter(Config(init_text=None))
    assert adapter.describe(adapter.attach(tiny("bert"), 10))["init_tokens"] is None
    with pytest.raises(RecpeftError, match=r"adapter\.init_text needs the backbone's tokenizer.*init_text: null"):
        Adapter(Config()).attach(tiny("bert"), 10)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_init_text_without_tokens_is_said_so(text: str, attach: Callable[..., Any]) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.init_text is .* leaves nothing"):
        attach(tiny("bert"), init_text=text)


def test_attaching_leaves_the_backbones_modes_and_weights_and_draws_no_dropout(
    attach: Callable[..., Any], tokenizer: Any
) -> None:
    expected = attach(tiny("bert")).prompt_encoder["default"].embedding.weight
    backbone = tiny("bert").train()
    backbone.pooler.eval()  # type: ignore[operator, union-attr]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = {name: module.training for name, module in backbone.named_modules()}
    model = Adapter(Config(num_virtual_tokens=NUM, init_text=TEXT)).attach(backbone, 10, tokenizer)
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(model.get_submodule("prompt_encoder.default.embedding").weight, expected)


@pytest.mark.parametrize("projection", [False, True])
def test_the_prefix_alone_is_trained(projection: bool, attach: Callable[..., Any]) -> None:
    backbone = tiny("bert")
    backbone.register_parameter("of_the_root", nn.Parameter(torch.zeros(1)))  # PEFT fixes what is in children alone
    model = attach(backbone, projection=projection)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("prompt_encoder.")}
    assert len(trained) == (5 if projection else 1)


# Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "roberta", "embeddinggemma", "grouped", "gemma3", "gpt2"])
def test_a_text_comes_out_the_same_whatever_its_padding_and_batch_mates(name: str, attach: Callable[..., Any]) -> None:
    model = randomised(attach(tiny(name)))
    together = states(model, TEXTS)
    assert close(together, [states(model, [text])[0] for text in TEXTS])


def test_no_state_is_carried_from_call_to_call(attach: Callable[..., Any]) -> None:
    model = attach(tiny("gemma3"))
    first, other, again = states(model, TEXTS), states(model, TEXTS[:1]), states(model, TEXTS)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert close(other, first[:1])


# Memory saving and precision ---------------------------------------------------------------------------


def test_layer_checkpointing_is_refused_with_a_remedy(attach: Callable[..., Any]) -> None:
    def refusal(kind: str) -> str | None:
        return Config().refusal(width="none", max_steps=1, gradient_checkpointing=kind)

    said = refusal("layers")
    assert said is not None
    assert "gradient_checkpointing: buckets or none" in said
    assert refusal("none") is None
    assert refusal("buckets") is None
    # in a notebook nobody asks refusal, and checkpointed layers would drop the prefix without a word
    with pytest.raises(RecpeftError, match="use buckets"):
        enable_layer_checkpointing(attach(tiny("bert")))


@pytest.mark.parametrize("name", ["bert", "gemma3"])
def test_recomputing_whole_calls_gives_the_same_gradients(name: str, attach: Callable[..., Any]) -> None:
    def gradient(recompute: bool) -> Tensor:
        model = attach(tiny(name)).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batch = padded(TEXTS)

        def call(ids: Tensor, mask: Tensor) -> Tensor:
            result: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return result

        arguments = (batch["input_ids"], batch["attention_mask"])
        out = checkpoint(call, *arguments, use_reentrant=False) if recompute else call(*arguments)
        assert isinstance(out, Tensor)
        (out**2).sum().backward()
        found = model.prompt_encoder["default"].embedding.weight.grad
        assert isinstance(found, Tensor)
        return found

    plain = gradient(recompute=False)
    assert plain.abs().max() > 1e-3
    assert torch.allclose(gradient(recompute=True), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", ["bert", "grouped", "gemma3"])
def test_in_bfloat16_the_prefix_stays_float32_and_learns(
    name: str, projection: bool, attach: Callable[..., Any]
) -> None:
    plain = tiny(name)
    model = attach(tiny(name).to(torch.bfloat16), projection=projection)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    if name != "bert":
        assert same_directions(states(model, TEXTS), [behind_start(plain, text) for text in TEXTS])
    model(**padded(TEXTS)).last_hidden_state.float().square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in trained)


@pytest.mark.parametrize("name", ["bert", "grouped"])
def test_mixed_precision_moves_the_outputs_by_rounding_alone(name: str, attach: Callable[..., Any]) -> None:
    model = attach(tiny(name))
    expected = states(model, TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_directions(states(model, TEXTS), expected)


@pytest.mark.parametrize("width", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["bert", "wide_heads", "gemma3"])
def test_on_a_quantised_backbone_the_prefix_starts_at_its_key_values_and_learns(
    name: str, width: Any, attach: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    tiny(name).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = attach(load(str(tmp_path), width=width).model)
    if name != "bert":
        expected = [behind_start(load(str(tmp_path), width=width).model, text) for text in TEXTS]
        found = states(model, TEXTS)
        # bitsandbytes' int8 product is in half precision
        assert same_directions(found, expected) if width == "int8" else close(found, expected, atol=1e-4)
    weight = model.prompt_encoder["default"].embedding.weight
    assert weight.dtype == torch.float32
    model.train()(**padded(TEXTS)).last_hidden_state.float().square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.reshape(NUM, 3, 2, -1).abs().amax(dim=(0, 3)).min() > 1e-6  # every layer's keys and values


# Saved and loaded --------------------------------------------------------------------------------------

LOADS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModel
for folder in sys.argv[1:]:
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(f"{folder}/backbone"), f"{folder}/adapter").eval()
    with torch.no_grad():
        torch.save(model(**torch.load(f"{folder}/batch.pt")).last_hidden_state, f"{folder}/out.pt")
"""


def test_peft_alone_loads_what_was_saved(attach: Callable[..., Any], tmp_path: Path) -> None:
    cases = [("bert", False), ("bert", True), ("wide_heads", True), ("gemma3", False)]
    expected = []
    for number, (name, projection) in enumerate(cases):
        folder = tmp_path / str(number)
        backbone = tiny(name)
        backbone.save_pretrained(folder / "backbone")
        model = randomised(attach(backbone, projection=projection))
        model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        torch.save(padded(TEXTS), folder / "batch.pt")
        with torch.no_grad():
            expected.append(model(**padded(TEXTS)).last_hidden_state)
    folders = [str(tmp_path / str(number)) for number in range(len(cases))]
    subprocess.run([sys.executable, "-c", LOADS, *folders], check=True, capture_output=True)
    for folder_name, states_here in zip(folders, expected, strict=True):
        mask = padded(TEXTS)["attention_mask"].bool()
        there = torch.load(f"{folder_name}/out.pt")
        assert torch.allclose(there[mask], states_here[mask], rtol=0, atol=1e-6)


# What is refused ---------------------------------------------------------------------------------------

UNREAD = {
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "ModernBert": SIZES | {"layer_types": ["full_attention"] * 3},
    "MPNet": SIZES,
    "Albert": SIZES | {"embedding_size": 16},
    "DebertaV2": SIZES,
    "NomicBert": SIZES,
    "EuroBert": SIZES,
    "OpenAIGPT": GPT,
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
}
OTHER_CACHES = {
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention", "conv"]},
    "Qwen3Next": SIZES | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "RecurrentGemma": SIZES | {"head_dim": 8},
    "Youtu": SIZES | {"n_routed_experts": None},
    "Gemma4Text": SIZES
    | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "num_key_value_heads": 2},
    "Gemma3nText": SIZES
    | {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 1,
        "num_key_value_heads": 2,
        "activation_sparsity_pattern": [0.0] * 3,
    },
}


@pytest.mark.parametrize("kind", UNREAD)
def test_a_backbone_that_would_not_notice_the_prefix_is_refused(kind: str) -> None:
    with pytest.raises(RecpeftError, match=rf"prefix_tuning but {kind}\w* takes no .* no effect; use prompt_tuning"):
        check(skeleton(config_of(kind, UNREAD[kind])), Config())


@pytest.mark.parametrize("kind", OTHER_CACHES)
def test_a_backbone_whose_past_is_not_keys_and_values_of_one_shape_is_refused(kind: str) -> None:
    name = {"Gemma4Text": "Gemma4Text", "Gemma3nText": "Gemma3nText"}.get(kind, kind)
    with pytest.raises(RecpeftError, match=rf"prefix_tuning but .*{name}Model.*; use prompt_tuning or another"):
        check(skeleton(config_of(name, OTHER_CACHES[kind])), Config())


def test_a_backbone_that_takes_keys_and_values_and_does_not_read_them_is_refused() -> None:
    class Deaf(transformers.DistilBertModel):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None) -> Any:  # type: ignore[override]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    backbone = Deaf(config_of("DistilBert", UNREAD["DistilBert"]))
    for deaf in (backbone, backbone.to("meta")):
        with pytest.raises(RecpeftError, match="of Deaf's 2 layers 0 keep keys and values"):
            check(deaf, Config())


def test_a_backbone_that_fails_on_a_cache_is_refused() -> None:
    class Failing(transformers.BertModel):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None) -> Any:  # type: ignore[override]
            raise RuntimeError("not this kind")

    with pytest.raises(RecpeftError, match=r"Failing cannot read its past .*\(RuntimeError: not this kind\)"):
        check(Failing(config_of("Bert", SIZES)), Config())


@pytest.mark.parametrize(
    ("name", "heads", "head_dim"),
    [
        ("gpt2", 4, 8),
        ("llama", 4, 8),
        ("grouped", 2, 8),
        ("multi_query", 1, 8),
        ("wide_heads", 2, 16),
        ("window", 2, 8),
        ("gemma3", 2, 16),
        ("bert", 4, 8),
        ("roberta", 4, 8),
        ("embeddinggemma", 2, 16),
    ],
)
def test_a_backbone_shows_its_keys_and_values_without_its_weights(name: str, heads: int, head_dim: int) -> None:
    backbone = skeleton(config_of(*(CAUSAL | ENCODERS)[name]))
    config = Config(num_virtual_tokens=NUM)
    check(backbone, config)
    assert prefix_tuning._checked(backbone, config) == (3, heads, head_dim)


@pytest.mark.parametrize("name", ["window", "gemma3"])
def test_a_prefix_longer_than_a_window_sees_is_refused(name: str, attach: Callable[..., Any]) -> None:
    backbone = skeleton(config_of(*CAUSAL[name]))
    with pytest.raises(RecpeftError, match=r"num_virtual_tokens is 10 but .* sees 10 tokens.* to 9 or fewer"):
        check(backbone, Config(num_virtual_tokens=10))
    # At 9 every virtual token is still seen by the first of the text's.
    model = randomised(attach(tiny(name), num_virtual_tokens=9))
    model(**padded([[2]])).last_hidden_state.square().sum().backward()
    touched = model.prompt_encoder["default"].embedding.weight.grad.reshape(9, 3, -1).abs().amax(dim=-1)
    assert touched.min() > 0


def test_a_mixture_of_experts_is_left_to_attach(attach: Callable[..., Any]) -> None:
    config = config_of("Mixtral", SIZES | {"num_key_value_heads": 2, "num_local_experts": 2})
    check(skeleton(config), Config())  # no kernel for experts on the meta device
    torch.manual_seed(0)
    plain = AutoModel.from_config(config).eval()
    expected = [behind_start(plain, text) for text in TEXTS]
    assert close(states(attach(plain), TEXTS), expected)


def test_too_narrow_a_projection_is_refused_where_it_must_start_from_a_text() -> None:
    with pytest.raises(ValueError, match=r"projection_dim is 8 but num_virtual_tokens is 20.*raise projection_dim"):
        Config(projection=True, projection_dim=8)
    Config(projection=True, projection_dim=20)
    Config(projection=True, projection_dim=8, init_text=None)
    Config(projection=False, projection_dim=8)


def test_virtual_tokens_take_positions() -> None:
    assert Config().positions() == 20
    assert Config(num_virtual_tokens=5).positions() == 5
    assert lora.Config().positions() == 0
