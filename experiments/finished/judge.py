"""Judge another system's lists in the same way as runs, so that they appear in the same table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from datamodules._hashing import hash_ids
from datamodules._module import evaluated_users
from datamodules._tables import Problems, Table, scan
from experiments.cell.allowed import AllowedItems
from experiments.cell.candidates import Candidates, frozen_candidates
from experiments.cell.certificate import invalid_places, of_any
from experiments.cell.data import Prepared, audit_line, prepare, warnings
from experiments.cell.ranker import users_at_once
from experiments.cell.suite import (
    HeldOut,
    interval_record,
    make_suite,
    write_per_user,
)
from experiments.cell.surroundings import device_name
from experiments.config.evaluation import EvaluationConfig
from experiments.config.run import RunConfig
from experiments.finished.given_files import given
from experiments.records.layout import SCHEMA
from experiments.records.record import run_folder, write_record
from experiments.records.versions import versions
from metrics._listing import TIE_SEED, given_lists
from metrics._lists import _draw
from metrics._suite import Ranked, Suite
from metrics.generated import as_misses, repeated
from recpeft.config import digest
from recpeft.errors import RecpeftError
from recpeft.terminal import say

SUFFIXES = (".csv", ".tsv", ".parquet")

_FOREIGN = 2**62
"""Smallest id of an item outside the catalogue."""

_UNUSABLE = {
    "out_of_catalogue": "places with no item of the catalogue",
    "repeated": "places with an item that stands further up in the same list",
    "seen": "places with an item of the user's history, which evaluation.mask_seen leaves out",
    "no_candidate": "places with an item that is none of the user's candidates",
    "empty_places": "places that the ranks leave out",
}
"""Reason why a place counts as a miss -> text to print. A place counts once, under its first reason in this order."""


@dataclass(frozen=True)
class Lists:
    """A validated file of recommendations."""

    path: Path
    name: str
    """Name of the row in the table."""
    hash: str
    """16 hex digits of the SHA-256 of the file's bytes."""
    by: Literal["rank", "score"]
    """Column that orders a list."""
    frame: pl.DataFrame
    """row: the row's number in the file; user, item: text; value: the rank (Int64, from 1) or the score (Float64)."""


@dataclass(frozen=True)
class _Placed:
    """Lists of the U judged users, each cut at K places."""

    item: Tensor
    """(U, K) int64: item at each place; -1 if empty, ``_FOREIGN`` and up for an item outside the catalogue."""
    row: Tensor
    """(U, K) int64: row of the file at each place; 0 if none."""
    tied: Tensor
    """(U,) bool: whether ties affect the K places."""


def read_lists(path: Path, name: str | None = None) -> Lists:
    """Read a CSV, TSV or Parquet file with the columns user, item and rank or score; other columns are ignored.

    If both are present, the rank counts.

    Args:
        name: name of the row in the table; None uses the file's name.
    Raises:
        RecpeftError: there is no such file, a column is missing, or cells are invalid; the message names the rows.
    """
    name = path.stem if name is None else name
    _check_name(name)
    if path.suffix.lower() not in SUFFIXES:
        raise RecpeftError(f"{path} is of an unknown kind; give a file of recommendations in {', '.join(SUFFIXES)}.")
    with given(path, "a file of recommendations"):
        table = scan(path)
        with table.reading(), path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        by, frame = _rows(table)
    return Lists(path, name, content, by, frame)


