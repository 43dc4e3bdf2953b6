"""Measure every run in the same way: metrics, statistics, ties and per-user file."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules._groups import GroupConfig, membership, train_counts, user_index
from experiments.cell.data import Prepared
from experiments.cell.embeddings import item_embeddings
from experiments.config.evaluation import EvaluationConfig
from experiments.records.record import RunFolder
from metrics import History, RankingMetrics, ScoreMetrics
from metrics._judged import JudgedMetrics, JudgedPairs, replicates
from metrics._listing import Relevant
from metrics._suite import KeptLists, Suite
from metrics.catalog import DEFAULT_NAMES, METRICS, find
from recpeft import processes
from recpeft.errors import RecpeftError
from recpeft.files import atomic_path

Predicts = Literal["rating", "logit"] | None
"""Kind of a model's scores, as ``JudgedMetrics`` defines it."""


def ranking_metrics(prepared: Prepared, evaluation: EvaluationConfig, keep_users: bool = True) -> RankingMetrics:
    """Return the ranking metrics of ``evaluation``, with statistics from train alone.

    Raises:
        RecpeftError: a group is no attribute of the users or items, or its values form no groups.
    """
    dataset, train = prepared.dataset, prepared.split.train
    if max(evaluation.k) > dataset.num_items:
        raise RecpeftError(
            f"evaluation.k names {max(evaluation.k)}, but {dataset.name} has {dataset.num_items} items; lower it."
        )
    for part in ("train", "validation", "test"):
        if prepared.split.liked(getattr(prepared.split, part)).is_empty():
            remedy = "use another data.split" if prepared.split.liked_from is None else "lower data.liked_from"
            raise RecpeftError(f"{part} holds nothing that is liked, so that nothing can be learnt or found; {remedy}.")
    lists = set_apart(evaluation)["lists"]
    of_grades = [name for name in lists if (info := find(name)) is not None and "grades" in info.needs]
    ratings = pl.concat([prepared.split.validation["rating"], prepared.split.test["rating"]])
    if of_grades and not (ratings >= 0).fill_null(False).all():
        raise RecpeftError(
            f"evaluation.metrics names {of_grades[0]}, which needs a rating of at least 0 for every held-out "
            f"interaction, and {dataset.name} has some without; leave it out."
        )
    pairs = train.select("user", "item").unique()
    counts = train_counts(pairs, "item", dataset.num_items)

    def by_item(group: GroupConfig) -> tuple[Tensor, list[str]]:
        found, names = membership(dataset.items, "item", group, counts, evaluation.cold_below)
        return torch.from_numpy(found), names

    categories = item_categories(dataset.items)
    names = list(dict.fromkeys((*DEFAULT_NAMES, *lists)))
    needs_embeddings = any((info := find(name)) is not None and "embeddings" in info.needs for name in names)
    users, items = (torch.from_numpy(pairs[key].to_numpy().astype(np.int64)) for key in ("user", "item"))
    familiarity = GroupConfig(column="familiarity")
    return RankingMetrics(
        ks=sorted(evaluation.k),
        categories=categories,
        train_counts=torch.from_numpy(counts),
        num_train_users=train["user"].n_unique(),
        groups=user_groups(prepared, evaluation),
        slices={"activity": _by_user(prepared, GroupConfig(column="activity"), evaluation)},
        item_groups={f"item_{group.column}": by_item(group) for group in (familiarity, *evaluation.item_groups)},
        keep_users=keep_users,
        stamp=evaluation.candidates.stamp,
        names=names,
        impressions=evaluation.candidates.kind == "rated",
        embeddings=item_embeddings(prepared, evaluation.embeddings, categories) if needs_embeddings else None,
        history=History.of(users, items, dataset.num_users, dataset.num_items),
        main_category=main_categories(dataset.items),
    )


def user_groups(prepared: Prepared, evaluation: EvaluationConfig) -> dict[str, tuple[Tensor, list[str]]]:
    """Return, for each of ``evaluation.groups``, every user's group (-1 for none) and the groups' names."""
    return {group.column: _by_user(prepared, group, evaluation) for group in evaluation.groups}


