"""How every run is measured, whatever it is: the same metrics, statistics, ties and per-user file."""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor

from experiments._data import Prepared
from experiments.config import EvaluationConfig
from experiments.results import RunFolder
from metrics import RankingMetrics
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path

TIE_SEED = 0
"""Of the draw that orders equal scores: the same for every run, so that tables compare like with like."""


def ranking_metrics(prepared: Prepared, evaluation: EvaluationConfig, keep_users: bool = True) -> RankingMetrics:
    """The metrics of ``evaluation`` with their statistics from train alone.

    Raises:
        RecpeftError: a group is no attribute of the users.
    """
    dataset, train = prepared.dataset, prepared.split.train
    counts = torch.zeros(dataset.num_items, dtype=torch.int64)
    pairs = train.select("user", "item").unique()
    counts += torch.bincount(torch.tensor(pairs["item"].to_list()), minlength=dataset.num_items)
    return RankingMetrics(
        ks=sorted(evaluation.k),
        categories=_categories(dataset.items),
        train_counts=counts,
        num_train_users=train["user"].n_unique(),
        groups={name: _group(dataset.users, name) for name in evaluation.groups},
        keep_users=keep_users,
    )


def history_matrix(num_users: int, num_items: int, *parts: pl.DataFrame) -> Tensor:
    """(num_users, num_items) float32: 1 where ``parts`` hold the interaction."""
    matrix = torch.zeros((num_users, num_items))
    for part in parts:
        matrix[torch.tensor(part["user"].to_list()), torch.tensor(part["item"].to_list())] = 1.0
    return matrix


def _categories(items: pl.DataFrame) -> Tensor:
    """(I, C) bool, columns in alphabetical order of the categories."""
    names = sorted({name for row in items["categories"].to_list() for name in row})
    column = {name: c for c, name in enumerate(names)}
    matrix = torch.zeros((items.height, max(len(names), 1)), dtype=torch.bool)
    for i, row in enumerate(items["categories"].to_list()):
        for name in row:
            matrix[i, column[name]] = True
    return matrix


def _group(users: pl.DataFrame, name: str) -> tuple[Tensor, list[str]]:
    attributes = [column for column in users.columns if column not in ("user", "raw_id")]
    if name not in attributes:
        raise RecpeftError(
            f"evaluation.groups names {name!r}, which is no attribute of the users; "
            f"choose from {', '.join(attributes) or 'none: this source has none'}."
        )
    values = users[name].cast(pl.String).to_list()
    names = sorted({value for value in values if value is not None})
    place = {value: index for index, value in enumerate(names)}
    return torch.tensor([place.get(value, -1) for value in values]), names


def write_per_user(folder: RunFolder, metric: RankingMetrics, prepared: Prepared) -> None:
    """Every test user's values under the user's own id, for paired comparisons."""
    columns = {name: values.cpu().numpy() for name, values in metric.per_user().items()}
    frame = pl.DataFrame(columns).with_columns(pl.col("user").cast(pl.Int32))
    frame = frame.join(prepared.dataset.users.select("user", "raw_id"), on="user", how="left").sort("user")
    with atomic_path(folder.per_user) as temporary:
        frame.select("raw_id", pl.exclude("raw_id", "user")).write_parquet(temporary)
