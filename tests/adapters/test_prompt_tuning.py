"""Prompt tuning: what the virtual tokens start from, and that the text behind them is still read right."""

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

from adapters import Adapter
from adapters.prompt_tuning import Config, check
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
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES | {"pad_token_id": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "modernbert": ("ModernBert", SIZES | {"layer_types": ["full_attention"] * 3}),
    "narrow_embeddings": ("Albert", SIZES | {"embedding_size": 16}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": ("Llama", SIZES | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", SIZES | {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma3": (
        "Gemma3Text",
        SIZES
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
}


def config_of(kind: str, sizes: dict[str, Any]) -> Any:
    common: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 128, "initializer_range": 0.3}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return getattr(transformers, f"{kind}Config")(**(common | special | sizes))


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config_of(*BACKBONES[name])).eval()
    if name == "mamba":  # its decay must stay in its range
        return model
    for parameter in model.parameters():  # norms and biases too, which would hide mistakes at 1 and 0
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else nn.init.normal_(parameter, mean=0.5, std=0.2)
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
    """Each text's own states, from one padded batch, read as modules read them: the last L."""
    batch = padded(texts)
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        rows = model(**batch).last_hidden_state
    assert rows.shape[1] == NUM + length
    return [row[-length:][: len(text)].float() for row, text in zip(rows, texts, strict=True)]


def behind_start(model: nn.Module, text: list[int]) -> Tensor:
    """The states of ``text`` where it stands behind ``START`` in the plain backbone."""
    with torch.no_grad():
        result: Tensor = model(input_ids=torch.tensor([START + text])).last_hidden_state[0, NUM:]
    return result.float()


def close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(ours, theirs, strict=True))


def weight_of(model: Any) -> nn.Parameter:
    weight = model.prompt_encoder["default"].embedding.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def randomised(model: Any) -> Any:
    with torch.no_grad():
        weight_of(model).normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_texts_start_as_if_they_stood_behind_init_text(name: str, attach: Callable[..., Any]) -> None:
    plain = tiny(name)
    expected = [behind_start(plain, text) for text in TEXTS]
    assert close(states(attach(tiny(name)), TEXTS), expected)


def test_a_gemmas_prompt_starts_at_scaled_embeddings(attach: Callable[..., Any]) -> None:
    backbone = tiny("gemma3")
    table = backbone.get_input_embeddings().weight.detach().clone()  # type: ignore[union-attr, operator]
    assert torch.allclose(weight_of(attach(backbone)), table[START] * 32**0.5, rtol=1e-6)


def test_the_start_opens_as_the_tokenizer_does_and_repeats_the_text(tokenizer: Any) -> None:
    adapter = Adapter(Config(num_virtual_tokens=NUM, init_text=TEXT))
    assert adapter.describe(adapter.attach(tiny("narrow_embeddings"), 10, tokenizer)) == {
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


@pytest.mark.parametrize("name", BACKBONES)
def test_the_prompt_alone_is_trained_and_the_text_is_embedded_by_the_backbone(
    name: str, attach: Callable[..., Any]
) -> None:
    backbone = tiny(name)
    backbone.register_parameter("of_the_root", nn.Parameter(torch.zeros(1)))  # PEFT fixes what is in children alone
    model = attach(backbone)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["prompt_encoder.default.embedding.weight"]
    assert model.word_embeddings is backbone.get_input_embeddings()


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "gemma3"])
def test_a_text_comes_out_the_same_whatever_its_padding_and_batch_mates(name: str, attach: Callable[..., Any]) -> None:
    model = randomised(attach(tiny(name)))
    together = states(model, TEXTS)
    assert close(together, [states(model, [text])[0] for text in TEXTS])


