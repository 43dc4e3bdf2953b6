"""Load the rows of the language-model head for the answers, and measure how the model transforms their logits.

Families scale logits (Granite, Cohere, MiniCPM 3), cap them (Gemma 2), add a bias (Phi) or run an additional layer
before the head (ModernBERT's decoder). No family is listed here: the family's own code is run on fixed states, and the
scale and cap are measured from its logits. Any other transformation is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from lightning_modules._backbone import Backbone


@dataclass(frozen=True)
class LabelRows:
    """Parameters of the labels' logits of a last state h (H,): ``softcap * tanh((rows @ h + bias) / softcap)``."""

    rows: Tensor
    """(A, H) float32."""
    bias: Tensor
    """(A,) float32."""
    softcap: float | None
    """Cap of the logits; None is no cap."""


@dataclass(frozen=True)
class _Head:
    """Parameters by which a family computes logits from last states."""

    architecture: str
    name: str
    """Name of the head's module in the causal language model."""
    tied: bool
    """True if its weight is shared with the input embeddings."""
    has_bias: bool
    scale: float
    softcap: float | None
    renamings: list[Any]
    """Renamings by transformers from names in files to module names (GPT-NeoX's ``embed_out`` is its ``lm_head``)."""


def label_rows(backbone: Backbone, ids: Sequence[int]) -> LabelRows:
    """Return the rows for the labels ``ids`` of the backbone's language-model head, which is not loaded otherwise.

    Raises:
        RecpeftError: the files have no such head, or its logits are transformed in an unsupported way.
    """
    config = backbone.model.config
    head = _measure(config)
    found = _stored_rows(head, config, ids)
    rows, bias = found["weight"], found["bias"]
    if rows is None:
        rows = backbone.model.get_input_embeddings().weight[list(ids)].detach().float()
    if bias is None:
        bias = rows.new_zeros(len(rows))
    return LabelRows(rows * head.scale, bias.to(rows.device) * head.scale, head.softcap)


def check_labels(config: PreTrainedConfig) -> None:
    """Raise ``RecpeftError`` as ``label_rows`` does, before weights are loaded.

    A hub model's files are checked only if they are in the cache.
    """
    _stored_rows(_measure(config), config, [])


def _measure(config: PreTrainedConfig) -> _Head:
    """Measure the logits by running the family's causal language model (on the meta device) from fixed last states."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    named = type(config).__name__.removesuffix("Config")
    try:
        # Permission for code that comes with a model was checked when its config was read.
        remote = not type(config).__module__.startswith("transformers.")
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=remote).eval()
        named = type(model).__name__
        own = model.get_output_embeddings()
        if type(own).forward is not nn.Linear.forward:  # Baichuan 2 normalises the rows
            raise TypeError(f"the head is a {type(own).__name__}, no linear layer")
        (name,) = (name for name, module in model.named_modules() if module is own)
        has_bias = getattr(own, "bias", None) is not None
        # Two logits of different size, to detect a logit that depends on the other.
        values = torch.tensor([-(2.0**20), -37.0, -3.0, -(2.0**-6), 0.0, 2.0**-6, 2.0, 41.0, 2.0**20])
        states = torch.zeros(1, len(values), own.weight.shape[1])
        states[0, :, 0], states[0, :, 1] = values, values.flip(0) / 3
        head = nn.Linear(states.shape[2], 2, bias=has_bias)
        head.weight.data = torch.tensor([[0.5], [2.0]]) * torch.eye(2, states.shape[2])  # not unit rows, to see norms
        if has_bias:
            head.bias.data = torch.tensor([0.25, -0.5])
        tied = own.weight is model.get_input_embeddings().weight
        renamings = [part for part in get_model_conversion_mapping(model) if isinstance(part, WeightRenaming)]
        model.set_output_embeddings(head)
        for part in (model.base_model, model.get_decoder()):  # OPT calls its decoder past the base model
            part.forward = lambda *_, **__: _Output(states)
        with torch.no_grad():
            inputs = torch.zeros(1, len(values), dtype=torch.int64)
            logits, plain = model(input_ids=inputs, use_cache=False).logits[0], head(states)[0]
            scale = float(logits[5, 0] / plain[5, 0])
            highest = float(logits[-1, 0])
            softcap = highest if abs(highest) < abs(scale) * 2.0**18 else None
            expected = scale * plain if softcap is None else softcap * torch.tanh(scale * plain / softcap)
            known = torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    except Exception as error:  # a model's own code may raise anything
        raise _unknown(named, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}") from error
    if not known:
        raise _unknown(named, "they are neither a scale nor a soft cap of the head's")
    return _Head(named, name, tied, has_bias, scale, softcap, renamings)


class _Output(SimpleNamespace):
    """A base model's output that holds last states; any other attribute is None."""

    def __init__(self, states: Tensor) -> None:
        super().__init__(last_hidden_state=states)

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _unknown(architecture: str, problem: str) -> RecpeftError:
    return RecpeftError(
        f"the logits of {architecture} cannot be read from its head's rows alone ({problem}); use formulation "
        "two_tower or cross_encoder, or another backbone."
    )


def _stored_rows(head: _Head, config: PreTrainedConfig, ids: Sequence[int]) -> dict[str, Tensor | None]:
    """Return ``weight`` (A, H) and ``bias`` (A,) from the files; None if they have none and need none."""
    import torch
    from transformers.core_model_loading import rename_source_key

    found: dict[str, Tensor | None] = {"weight": None, "bias": None}
    folder = _folder(config)
    if folder is None:  # not fetched yet
        return found
    for file, key in _keys(folder):
        renamed, _ = rename_source_key(key, head.renamings, [])
        for part in found:
            # In a multimodal model, the head's name has the text model's prefix.
            if f".{renamed}".endswith(f".{head.name}.{part}"):
                rows = file.get_slice(key)
                if rows.get_dtype() not in ("F32", "F16", "BF16", "F64"):
                    raise RecpeftError(
                        f"the language-model head of {folder} is quantised ({key} is {rows.get_dtype()}), and its rows "
                        "cannot be read; give a backbone whose head is not (llm_int8_skip_modules: [lm_head])."
                    )
                found[part] = torch.stack([rows[place] for place in ids]).float() if ids else torch.empty(0)
    lacking = [
        f"{head.name}.{part}"
        for part, needed in (("weight", not head.tied), ("bias", head.has_bias))
        if needed and found[part] is None
    ]
    if lacking:
        raise RecpeftError(
            f"{folder} has no language-model head of {head.architecture} ({' and '.join(lacking)}); give a causal "
            "language model that was saved with its head."
        )
    return found


def _folder(config: PreTrainedConfig) -> Path | None:
    """Return the folder of the backbone's files; None if a hub model's files are not in the cache."""
    from transformers.utils import cached_file

    if not config.name_or_path:
        return None
    where = Path(config.name_or_path)
    if where.is_dir():
        return where
    path = cached_file(
        str(where),
        "config.json",
        revision=getattr(config, "_commit_hash", None),
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    folder = None if path is None else Path(path).parent
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def _keys(folder: Path) -> Iterator[tuple[Any, str]]:
    """Yield each tensor's name in the folder's safetensors, with the open file that holds it."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield file, key
