"""EASE^R: a linear item-item autoencoder with a closed form.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rankers._base import RankerConfig, Validate
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    from torch import Tensor


class Config(RankerConfig):
    """The candidates among which validation chooses."""

    l2: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0), min_length=1
    )
    """L2 penalties λ, on either side of RecBole's default (``reg_weight`` 250)."""


@dataclass(frozen=True)
class Ease:
    """Scores are ``history @ weight``."""

    weight: Tensor
    """(I, I) float32, zero diagonal."""
    details: dict[str, float]

    def score(self, history: Tensor) -> Tensor:
        return history @ self.weight


def fit(train: Tensor, config: Config, validate: Validate) -> Ease:
    """Minimise |X - XB|² + λ|B|² under diag(B) = 0 for each λ; keep what validates best.

    B = I - P diag(1 / diag(P)) with P = (X'X + λI)^-1, inverted in float64. Of candidates that validate
    equally the smaller λ is kept; NaN is the worst. ``details`` holds ``l2`` and each candidate's
    ``validation_l2=<λ>``.

    Args:
        train: (U, I) float32, 1 or 0.
    Raises:
        RecpeftError: the validation metric is NaN for every λ.
    """
    gram = (train.T @ train).double()  # exact: co-occurrence counts stay below float32's 2**24
    best: Ease | None = None
    best_value = -math.inf
    validation: dict[str, float] = {}
    for l2 in sorted(set(config.l2)):
        candidate = Ease(_weight(gram, l2), {"l2": l2})
        value = validate(candidate)
        validation[f"validation_l2={l2}"] = value
        if not math.isnan(value) and (best is None or value > best_value):
            best, best_value = candidate, value
    if best is None:
        raise RecpeftError(
            "the validation metric of ease is NaN for every l2; there may be no user with validation interactions."
        )
    return Ease(best.weight, {**best.details, **validation})


def _weight(gram: Tensor, l2: float) -> Tensor:
    """(I, I) float32 weights from X'X (I, I) float64."""
    import torch

    penalised = gram.clone()
    penalised.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(penalised))
    weight = inverse / -inverse.diagonal()  # column j over -P_jj
    weight.fill_diagonal_(0)
    return weight.float()
