"""Recommend with a finished run, for its users and for people outside its data.

All users and titles are looked up, and all input errors reported, before torch is imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich.markup import escape
from rich.table import Table as RichTable

from datamodules._histories import Histories
from datamodules._splits import in_order
from datamodules._tables import Problems, scan
from experiments.cell.data import Prepared, prepare
from experiments.cell.saved_run import check_data, finished_any
from experiments.cell.titles import BY_ID, Titles
from experiments.config.run import RunConfig, TextRun
from experiments.finished.given_files import given
from lightning_modules._backbone import locate
from recpeft import terminal
from recpeft.errors import RecpeftError, printable
from recpeft.files import atomic_path

if TYPE_CHECKING:
    from experiments.finished.pipeline import Pipeline

_AT_ONCE = 128
"""Number of people scored at once, the same as in testing."""


@dataclass(frozen=True, eq=False)
class _Opened:
    """A finished run and its data."""

    run: Path
    config: RunConfig
    prepared: Prepared
    titles: Titles
    as_tested: bool

    @property
    def histories(self) -> Histories:
        """Return the users' histories: all interactions, or those known when test began."""
        dataset = self.prepared.dataset
        known = (
            self.prepared.split.known(at_test=True)
            if self.as_tested
            else in_order(dataset, self.config.data.split.seed)
        )
        return Histories.of(known, dataset.num_users)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The n people of a call."""

    names: pl.Series
    """(n,) names as given by the caller."""
    rows: np.ndarray
    """(n,) the user's number; people of ``new`` have ``num_users`` and up, in their order."""
    new: list[list[int]]
    """Items liked by each person who is not a user of the data."""


def recommend(
    run: Path | str,
    users: Sequence[str] = (),
    k: int = 10,
    *,
    new: Mapping[str, Sequence[str]] | None = None,
    as_tested: bool = False,
) -> pl.DataFrame:
    """Return each person's ``k`` best items that they have not met.

    Args:
        run: a finished run's folder, ``runs/<study>/<run_id>``.
        users: the data's own user ids. Their whole history counts, validation and test included.
        new: further people under any name, each with the items they like, oldest first: titles, or ids as ``id:50``.
        as_tested: use the history and the candidates of the run's test instead, for test users only; this reproduces
            its ``test_lists.parquet``.
    Returns:
        user, rank (from 1), item, title, score, categories; users in the order given. People with fewer than ``k``
        items left have fewer rows.
    Raises:
        RecpeftError: ``run`` is no finished run, its data differ, a user or title is unknown, or files do not load.
    """
    opened, users = _open(Path(run), k, as_tested), list(map(str, users))
    if not users and not new:
        raise RecpeftError("nobody is asked for; name a user, or give someone new a history.")
    histories = {name: _new(opened, texts) for name, texts in (new or {}).items()}
    rows = [_user(opened, user) for user in users]
    first = opened.prepared.dataset.num_users
    asked = _Asked(
        pl.Series([*users, *histories], dtype=pl.String),
        np.asarray([*rows, *range(first, first + len(histories))], np.int64),
        list(histories.values()),
    )
    return pl.concat(_tables(opened, asked, k)[1])


def recommend_file(run: Path, users: Path, to: Path, k: int = 10, as_tested: bool = False) -> str:
    """Do as ``recommend``, from a Parquet file to a Parquet file of any length.

    Args:
        users: file with the column ``user`` and, for people outside the data, ``history``: a list of titles or ids,
            oldest first, or one text separated by semicolons. A null history marks a user of the data.
        to: file for the result of ``recommend``, in the format that ``recpeft evaluate`` reads.
    Returns:
        A line that says what was ranked and for how many people.
    Raises:
        RecpeftError: see ``recommend``; also if rows of the file are invalid (the message names the first ten).
    """
    if to.suffix != ".parquet":
        raise RecpeftError(f"--to is {to}; name a file that ends in .parquet.")
    if to.is_dir():
        raise RecpeftError(f"--to is {to}, which is a folder; name a file that ends in .parquet.")
    if to.resolve() == users.resolve():
        raise RecpeftError(f"--to is {to}, the file of users itself; name another.")
    opened = _open(run, k, as_tested)
    with given(users, "--users a Parquet file with the column user", folder=True):
        asked = _read(users, opened)
    note, tables = _tables(opened, asked, k)
    with atomic_path(to) as temporary, tempfile.TemporaryDirectory(prefix=".parts.", dir=to.parent) as parts:
        for number, table in enumerate(tables):
            table.write_parquet(Path(parts) / f"{number:09d}.parquet")
        pl.scan_parquet(Path(parts)).sink_parquet(temporary)
    return f"{note}; lists of {len(asked.names):,} people are in {to}"


