"""Sample recommendations of a few test users, by title, for readers of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from datamodules._module import evaluated_users
from experiments.cell.data import Prepared
from experiments.cell.titles import shown_titles
from experiments.config.evaluation import EvaluationConfig
from experiments.records.record import RunFolder, read_table

NUM_USERS = 3
HISTORY = 5
"""Number of the user's last items that are shown."""
RECOMMENDED = 5


def examples(folder: RunFolder, prepared: Prepared, evaluation: EvaluationConfig) -> list[dict[str, Any]]:
    """Return sample lists of the first, middle and last test user, the same users in every run on these data.

    Returns:
        One dict per user: ``user`` (the data's own id); titles: ``history`` (the last items before test, oldest
        first), ``recommended`` (best first), ``held_out``; and ``hits``: the places in ``recommended``, from 1, whose
        item is held out, since titles that several items share cannot show this.
    """
    dataset, split = prepared.dataset, prepared.split
    held_out = split.liked(split.test)
    users = evaluated_users(held_out, evaluation.test_users, at_test=True)
    chosen = users[np.unique(np.linspace(0, len(users) - 1, NUM_USERS).astype(int))].tolist()
    ids = dataset.items["raw_id"].to_list()
    titles = dict(zip(ids, shown_titles(dataset.items), strict=True))
    lists = read_table(folder, folder.lists("test")).sort("rank")
    known = split.known(at_test=True)

    def of(rows: pl.DataFrame, user: int) -> list[str]:
        return [ids[item] for item in rows.filter(pl.col("user") == user)["item"]]

    found = []
    for user in chosen:
        raw_id = dataset.users["raw_id"][user]
        listed = lists.filter(pl.col("user") == raw_id)["item"].head(RECOMMENDED)
        tested = of(held_out, user)
        found.append(
            {
                "user": raw_id,
                "history": [titles[item] for item in of(known, user)[-HISTORY:]],
                "recommended": [titles[item] for item in listed],
                "held_out": [titles[item] for item in tested],
                "hits": [place for place, item in enumerate(listed, 1) if item in tested],
            }
        )
    return found
