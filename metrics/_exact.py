"""Base of all metrics with state: sums stay in float64 and counts in int64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from recpeft import processes


class ExactMetric(Metric):
    """A metric whose states are sums over batches and processes and keep their types."""

    full_state_update = False  # so merge_state() and forward() may add the states

    def __init__(self) -> None:
        super().__init__(distributed_available_fn=processes.several)
        # MetricCollection makes metrics share one state if their states are equal after the first batch, though
        # they may differ later. NaN equals nothing, so this metric never shares its state.
        self.add_state("unequal", torch.tensor(torch.nan), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # `.to(torch.bfloat16)` of a parent casts torchmetrics' float states: follow devices only.
        return super()._apply(lambda tensor: moved(tensor, fn), exclude_state)


def moved(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a tensor, or a dataclass of tensors, on the device that ``fn`` moves to, with its dtype unchanged."""
    if isinstance(value, Tensor):
        return value.to(fn(value.new_empty(0)).device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), fn) for field in fields(value)})
    return value
