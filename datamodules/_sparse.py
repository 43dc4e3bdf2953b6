"""User × item matrices as compressed sparse rows, since dense ones take gigabytes for large catalogues."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from scipy.sparse import csr_array
from torch import Tensor


def binary(row: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Return a float32 matrix with 1 at each pair, even if it is given repeatedly; columns of a row ascend."""
    matrix = csr_array((np.ones(len(row), np.float32), (row, item)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def interaction_matrix(num_users: int, num_items: int, *parts: pl.DataFrame) -> csr_array:
    """Return a (num_users, num_items) float32 matrix with 1 where ``parts`` hold the interaction."""
    user, item = (np.concatenate([part[key].to_numpy() for part in parts]) for key in ("user", "item"))
    return binary(user, item, (num_users, num_items))


def pairs(rows: csr_array) -> tuple[Tensor, Tensor]:
    """Return row and column of each entry of ``rows``, a part of a matrix, (N,) int64 each."""
    row, item = rows.nonzero()
    return torch.from_numpy(row).long(), torch.from_numpy(item).long()
