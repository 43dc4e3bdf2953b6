"""Target layers of adapters, found by the backbone's structure, so that no table of architectures is needed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from recpeft.errors import RecpeftError

_HEADS = ("pooler", "lm_head", "score", "classifier")
"""Layers after the hidden states that recpeft reads: an adapter there would never get a gradient."""


@dataclass(frozen=True)
class Block:
    """One transformer layer, with full names of its modules."""

    name: str
    attention_output: str
    """Last linear layer of the attention sub-layer."""
    feed_forward_input: str
    """First linear layer of the feed-forward sub-layer; in a gated one, one of two with the same input."""
    feed_forward_output: str
    """Last linear layer of the feed-forward sub-layer."""


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is a linear layer, including GPT-2's ``Conv1D`` and bitsandbytes' subclasses."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(in_features, out_features)`` of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight.shape[0], weight.shape[1]  # Conv1D stores its weight transposed


def _behind(name: str) -> bool:
    return bool(set(name.split(".")) & set(_HEADS))


def linear_names(backbone: nn.Module) -> list[str]:
    """Return the full names of the linear layers (quantised ones too) that the hidden states pass through."""
    return [name for name, module in backbone.named_modules() if is_linear(module) and not _behind(name)]


def norm_names(backbone: nn.Module) -> list[str]:
    """Return the full names of the normalisation layers that the hidden states pass through."""
    return [
        name
        for name, module in backbone.named_modules()
        if type(module).__name__.endswith("Norm") and not _behind(name)
    ]


def block_names(backbone: nn.Module) -> list[str]:
    """Return the full names of the transformer layers, first to last.

    Raises:
        RecpeftError: no transformer layers are found.
    """
    lists = [
        [f"{name}.{n}" for n in range(len(module))]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and all(_attention_linears(name, child) for child in module)
    ]
    if not lists or not lists[0]:
        raise RecpeftError(
            f"no list of transformer layers is found in {type(backbone).__name__}; "
            "use a transformer with its layers in a ModuleList."
        )
    return max(lists, key=len)


def _attention_linears(name: str, block: nn.Module) -> list[str]:
    return [
        f"{name}.{part}"
        for part, module in block.named_modules()
        if is_linear(module) and _is_attention(part) and "cross" not in part.lower()
    ]


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[:-1])


def blocks(backbone: nn.Module) -> list[Block]:
    """Return the transformer layers with the input and output layers of their sub-layers, first to last.

    They are found by shape: attention ends in the last linear layer below a module named for attention whose output
    has ``hidden_size``; among the others, the feed-forward input takes ``hidden_size`` and its output returns it.

    Raises:
        RecpeftError: a layer does not have exactly one feed-forward sub-layer (as in a mixture of experts).
    """
    modules = dict(backbone.named_modules())
    hidden = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
    found = []
    for name in block_names(backbone):
        inside = [f"{name}.{part}" for part, module in modules[name].named_modules() if is_linear(module)]
        attention = [n for n in inside if _is_attention(n.removeprefix(name))]
        ends = [n for n in attention if shape(modules[n])[1] == hidden]
        others = [n for n in inside if n not in attention]
        inputs = [n for n in others if shape(modules[n])[0] == hidden and shape(modules[n])[1] != hidden]
        outputs = [n for n in others if shape(modules[n])[1] == hidden and shape(modules[n])[0] != hidden]
        if not ends or not inputs or len(outputs) != 1:
            raise RecpeftError(
                f"the layer {name} of {type(backbone).__name__} has {len(outputs)} feed-forward outputs where one is "
                "expected; this method works on layers of one attention and one feed-forward sub-layer, so choose "
                "another adapter.method."
            )
        found.append(Block(name, ends[-1], inputs[0], outputs[0]))
    return found


def resolve(
    backbone: nn.Module,
    target_modules: str | tuple[str, ...],
    last_layers: int | None = None,
    key: str = "adapter.target_modules",
) -> list[str]:
    """Return the full names of the linear layers that ``target_modules`` selects in this backbone.

    Args:
        target_modules: ``"all-linear"``, ``"attention"`` (the linear layers of attention sub-layers), or the last
            parts of names (``("query", "value")``).
        last_layers: number of topmost transformer layers to search; None is all.
        key: name of ``target_modules`` in errors.
    Raises:
        RecpeftError: nothing matches; lists the backbone's names.
    """
    linear = linear_names(backbone)
    if target_modules == "all-linear":
        found = linear
    elif target_modules == "attention":
        found = [name for name in linear if _is_attention(name)]
    else:
        wanted = (target_modules,) if isinstance(target_modules, str) else target_modules
        found = [name for name in linear if any(name == w or name.endswith(f".{w}") for w in wanted)]
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        raise RecpeftError(
            f"{key} is {target_modules!r} but no linear layer of the backbone has such a name; "
            f"it has {', '.join(kinds) or 'none'}; name some of these"
            + (", or use all-linear." if "target" in key else ".")
        )
    return found if last_layers is None else in_last_layers(backbone, found, last_layers)


def in_last_layers(backbone: nn.Module, names: list[str], last_layers: int) -> list[str]:
    """Return the ``names`` that are in the topmost ``last_layers`` transformer layers.

    Raises:
        RecpeftError: there are fewer layers, or none of ``names`` is in them.
    """
    layers = block_names(backbone)
    if last_layers > len(layers):
        raise RecpeftError(
            f"adapter.last_layers is {last_layers} but the backbone has {len(layers)} layers; lower it or leave it out."
        )
    top = tuple(f"{layer}." for layer in layers[-last_layers:])
    kept = [name for name in names if name.startswith(top)]
    if not kept:
        raise RecpeftError(
            f"adapter.last_layers is {last_layers} but no target module stands in the backbone's last {last_layers} "
            "layers; choose other target_modules or leave it out."
        )
    return kept


def adapted_names(model: nn.Module) -> list[str]:
    """Return the full names, within the backbone, of the layers to which PEFT added an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
