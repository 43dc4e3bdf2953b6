"""What a few users of test were recommended, by title, for whoever reads the report."""

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
"""How many of the user's last items are shown."""
RECOMMENDED = 5


def examples(folder: RunFolder, prepared: Prepared, evaluation: EvaluationConfig) -> list[dict[str, Any]]:
    """The first, the middle and the last test user, the same in every run on these data.

    Returns:
        A dict a user: ``user`` (the data's own id), and titles: ``history`` (the last items before test, oldest
        first), ``recommended`` (best first), ``held_out``. ``hits``: the places of ``recommended``, from 1, whose item
        is held out, which titles that several items share would not tell.
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
