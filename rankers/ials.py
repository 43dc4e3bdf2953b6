"""iALS: matrix factorisation by alternating least squares over all user-item pairs.

Hu, Koren & Volinsky 2008, "Collaborative filtering for implicit feedback datasets", with the regularisation and the
settings of Rendle et al. 2022, "Revisiting the performance of iALS on item recommendation benchmarks".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rankers._base import RankerConfig, TrainingOptions
from recpeft.config import Dimension

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array
    from torch import Tensor

    from rankers._data import TrainData

_NUMBERS_AT_ONCE = 1 << 25
"""Maximum number of padded factors, and of entries of users' matrices, per block of users: 256 MB in float64."""


class Config(RankerConfig):
    """Defaults are within the ranges that Rendle et al. search (their section 4)."""

    STOCHASTIC: ClassVar[bool] = True

    factors: Dimension = 64
    """Number of factors of each user and item; more are better on larger data."""
    unobserved_weight: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.1, 0.3, 1.0, 3.0)
    """Candidate weights α0 of all pairs, added to the liked pairs' 1; validation chooses, starting from the first."""
    l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.003, 0.001, 0.01)
    """Candidate penalties λ; validation chooses, starting from the first."""
    exponent: NonNegativeFloat = 1.0
    """Exponent ν of a user's or item's frequency in its penalty: 1 is Rendle et al.'s, 0 is Hu et al.'s."""
    epochs: PositiveInt = 16
    """Maximum number of epochs; each solves all users and all items and is validated, and the best one is kept."""
    patience: PositiveInt = 3
    """Number of epochs without a better validation after which training ends."""


@dataclass(frozen=True)
class Ials:
    """Ranker that scores by inner products of item factors and user factors solved from each history."""

    item: Tensor
    """(I, D) float32."""
    unobserved_weight: float
    l2: float
    exponent: float
    details: dict[str, float]

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        found = solve(self.item.double(), history, self.unobserved_weight, self.l2, self.exponent)
        return found.float() @ self.item.T

    def tensors(self) -> dict[str, Tensor]:
        return {"item": self.item}


def fit(data: TrainData, config: Config, options: TrainingOptions) -> Ials:
    """Minimise Σ_S (1 - u·i)² + α0 Σ_all (u·i)² + λ Σ (frequency)^ν |factors|², over users and items in turn.

    S is the set of liked pairs; a user's frequency is |S_u| + α0 I, an item's |S_i| + α0 U. ``details`` holds the
    chosen values and the best epoch's number, ``epochs``.
    """
    from rankers._choice import choose

    found, chosen = choose(
        "ials",
        {"unobserved_weight": config.unobserved_weight, "l2": config.l2},
        lambda values: _train(data, config, options, values["unobserved_weight"], values["l2"]),
    )
    return replace(found, details=chosen | found.details)


def _train(data: TrainData, config: Config, options: TrainingOptions, weight: float, l2: float) -> tuple[Ials, float]:
    import torch

    from rankers._choice import until_it_stops_improving

    generator = torch.Generator().manual_seed(options.seed)
    # Rendle et al.'s standard deviation: scores begin at 0.1 / sqrt(D).
    item = torch.randn(data.num_items, config.factors, generator=generator, dtype=torch.float64)
    item *= 0.1 / config.factors**0.5
    of_users, of_items = data.matrix, data.matrix.T.tocsr()

    def epoch() -> None:
        user = solve(item, of_users, weight, l2, config.exponent)
        item.copy_(solve(user, of_items, weight, l2, config.exponent))

    def ranker() -> Ials:
        return Ials(item.float(), weight, l2, config.exponent, {})

    best, value, epochs = until_it_stops_improving(epoch, ranker, options.validate, config.epochs, config.patience)
    return replace(best, details={"epochs": float(epochs)}), value


def solve(fixed: Tensor, matrix: csr_array, weight: float, l2: float, exponent: float) -> Tensor:
    """Return the factors (U, D) float64 that minimise the loss for the ``fixed`` factors (I, D) float64.

    x_u = (Σ_{i in S_u} y_i y_i' + α0 Y'Y + λ (|S_u| + α0 I)^ν)^-1 Σ_{i in S_u} y_i, in batches of similar lengths.

    Args:
        matrix: (U, I), 1 at each liked pair; transposed to solve for items.
    """
    import numpy as np
    import torch

    rows, (num, size) = len(matrix.indptr) - 1, fixed.shape
    lengths = np.diff(matrix.indptr)
    everything = weight * (fixed.T @ fixed)
    padded = torch.cat([fixed, fixed.new_zeros(1, size)])
    found = fixed.new_zeros(rows, size)
    order = np.argsort(lengths, kind="stable")
    start = int(np.searchsorted(lengths[order], 1))  # users without likes stay at 0
    while start < rows:
        # As many users as fit when padded to the longest of them; lengths ascend.
        stop = min(rows, start + max(1, _NUMBERS_AT_ONCE // (size * max(size, int(lengths[order[start]])))))
        while stop > start + 1 and (stop - start) * size * int(lengths[order[stop - 1]]) > _NUMBERS_AT_ONCE:
            stop = start + (stop - start + 1) // 2
        part = order[start:stop]
        length = lengths[part]
        place = np.full((len(part), length.max()), num)
        place[np.arange(length.max()) < length[:, None]] = np.concatenate(
            [matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]] for row in part]
        )
        liked = padded[torch.from_numpy(place)]  # (n, L, D)
        squares = liked.transpose(1, 2) @ liked + everything
        penalty = l2 * torch.from_numpy((length + weight * num) ** exponent).to(fixed)
        squares.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
        factor = torch.linalg.cholesky(squares)
        found[torch.from_numpy(part)] = torch.cholesky_solve(liked.sum(1)[:, :, None], factor)[:, :, 0]
        start = stop
    return found


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> Ials:
    """Return the ranker that ``tensors`` were taken from."""
    return Ials(tensors["item"], details["unobserved_weight"], details["l2"], config.exponent, details)