@pytest.mark.parametrize("kind", ["layers", "buckets"])
@pytest.mark.parametrize("name", ["bert", "gemma3"])
def test_checkpointing_gives_the_same_gradients(name: str, kind: str, attach: Callable[..., Any]) -> None:
    assert Config().refusal(width="none", max_steps=1, gradient_checkpointing=kind) is None

    def gradient(kind: str) -> Tensor:
        model = attach(tiny(name)).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if kind == "layers":
            enable_layer_checkpointing(model)
        batch = padded(TEXTS)

        def call(ids: Tensor, mask: Tensor) -> Tensor:
            result: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return result

        arguments = (batch["input_ids"], batch["attention_mask"])
        out = checkpoint(call, *arguments, use_reentrant=False) if kind == "buckets" else call(*arguments)
        assert isinstance(out, Tensor)
        (out**2).sum().backward()
        found = weight_of(model).grad
        assert found is not None
        return found

    plain = gradient("none")
    assert plain.abs().max() > 1e-3
    assert torch.allclose(gradient(kind), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gemma3"])
def test_in_bfloat16_the_prompt_stays_float32_and_learns(name: str, attach: Callable[..., Any]) -> None:
    expected = [behind_start(tiny(name), text) for text in TEXTS]
    model = attach(tiny(name).to(torch.bfloat16))
    assert weight_of(model).dtype == torch.float32
    for ours, theirs in zip(states(model, TEXTS), expected, strict=True):
        assert nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99
    model(**padded(TEXTS)).last_hidden_state.float().square().sum().backward()
    grad = weight_of(model).grad
    assert grad is not None
    assert grad.abs().amax(dim=-1).min() > 1e-6


@pytest.mark.parametrize("width", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["bert", "gemma3"])
def test_on_a_quantised_backbone_the_prompt_starts_at_its_embeddings_and_learns(
    name: str, width: Any, attach: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    tiny(name).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = attach(load(str(tmp_path), width=width).model)
    expected = [behind_start(load(str(tmp_path), width=width).model, text) for text in TEXTS]
    for ours, theirs in zip(states(model, TEXTS), expected, strict=True):
        assert nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99
    assert weight_of(model).dtype == torch.float32
    model.train()(**padded(TEXTS)).last_hidden_state.float().square().sum().backward()
    grad = weight_of(model).grad
    assert grad is not None
    assert grad.abs().amax(dim=-1).min() > 1e-6


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
    expected = {}
    for name in ("bert", "narrow_embeddings", "gemma3", "mamba"):
        folder = tmp_path / name
        backbone = tiny(name)
        backbone.save_pretrained(folder / "backbone")
        model = randomised(attach(backbone))
        model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        torch.save(padded(TEXTS), folder / "batch.pt")
        with torch.no_grad():
            expected[str(folder)] = model(**padded(TEXTS)).last_hidden_state[:, NUM:]
    subprocess.run([sys.executable, "-c", LOADS, *expected], check=True, capture_output=True)
    mask = padded(TEXTS)["attention_mask"].bool()
    for folder_name, here in expected.items():
        there = torch.load(f"{folder_name}/out.pt")[:, NUM:]
        assert torch.allclose(there[mask], here[mask], rtol=0, atol=1e-6)


# What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_accepted_without_its_weights(name: str) -> None:
    with torch.device("meta"):
        check(AutoModel.from_config(config_of(*BACKBONES[name])), Config())


def test_a_backbone_that_takes_no_embeddings_is_refused() -> None:
    class Tokens(transformers.BertModel):
        def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Any:  # type: ignore[override]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    with pytest.raises(RecpeftError, match="Tokens takes no embeddings in place of tokens"):
        check(Tokens(config_of("Bert", SIZES)), Config())


def test_a_backbone_that_reads_more_of_a_token_than_its_embedding_is_refused(attach: Callable[..., Any]) -> None:
    # Gemma 3n adds an embedding of the token to each layer, and leaves it out for embeddings without a word.
    sizes = SIZES | {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "activation_sparsity_pattern": [0.0] * 3,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
    }
    backbone = AutoModel.from_config(config_of("Gemma3nText", sizes))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    with pytest.raises(RecpeftError, match="Gemma3nTextModel reads more of a token than its embedding"):
        attach(backbone)


def test_a_backbone_whose_embeddings_peft_mistakes_is_refused(attach: Callable[..., Any]) -> None:
    backbone = AutoModel.from_config(config_of("GPT2", BACKBONES["gpt2"][1] | {"max_position_embeddings": VOCAB}))
    modules = backbone._modules
    modules["wte"] = modules.pop("wte")  # PEFT takes the first table with as many rows as the vocabulary: positions
    with pytest.raises(RecpeftError, match="PEFT takes another layer of GPT2Model"):
        attach(backbone)
