"""PEFT's other methods by name: every type of the installed PEFT works, or is refused with the reason."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from peft import PeftModel
from peft.utils import PeftType
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)

from adapters import peft_method
from adapters._adapter import mergeable_methods
from experiments.config.run import build_run
from lightning_modules import load
from lightning_modules._backbone import skeleton
from recpeft.errors import RecpeftError

TYPES = sorted(str(kind.value).lower() for kind in PeftType)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "adamss": {"r": 16},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "beft": {},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 32},
    "deft": {"r": 4},
    "delora": {"r": 4},
    "fourierft": {"n_frequency": 100},
    "frod": {"progressbar": False},
    "glora": {"r": 4},
    "gralora": {"r": 8},
    "hira": {"r": 4},
    "hra": {"r": 4},
    "ia3": {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "lily": {"r": 4},
    "ln_tuning": {"target_modules": ["LayerNorm"]},
    "loha": {"r": 4},
    "lokr": {"r": 4},
    "lora": {"r": 4},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 16},
    "osf": {"effective_rank": 8},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "peanut": {"r": 4},
    "psoft": {"r": 8},
    "pvera": {"r": 8},
    "randlora": {"r": 8},
    "road": {},
    "shadow": {},
    "shira": {"r": 4},
    "supertuning": {},
    "tinylora": {},
    "trainable_tokens": {"token_indices": [2, 3]},
    "unilora": {},
    "vblora": {"vector_length": 32},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 100},
}
"""Every type that works, with arguments that fit a small backbone."""
DECODERS = {"adaption_prompt", "shadow"}
"""Those that PEFT has for decoders alone."""
WORKS_QUANTISED = sorted(ARGUMENTS.keys() - peft_method._NEEDS_UNQUANTISED)
IDS = torch.tensor([[2, 10, 8, 3, 0], [2, 11, 9, 10, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
TARGET = torch.randn((2, 5, 64), generator=torch.Generator().manual_seed(0))


def config_of(kind: str, **arguments: Any) -> peft_method.Config:
    return peft_method.Config(peft_type=kind, arguments=ARGUMENTS.get(kind, {}) | arguments)


def states(model: nn.Module) -> Tensor:
    result: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return result[:, -IDS.shape[1] :]


def learn(model: nn.Module, steps: int = 3) -> list[float]:
    """Losses of steps towards random states."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((states(model) - TARGET) ** 2).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def bert(tiny_backbone: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_backbone).eval()


@pytest.fixture(scope="module")
def tiny_llama(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer LLaMA with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    for file in tiny_backbone.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=122,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        initializer_range=0.1,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny_llama).eval()


# Every type --------------------------------------------------------------------------------------------