def _by_user(prepared: Prepared, group: GroupConfig, evaluation: EvaluationConfig) -> tuple[Tensor, list[str]]:
    dataset = prepared.dataset
    counts = train_counts(prepared.split.train, "user", dataset.num_users)
    index = user_index(dataset, group, counts, evaluation.cold_below)
    return torch.from_numpy(index), membership(dataset.users, "user", group, counts, evaluation.cold_below)[1]


def set_apart(evaluation: EvaluationConfig) -> dict[str, list[str]]:
    """Sort ``evaluation.metrics`` by what they are computed from: lists, scores or ratings."""
    kinds: dict[str, list[str]] = {"lists": [], "scores": [], "ratings": []}
    for name in evaluation.metrics:
        info = find(name)
        kinds[info.kind if info is not None and info.kind in ("scores", "ratings") else "lists"].append(name)
    return kinds


def make_suite(
    prepared: Prepared,
    evaluation: EvaluationConfig,
    predicts: Predicts = None,
    keep_users: bool = True,
    keep_lists: bool = False,
) -> Suite:
    """Return the suite of all metrics that ``evaluation`` asks for.

    Args:
        predicts: kind of the scores, as ``JudgedMetrics`` defines it; metrics of another kind are left out.
    Raises:
        RecpeftError: see ``ranking_metrics`` and ``max_rating``.
    """
    ranking, names = ranking_metrics(prepared, evaluation, keep_users), set_apart(evaluation)
    stamp = evaluation.candidates.stamp
    of_scores = [name for name in names["scores"] if "logits" not in METRICS[name].needs or predicts == "logit"]
    scores = None
    top_rating = 1.0
    if of_scores:
        groups = user_groups(prepared, evaluation)
        scores = ScoreMetrics(prepared.dataset.num_items, groups, of_scores, stamp, logits=predicts == "logit")
        top_rating = max_rating(prepared, of_scores)
    judged = JudgedMetrics(stamp, names["ratings"], predicts) if evaluation.candidates.kind == "rated" else None
    weighted = (evaluation.monitored, evaluation.weights) if evaluation.weights else None
    return Suite(ranking, judged, scores, weighted, keep_lists, top_rating)


def max_rating(prepared: Prepared, names: list[str]) -> float:
    """Return the largest rating in train, which a score of 1 represents.

    Raises:
        RecpeftError: one of ``names`` needs ratings, and some are missing or negative.
    """
    ratings = prepared.dataset.interactions["rating"]
    compared = [name for name in names if "grades" in METRICS[name].needs]
    if compared and (ratings.null_count() or (ratings < 0).any()):
        raise RecpeftError(
            f"evaluation.metrics names {compared[0]}, which needs a rating of at least 0 for every interaction, and "
            f"{prepared.dataset.name} has some without; leave it out."
        )
    return float(prepared.split.train["rating"].max() or 1.0)  # type: ignore[arg-type]


class HeldOut:
    """Held-out items of each user, with their grades of relevance."""

    def __init__(self, rows: pl.DataFrame, num_users: int) -> None:
        self._place = torch.full((num_users,), -1)
        self._user, self._item = (torch.from_numpy(rows[key].to_numpy().astype(np.int64)) for key in ("user", "item"))
        self._grade = torch.from_numpy(rows["rating"].fill_null(float("nan")).to_numpy().copy())

    def of(self, users: Tensor) -> Relevant:
        """Return the relevant items of ``users`` (U,); a pair without a grade has NaN."""
        place = self._place.clone()
        place[users] = torch.arange(len(users))
        inside = place[self._user] >= 0
        return Relevant((place[self._user[inside]], self._item[inside]), self._grade[inside])


def write_lists(folder: RunFolder, part: str, kept: KeptLists, prepared: Prepared) -> None:
    """Write every user's list of a part, with the data's own ids, in the format that ``recpeft evaluate`` reads."""
    if processes.number() > 0:
        return
    row, place = (kept.item >= 0).nonzero(as_tuple=True)
    users, items = prepared.dataset.users, prepared.dataset.items
    frame = pl.DataFrame(
        {
            "user": users["raw_id"].gather(kept.user[row].numpy()),
            "item": items["raw_id"].gather(kept.item[row, place].numpy()),
            "rank": (place + 1).int().numpy(),
            "score": kept.score[row, place].numpy(),
        }
    )
    with atomic_path(folder.lists(part)) as temporary:
        frame.write_parquet(temporary)


