"""VeRA: two learned vectors per layer scale a pair of random matrices that all layers share (Kopiczko et al. 2024).

The update of a layer is diag(b) B diag(d) A, with A and B drawn once, as large as the largest layer needs, and frozen;
smaller layers use a part of them. Implemented by PEFT. A checkpoint holds only the vectors, since A and B follow from
``projection_seed``; a saved adapter holds A and B too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveFloat

from adapters._base import LinearTargetsConfig
from recpeft.config import Dimension, Seed

if TYPE_CHECKING:
    from torch import nn


class Config(LinearTargetsConfig):
    """Vectors need a higher learning rate than matrices: the paper's are at least ten times LoRA's."""

    can_merge: ClassVar[bool] = True

    method: str = "vera"
    rank: Dimension = 256
    """Rank of the shared matrices; 256 is PEFT's default. A layer learns rank + out_features numbers."""
    d_initial: PositiveFloat = 0.1
    """Initial value of d, with b zero; 0.1 is PEFT's default and the largest value it recommends."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is PEFT's default."""
    projection_seed: Seed = 0
    """Seed of the shared matrices, independent of the run's; 0 is PEFT's default."""


def check(backbone: nn.Module, config: Config) -> None:
    """Raise ``RecpeftError`` if ``target_modules`` or ``last_layers`` match nothing."""
    from adapters._targets import resolve

    resolve(backbone, config.target_modules, config.last_layers)


def attach(backbone: nn.Module, config: Config, total_steps: int, tokenizer: Any = None) -> nn.Module:
    """Return a ``PeftModel`` around ``backbone``; at the start it computes what the backbone computes.

    Raises:
        RecpeftError: ``target_modules`` match nothing.
    """
    from peft import VeraConfig, get_peft_model

    from adapters._targets import resolve

    return get_peft_model(
        backbone,
        VeraConfig(
            r=config.rank,
            d_initial=config.d_initial,
            vera_dropout=config.dropout,
            target_modules=resolve(backbone, config.target_modules, config.last_layers),
            projection_prng_key=config.projection_seed,
        ),
    )


def describe(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return the full names of the adapted layers."""
    from adapters._targets import adapted_names

    return {"target_modules": adapted_names(model)}
