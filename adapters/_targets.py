"""Which of a backbone's modules an adapter goes into."""

from __future__ import annotations

from torch import nn

from recpeft.errors import RecpeftError

_HEADS = ("pooler", "lm_head", "score", "classifier")
"""Layers behind the hidden states that recpeft reads: an adapter there would never get a gradient."""


def linear_names(backbone: nn.Module) -> list[str]:
    """Full names of the linear layers (quantised ones too) that the hidden states pass through."""
    # bitsandbytes' Linear4bit and Linear8bitLt inherit from nn.Linear.
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not set(name.split(".")) & set(_HEADS)
    ]


def resolve(backbone: nn.Module, target_modules: str | tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that ``target_modules`` means on this backbone.

    Args:
        target_modules: ``"all-linear"``, or the last parts of names (``("query", "value")``).
    Raises:
        RecpeftError: nothing matches; the names the backbone has are listed.
    """
    linear = linear_names(backbone)
    if target_modules == "all-linear":
        found = linear
    else:
        wanted = (target_modules,) if isinstance(target_modules, str) else target_modules
        found = [name for name in linear if any(name == w or name.endswith(f".{w}") for w in wanted)]
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        raise RecpeftError(
            f"adapter.target_modules is {target_modules!r} but no linear layer of the backbone has such a name; "
            f"it has {', '.join(kinds) or 'none'}; name some of these, or use all-linear."
        )
    return found
