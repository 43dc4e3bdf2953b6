"""How every run is measured, whatever it is: the same metrics, statistics, ties and per-user file."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules._groups import GroupConfig, membership, train_counts, user_index
from experiments._data import Prepared
from experiments.config import EvaluationConfig
from experiments.results import RunFolder
from metrics import History, RankingMetrics
from metrics._judged import JudgedMetrics, JudgedPairs, replicates
from metrics.catalog import DEFAULT_NAMES, find
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path

TIE_SEED = 0
"""Of the draw that orders equal scores: the same for every run, so that tables compare like with like."""


def ranking_metrics(prepared: Prepared, evaluation: EvaluationConfig, keep_users: bool = True) -> RankingMetrics:
    """The metrics of ``evaluation`` with their statistics from train alone.

    Raises:
        RecpeftError: a group is no attribute of the users or items, or its values are no groups.
    """
    dataset, train = prepared.dataset, prepared.split.train
    graded = [name for name in evaluation.metrics if (info := find(name)) is not None and "grades" in info.needs]
    ratings = pl.concat([prepared.split.validation["rating"], prepared.split.test["rating"]])
    if graded and not (ratings >= 0).fill_null(False).all():
        raise RecpeftError(
            f"evaluation.metrics names {graded[0]}, which needs a rating of at least 0 for every held-out interaction, "
            f"and {dataset.name} has some without; leave it out."
        )
    pairs = train.select("user", "item").unique()
    counts = train_counts(pairs, "item", dataset.num_items)
    of_users = train_counts(train, "user", dataset.num_users)

    def by_user(group: GroupConfig) -> tuple[Tensor, list[str]]:
        index = user_index(dataset, group, of_users, evaluation.cold_below)
        return torch.from_numpy(index), membership(dataset.users, "user", group, of_users, evaluation.cold_below)[1]

    def by_item(group: GroupConfig) -> tuple[Tensor, list[str]]:
        found, names = membership(dataset.items, "item", group, counts, evaluation.cold_below)
        return torch.from_numpy(found), names

    categories = _categories(dataset.items)
    users, items = (torch.from_numpy(pairs[key].to_numpy().astype(np.int64)) for key in ("user", "item"))
    familiarity = GroupConfig(column="familiarity")
    return RankingMetrics(
        ks=sorted(evaluation.k),
        categories=categories,
        train_counts=torch.from_numpy(counts),
        num_train_users=train["user"].n_unique(),
        groups={group.column: by_user(group) for group in evaluation.groups},
        slices={"activity": by_user(GroupConfig(column="activity"))},
        item_groups={f"item_{group.column}": by_item(group) for group in (familiarity, *evaluation.item_groups)},
        keep_users=keep_users,
        stamp=evaluation.candidates.stamp,
        names=list(dict.fromkeys((*DEFAULT_NAMES, *evaluation.metrics))),
        embeddings=categories.float(),
        history=History.of(users, items, dataset.num_users, dataset.num_items),
        main_category=torch.where(categories.any(dim=1), categories.int().argmax(dim=1), -1),
    )


def judged_metrics(evaluation: EvaluationConfig) -> JudgedMetrics | None:
    """The metrics of pairs that are known to be liked or not; None where what is ranked is not."""
    candidates = evaluation.candidates
    return JudgedMetrics(candidates.stamp) if candidates.kind == "rated" else None


def judged_record(folder: RunFolder, judged: JudgedMetrics | None, prepared: Prepared) -> dict[str, Any]:
    """What the record holds of test's judged pairs, which are written to a file of their own."""
    if judged is None:
        return {}
    pairs = judged.pairs()
    users, items = prepared.dataset.users, prepared.dataset.items
    frame = pl.DataFrame(
        {
            "user": users["raw_id"].gather(pairs.user.cpu().numpy()),
            "item": items["raw_id"].gather(pairs.item.cpu().numpy()),
            "score": pairs.score.cpu().numpy(),
            "liked": pairs.liked.cpu().numpy(),
        }
    )
    with atomic_path(folder.per_pair) as temporary:
        frame.write_parquet(temporary)
    low, high = np.nanquantile(auc_replicates(frame), [0.025, 0.975]).tolist()
    return {"intervals": {f"auc{judged.stamp}": {"low": low, "high": high, "users": frame["user"].n_unique()}}}


def auc_replicates(pairs: pl.DataFrame) -> np.ndarray:
    """(B,) AUC over users drawn with replacement, the same draws for every run on the same pairs.

    Args:
        pairs: user, item, score, liked, as ``per_pair.parquet`` has them.
    """
    rows = pairs.sort("user", "item")
    users = rows["user"].rank("dense").to_numpy().astype(np.int64)
    columns = (users, users, rows["score"].to_numpy(), rows["liked"].to_numpy())
    found: np.ndarray = replicates(JudgedPairs(*(torch.from_numpy(column.copy()) for column in columns))).numpy()
    return found


def history_matrix(num_users: int, num_items: int, *parts: pl.DataFrame) -> Tensor:
    """(num_users, num_items) float32: 1 where ``parts`` hold the interaction."""
    matrix = torch.zeros((num_users, num_items))
    for part in parts:
        matrix[torch.tensor(part["user"].to_list()), torch.tensor(part["item"].to_list())] = 1.0
    return matrix


def _categories(items: pl.DataFrame) -> Tensor:
    """(I, C) bool, columns in alphabetical order of the categories; one empty column where there are none."""
    if "categories" not in items.columns:
        return torch.zeros((items.height, 1), dtype=torch.bool)
    named = pl.col("categories")
    if not isinstance(items.schema["categories"], pl.List):
        named = pl.concat_list(named.cast(pl.String))  # one category an item
    pairs = items.select("item", named.list.drop_nulls()).explode("categories").drop_nulls()
    names = pairs["categories"].unique().sort()
    matrix = torch.zeros((items.height, max(len(names), 1)), dtype=torch.bool)
    column = np.searchsorted(names.to_numpy(), pairs["categories"].to_numpy()) if len(names) else np.empty(0, np.int64)
    matrix[torch.from_numpy(pairs["item"].to_numpy().astype(np.int64)), torch.from_numpy(column)] = True
    return matrix


def write_per_user(folder: RunFolder, metric: RankingMetrics, prepared: Prepared) -> None:
    """Every test user's values under the user's own id, for paired comparisons."""
    columns = {name: values.cpu().numpy() for name, values in metric.per_user().items()}
    frame = pl.DataFrame(columns).with_columns(pl.col("user").cast(pl.Int32))
    frame = frame.join(prepared.dataset.users.select("user", "raw_id"), on="user", how="left").sort("user")
    with atomic_path(folder.per_user) as temporary:
        frame.select("raw_id", pl.exclude("raw_id", "user")).write_parquet(temporary)
