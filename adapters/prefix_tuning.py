"""Prefix tuning: keys and values before each layer's own (Li & Liang 2021), by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from adapters._prompts import VirtualTokensConfig
from recpeft.config import Dimension
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import DynamicCache


class Config(VirtualTokensConfig):
    """In layers with a sliding window of w, a token sees only the virtual tokens among the w - 1 tokens before it, so
    the later parts of a long text do not see the prefix there."""

    method: str = "prefix_tuning"
    projection: bool = False
    """Learn the prefix through an MLP that is dropped when the adapter is saved (Li & Liang 2021, section 4.3)."""
    projection_dim: Dimension = 512
    """Hidden size of that MLP; 512 is Li & Liang's for table-to-text. Unused without ``projection``."""

    @model_validator(mode="after")
    def _projection_reaches_the_text(self) -> Config:
        if self.projection and self.init_text is not None and self.projection_dim < self.num_virtual_tokens:
            raise ValueError(
                f"projection_dim is {self.projection_dim} but num_virtual_tokens is {self.num_virtual_tokens}, and so "
                "narrow an MLP cannot start from init_text; raise projection_dim or set init_text: null"
            )
        return self

    def refusal(self, *, width: str, max_steps: int, gradient_checkpointing: str) -> str | None:
        if gradient_checkpointing == "layers":
            return (
                "training.gradient_checkpointing is layers but the prefix of prefix_tuning goes through the key-value "
                "cache, which checkpointed layers drop; use training.gradient_checkpointing: buckets or none"
            )
        return None


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if a prefix would not reach every layer, or no text would see all of it.

    The check runs two tokens and inspects each layer's cache, as a model may accept ``past_key_values`` and not read
    them. If the meta device cannot run this (as with mixtures of experts), ``attach`` checks instead.
    """
    _checked(backbone, config)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around the frozen ``backbone``; it starts as if ``init_text`` preceded each text.

    In a causal backbone that is exact: the text's states are those after ``init_text``.

    Raises:
        RecpeftError: as ``check``, or ``init_text`` is given and ``tokenizer`` is not.
    """
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values
    from transformers import PreTrainedModel

    from adapters._prompts import init_ids

    shape = _checked(backbone, config)
    assert isinstance(backbone, PreTrainedModel)
    assert shape is not None, "attached to a backbone without weights"
    num_layers, num_key_value_heads, head_dim = shape
    start = None
    if config.init_text is not None:
        start = init_ids(tokenizer, config.init_text, config.num_virtual_tokens)
        cache = _key_values(backbone, torch.tensor([start], device=backbone.device))

    backbone.requires_grad_(False)
    # So that enabling layer checkpointing later raises an error instead of training without the prefix.
    backbone.supports_gradient_checkpointing = False
    model = get_peft_model(
        backbone,
        PrefixTuningConfig(
            task_type="FEATURE_EXTRACTION",
            num_virtual_tokens=config.num_virtual_tokens,
            # PEFT would read them from the model's config, where multi-query models (GPTBigCode) use other names.
            num_layers=num_layers,
            num_attention_heads=num_key_value_heads,
            token_dim=num_key_value_heads * head_dim,
            prefix_projection=config.projection,
            encoder_hidden_size=config.projection_dim if config.projection else None,
        ),
    )
    if start is not None:
        flat = prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=config.num_virtual_tokens)
        _start_at(model.prompt_encoder[model.active_adapter], flat)
        model.init_tokens = tokenizer.convert_ids_to_tokens(start)
    return model


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the prefix's shape and the tokens it started from."""
    peft_config: Any = model.active_peft_config
    return {
        "num_layers": peft_config.num_layers,
        "num_key_value_heads": peft_config.num_attention_heads,
        "token_dim": peft_config.token_dim,
        "init_tokens": getattr(model, "init_tokens", None),
    }


def _start_at(encoder: Any, key_values: Tensor) -> None:
    """Make PEFT's prefix encoder return ``key_values`` (num_virtual_tokens, 2 * num_layers * token_dim).

    With a projection ``tanh(E A + a) W + w`` the last layer becomes the least-squares solution, which is exact if
    the hidden size is at least num_virtual_tokens.
    """
    import torch

    with torch.no_grad():
        if not encoder.prefix_projection:
            encoder.load_prompt_embeddings(key_values)
            return
        *inner, last = encoder.transform
        hidden = encoder.embedding.weight
        for layer in inner:
            hidden = layer(hidden)  # (num_virtual_tokens, projection_dim)
        last.weight.copy_((torch.linalg.pinv(hidden.double()) @ key_values.double()).T)
        last.bias.zero_()


def _key_values(backbone: nn.Module, ids: Tensor) -> DynamicCache:
    """Return the keys and values of all ``ids`` (1, n) in each layer, even if the layer has a sliding window."""
    import torch
    from transformers import DynamicCache

    from adapters._prompts import as_in_evaluation

    cache = DynamicCache()
    # transformers reads the mask's values, which the meta device does not have.
    mask = None if ids.is_meta else torch.ones_like(ids)
    with as_in_evaluation(backbone):
        backbone(input_ids=ids, attention_mask=mask, past_key_values=cache)
    return cache


def _checked(backbone: nn.Module, config: Config) -> tuple[int, int, int] | None:
    """Return ``(num_layers, num_key_value_heads, head_dim)``; None if only a backbone with weights can tell.

    Raises:
        RecpeftError: as ``check``.
    """
    import inspect

    import torch
    from transformers import DynamicCache, PreTrainedModel

    name = type(backbone).__name__
    remedy = "use prompt_tuning or another adapter.method"
    if "past_key_values" not in inspect.signature(backbone.forward).parameters:
        raise RecpeftError(
            f"adapter.method is prefix_tuning but {name} takes no keys and values from outside (past_key_values), "
            f"so a prefix would have no effect; {remedy}."
        )
    assert isinstance(backbone, PreTrainedModel)
    kinds = DynamicCache(config=backbone.config).layers
    window = min((layer.sliding_window for layer in kinds if hasattr(layer, "sliding_window")), default=None)
    if window is not None and config.num_virtual_tokens >= window:
        raise RecpeftError(
            f"adapter.num_virtual_tokens is {config.num_virtual_tokens} but {name} has layers in which a token sees "
            f"{window} tokens with itself, so no text would see the first virtual ones; "
            f"set num_virtual_tokens to {window - 1} or fewer."
        )
    try:
        layers = _key_values(backbone, torch.zeros((1, 2), dtype=torch.long, device=backbone.device)).layers
    except Exception as error:  # a model may raise anything for a cache that is not of its own kind
        if backbone.device.type == "meta" and isinstance(error, RuntimeError):
            return None
        raise RecpeftError(
            f"adapter.method is prefix_tuning but {name} cannot read its past from plain keys and values "
            f"({type(error).__name__}: {str(error)[:200]}); {remedy}."
        ) from error

    num_layers = int(backbone.config.get_text_config().num_hidden_layers)
    states = [state for layer in layers for state in (layer.keys, layer.values)]
    shapes = {None if state is None else tuple(state.shape) for state in states}
    shape = next(iter(shapes), None)
    if len(layers) != num_layers or len(shapes) != 1 or shape is None or len(shape) != 4 or shape[2] != 2:
        raise RecpeftError(
            f"adapter.method is prefix_tuning but of {name}'s {num_layers} layers {len(layers)} keep keys and values, "
            f"of shapes {sorted(map(str, shapes))}, where every layer must keep them in one shape; {remedy}."
        )
    return num_layers, shape[1], shape[3]
