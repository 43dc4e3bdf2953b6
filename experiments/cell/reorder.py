"""Reorder a finished run's lists: trade some accuracy for diversity, calibration or exposure, without training."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules._groups import membership, train_counts
from experiments.cell.allowed import AllowedItems
from experiments.cell.certificate import file_hashes
from experiments.cell.data import Prepared
from experiments.cell.embeddings import item_embeddings
from experiments.cell.saved_run import check_data
from experiments.cell.suite import (
    HeldOut,
    interval_record,
    item_categories,
    make_suite,
    write_lists,
    write_per_user,
)
from experiments.config.run import RunConfig
from experiments.records.layout import FinishedRecord
from experiments.records.record import RunFolder, damaged, read_record, read_table
from metrics import History
from metrics._listing import given_lists
from metrics._suite import Ranked, Suite
from metrics.calibration import category_profile
from metrics.list_distance import damerau_levenshtein
from rankers.diversify._base import Given
from recpeft import plugins

_OF_THE_BASE = ("prompt", "backbone", "adapter", "parameters", "training", "diagnostics", "chosen", "proposals")
"""Parts of the base run's record that describe how its lists were made."""
_USERS_AT_ONCE = 256
"""Number of users per block; distances between embeddings take (users, depth, D) numbers."""


def run_diversified(
    config: RunConfig,
    prepared: Prepared,
    base: RunFolder,
    folder: RunFolder,
    candidates: tuple[pl.DataFrame, pl.DataFrame] | None,
) -> dict[str, Any]:
    """Reorder and measure the lists; return the record's parts.

    Args:
        base: folder of the finished run without the stage.
        candidates: its candidates for validation and test; None is the whole catalogue.
    Raises:
        RecpeftError: that run used other data, or its lists are gone.
    """
    record = read_record(base)
    assert isinstance(record, FinishedRecord)
    check_data(base.path, record, prepared)
    _check_files(base, record)
    start = time.perf_counter()
    suite = make_suite(prepared, config.evaluation, keep_lists=True)
    given = stage_inputs(config, prepared)
    values, distances = [], dict[str, float]()
    for at_test, part, rows in ((False, "validation", prepared.split.validation), (True, "test", prepared.split.test)):
        pairs = HeldOut(prepared.split.liked(rows), prepared.dataset.num_users)
        of_part = None if candidates is None else candidates[at_test]
        allowed = AllowedItems(prepared, config.evaluation.mask_seen, at_test, of_part)
        lists = stored_lists(base, part, prepared)
        try:
            distances = _reorder(suite, config, given, lists, pairs, allowed)
        except ValueError as error:  # scores that are no numbers, or lists shorter than k
            raise damaged(base, base.lists(part), str(error).rstrip(".")) from error
        values.append(suite.compute())
        write_lists(folder, part, suite.kept(), prepared)
    validation, test = values
    write_per_user(folder, suite, prepared)
    best_step = 0 if record.training is None else record.training.best_step
    return {
        **{part: record.json_values[part] for part in _OF_THE_BASE if part in record.json_values},
        "reordered": {"run_id": record.run_id},
        "trace": [{"step": best_step, "train_loss": None, "validation": validation}],
        # Ties concern the scores that made the lists.
        "test": test | distances | {"tie_rate": record.test["tie_rate"]},
        "intervals": interval_record(suite),
        # The cost of making the lists is part of the cost of the reordered ones.
        "costs": record.costs.json_values | {"reorder_seconds": time.perf_counter() - start},
    }


def _check_files(base: RunFolder, record: FinishedRecord) -> None:
    """Refuse files that differ from those the record was made with, if it has their hashes.

    Raises:
        RecpeftError: a file differs; the message names it.
    """
    recorded = record.certificate.hashes.get("files") if record.certificate else None
    for name, found in file_hashes(base).items():
        if isinstance(recorded, dict) and recorded.get(name, found) != found:
            raise damaged(base, base.path / name, "it has changed since its record was made")


