"""FSDP (Zhao et al. 2023), in torch's second form: each process holds a share of the backbone's parameters.

A transformer layer's shares are put together where it is called, and let go behind it; the rest of the backbone's
(embeddings) for as long as it is called. So all processes have to call it equally often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(backbone: nn.Module, head: nn.Module, mesh: Any) -> None:
    """Spread ``backbone`` over the processes of ``mesh``, each layer on its own; ``head`` stays whole on each."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in [part for part in backbone.modules() if isinstance(part, GradientCheckpointingLayer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(backbone, mesh=mesh)

    def mean(gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        torch.distributed.all_reduce(summed, group=mesh.get_group())
        return summed / mesh.size()

    for parameter in head.parameters():
        if parameter.requires_grad:
            parameter.register_hook(mean)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole parameters into ``module``, sharded or not; those it has beside them stay."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameter = own[name]
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def gather(module: nn.Module) -> None:
    """Put a sharded module's parameters together for good, in main memory; it is then to be saved, not called."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = nn.Parameter(parameter.full_tensor().cpu(), requires_grad=parameter.requires_grad)
                part._parameters[name] = whole
