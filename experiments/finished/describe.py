"""``recpeft data describe``: describe an experiment file's data before anything is trained."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules import TextPairDataModule
from datamodules._dataset import RecDataset
from datamodules._groups import GroupConfig, membership, train_counts
from experiments.cell.assemble import make_data
from experiments.cell.candidates import frozen_candidates, with_proposals
from experiments.cell.data import Prepared, audit_line, prepare, warnings
from experiments.config.evaluation import EvaluationConfig
from experiments.config.grid import load_runs
from experiments.config.run import RunConfig, TextRun
from lightning_modules import _backbone as backbones
from recpeft import terminal
from recpeft.config import digest
from recpeft.errors import printable

EXAMPLES = 3
"""Number of rendered prompts that are shown."""


def describe(file: Path, overrides: list[str]) -> None:
    """Print each data set of ``file`` with each prompt and tokenizer that it is used with.

    A file with rankers alone has neither prompt nor tokenizer.

    Raises:
        RecpeftError: the data are missing or invalid.
    """
    console = terminal.console(piped=120)
    shown: set[str] = set()
    runs = load_runs(file, overrides)
    texts = [run for run in runs if isinstance(run, TextRun)]
    for run in texts or runs:
        parts = run.model_dump(mode="json", include={"data", "prompt", "evaluation"})
        key = digest([parts, run.backbone.source if isinstance(run, TextRun) else None])
        if key not in shown:
            shown.add(key)
            _describe(run, console)


def _describe(run: RunConfig, console: Console) -> None:
    prepared = prepare(run.data)
    candidates, data = frozen_candidates(prepared, run.evaluation, None), None
    tables = [_rows(f"{prepared.dataset.name}: data", _counts(prepared))]
    if isinstance(run, TextRun):
        candidates = with_proposals(run, prepared, candidates, None)
        tokenizer = backbones.load_tokenizer(**run.backbone.source)
        data = make_data(run, prepared, tokenizer, candidates.frames if candidates else None)
        tables.append(_rows(f"lengths in tokens of {run.backbone.name}", _lengths(data)))
    tables.append(_rows("groups: users or items in each", _groups(prepared, run.evaluation)))
    for table in tables:
        console.print(table)
    drawn = candidates.hash if candidates else run.evaluation.candidates.kind
    line = audit_line(prepared.record, drawn, data.prompt.hash if data else None)
    for text in [line, *(f"WARNING: {text}" for text in warnings(prepared.record, run.evaluation.mask_seen))]:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if data is None:
        return
    console.print(f"{EXAMPLES} prompts of test users, and an item's text:")
    texts = data.prompt.users(data.known_at_test, data.test_users[:EXAMPLES])
    for ids in [*(texts[row] for row in range(len(texts))), data.prompt.items(np.asarray([0]))[0]]:
        console.print(f"  {tokenizer.decode(ids.tolist())}", markup=False, highlight=False, soft_wrap=True)


def _rows(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _counts(prepared: Prepared) -> list[tuple[str, str]]:
    dataset, split, record = prepared.dataset, prepared.split, prepared.record
    users, items, rows = dataset.num_users, dataset.num_items, dataset.interactions
    per_user = train_counts(rows, "user", users)
    times, ratings = rows["timestamp"], rows["rating"]
    pairs = rows.select(pl.struct("user", "item").n_unique()).item()
    steps = []
    for step in record["filters"]:
        ((name, value),) = step["filter"].items()
        before, after = step["before"]["interactions"], step["after"]["interactions"]
        steps.append(f"{name} {value}: {before:,} to {after:,} interactions")
    return [
        ("users, items, interactions", f"{users:,}, {items:,}, {rows.height:,}"),
        ("sparsity", f"{1 - pairs / (users * items):.4%} of user-item pairs have no interaction"),
        ("interactions a user", _spread(per_user)),
        ("interactions an item", _spread(train_counts(rows, "item", items))),
        ("ratings", "none" if ratings.null_count() == rows.height else _spread(ratings.drop_nulls().to_numpy())),
        (
            "times (UTC)",
            f"{_time(times.min())} to {_time(times.max())}" if dataset.clock else "each user's order alone",
        ),
        *(("filter", step) for step in steps),
        *(("dropped by the source", f"{what}: {count:,}") for what, count in dataset.dropped.items()),
        (
            f"split: {record['split']['kind']}",
            f"{split.train.height:,} train, {split.validation.height:,} validation, {split.test.height:,} test"
            + (f", {split.history.height:,} history alone" if split.history.height else "")
            + (f", {split.left_out['rows']:,} left out" if split.left_out else ""),
        ),
        *((f"{kind}s with a value", _coverage(table, kind)) for kind, table in _tables(dataset)),
    ]


def _tables(dataset: RecDataset) -> list[tuple[str, pl.DataFrame]]:
    return [("user", dataset.users), ("item", dataset.items)]


def _coverage(table: pl.DataFrame, kind: str) -> str:
    """Return each column's number of rows with a value; a text field that few items have tells little of the others."""
    found = []
    for name in (column for column in table.columns if column != kind):
        column = table[name]
        there = column.is_not_null()
        if isinstance(column.dtype, pl.List):
            there &= (column.list.len() > 0).fill_null(False)
        elif column.dtype == pl.String:
            there &= (column.str.strip_chars() != "").fill_null(False)
        count = int(there.sum())
        found.append(f"{name} {'all' if count == table.height else f'{count:,} of {table.height:,}'}")
    return ", ".join(found)


def _lengths(data: TextPairDataModule) -> list[tuple[str, str]]:
    items = data.prompt.items(np.arange(data.dataset.num_items)).lengths
    users = data.prompt.users(data.known_at_test, data.test_users).lengths
    config = data.prompt.config
    return [
        ("items' texts", f"{_spread(items)}; {data.prompt.num_truncated_items:,} cut to {config.max_item_tokens}"),
        ("test users' texts", f"{_spread(users)}; at most {config.max_user_tokens}"),
    ]


def _groups(prepared: Prepared, evaluation: EvaluationConfig) -> list[tuple[str, str]]:
    dataset, train = prepared.dataset, prepared.split.train
    rows = []
    for kind, table, groups in (
        ("user", dataset.users, (GroupConfig(column="activity"), *evaluation.groups)),
        ("item", dataset.items, (GroupConfig(column="familiarity"), *evaluation.item_groups)),
    ):
        counts = train_counts(train, kind, table.height)
        for group in groups:
            found, names = membership(table, kind, group, counts, evaluation.cold_below)
            sizes = [f"{name} {size:,}" for name, size in zip(names, found.sum(axis=0).tolist(), strict=True)]
            none = int((~found.any(axis=1)).sum())
            rows.append((f"{kind}s by {group.column}", ", ".join([*sizes, *([f"none {none:,}"] if none else [])])))
    return rows


def _spread(values: Any) -> str:
    """Return the smallest, median, 90 % and largest value as text."""
    if not len(values):
        return "none"
    low, middle, high, most = (float(value) for value in np.quantile(values, [0, 0.5, 0.9, 1]))
    return f"{low:g} to {most:g}, median {middle:g}, 90 % up to {high:g}"


def _time(seconds: Any) -> str:
    return "unknown" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