def show(run: Path, user: str | None, history: Sequence[str], k: int = 10, as_tested: bool = False) -> None:
    """Print one person's recommendations: those of ``user``, or of a new person who likes ``history``."""
    opened = _open(run, k, as_tested)
    new = [] if user is not None else [_new(opened, history)]
    row = opened.prepared.dataset.num_users if user is None else _user(opened, user)
    asked = _Asked(pl.Series(["someone new" if user is None else user]), np.asarray([row]), new)
    note, (table,) = _tables(opened, asked, k)
    likes = "; ".join(opened.titles.shown.gather(new[0])) if new else ""
    shown = RichTable("rank", "title", "score", "categories")
    for line in table.iter_rows(named=True):
        categories = line["categories"]
        named = ", ".join(categories) if isinstance(categories, list) else categories
        shown.add_row(str(line["rank"]), escape(line["title"]), f"{line['score']:.4f}", escape(printable(named or "–")))
    console = terminal.console(highlight=False)
    console.print(f"For {escape(f'someone new who likes {likes}' if new else f'user {user}')}; {escape(note)}:")
    console.print(shown)


def _open(run: Path, k: int, as_tested: bool) -> _Opened:
    """Open the run and its data, with all checks that do not need torch."""
    if k < 1:
        raise RecpeftError(f"-k is {k}; ask for at least 1 item.")
    _, record, config = finished_any(run)
    if isinstance(config, TextRun):
        locate(config.backbone.name)
    prepared = prepare(config.data)
    check_data(run, record, prepared)
    if k > prepared.dataset.num_items:
        raise RecpeftError(f"-k is {k} but {prepared.dataset.name} has {prepared.dataset.num_items} items; lower it.")
    return _Opened(run, config, prepared, Titles(prepared.dataset.items), as_tested)


def _user(opened: _Opened, user: str) -> int:
    users = opened.prepared.dataset.users["raw_id"]
    found = users.index_of(user)
    if found is None:
        raise RecpeftError(
            f"user {user!r} is not in the data of {opened.run}, whose users are such as {users[0]!r}; give "
            '--history "title; title" for someone new.'
        )
    return found


def _new(opened: _Opened, texts: Iterable[str]) -> list[int]:
    """Return the items that a new person likes."""
    items = opened.titles.read(texts)
    _check_domain(opened, items)
    return items


def _check_domain(opened: _Opened, items: list[int]) -> None:
    """Raise ``RecpeftError`` if a new person's items span several domains, since a list holds items of one domain."""
    catalogue = opened.prepared.dataset.items
    if "domain" in catalogue.columns:
        domains = catalogue["domain"].gather(items).unique().sort().to_list()
        if len(domains) > 1:
            raise RecpeftError(f"the history is of the domains {', '.join(domains)}; give titles of one.")


