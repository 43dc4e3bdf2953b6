"""Distance between two lists of the same user, such as before and after reordering or a change of prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def damerau_levenshtein(first: Tensor, second: Tensor, k: int) -> Tensor:
    """Least number of items put in, left out, replaced or swapped with their neighbour, over the longer list's length.

    Damerau 1964, unrestricted; by rapidfuzz. 0 is the same order of the same items, 1 has nothing in common in place.

    Args:
        first, second: (U, K) item ids, best first, -1 is padding; cut at ``k``. Relevance plays no part.
    Returns:
        (U,) float64 in [0, 1]; 0 of two empty lists.
    """
    import torch
    from rapidfuzz.distance import DamerauLevenshtein

    pairs = zip(first[:, :k].tolist(), second[:, :k].tolist(), strict=True)
    values = [
        DamerauLevenshtein.normalized_distance([i for i in a if i >= 0], [i for i in b if i >= 0]) for a, b in pairs
    ]
    return torch.tensor(values, dtype=torch.float64)
