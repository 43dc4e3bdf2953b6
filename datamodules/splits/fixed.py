"""Fixed parts from files: a published split, or your own.

Each file has a row per interaction, with the user's and the item's own ids, and with the time if users met items more
than once; or it has lines ``user item item …``. Interactions that are in no file are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from datamodules.splits._base import HISTORY, LEFT_OUT, TEST, TRAIN, VALIDATION, SplitConfig
from recpeft.errors import RecpeftError

if TYPE_CHECKING:
    import polars as pl

    from datamodules._dataset import RecDataset


class Config(SplitConfig):
    """Options for files of any kind that ``tabular`` reads."""

    ADDED: ClassVar[Mapping[str, Any]] = {
        "history": None,
        "validation_share": 0.1,
        "layout": "rows",
        "header": None,
        "separator": None,
    }
    NEEDS_TIMES = False

    kind: str = "fixed"
    train: Path
    validation: Path | None = None
    """File of validation; null takes each user's last share of train, or a random share without times."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of each user's train interactions that becomes validation, at least one of two or more."""
    test: Path
    history: Path | None = None
    """File of interactions that are shown in users' prompts but never learnt; null is none."""
    layout: Literal["rows", "adjacency"] = "rows"
    """Layout of each file: a row per interaction, or lines ``user item item …`` without a header."""
    header: tuple[str, ...] | None = None
    """Names of all columns of files whose first row is data, in their order."""
    separator: str | None = None
    """Separator of the cells in a row; null depends on the suffix, and is white space for lines of ids."""
    user_column: str = "user"
    """Column of the user's own id."""
    item_column: str = "item"
    """Column of the item's own id."""
    time_column: str | None = None
    """Column of the time in seconds since 1970; null if user and item identify a row."""

    @model_validator(mode="after")
    def _options_have_a_use(self) -> Self:
        share = type(self).model_fields["validation_share"].default
        if self.validation is not None and self.validation_share != share:
            raise ValueError("validation_share is of train, but validation is a file; leave one out")
        if self.layout == "adjacency" and (self.header or self.time_column):
            raise ValueError("layout adjacency has lines of ids alone; leave header and time_column out")
        return self

    @property
    def files(self) -> dict[int, Path]:
        """File of each part."""
        files = {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test, HISTORY: self.history}
        return {part: path for part, path in files.items() if path is not None}

    @property
    def remark(self) -> str | None:
        if self.validation is not None:
            return None
        return (
            f"validation is carved out of {self.train}: each user's last {self.validation_share:.3g} of it (a draw "
            "where there are no times), at least one row of two or more; data.split.validation would name a file"
        )

    def below(self, folder: Path | None) -> Self:
        """Return the config with each file that does not exist replaced by the one in ``folder``."""
        keys = [key for key in ("train", "validation", "test", "history") if getattr(self, key) is not None]
        paths = {key: getattr(self, key).expanduser() for key in keys}
        found = {key: path if folder is None or path.exists() else folder / path for key, path in paths.items()}
        return self.model_copy(update={key: path for key, path in found.items() if path != paths[key]})


def parts(rows: pl.DataFrame, dataset: RecDataset, config: Config) -> pl.Series:
    import polars as pl

    from datamodules._tables import SHOWN

    keys = ["user", "item", *(["timestamp"] if config.time_column else [])]
    rows = rows.with_columns(pl.col("timestamp").cast(pl.Float64))
    paths = config.files
    named = pl.concat(_read(path, part, dataset, rows, keys, config) for part, path in paths.items())
    twice = named.filter(pl.struct(keys).is_duplicated()).sort(*keys)
    if not twice.is_empty():
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
    part = found["part"].fill_null(LEFT_OUT)
    return part if config.validation is not None else _carved(rows, part, config.validation_share)


def _carved(rows: pl.DataFrame, part: pl.Series, share: float) -> pl.Series:
    """Return ``part`` with the last of each user's train rows as validation."""
    import polars as pl

    train = pl.col("part") == TRAIN
    count, from_end = train.sum().over("user"), train.cum_sum(reverse=True).over("user")
    # 1e-9: 0.29 * 100 is 28.999… in binary
    taken = (count * share + 1e-9).floor().clip(lower_bound=1)
    carved = train & (from_end <= taken) & (count > 1)
    marked = rows.select("user", part=part)
    return marked.select(part=pl.when(carved).then(VALIDATION).otherwise("part"))["part"]


def _read(
    path: Path, part: int, dataset: RecDataset, rows: pl.DataFrame, keys: list[str], config: Config
) -> pl.DataFrame:
    """Return keys (dense), user_id, item_id and part of each row of the file."""
    import polars as pl

    from datamodules._layouts import one_to_a_row, scan_lines
    from datamodules._tables import Problems, scan

    names = {"user_id": config.user_column, "item_id": config.item_column}
    if config.time_column:
        names["timestamp"] = config.time_column
    if config.layout == "adjacency":
        lines = scan_lines([path.expanduser()], config.user_column, config.item_column, config.separator, "utf-8")
        table = one_to_a_row(lines, config.item_column, [])
    else:
        table = scan(path.expanduser(), separator=config.separator, columns=config.header)
        table.require(
            list(names.values()),
            "set data.split.user_column and data.split.item_column to yours",
            "name its columns in data.split.header, in the file's order",
        )
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
