"""EASE^R: a linear item-item autoencoder with a closed form.

Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rankers._base import RankerConfig, TrainingOptions

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array
    from torch import Tensor

    from rankers._data import TrainData

_BYTES_A_PAIR = 36
"""Bytes of memory per pair of items while weights are computed: X'X, its factor and the inverse in float64, the best
weights and two copies of the candidate's in float32."""


class Config(RankerConfig):
    """Candidate penalties."""

    l2: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0), min_length=1
    )
    """Candidate L2 penalties λ, on either side of RecBole's default (``reg_weight`` 250); validation chooses one."""


@dataclass(frozen=True)
class Ease:
    """Ranker with the scores ``history @ weight``."""

    weight: Tensor
    """(I, I) float32, zero diagonal."""
    details: dict[str, float]

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        import torch

        return torch.from_numpy(history @ self.weight.numpy())

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Ease:
    """Return the ranker that ``tensors`` were taken from."""
    return Ease(tensors["weight"], details)


def fit(data: TrainData, config: Config, options: TrainingOptions) -> Ease:
    """Minimise |X - XB|² + λ|B|² under diag(B) = 0 for each λ; keep the candidate that validates best.

    B = I - P diag(1 / diag(P)) with P = (X'X + λI)^-1, inverted in float64. If candidates validate
    equally, the smaller λ is kept; NaN is the worst. ``details`` holds ``l2`` and each candidate's
    ``validation_l2=<λ>``.

    Raises:
        LeftOut: the item × item matrices do not fit into ``options.memory_bytes``.
        RecpeftError: the validation metric is NaN for every λ.
    """
    import torch

    from rankers._choice import choose

    needed = _BYTES_A_PAIR * data.num_items**2
    options.reserve(needed, f"ease, whose matrices are {data.num_items:,} × {data.num_items:,} items,")
    counts = data.matrix.T @ data.matrix  # exact: co-occurrence counts stay below float32's 2**24
    gram = torch.from_numpy(counts.astype("float64").toarray())

    def candidate(values: dict[str, float]) -> tuple[Ease, float]:
        found = Ease(_weight(gram, values["l2"]), values)
        return found, options.validate(found)

    found, chosen = choose("ease", {"l2": config.l2}, candidate)
    return Ease(found.weight, chosen)


def _weight(gram: Tensor, l2: float) -> Tensor:
    """Return (I, I) float32 weights from X'X (I, I) float64."""
    import torch

    factor = gram.clone()
    factor.diagonal().add_(l2)
    torch.linalg.cholesky(factor, out=factor)
    inverse = torch.cholesky_inverse(factor)
    weight = inverse.div_(-inverse.diagonal().clone())  # column j over -P_jj
    weight.fill_diagonal_(0)
    return weight.float().contiguous()
