"""Zero-shot transfer: train on some domains of a ``joint`` source and test on another.

The training domains are divided as by ``per_user_temporal``, without their test rows; in the test domain the same
division gives histories and test rows, and nothing of it is used for training or model selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.splits import per_user_temporal
from datamodules.splits._base import HISTORY, LEFT_OUT, TEST, RatioConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(RatioConfig):
    kind: str = "cross_domain"
    test_domain: str
    """A key of the joint source's ``domains``."""


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    domains = dataset.users["domain"].unique().sort().to_list() if "domain" in dataset.users.columns else []
    if config.test_domain not in domains:
        raise RecpeftError(
            f"data.split.test_domain is {config.test_domain!r}; choose one of {', '.join(domains)}."
            if domains
            else "split: cross_domain needs data.source: joint, with the domains to train and to test on."
        )
    own = per_user_temporal.parts(rows, dataset, per_user_temporal.Config(ratios=config.ratios, seed=config.seed))
    tested = pl.col("user").replace_strict(dataset.users["user"], dataset.users["domain"] == config.test_domain)
    return rows.select("user", part=own).select(
        part=pl.when(tested & (pl.col("part") == TEST))
        .then(TEST)
        .when(tested)
        .then(HISTORY)
        .when(pl.col("part") == TEST)
        .then(LEFT_OUT)
        .otherwise("part")
    )["part"]
