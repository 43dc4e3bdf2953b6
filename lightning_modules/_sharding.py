"""FSDP (Zhao et al. 2023), torch's version 2: each process holds a share of the backbone's parameters.

A transformer layer's parameters are gathered when it is called and freed afterwards; the backbone's other parameters
(embeddings) are gathered for the whole forward pass. So all processes must call the backbone equally often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(backbone: nn.Module, head: nn.Module, mesh: Any) -> None:
    """Shard ``backbone`` over the processes of ``mesh``, layer by layer; each process keeps the whole ``head``."""
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
    """Load whole parameters into ``module``, sharded or not; its other parameters are unchanged."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameter = own[name]
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def gather(module: nn.Module) -> None:
    """Gather a sharded module's parameters permanently in main memory; it can then be saved but not called."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = nn.Parameter(parameter.full_tensor().cpu(), requires_grad=parameter.requires_grad)
                part._parameters[name] = whole
