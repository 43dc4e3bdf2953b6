"""Any other method of the installed PEFT, by its name and arguments: ``peft_type: loha``, ``arguments: {r: 4}``.

recpeft only has tables of the methods that cannot work here or on quantised weights; a test tries each method. For
methods with their own file in adapters/, prefer that file, which finds targets by structure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, JsonValue, PositiveInt, field_validator, model_validator

from adapters._base import AdapterConfig
from recpeft.config import MOST
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import nn

_REFUSED = {
    "adalora": "must be called after each step, or its ranks do not fall; use adapter.method: adalora",
    "cartridge": "is a prefix that starts from a text; use adapter.method: prefix_tuning with init_text",
    "cpt": "learns from a language model's labels, which texts to embed have not; use adapter.method: prompt_tuning",
    "multitask_prompt_tuning": "needs a task for each text; use adapter.method: prompt_tuning",
    "poly": "needs a task for each text; use another type, such as lora",
    "prefix_tuning": "has no effect on some backbones, which PEFT does not see; use adapter.method: prefix_tuning",
    "prompt_tuning": "takes the wrong embeddings on some backbones; use adapter.method: prompt_tuning",
    "xlora": "mixes adapters that were trained before; use another type, such as lora",
}
"""Unusable PEFT types, each with the reason as a clause with the remedy."""

_UNMERGEABLE = frozenset({"adaption_prompt", "lily", "p_tuning", "shadow"})
"""PEFT types whose effect is not a change of weights, or that PEFT does not merge."""

_OWN_TARGETS = frozenset({"adaption_prompt", "ln_tuning", "shadow", "trainable_tokens"})
"""PEFT types whose ``target_modules``, if any, are not linear layers; PEFT finds them or the user names them."""

_NEEDS_UNQUANTISED = frozenset(
    {"adamss", "c3a", "deft", "delora", "frod", "glora", "gralora", "hra", "loha", "lokr", "osf", "peanut", "psoft"}
    | {"supertuning", "tinylora", "unilora"}
)
"""PEFT types that read a quantised weight's codes as its values (some without an error), or do not learn on it."""

_NEEDS_UNPACKED = frozenset({"loha", "lokr"})
"""Types among ``_NEEDS_UNQUANTISED`` that read only the weight's shape, which int8 keeps."""

VECTORS = ("ia3_l",)
"""Scales of (IA)³, which PEFT stores as (n, 1) or (1, n); weight decay is for matrices only."""


