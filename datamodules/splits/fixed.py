"""The parts as files name them: a published split, or one of your own.

Each file has a row for an interaction, by the user's and the item's own ids, and the time too where a user met an
item more than once. Interactions that no file names are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from datamodules.splits._base import LEFT_OUT, TEST, TRAIN, VALIDATION, SplitConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(SplitConfig):
    """Files of any kind that ``tabular`` reads."""

    kind: str = "fixed"
    NEEDS_TIMES = False
    train: Path
    validation: Path
    test: Path
    user_column: str = "user"
    """Of the user's own id."""
    item_column: str = "item"
    """Of the item's own id."""
    time_column: str | None = None
    """Of the time in seconds since 1970; null where user and item name a row."""

    def below(self, folder: Path | None) -> Self:
        """Return the config with each file that is not there in ``folder`` instead."""
        paths = {key: getattr(self, key).expanduser() for key in ("train", "validation", "test")}
        found = {key: path if folder is None or path.exists() else folder / path for key, path in paths.items()}
        return self.model_copy(update={key: path for key, path in found.items() if path != paths[key]})


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._tables import SHOWN

    keys = ["user", "item", *(["timestamp"] if config.time_column else [])]
    rows = rows.with_columns(pl.col("timestamp").cast(pl.Float64))
    files = ((TRAIN, config.train), (VALIDATION, config.validation), (TEST, config.test))
    named = pl.concat(_read(path, part, dataset, rows, keys, config) for part, path in files)
    twice = named.filter(pl.struct(keys).is_duplicated()).sort(*keys)
    if not twice.is_empty():
        paths = dict(files)
        remedy = "name each interaction once"
        if config.time_column is None:
            remedy += ", or where users meet an item several times set data.split.time_column, which tells them apart"
        within = twice.filter(pl.struct(*keys, "part").is_duplicated())
        if not within.is_empty():
            first = within["part"][0]
            pairs, what = within.filter(pl.col("part") == first), f"{paths[first]} names"
        else:
            involved = " and ".join(str(paths[part]) for part in sorted(twice["part"].unique()))
            pairs, what = twice, f"{involved} overlap in"
        pairs = pairs.unique(keys, maintain_order=True)
        shown = ", ".join(f"user {row['user_id']} and item {row['item_id']}" for row in pairs.head(SHOWN).to_dicts())
        more = f" and {pairs.height - SHOWN} more" if pairs.height > SHOWN else ""
        times = " more than once" if what.endswith("names") else ""
        raise RecpeftError(f"{what} {pairs.height} interactions{times}: {shown}{more}; {remedy}.")
    found = rows.select(keys).join(named.select(*keys, "part"), on=keys, how="left", maintain_order="left")
    return found["part"].fill_null(LEFT_OUT)


def _read(
    path: Path, part: int, dataset: RecDataset, rows: pl.DataFrame, keys: list[str], config: Config
) -> pl.DataFrame:
    """keys (dense), user_id, item_id and part of each row of the file."""
    import polars as pl

    from datamodules._tables import Problems, scan

    names = {"user_id": config.user_column, "item_id": config.item_column}
    if config.time_column:
        names["timestamp"] = config.time_column
    table = scan(path.expanduser())
    table.require(list(names.values()), "set data.split.user_column and data.split.item_column to yours")
    frame = table.select(**names).collect().with_columns(pl.col("user_id", "item_id").cast(pl.String))
    problems = Problems(path)
    ids = {"user": dataset.users, "item": dataset.items}
    for key, known in ids.items():
        dense = pl.col(f"{key}_id").replace_strict(known["raw_id"], known[key], default=None)
        frame = frame.with_columns(dense.cast(pl.Int32).alias(key))
        unknown = f"{key} {{{key}_id}} is not in the data"
        problems.rows(frame, pl.col(key).is_null(), unknown, "remove the row, or check data.filters")
    if config.time_column:
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Float64, strict=False))
    pairs = rows.select(keys).unique()
    with_ids = frame.filter(pl.col("user").is_not_null() & pl.col("item").is_not_null())
    strange = with_ids.join(pairs, on=keys, how="anti", maintain_order="left")
    what = "user {user_id} and item {item_id} have no such interaction in the data"
    problems.rows(strange, pl.lit(True), what, "remove the row, or check data.filters")
    problems.check()
    return frame.select(*keys, "user_id", "item_id", part=pl.lit(part))