def test_every_type_of_the_installed_peft_works_or_is_refused() -> None:
    assert ARGUMENTS.keys().isdisjoint(peft_method._REFUSED)
    assert sorted(ARGUMENTS.keys() | peft_method._REFUSED.keys()) == TYPES
    assert ARGUMENTS.keys() >= peft_method._NEEDS_UNQUANTISED | peft_method._OWN_TARGETS
    assert peft_method._NEEDS_UNPACKED <= peft_method._NEEDS_UNQUANTISED


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_type_learns_is_saved_and_resumed_and_merged(
    kind: str, bert: nn.Module, llama: nn.Module, tmp_path: Path
) -> None:
    plain = llama if kind in DECODERS else bert
    config = config_of(kind)
    torch.manual_seed(0)
    backbone = copy.deepcopy(plain)
    weights = list(backbone.parameters())
    model = peft_method.attach(backbone, config, 10).eval()
    assert isinstance(model, PeftModel)
    assert not any(weight.requires_grad for weight in weights)
    losses = learn(model)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        learnt = states(model)
        assert not torch.allclose(learnt, states(plain), atol=1e-4)

        model.save_pretrained(str(tmp_path), save_embedding_layers=False)
        torch.manual_seed(1)
        saved = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).eval()
        assert torch.allclose(states(saved), learnt, rtol=0, atol=1e-5)

        # As a resumed run does: the run's seed, and what is trained out of the checkpoint.
        torch.manual_seed(0)
        resumed = peft_method.attach(copy.deepcopy(plain), config, 10).eval()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {name for name, p in resumed.named_parameters() if p.requires_grad} == trained.keys()
        resumed.load_state_dict(trained, strict=False)
        assert torch.equal(states(resumed), learnt)

        if not config.can_merge:
            with pytest.raises((AttributeError, NotImplementedError)):
                model.merge_and_unload()
        else:
            assert torch.allclose(states(model.merge_and_unload().eval()), learnt, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_a_start_that_changes_the_backbone_changes_it_alike_when_loaded(
    start: str, bert: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = peft_method.attach(copy.deepcopy(bert), config_of("lora", init_lora_weights=start), 10).eval()
    learn(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    torch.manual_seed(1)
    saved = PeftModel.from_pretrained(copy.deepcopy(bert), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.allclose(states(saved), states(model), rtol=0, atol=1e-5)


def test_a_start_that_changes_the_backbone_at_random_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"init_lora_weights is pissa_niter_4, which changes .* use pissa"):
        config_of("lora", init_lora_weights="pissa_niter_4")


def test_frequencies_without_a_seed_are_refused() -> None:
    with pytest.raises(ValidationError, match="random_loc_seed is null, which draws no frequencies; give a whole"):
        config_of("fourierft", random_loc_seed=None)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_no_type_that_works_is_refused_on_a_backbone_without_weights(
    kind: str, tiny_backbone: Path, tiny_llama: Path
) -> None:
    bare = skeleton(str(tiny_llama if kind in DECODERS else tiny_backbone))
    names = [name for name, _ in bare.named_modules()]
    peft_method.check(bare, config_of(kind))
    assert [name for name, _ in bare.named_modules()] == names  # untouched


@pytest.mark.parametrize("kind", peft_method._REFUSED)
def test_a_type_that_cannot_work_is_refused_with_reason_and_remedy(kind: str) -> None:
    with pytest.raises(ValidationError, match=rf"peft_type is {kind}, which .*; use "):
        peft_method.Config(peft_type=kind.upper())


# Quantised weights -------------------------------------------------------------------------------------


def dequantised(quantised: nn.Module, folder: Path) -> nn.Module:
    """The backbone in float32 with the quantised one's values."""
    plain: nn.Module = AutoModel.from_pretrained(folder).eval()
    for name, module in quantised.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            value = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            value = weight.data.float() * weight.SCB[:, None] / 127
        else:
            continue
        plain.get_submodule(name).weight.data.copy_(value)  # type: ignore[operator, union-attr]
    return plain


@pytest.fixture(scope="module")
def pairs(tiny_backbone: Path, tiny_llama: Path) -> Any:
    """(decoder?, width) -> the quantised backbone and the one of its values."""

    @functools.cache
    def pair(decoder: bool, width: Any) -> tuple[nn.Module, nn.Module]:
        folder = tiny_llama if decoder else tiny_backbone
        backbone = load(str(folder), width=width).model.eval()
        return backbone, dequantised(backbone, folder)

    return pair


@pytest.mark.parametrize("width", ["nf4", "int8"])
@pytest.mark.parametrize("kind", WORKS_QUANTISED)
def test_a_type_computes_on_quantised_weights_what_it_computes_on_their_values(
    kind: str, width: str, pairs: Any
) -> None:
    found = []
    for one in pairs(kind in DECODERS, width):
        torch.manual_seed(0)
        model = peft_method.attach(copy.deepcopy(one), config_of(kind), 10).eval()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            ((states(model) - TARGET) ** 2).mean().backward()
            optimizer.step()
        found.append(states(model).detach())
    # int8 rounds activations too; a type that reads codes for values is off by 4 and more
    assert torch.allclose(*found, rtol=0, atol=1e-5 if width == "nf4" else 0.2)


@pytest.mark.parametrize("width", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("kind", sorted(peft_method._NEEDS_UNQUANTISED))
def test_a_type_that_needs_values_is_refused_on_quantised_weights(kind: str, width: str) -> None:
    refusal = config_of(kind).refusal(width=width, max_steps=9, gradient_checkpointing="none")
    if width == "int8" and kind in ("loha", "lokr"):
        assert refusal is None
    else:
        assert f"adapter.peft_type {kind} does not work on weights quantised to {width}; use" in str(refusal)
    assert config_of(kind).refusal(width="none", max_steps=9, gradient_checkpointing="none") is None


@pytest.mark.parametrize(("kind", "width"), [("peanut", "int8"), ("hra", "int8"), ("loha", "nf4")])
def test_it_is_refused_without_a_run_too(kind: str, width: Any, tiny_backbone: Path) -> None:
    with pytest.raises(RecpeftError, match=r"does not work on weights quantised to .*; use backbone\.width: none"):
        peft_method.attach(load(str(tiny_backbone), width=width).model, config_of(kind), 10)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_lycoris_types_learn_on_int8(kind: str, tiny_backbone: Path) -> None:
    losses = learn(peft_method.attach(load(str(tiny_backbone), width="int8").model.eval(), config_of(kind), 10))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["ln_tuning", "adaption_prompt", "shadow"])
def test_a_type_that_would_train_half_precision_weights_is_refused(
    kind: str, tiny_backbone: Path, tiny_llama: Path
) -> None:
    folder = tiny_llama if kind in DECODERS else tiny_backbone
    half = load(str(folder), compute_dtype="bfloat16").model
    with pytest.raises(RecpeftError, match=r"trains weights in torch\.bfloat16.* use backbone\.compute_dtype: float32"):
        peft_method.attach(half, config_of(kind), 10)


# Architectures -----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GATED: dict[str, Any] = SMALL | SPECIAL | {"num_key_value_heads": 2, "intermediate_size": 96}
FAMILIES: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(**SMALL, intermediate_size=96)),
    "gpt2": lambda: GPT2Model(GPT2Config(**SMALL, **SPECIAL)),
    "llama": lambda: LlamaModel(LlamaConfig(**GATED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**GATED, head_dim=16)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**GATED, head_dim=16)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["vblora", "loha", "p_tuning"])
def test_every_architecture_learns_or_says_why_not(kind: str, family: str) -> None:
    torch.manual_seed(0)
    backbone = FAMILIES[family]().eval()
    config = config_of(kind)
    if (kind, family) == ("loha", "gpt2"):  # PEFT's LoHa has no Conv1D
        with pytest.raises(RecpeftError, match=r"PEFT refuses adapter\.peft_type loha .* on GPT2Model: .*Conv1D"):
            peft_method.attach(backbone, config, 10)
        with torch.device("meta"), pytest.raises(RecpeftError, match="PEFT refuses"):
            peft_method.check(FAMILIES[family](), config)
        return
    model = peft_method.attach(backbone, config, 10).eval()
    losses = learn(model)
    assert losses[-1] < losses[0]
    if kind != "p_tuning":
        per_layer = {"bert": 6, "gpt2": 4}.get(family, 7)
        assert len(peft_method.describe(model, config)["target_modules"]) == 2 * per_layer


def test_embeddings_that_peft_mistakes_are_refused() -> None:
    # PEFT takes the first table with as many rows as the vocabulary: here, positions.
    backbone = GPT2Model(GPT2Config(**SMALL, **SPECIAL, max_position_embeddings=16))
    modules = backbone._modules
    modules["wte"] = modules.pop("wte")
    with pytest.raises(RecpeftError, match="PEFT takes another layer of GPT2Model for its token embeddings"):
        peft_method.attach(backbone, config_of("p_tuning"), 10)


def test_virtual_tokens_are_as_wide_as_embeddings_where_these_are_narrower_than_layers() -> None:
    torch.manual_seed(0)
    albert = AlbertModel(AlbertConfig(**SMALL, embedding_size=8, intermediate_size=96)).eval()
    losses = learn(peft_method.attach(albert, config_of("p_tuning"), 10).eval())
    assert losses[-1] < losses[0]


def test_nothing_to_train_is_refused() -> None:
    # PEFT's OSF passes over GPT-2's layers without a word.
    with pytest.raises(RecpeftError, match="osf with these arguments finds nothing to train in GPT2Model"):
        peft_method.attach(FAMILIES["gpt2"](), config_of("osf"), 10)


def test_what_peft_does_not_implement_is_a_sentence() -> None:
    with pytest.raises(
        RecpeftError, match=r"PEFT refuses adapter\.peft_type lily .* on GPT2Model: Lily does not support"
    ):
        peft_method.attach(FAMILIES["gpt2"](), config_of("lily"), 10)


def test_a_decoders_method_is_refused_on_an_encoder(tiny_backbone: Path) -> None:
    with pytest.raises(RecpeftError, match="Unsupported model type for adaption prompt: 'bert'; change"):
        peft_method.check(skeleton(str(tiny_backbone)), config_of("adaption_prompt"))


# Arguments ---------------------------------------------------------------------------------------------


def test_target_modules_are_as_for_lora(bert: nn.Module) -> None:
    def adapted(config: peft_method.Config) -> list[str]:
        return peft_method.describe(peft_method.attach(copy.deepcopy(bert), config, 1), config)["target_modules"]

    every = [
        f"encoder.layer.{n}.{part}"
        for n in range(2)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ]
    assert adapted(config_of("loha")) == every  # without the pooler
    assert adapted(config_of("loha", target_modules="all-linear")) == every
    assert adapted(config_of("loha", target_modules="attention")) == [name for name in every if ".attention." in name]
    assert adapted(config_of("loha", target_modules=["query"])) == [name for name in every if name.endswith("query")]
    last = peft_method.Config(peft_type="loha", arguments={"target_modules": ["query"]}, last_layers=1)
    assert adapted(last) == ["encoder.layer.1.attention.self.query"]


def test_ia3s_feed_forward_layers_are_found_among_its_targets(bert: nn.Module) -> None:
    model = peft_method.attach(copy.deepcopy(bert), config_of("ia3"), 1)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    # a row scales inputs, a column outputs; "output.dense" is attention's end too
    assert sum(shape in ((1, 64), (1, 128)) for shape in shapes.values()) == 4
    assert sum(shape == (64, 1) for shape in shapes.values()) == 4


def test_the_poolers_bias_is_not_trained(bert: nn.Module) -> None:
    model = peft_method.attach(copy.deepcopy(bert), config_of("lora", bias="all"), 1)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")]
    assert len(trained) == 1 + 2 * 8  # 6 linear layers and 2 norms a layer, and the embeddings' norm
    assert not [name for name in trained if "pooler" in name]


def test_an_unknown_type_is_answered_with_those_there_are(bert: nn.Module) -> None:
    with pytest.raises(
        RecpeftError, match=r"peft_type is 'lohan', which PEFT .* choose one of adamss, .*, loha, lokr,"
    ):
        peft_method.check(bert, peft_method.Config(peft_type="LoHaN"))


def test_an_unknown_argument_is_answered_with_those_there_are(bert: nn.Module) -> None:
    with pytest.raises(
        RecpeftError, match=r"adapter\.arguments has rank, which loha does not take .*takes alpha,.* r,"
    ):
        peft_method.check(bert, config_of("loha", rank=8))


@pytest.mark.parametrize("name", ["inference_mode", "task_type", "peft_type", "base_model_name_or_path"])
def test_what_is_no_matter_of_the_method_is_no_argument(bert: nn.Module, name: str) -> None:
    with pytest.raises(RecpeftError, match=rf"adapter\.arguments has {name}"):
        peft_method.check(bert, config_of("loha", **{name: True}))


def test_layers_to_transform_which_peft_would_pass_over_is_refused(bert: nn.Module) -> None:
    with pytest.raises(RecpeftError, match=r"has layers_to_transform, .*; adapter\.last_layers chooses layers"):
        peft_method.check(bert, config_of("loha", layers_to_transform=[1]))


def test_values_that_peft_refuses_are_a_sentence(bert: nn.Module) -> None:
    with pytest.raises(RecpeftError, match=r"PEFT refuses adapter\.peft_type loha .*`r` should be a positive integer"):
        peft_method.attach(copy.deepcopy(bert), config_of("loha", r=0), 1)
    with pytest.raises(RecpeftError, match=r"PEFT refuses adapter\.peft_type shira"):
        peft_method.attach(copy.deepcopy(bert), config_of("shira", r=1000), 1)


@pytest.mark.parametrize("wanted", [3, [1], {"a": 1}])
def test_target_modules_that_are_no_names_are_refused(bert: nn.Module, wanted: Any) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.arguments\.target_modules is .*give all-linear, attention or a"):
        peft_method.check(bert, config_of("loha", target_modules=wanted))


def test_target_modules_that_match_nothing_list_the_names(bert: nn.Module) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.arguments\.target_modules is .* it has dense, key, query, value"):
        peft_method.check(bert, config_of("loha", target_modules=["q_proj"]))


def test_an_allocation_that_nobody_would_call_is_refused(bert: nn.Module) -> None:
    with pytest.raises(RecpeftError, match=r"adapter\.arguments\.use_asa needs a call after each step"):
        peft_method.check(bert, config_of("adamss", use_asa=True))


def test_methods_that_can_be_merged_are_said_so() -> None:
    assert "peft_method" in mergeable_methods()
    assert {kind for kind in ARGUMENTS if not config_of(kind).can_merge} == {
        "adaption_prompt",
        "lily",
        "p_tuning",
        "shadow",
    }


def test_virtual_tokens_are_counted() -> None:
    assert config_of("p_tuning").positions() == 4
    assert config_of("loha").positions() == 0


@pytest.mark.parametrize("kind", ["p_tuning", "ln_tuning"])
def test_last_layers_of_what_adapts_no_linear_layers_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"last_layers chooses linear layers, which {kind} does not adapt"):
        peft_method.Config(peft_type=kind, last_layers=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"r": True}, r"r is True; loha takes int there"), ({"r": 10**30}, r"r is 1\.0e\+30, which is no size")],
)
def test_what_is_no_size_is_no_argument(arguments: dict[str, Any], told: str, bert: Any) -> None:
    with pytest.raises(RecpeftError, match=rf"adapter\.arguments\.{told}"):
        peft_method.check(bert, config_of("loha", **arguments))


def test_a_run_is_named_by_type_and_arguments_in_one_spelling() -> None:
    def run_id(adapter: dict[str, Any]) -> str:
        return build_run(
            {
                "study": "s",
                "data": {"source": "movielens"},
                "backbone": {"name": "some/backbone"},
                "adapter": {"method": "peft_method", **adapter},
                "formulation": {"name": "two_tower"},
                "loss": {"name": "listwise_softmax"},
            }
        ).run_id

    one = run_id({"peft_type": "LoHa", "arguments": {"r": 4, "alpha": 8}})
    assert one == run_id({"peft_type": "loha", "arguments": {"alpha": 8, "r": 4}})
    assert one != run_id({"peft_type": "loha", "arguments": {"r": 8, "alpha": 8}})
    assert one != run_id({"peft_type": "lokr", "arguments": {"r": 4, "alpha": 8}})


def test_the_table_is_of_the_installed_peft() -> None:
    # what works on quantised weights was tried with this one
    assert peft.__version__.startswith("0.21.")