class Config(AdapterConfig):
    starts_as_backbone: ClassVar[bool] = False  # most types do, FourierFT and C³A among others do not

    method: str = "peft_method"
    peft_type: str = Field(min_length=1)
    """Name of the method in PEFT, in any case: loha, boft, vblora, …"""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the method's PEFT config class. ``target_modules`` is as for lora: all-linear (the default),
    attention, or last parts of names; for methods that adapt other things than linear layers it is PEFT's."""
    last_layers: PositiveInt | None = None
    """Number of topmost transformer layers to adapt; null is all. It replaces layers_to_transform."""

    @field_validator("peft_type")
    @classmethod
    def _one_spelling(cls, value: str) -> str:
        return value.lower().replace("-", "_")

    @model_validator(mode="after")
    def _can_be_used(self) -> Config:
        if self.peft_type in _REFUSED:
            raise ValueError(f"peft_type is {self.peft_type}, which {_REFUSED[self.peft_type]}")
        start = self.arguments.get("init_lora_weights")
        if isinstance(start, str) and start.startswith("pissa_niter"):
            raise ValueError(
                f"arguments.init_lora_weights is {start}, which changes the backbone by a random decomposition, and by "
                "another one each time the adapter is loaded; use pissa, which is exact"
            )
        if self.peft_type == "fourierft" and self.arguments.get("random_loc_seed", 0) is None:
            raise ValueError("arguments.random_loc_seed is null, which draws no frequencies; give a whole number")
        if self.last_layers is not None and self.peft_type in (_OWN_TARGETS | {"p_tuning"}):
            raise ValueError(f"last_layers chooses linear layers, which {self.peft_type} does not adapt; leave it out")
        return self

    @property
    def can_merge(self) -> bool:  # type: ignore[override]  # depends on the type; read on the class, it is truthy
        return self.peft_type not in _UNMERGEABLE

    def positions(self) -> int:
        number = self.arguments.get("num_virtual_tokens", 0)
        return number if isinstance(number, int) else 0

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        if width != "none" and self.peft_type in _NEEDS_UNQUANTISED - (_NEEDS_UNPACKED if width == "int8" else set()):
            return (
                f"adapter.peft_type {self.peft_type} does not work on weights quantised to {width}; "
                "use backbone.width: none or another type, such as boft, hira, oft or road"
            )
        return None


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if PEFT has no such type, or the type does not accept the arguments or the backbone."""
    import copy
    import warnings

    if not all(parameter.is_meta for parameter in backbone.parameters()):
        _peft_config(backbone, config)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are repeated when the adapter is attached
            _attach(copy.deepcopy(backbone), config)
    except RuntimeError:
        pass  # the method starts from the weights' values, which do not exist yet


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``.

    Raises:
        RecpeftError: as ``check``.
    """
    try:
        return _attach(backbone, config)
    except NotImplementedError as error:
        raise _refused_by_peft(backbone, config, error) from error


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the adapted layers, if the method adapts layers."""
    from adapters._targets import adapted_names

    names = adapted_names(model)
    return {"target_modules": names} if names else {}


def _attach(backbone: nn.Module, config: Config) -> nn.Module:
    from peft import get_peft_model

    from adapters._targets import _HEADS

    if getattr(backbone, "is_quantized", False):
        width = "int8" if getattr(backbone, "is_loaded_in_8bit", False) else "4 bits"
        refusal = config.refusal(width=width, max_steps=1, gradient_checkpointing="none")
        if refusal is not None:
            raise RecpeftError(f"{refusal}.")
    peft_config = _peft_config(backbone, config)
    embeddings = backbone.get_input_embeddings()  # type: ignore[operator]
    try:
        model: nn.Module = get_peft_model(backbone, peft_config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _refused_by_peft(backbone, config, error) from error
    if peft_config.is_prompt_learning and model.word_embeddings is not embeddings:
        raise RecpeftError(
            f"PEFT takes another layer of {type(backbone).__name__} for its token embeddings, so {config.peft_type} "
            "would train on something else than the text; use another type."
        )
    for name, parameter in model.named_parameters():
        if set(name.split(".")) & set(_HEADS):
            parameter.requires_grad_(False)  # ``bias: all`` includes the pooler's bias, which gets no gradient
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    half = next((parameter.dtype for parameter in trained if parameter.element_size() < 4), None)
    if half is not None:
        raise RecpeftError(
            f"adapter.peft_type {config.peft_type} trains weights in {half}, whose spacing is wider than most updates; "
            "use backbone.compute_dtype: float32, with training.precision: bf16-mixed for speed."
        )
    if not trained:
        raise RecpeftError(
            f"adapter.peft_type {config.peft_type} with these arguments finds nothing to train in "
            f"{type(backbone).__name__}; change adapter.arguments or use another type."
        )
    return model


def _peft_config(backbone: nn.Module, config: Config) -> Any:
    """Return PEFT's config with full names of target modules."""
    import dataclasses

    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    from adapters._targets import resolve

    types = {str(kind.value).lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PeftType}
    if config.peft_type not in types:
        raise RecpeftError(
            f"adapter.peft_type is {config.peft_type!r}, which PEFT {peft.__version__} has not; "
            f"choose one of {', '.join(sorted(types.keys() - _REFUSED))}."
        )
    cls = types[config.peft_type]
    names = {field.name for field in dataclasses.fields(cls)} - {f.name for f in dataclasses.fields(peft.PeftConfig)}
    linear = "target_modules" in names and config.peft_type not in _OWN_TARGETS
    if linear:
        # PEFT ignores them if target modules are full names.
        names -= {"layers_to_transform", "layers_pattern"}
    unknown = sorted(config.arguments.keys() - names)
    if unknown:
        raise RecpeftError(
            f"adapter.arguments has {', '.join(unknown)}, which {config.peft_type} does not take here; "
            f"it takes {', '.join(sorted(names))}"
            + ("; adapter.last_layers chooses layers." if unknown[0].startswith("layers_") else ".")
        )
    if config.arguments.get("use_asa"):
        raise RecpeftError("adapter.arguments.use_asa needs a call after each step; leave it out.")
    types_of = {field.name: getattr(field.type, "__name__", str(field.type)) for field in dataclasses.fields(cls)}
    for name, value in config.arguments.items():
        if isinstance(value, bool) and "bool" not in types_of.get(name, "bool"):
            raise RecpeftError(f"adapter.arguments.{name} is {value}; {config.peft_type} takes {types_of[name]} there.")
        if isinstance(value, int) and abs(value) > MOST:
            raise RecpeftError(f"adapter.arguments.{name} is {value:.1e}, which is no size; give at most {MOST}.")
    arguments: dict[str, Any] = dict(config.arguments)
    if linear:
        arguments.setdefault("target_modules", "all-linear")
        for name in {"target_modules", "feedforward_modules"} & arguments.keys():
            wanted = arguments[name]
            if wanted or name == "target_modules":  # (IA)³ takes an empty list of feedforward_modules
                key = f"adapter.arguments.{name}"
                arguments[name] = resolve(backbone, _names(wanted, key), config.last_layers, key)
    if issubclass(cls, peft.PromptLearningConfig):
        arguments = {
            "task_type": "FEATURE_EXTRACTION",
            # ALBERT's and ELECTRA's embeddings are narrower than their layers, whose width PEFT would take.
            "token_dim": backbone.get_input_embeddings().embedding_dim,  # type: ignore[operator]
            **arguments,
        }
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise _refused_by_peft(backbone, config, error) from error


def _names(wanted: JsonValue, key: str) -> str | tuple[str, ...]:
    if isinstance(wanted, str):
        return wanted
    if isinstance(wanted, list) and all(isinstance(name, str) for name in wanted):
        return tuple(str(name) for name in wanted)
    raise RecpeftError(f"{key} is {wanted!r}; give all-linear, attention or a list of names.")


def _refused_by_peft(backbone: nn.Module, config: Config, error: Exception) -> RecpeftError:
    message = str(error).strip().split("\n")[0].rstrip(".")[:300]
    return RecpeftError(
        f"PEFT refuses adapter.peft_type {config.peft_type} with these arguments on {type(backbone).__name__}: "
        f"{message}; change adapter.arguments or use another type."
    )
