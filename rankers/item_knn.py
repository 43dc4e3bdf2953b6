"""Items that the same users like as those of the history: cosine similarity with shrinkage, of the nearest neighbours.

Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms"; shrinkage as in Ferrari Dacrema et
al. 2019, "Are we really making much progress?".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from rankers._base import RankerConfig, TrainingOptions

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array
    from torch import Tensor

    from rankers._data import TrainData

_CELLS_AT_ONCE = 1 << 24
"""Pairs of items whose similarities are held at a time."""


class Config(RankerConfig):
    """Lists lie within the ranges that Ferrari Dacrema et al. search: 5 to 800 neighbours, shrinkage up to 1,000."""

    neighbours: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (100, 10, 25, 50, 200, 400)
    """Most similar items that an item is scored by; validation chooses, from the first on, RecBole's default."""
    shrinkage: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0, 10.0, 100.0, 1000.0)
    """Added to the denominator of a similarity, against those of few users; validation chooses, from the first on."""


@dataclass(frozen=True)
class ItemKnn:
    """An item's score is the sum of its similarities to those items of the history that are among its neighbours."""

    similarity: csr_array
    """(I, I) float32: at (j, i) the similarity of item i and its neighbour j."""
    details: dict[str, float]

    def score(self, users: np.ndarray, history: csr_array) -> Tensor:
        import torch

        return torch.from_numpy((history @ self.similarity).toarray())

    def tensors(self) -> dict[str, Tensor]:
        import torch

        matrix = self.similarity
        parts = {"offsets": matrix.indptr, "neighbour": matrix.indices, "similarity": matrix.data}
        return {name: torch.from_numpy(part) for name, part in parts.items()}


def fit(data: TrainData, config: Config, options: TrainingOptions) -> ItemKnn:
    """Keep of each item the ``neighbours`` with the largest |U_i ∩ U_j| / (sqrt(|U_i| |U_j|) + shrinkage).

    U_i are the train users of item i. ``details`` holds what was chosen.

    Raises:
        LeftOut: the neighbours do not fit into ``options.memory_bytes``.
    """
    from rankers._choice import choose

    most = min(max(config.neighbours), data.num_items)
    # An index and a similarity for the candidate, for its sparse copies and for the best one.
    options.reserve(48 * data.num_items * most, f"item_knn with {most:,} neighbours of {data.num_items:,} items")

    def candidate(values: dict[str, float]) -> tuple[ItemKnn, float]:
        found = ItemKnn(similarities(data.matrix, int(values["neighbours"]), values["shrinkage"]), {})
        return found, options.validate(found)

    found, chosen = choose("item_knn", {"neighbours": config.neighbours, "shrinkage": config.shrinkage}, candidate)
    return replace(found, details=chosen)


def similarities(matrix: csr_array, neighbours: int, shrinkage: float) -> csr_array:
    """Return ``ItemKnn.similarity`` of train's ``matrix`` (U, I)."""
    import numpy as np
    import torch
    from scipy.sparse import csr_array, vstack

    num_items = matrix.shape[1]
    columns = matrix.T.tocsr()
    root = np.sqrt(columns.sum(axis=1))
    rows = []
    block = max(1, _CELLS_AT_ONCE // num_items)
    for start in range(0, num_items, block):
        part = slice(start, min(start + block, num_items))
        both = (columns[part] @ matrix).toarray()  # (n, I) users of both
        both[np.arange(len(both)), np.arange(part.start, part.stop)] = 0  # no item is its own neighbour
        similar = torch.from_numpy(both / np.maximum(root[part, None] * root + shrinkage, 1e-12))
        best, place = similar.topk(min(neighbours, num_items), dim=1)
        kept = best > 0
        row = kept.nonzero()[:, 0].numpy()
        rows.append(csr_array((best[kept].numpy(), (row, place[kept].numpy())), shape=both.shape, dtype=np.float32))
    found = vstack(rows).T.tocsr()
    found.sort_indices()
    return found


def load(config: Config, tensors: Mapping[str, Tensor], details: dict[str, float]) -> ItemKnn:
    """Return the ranker that ``tensors`` were taken from."""
    from scipy.sparse import csr_array

    data, indices, offsets = (tensors[name].numpy() for name in ("similarity", "neighbour", "offsets"))
    size = len(offsets) - 1
    return ItemKnn(csr_array((data, indices, offsets), shape=(size, size)), details)
