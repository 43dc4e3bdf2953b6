"""Item kNN: cosine similarity with shrinkage between items by their users, over the nearest neighbours.

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
"""Maximum number of item pairs whose dense similarities are in memory at a time."""


class Config(RankerConfig):
    """Defaults lie within the ranges that Ferrari Dacrema et al. search: 5 to 800 neighbours, shrinkage up to 1,000."""

    neighbours: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (100, 10, 25, 50, 200, 400)
    """Candidate numbers of most similar items that score an item; validation chooses, starting from the first,
    RecBole's default."""
    shrinkage: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0, 10.0, 100.0, 1000.0)
    """Candidate terms added to a similarity's denominator, which lower similarities based on few users; validation
    chooses, starting from the first."""


@dataclass(frozen=True)
class ItemKnn:
    """Ranker whose score of an item is the sum of its similarities to its neighbours in the history."""

    similarity: csr_array
    """(I, I) float32: entry (j, i) is the similarity of item i and its neighbour j."""
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
    """Keep each item's ``neighbours`` items of largest |U_i ∩ U_j| / (sqrt(|U_i| |U_j|) + shrinkage).

    U_i are the train users of item i. ``details`` holds the chosen values.

    Raises:
        LeftOut: the neighbours do not fit into ``options.memory_bytes``.
    """
    from rankers._choice import choose

    most = min(max(config.neighbours), data.num_items)
    # Bytes of an index and a similarity for the candidate, its sparse copies and the best one.
    options.reserve(48 * data.num_items * most, f"item_knn with {most:,} neighbours of {data.num_items:,} items")

    def candidate(values: dict[str, float]) -> tuple[ItemKnn, float]:
        found = ItemKnn(similarities(data.matrix, int(values["neighbours"]), values["shrinkage"]), {})
        return found, options.validate(found)

    found, chosen = choose("item_knn", {"neighbours": config.neighbours, "shrinkage": config.shrinkage}, candidate)
    return replace(found, details=chosen)


def similarities(matrix: csr_array, neighbours: int, shrinkage: float) -> csr_array:
    """Return ``ItemKnn.similarity`` for train's ``matrix`` (U, I)."""
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
        both = (columns[part] @ matrix).toarray()  # (n, I) number of users of both items
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