def interval_record(suite: Suite) -> dict[str, dict[str, Any]]:
    """Return 95 % bootstrap intervals over users: of each gap between user groups, with the groups' sizes, and of each
    group's NDCG."""
    found, sizes = suite.ranking.gap_intervals(), suite.ranking.group_sizes()
    gaps = {name: {"low": low, "high": high, "users": sizes[name]} for name, (low, high) in found.items()}
    groups = {name: {"low": low, "high": high} for name, (low, high) in suite.ranking.group_intervals().items()}
    return gaps | groups


def judged_record(folder: RunFolder, judged: JudgedMetrics | None, prepared: Prepared) -> dict[str, Any]:
    """Write test's judged pairs to a file; return the 95 % bootstrap interval of their AUC."""
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
    if processes.number() == 0:
        with atomic_path(folder.per_pair) as temporary:
            frame.write_parquet(temporary)
    low, high = np.nanquantile(auc_replicates(frame), [0.025, 0.975]).tolist()
    return {f"auc{judged.stamp}": {"low": low, "high": high, "users": frame["user"].n_unique()}}


def auc_replicates(pairs: pl.DataFrame) -> np.ndarray:
    """Return (B,) bootstrap AUCs over users drawn with replacement; runs on the same pairs share the draws.

    Args:
        pairs: user, item, score, liked, the columns of ``per_pair.parquet``.
    """
    rows = pairs.sort("user", "item")
    users = rows["user"].rank("dense").to_numpy().astype(np.int64)
    columns = (users, users, rows["score"].to_numpy(), rows["liked"].to_numpy())
    found: np.ndarray = replicates(JudgedPairs(*(torch.from_numpy(column.copy()) for column in columns))).numpy()
    return found


def main_categories(items: pl.DataFrame) -> Tensor:
    """Return (I,) int64: the column in ``item_categories`` of each item's main category, which is the first that the
    data name for it; -1 for an item without categories."""
    pairs, names = _named_categories(items)
    first = pairs.unique("item", keep="first", maintain_order=True)
    found = torch.full((items.height,), -1)
    column = np.searchsorted(names.to_numpy(), first["categories"].to_numpy()) if len(names) else np.empty(0, np.int64)
    found[torch.from_numpy(first["item"].to_numpy().astype(np.int64))] = torch.from_numpy(column)
    return found


def _named_categories(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Return item and category of each pair, in the data's order, and the categories in alphabetical order."""
    if "categories" not in items.columns:
        return pl.DataFrame(schema={"item": pl.Int32, "categories": pl.String}), pl.Series([], dtype=pl.String)
    named = pl.col("categories")
    if not isinstance(items.schema["categories"], pl.List):
        named = pl.concat_list(named.cast(pl.String))  # one category an item
    pairs = items.select("item", named.list.drop_nulls()).explode("categories").drop_nulls()
    return pairs, pairs["categories"].unique().sort()


def item_categories(items: pl.DataFrame) -> Tensor:
    """Return the items' categories (I, C) bool, columns in alphabetical order; one empty column if there are none."""
    pairs, names = _named_categories(items)
    matrix = torch.zeros((items.height, max(len(names), 1)), dtype=torch.bool)
    column = np.searchsorted(names.to_numpy(), pairs["categories"].to_numpy()) if len(names) else np.empty(0, np.int64)
    matrix[torch.from_numpy(pairs["item"].to_numpy().astype(np.int64)), torch.from_numpy(column)] = True
    return matrix


def write_per_user(folder: RunFolder, suite: Suite, prepared: Prepared) -> None:
    """Write every test user's values, with the data's own user ids, for paired comparisons."""
    columns = {name: values.cpu().numpy() for name, values in suite.per_user().items()}
    frame = pl.DataFrame(columns).with_columns(pl.col("user").cast(pl.Int32))
    frame = frame.join(prepared.dataset.users.select("user", "raw_id"), on="user", how="left").sort("user")
    if processes.number() > 0:
        return
    with atomic_path(folder.per_user) as temporary:
        frame.select("raw_id", pl.exclude("raw_id", "user")).write_parquet(temporary)
