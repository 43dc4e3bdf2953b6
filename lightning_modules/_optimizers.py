"""Optimisers that a run can choose, all from libraries."""

from __future__ import annotations

from typing import Any, Literal

from recpeft.errors import RecpeftError

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"]


def check_optimizer(name: OptimizerName) -> None:
    """Raise ``RecpeftError`` if this machine lacks what the optimiser needs."""
    import torch

    if name.startswith("paged") and not torch.cuda.is_available():
        # bitsandbytes would warn and continue unpaged, and the record would name an optimiser that was not used.
        raise RecpeftError(
            f"training.optimizer is {name} but paging needs a CUDA device and there is none; "
            f"use {name.removeprefix('paged_')}."
        )


def make_optimizer(name: str, groups: list[dict[str, Any]]) -> Any:
    """Return the optimiser ``name`` over ``groups``, each with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        RecpeftError: a paged optimiser is requested without CUDA.
    """
    import torch

    if name == "adamw":
        return torch.optim.AdamW(groups)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # With the given learning rate, as in transformers' Trainer.
        return Adafactor(groups, scale_parameter=False, relative_step=False)
    import bitsandbytes

    check_optimizer(name)  # type: ignore[arg-type]
    kinds = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    return kinds[name](groups)


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of the optimiser's state; a shared tensor counts once."""
    import torch

    found: dict[int, int] = {}

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.data_ptr()] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            for part in value.values():
                collect(part)

    for state in optimizer.state.values():
        collect(state)
    return sum(found.values())
