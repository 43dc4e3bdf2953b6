"""Prompt tuning: virtual tokens before the text's embeddings (Lester et al. 2021), by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters._prompts import VirtualTokensConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Config(VirtualTokensConfig):
    method: str = "prompt_tuning"


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if the backbone does not accept embeddings in place of tokens."""
    import inspect

    if "inputs_embeds" not in inspect.signature(backbone.forward).parameters:
        raise RecpeftError(
            f"adapter.method is prompt_tuning but {type(backbone).__name__} takes no embeddings in place of tokens "
            "(inputs_embeds); use another adapter.method."
        )


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around the frozen ``backbone``; it starts as if ``init_text`` preceded each text.

    Its ``last_hidden_state`` (n, num_virtual_tokens + L, H) has the virtual tokens first.

    Raises:
        RecpeftError: as ``check``; ``init_text`` is given and ``tokenizer`` is not; or the backbone reads more from
            tokens than their embeddings.
    """
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import PreTrainedModel

    from adapters._prompts import init_ids

    check(backbone, config)
    assert isinstance(backbone, PreTrainedModel)
    embeddings: Any = backbone.get_input_embeddings()
    start = None
    if config.init_text is not None:
        start = init_ids(tokenizer, config.init_text, config.num_virtual_tokens)
    ids = torch.tensor([start if start is not None else [0, 1]], device=backbone.device)
    _check_embeddings_are_all(backbone, ids)

    backbone.requires_grad_(False)
    model = get_peft_model(
        backbone,
        PromptTuningConfig(
            task_type="FEATURE_EXTRACTION",
            num_virtual_tokens=config.num_virtual_tokens,
            token_dim=embeddings.embedding_dim,  # ALBERT's and ELECTRA's are narrower than their layers
            # PEFT requires it but reads it only for prefixes; a state-space model has none.
            num_attention_heads=getattr(backbone.config, "num_attention_heads", 1),
        ),
    )
    if model.word_embeddings is not embeddings:
        raise RecpeftError(
            f"PEFT takes another layer of {type(backbone).__name__} for its token embeddings, so prompt_tuning would "
            "train on something else than the text; use another adapter.method."
        )
    if start is not None:
        with torch.no_grad():
            # Through the module: Gemma's scales the embeddings that it looks up.
            model.prompt_encoder[model.active_adapter].embedding.weight.copy_(embeddings(ids[0]))
        model.init_tokens = tokenizer.convert_ids_to_tokens(start)
    return model


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the prompt's width and the tokens it started from."""
    peft_config: Any = model.active_peft_config
    return {"token_dim": peft_config.token_dim, "init_tokens": getattr(model, "init_tokens", None)}


def _check_embeddings_are_all(backbone: Any, ids: Tensor) -> None:
    """Raise ``RecpeftError`` if ``ids`` (1, n) give other states than their embeddings.

    Gemma 3n adds an embedding of the token to each layer, and silently leaves it out if it gets only embeddings.
    """
    from adapters._prompts import as_in_evaluation

    with as_in_evaluation(backbone):
        tokens = backbone(input_ids=ids).last_hidden_state.float()
        embedded = backbone(inputs_embeds=backbone.get_input_embeddings()(ids)).last_hidden_state.float()
    if (tokens - embedded).abs().max() > 1e-2 * tokens.abs().max():
        raise RecpeftError(
            f"adapter.method is prompt_tuning but {type(backbone).__name__} reads more of a token than its embedding, "
            "which a virtual token has not; use another adapter.method."
        )