def _read(path: Path, opened: _Opened) -> _Asked:
    """Read the people of a Parquet file."""
    if path.suffix != ".parquet":
        raise RecpeftError(f"--users is {path}; give a Parquet file with the column user.")
    table = scan(path)
    table.require(("user",), "name the column of the users' ids user")
    if not (table.schema["user"].is_integer() or table.schema["user"] in (pl.String, pl.Categorical, pl.Enum)):
        raise RecpeftError(
            f"{path}: column user is of type {table.schema['user']}; give the data's own ids as text or whole numbers."
        )
    has_history = "history" in table.columns
    frame = table.select(user=pl.col("user").cast(pl.String), history="history" if has_history else pl.lit(None))
    rows, users = frame.collect(), opened.prepared.dataset.users
    if rows.is_empty():
        raise RecpeftError(f"{path} is empty; give a file with rows.")
    rows = rows.join(users.select(user="raw_id", number="user"), on="user", how="left", maintain_order="left")
    is_new = pl.col("history").is_not_null()
    problems = Problems(path)
    problems.rows(rows, pl.col("user").fill_null("") == "", "user is empty", "give each row the id of its user")
    again = pl.col("user").is_not_null() & ~pl.col("user").is_first_distinct()
    problems.rows(rows, again, "user {user!r} is there already", "give each user one row")
    unknown = pl.col("user").is_not_null() & pl.col("number").is_null() & ~is_new
    problems.rows(rows, unknown, f"user {{user!r}} is not in the data of {opened.run}", "give someone new a history")
    new = _histories(rows.filter(is_new), opened, problems)
    problems.check()
    first = opened.prepared.dataset.num_users
    row = pl.when(is_new).then(first + is_new.cum_sum() - 1).otherwise("number")
    return _Asked(rows["user"], rows.select(row.cast(pl.Int64).alias("row"))["row"].to_numpy(), new)


def _histories(rows: pl.DataFrame, opened: _Opened, problems: Problems) -> list[list[int]]:
    """Return the items that each row's ``history`` names."""
    dtype = rows.schema["history"]
    whole = isinstance(dtype, pl.List) and dtype.inner.is_integer()
    if not rows.is_empty() and not whole and dtype not in (pl.String, pl.List(pl.String)):
        raise RecpeftError(
            f"{problems.path}: column history is of type {dtype}; give a list of titles or ids, or text with "
            "semicolons between titles."
        )
    found: list[list[int]] = []
    for row, history in rows.select("row", "history").iter_rows():
        named = [history] if isinstance(history, str) else [f"{BY_ID}{part}" if whole else part for part in history]
        try:
            items = opened.titles.read([history]) if isinstance(history, str) else _items(named, opened.titles)
            _check_domain(opened, items)
        except RecpeftError as error:
            problems.note(1, [(row, str(error).rstrip("."))])
            continue
        found.append(items)
    return found


def _items(named: Sequence[str | None], titles: Titles) -> list[int]:
    """Return the items of a list with one title or id per entry."""
    if not named or None in named:
        raise RecpeftError("the history is empty, or holds nothing at a place; name at least one title.")
    return [titles.find(text) for text in named if text is not None]


def _tables(opened: _Opened, asked: _Asked, k: int) -> tuple[str, Iterator[pl.DataFrame]]:
    """Return a line on what is ranked, and an iterator over the lists in blocks; this imports torch."""
    from experiments.cell.surroundings import quiet
    from experiments.finished.pipeline import Pipeline, tested_users

    quiet()
    if opened.as_tested:
        untested = np.flatnonzero(~np.isin(asked.rows, tested_users(opened.config, opened.prepared)))
        if len(untested):
            raise RecpeftError(
                f"user {asked.names[int(untested[0])]!r} is none of those that {opened.run} was tested on; leave "
                "--as-tested out."
            )
    histories = opened.histories.and_of(Histories.of_items(asked.new))
    pipeline = Pipeline(opened.run, opened.prepared, histories, opened.as_tested)
    parts = (
        _table(pipeline, opened, asked.names[start : start + _AT_ONCE], asked.rows[start : start + _AT_ONCE], k)
        for start in range(0, len(asked.rows), _AT_ONCE)
    )
    return pipeline.note, parts


def _table(pipeline: Pipeline, opened: _Opened, names: pl.Series, rows: np.ndarray, k: int) -> pl.DataFrame:
    """Return the lists of one block of people, best first."""
    item, score = pipeline.lists(rows, k)
    row, place = (item >= 0).nonzero(as_tuple=True)
    listed = item[row, place].numpy()
    items = opened.prepared.dataset.items
    categories: Any = (
        items["categories"] if "categories" in items.columns else pl.repeat(None, items.height, eager=True)
    )
    return pl.DataFrame(
        {
            "user": names.gather(row.numpy()),
            "rank": (place + 1).int().numpy(),
            "item": items["raw_id"].gather(listed),
            "title": opened.titles.shown.gather(listed),
            "score": score[row, place].numpy(),
            "categories": categories.gather(listed),
        }
    )