def stage_inputs(config: RunConfig, prepared: Prepared) -> Given:
    """Return the stage's inputs, computed from train alone.

    Raises:
        RecpeftError: its ``grouping`` is no attribute of the items.
    """
    assert config.diversify is not None
    dataset, train = prepared.dataset, prepared.split.train
    pairs = train.select("user", "item").unique()
    counts = train_counts(pairs, "item", dataset.num_items)
    users, items = (torch.from_numpy(pairs[key].to_numpy().astype(np.int64)) for key in ("user", "item"))
    categories = item_categories(dataset.items)
    groups, names, grouping = None, None, config.diversify.grouping
    if grouping is not None:
        found, names = membership(dataset.items, "item", grouping, counts, config.evaluation.cold_below)
        groups = torch.from_numpy(found)
    return Given(
        categories=categories,
        embeddings=item_embeddings(prepared, config.evaluation.embeddings, categories),
        profile=category_profile(History.of(users, items, dataset.num_users, dataset.num_items), categories),
        train_counts=torch.from_numpy(counts),
        item_groups=groups,
        group_names=names,
    )


def _reorder(
    suite: Suite,
    config: RunConfig,
    given: Given,
    lists: tuple[Tensor, Tensor, Tensor],
    pairs: HeldOut,
    allowed: AllowedItems,
) -> dict[str, float]:
    """Give the reordered lists to ``suite``; return their mean distance from the original lists at each cut-off."""
    stage, evaluation = config.diversify, config.evaluation
    assert stage is not None
    reorder = plugins.load("rankers.diversify", stage.method).reorder
    suite.reset()
    distances: dict[int, list[Tensor]] = {k: [] for k in evaluation.k}
    for part in torch.arange(len(lists[0])).split(_USERS_AT_ONCE):
        user, item, score = (column[part] for column in lists)
        found = reorder(item, score, user, max(*evaluation.k, evaluation.depth), stage, given)
        suite.update(Ranked(given_lists(user, found, allowed.of(user), pairs.of(user))))
        for k, values in distances.items():
            values.append(damerau_levenshtein(item, found, k))
    return {
        f"list_distance@{k}{evaluation.candidates.stamp}": torch.cat(values).mean().item()
        for k, values in distances.items()
    }


def stored_lists(base: RunFolder, part: str, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Return a part's users (U,), their items (U, N), best first, -1 padding, and the items' scores (U, N).

    Raises:
        RecpeftError: the lists are missing, malformed or of other data.
    """
    path = base.lists(part)
    users = prepared.dataset.users.select(user="raw_id", row="user")
    items = prepared.dataset.items.select(item="raw_id", column="item")
    rows = read_table(base, path, ["user", "item"], ["rank", "score"]).join(users, on="user", how="left")
    rows = rows.join(items, on="item", how="left").sort("row", "rank")
    # At test, users with an empty list have no row in the lists but still have a value in per_user.parquet.
    of_part = read_table(base, base.per_user, ["raw_id"]).rename({"raw_id": "user"}) if part == "test" else rows
    user = of_part.select("user").unique().join(users, on="user", how="left")["row"].sort()
    if rows["column"].null_count() or user.null_count() or not rows["row"].is_in(user.implode()).all():
        raise damaged(base, path, "it names users or items that the data or per_user.parquet do not have")
    places = pl.Series(np.arange(1.0, len(items) + 1)).implode()
    known = rows["rank"].is_in(places).fill_null(False)
    if not known.all() or rows.select("row", "rank").is_duplicated().any():
        raise damaged(base, path, "the ranks of a user are no places of a list")
    place = np.searchsorted(user.to_numpy(), rows["row"].to_numpy())
    rank = rows["rank"].to_numpy().astype(np.int64) - 1
    item = torch.full((len(user), int(rank.max(initial=0)) + 1), -1)
    score = torch.full(item.shape, torch.nan)
    at = torch.from_numpy(place), torch.from_numpy(rank)
    item[at] = torch.from_numpy(rows["column"].to_numpy().astype(np.int64))
    score[at] = torch.from_numpy(rows["score"].cast(pl.Float32).to_numpy().copy())
    return torch.from_numpy(user.to_numpy().astype(np.int64)), item, score