def judge(lists: Lists, config: RunConfig, out: Path = Path("runs")) -> dict[str, Any]:
    """Judge ``lists`` on test and write a record beside those of the study's runs.

    Items never move up in a list: one that must not be recommended, such as an item that the user has seen, counts as
    a miss at its place. Test users without a list get an empty one. Lists are cut at the largest of evaluation.k.

    Args:
        config: the run whose study, data and evaluation are used.
        out: the record is ``<out>/<study>/<run_id>/result.json``.
    Returns:
        The record. Its ``recommendations`` describe the file's content.
    Raises:
        RecpeftError: none of the file's users is tested, or the evaluation judges pairs and not lists.
    """
    evaluation = config.evaluation
    prepared, users = _what_is_judged(config)
    suite = make_suite(prepared, evaluation)
    placed, counts = _place(lists, prepared, users, max(evaluation.k))
    candidates = frozen_candidates(prepared, evaluation, out / config.study)
    kind = evaluation.candidates.kind
    audit = audit_line(prepared.record, candidates.hash if candidates else kind)
    say("\n".join([audit, *(f"WARNING: {text}" for text in warnings(prepared.record, evaluation.mask_seen))]))

    found = {reason: torch.zeros_like(placed.item, dtype=torch.bool) for reason in _UNUSABLE}
    for part, unusable in _measure(suite, placed, prepared, evaluation, users, candidates):
        for reason, places in unusable.items():
            found[reason][part] = places
    for line in _lines(lists.path, counts, placed, found):
        say(line)

    run_id = judged_id(_identity(lists), config)
    folder = run_folder(out, config.study, run_id)
    write_per_user(folder, suite, prepared)
    record = {
        **_beginning(lists, config, prepared, run_id, candidates.hash if candidates else None),
        "recommendations": _findings(lists, counts, placed, found),
        "trace": [],
        "test": suite.compute(),
        "intervals": interval_record(suite),
        "audit": audit,
        # The cost of making the lists arose in another system.
        "costs": {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    filled = placed.item != -1
    misses = {reason: int((at & filled).sum()) for reason, at in found.items() if reason != "empty_places"}
    ranked = candidates.test if candidates else None
    record["certificate"] = of_any(prepared, folder, record) | {
        "invalid_outputs": invalid_places(prepared, evaluation, filled.sum(1).numpy(), misses, ranked)
    }
    return write_record(folder, record)


def _what_is_judged(config: RunConfig) -> tuple[Prepared, np.ndarray]:
    """Return the data, and the test users (U,)."""
    if config.evaluation.candidates.kind == "rated":
        raise RecpeftError(
            "evaluation.candidates.kind is rated, where pairs are judged by their scores and labels, but lists hold no "
            "judgement of pairs; set evaluation.candidates to full or to sampled candidates."
        )
    torch.set_num_threads(config.threads)
    prepared = prepare(config.data)
    of_test = prepared.split.liked(prepared.split.test)
    if of_test.is_empty():
        raise RecpeftError("test holds nothing that is liked, so that nothing can be found; lower data.liked_from.")
    return prepared, evaluated_users(of_test, config.evaluation.test_users, at_test=True)


def _identity(lists: Lists) -> dict[str, str]:
    return {"name": lists.name, "hash": lists.hash}


def _beginning(
    lists: Lists, config: RunConfig, prepared: Prepared, run_id: str, candidates: str | None
) -> dict[str, Any]:
    """Return the record's parts that are known before judging.

    Args:
        candidates: hash of the candidates.
    """
    sections = config.model_dump(mode="json", include={"study", "threads", "data", "evaluation"})
    return {
        "schema": SCHEMA,
        "status": "done",
        "run_id": run_id,
        "method": lists.name,
        "width": "–",
        "reference": True,
        "config": {**sections, "recommendations": _identity(lists)},
        "monitor": config.evaluation.monitored,
        "data": prepared.record,
        "candidates": {"kind": config.evaluation.candidates.kind, "hash": candidates},
        "versions": versions(),
        "device": device_name(),
        "threads": config.threads,
    }


def _findings(lists: Lists, counts: dict[str, int], placed: _Placed, found: dict[str, Tensor]) -> dict[str, Any]:
    """Return the record's part ``recommendations``."""
    return {
        "file": lists.path.name,
        "hash": lists.hash,
        "by": lists.by,
        "rows": lists.frame.height,
        "users": lists.frame["user"].n_unique(),
        **counts,
        "places": int((placed.item != -1).sum()),
        **{reason: int(places.sum()) for reason, places in found.items()},
    }


def judged_id(recommendations: Mapping[str, str], config: RunConfig) -> str:
    """Return the run_id of judged lists.

    Args:
        recommendations: the lists' name and hash.
        config: the run whose data and evaluation are used.
    """
    return digest([recommendations, config.data.asked_for(), config.evaluation.asked_for()], 12)


def _check_name(name: str) -> None:
    if not name.strip() or not name.isprintable():
        raise RecpeftError(f"--name is {name!r}; give a name that can be printed in a table.")
    if name == "frozen":
        raise RecpeftError("--name is 'frozen', by which tables name a study's control; give another name.")


def _rows(table: Table) -> tuple[Literal["rank", "score"], pl.DataFrame]:
    """Return the column that orders the lists, and ``Lists.frame``."""
    remedy = "name the columns user, item and rank or score"
    table.require(("user", "item"), remedy)
    if not {"rank", "score"} & set(table.columns):
        raise RecpeftError(f"{table.path} has no column rank or score; it has {', '.join(table.columns)}; {remedy}.")
    by: Literal["rank", "score"] = "rank" if "rank" in table.columns else "score"
    schema = table.schema
    for column in ("user", "item"):
        if not (schema[column].is_integer() or schema[column] in (pl.String, pl.Categorical, pl.Enum)):
            raise RecpeftError(
                f"{table.path}: column {column} is of type {schema[column]}; give the data's own ids as text or "
                "whole numbers."
            )
    if not (schema[by].is_numeric() or schema[by] in (pl.String, pl.Null)):
        raise RecpeftError(f"{table.path}: column {by} is of type {schema[by]}; give numbers.")
    frame = table.select(
        user=pl.col("user").cast(pl.String),
        item=pl.col("item").cast(pl.String),
        given=pl.col(by).cast(pl.String).fill_null("empty"),
        value=pl.col(by).cast(pl.Float64, strict=False),
    ).collect()
    if frame.is_empty():
        raise RecpeftError(f"{table.path} is empty; give a file with rows.")
    problems, value = Problems(table.path), pl.col("value")
    for column in ("user", "item"):
        empty = pl.col(column).fill_null("") == ""
        problems.rows(frame, empty, f"{column} is empty", f"give each row the id of its {column}")
    finite = value.is_finite().fill_null(False)
    if by == "score":
        problems.rows(frame, ~finite, "score is {given}", "give a finite number, and leave out what is not recommended")
    else:
        whole = finite & (value >= 1) & (value == value.floor())
        remedy = "number each user's list 1, 2, 3 and so on"
        problems.rows(frame, ~whole, "rank is {given}", remedy)
        again = whole & ~pl.struct("user", "value").is_first_distinct()
        problems.rows(frame, again, "rank {given} stands there a second time for user {user!r}", remedy)
    problems.check()
    frame = frame.select("row", "user", "item", value.cast(pl.Int64 if by == "rank" else pl.Float64, strict=False))
    return by, frame


def _place(lists: Lists, prepared: Prepared, users: np.ndarray, k: int) -> tuple[_Placed, dict[str, int]]:
    """Return the lists of ``users`` (U,), and counts of the file's users and rows that are left out.

    Raises:
        RecpeftError: the file has no list for any of ``users``.
    """
    dataset = prepared.dataset
    ids = dataset.users.select(user="raw_id", user_id="user")
    items = dataset.items.select(item="raw_id", item_id="item")
    rows = lists.frame.join(ids, on="user", how="left").join(items, on="item", how="left")
    tested = pl.col("user_id").is_in(pl.Series(users, dtype=pl.Int32).implode())
    kept = rows.filter(tested)
    if kept.is_empty():
        raise RecpeftError(
            f"{lists.path}: column user holds none of the {len(users)} test users: in row {lists.frame['row'][0]} it "
            f"is {lists.frame['user'][0]!r}, where a test user is {dataset.users['raw_id'][int(users[0])]!r}; give "
            "lists of the test users under the data's own ids."
        )
    user = kept["user_id"].to_numpy().astype(np.int64)
    item = kept["item_id"].fill_null(-1).to_numpy().astype(np.int64)
    foreign = item < 0
    # Ids depend on the text alone, so that other lists do not influence how a list's ties are broken.
    item[foreign] = _FOREIGN + (hash_ids(kept["item"].filter(foreign), 0) >> np.uint64(2)).astype(np.int64)
    value = kept["value"].to_numpy()
    number = np.searchsorted(users, user)
    tied = np.zeros(len(users), bool)
    if lists.by == "rank":
        place = value - 1
    else:
        draw = _draw(TIE_SEED, torch.from_numpy(user), torch.from_numpy(item)).numpy()
        order = np.lexsort((draw, -value, number))
        kept, number, item, value = kept[order], number[order], item[order], value[order]
        place = np.arange(len(number)) - np.searchsorted(number, number)
        equal = (value[1:] == value[:-1]) & (number[1:] == number[:-1])
        tied[number[1:][equal & (place[1:] <= k)]] = True  # the first item cut off may tie with the last listed
    inside = place < k
    at = torch.from_numpy(number[inside]), torch.from_numpy(place[inside].astype(np.int64))
    listed = torch.full((len(users), k), -1)
    row = torch.zeros_like(listed)
    listed[at] = torch.from_numpy(item[inside])
    row[at] = torch.from_numpy(kept["row"].to_numpy()[inside].astype(np.int64))
    known = rows.filter(pl.col("user_id").is_not_null() & ~tested)
    counts = {
        "users_judged": len(users),
        "users_without_list": len(users) - len(np.unique(number)),
        "unknown_users": rows.filter(pl.col("user_id").is_null())["user"].n_unique(),
        "users_not_tested": known["user"].n_unique(),
        "rows_beyond_k": int((~inside).sum()),
    }
    return _Placed(listed, row, torch.from_numpy(tied)), counts


def _measure(
    suite: Suite,
    placed: _Placed,
    prepared: Prepared,
    evaluation: EvaluationConfig,
    users: np.ndarray,
    candidates: Candidates | None,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Give the lists to ``suite``; yield, for each block of users, the places that count as misses, by reason."""
    num_users, num_items = prepared.dataset.num_users, prepared.dataset.num_items
    of_users = AllowedItems(prepared, evaluation.mask_seen, True, None if candidates is None else candidates.test)
    held_out = prepared.split.liked(prepared.split.test)
    pairs = HeldOut(held_out, num_users)
    at_once = users_at_once(num_items)  # the same number as for rankers, because float sums depend on it
    for start in range(0, len(users), at_once):
        part = slice(start, start + at_once)
        user, listed = torch.from_numpy(users[part]), placed.item[part]
        item = as_misses(listed, num_items)
        allowed = of_users.of(user)
        seen = _holds(item, allowed.seen)
        unfit = _holds(item, allowed.masked) & ~seen
        behind = (listed != -1).flip(1).cumsum(1).flip(1) > 0  # this or a later place is filled
        yield (
            part,
            {
                "out_of_catalogue": listed >= _FOREIGN,
                "repeated": repeated(listed) & (listed < _FOREIGN),
                "seen": seen,
                "no_candidate": unfit,
                "empty_places": (listed == -1) & behind,
            },
        )
        usable = item.masked_fill(seen | unfit, -1)
        suite.update(Ranked(given_lists(user, usable, allowed, pairs.of(user), placed.tied[part])))


def _holds(item: Tensor, flagged: Tensor) -> Tensor:
    """Return (U, K) bool: whether each place holds an item that is ``flagged`` (U, I) for its user."""
    return flagged.gather(1, item.clamp(min=0)) & (item >= 0)


def _lines(file: Path, counts: dict[str, int], placed: _Placed, found: dict[str, Tensor]) -> Iterator[str]:
    """Yield a line for each finding that readers of the numbers must know."""
    outside = {
        "unknown_users": "users that are not in the data, left out",
        "users_not_tested": "users that are not tested, left out",
        "users_without_list": f"of the {counts['users_judged']:,} test users those without a list, counted as empty",
        "rows_beyond_k": "rows behind the largest of evaluation.k, cut off",
    }
    for key, text in outside.items():
        if counts[key]:
            yield f"{file.name}: {text}: {counts[key]:,}"
    for reason, text in _UNUSABLE.items():
        places = found[reason]
        if places.any():
            rows = placed.row[places]
            where = f", the first in row {int(rows.min())}" if int(rows.min()) else ""
            yield f"{file.name}: {text}, counted as misses: {len(rows):,}{where}"
