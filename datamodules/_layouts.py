"""Layouts with several interactions per row: lists in cells, and lines ``user item item …``."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl

from datamodules._tables import PART, SHOWN, Table, decode, parts_of
from recpeft.errors import RecpeftError, shown

PLACE = "place in the list"
"""Column with an entry's position among its user's; no file has a column of this name."""


def scan_lines(
    paths: Sequence[Path], user: str, item: str, separator: str | None, encoding: Literal["utf-8", "latin-1"]
) -> Table:
    """Read lines of a user and their items, without a header.

    Args:
        user: name of the resulting column of user ids.
        item: name of the resulting column of lists of item ids.
        separator: separator of the ids; None is white space.
    Raises:
        RecpeftError: there is no such file, or none of its lines names an item.
    """
    parts = [part for path in paths for part in parts_of(path)]
    folder = paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.parent for path in paths]))
    line = pl.col("line").str.strip_chars("\ufeff \t\r")
    ids = line.str.extract_all(r"\S+") if separator is None else line.str.split(separator)
    frames = []
    for number, part in enumerate(parts):
        source = part if encoding == "utf-8" else decode(part, encoding).encode()
        lines = pl.scan_lines(source, name="line", row_index_name="row", row_index_offset=1, glob=False)
        row = pl.col("row").cast(pl.Int64) + number * PART
        trimmed = pl.element().str.strip_chars()
        entries = ids.list.eval(pl.when(trimmed != "").then(trimmed))
        frames.append(lines.filter(line != "").select(row, entries.alias("ids")))
    frame = pl.concat(frames)
    table = Table(folder, frame, parts=tuple(parts) if len(parts) > 1 else (), typed=False)
    with table.reading():
        if not frame.select((pl.col("ids").list.len() > 1).any()).collect(engine="streaming").item():
            between = "white space" if separator is None else repr(separator)
            raise RecpeftError(
                f"{folder}: no line has a user and an item with {between} between them; set data.separator, or "
                "another data.layout."
            )
    named = frame.select("row", pl.col("ids").list.first().alias(user), pl.col("ids").list.slice(1).alias(item))
    return replace(table, frame=named)


def one_to_a_row(table: Table, item: str, others: Sequence[str], place: str | None = None) -> Table:
    """Return a row for each entry of the lists in the column ``item``, in order.

    Args:
        others: columns that may hold a list of equal length, or one value for all entries.
        place: column of users; if given, the column ``PLACE`` counts each user's entries from 0.
    Raises:
        RecpeftError: ``item`` holds no lists, or lists in one row differ in length.
    """
    if not isinstance(table.schema[item], pl.List):
        raise RecpeftError(
            f"{table.path}: the column {item} holds {table.schema[item]}, where data.layout is lists; set "
            "data.columns.item to the column of lists, or leave data.layout out."
        )
    lists = [item, *(name for name in others if isinstance(table.schema[name], pl.List))]
    length = pl.col(item).list.len()
    problems = table.found()
    with table.reading():
        uneven = pl.any_horizontal(pl.col(lists).list.len().ne_missing(length), pl.col(item).is_null())
        found = table.frame.filter(uneven).select("row", *lists).collect(engine="streaming")
    what = f"{' and '.join(lists)} hold no lists of equal length" if len(lists) > 1 else f"{item} holds no list"
    problems.rows(found, pl.lit(True), what)
    problems.check()
    frame = table.frame.filter(length > 0).sort("row").explode(lists)
    if place is not None:
        frame = frame.with_columns(pl.int_range(pl.len()).over(place).alias(PLACE))
    return replace(table, frame=frame, problems=problems)


def with_lists(table: Table, columns: Sequence[str]) -> Table:
    """Return ``table`` with text such as ``[3437, 642]`` or ``['a', 'b']`` in ``columns`` as lists of text.

    Raises:
        RecpeftError: a cell is not such a list; names the rows.
    """
    texts = [name for name in columns if table.schema[name] == pl.String]
    if not texts:
        return table
    frame, problems = table.collect(), table.found()
    for name in texts:
        values = [None if text is None else _parsed(text) for text in frame[name]]
        wrong = [
            (row, f"{name} is {shown(text)}, which is no list; write one such as [3437, 642]")
            for row, text, value in zip(frame["row"], frame[name], values, strict=True)
            if text is not None and value is None
        ]
        problems.note(len(wrong), wrong[:SHOWN])
        frame = frame.with_columns(pl.Series(name, values, pl.List(pl.String)))
    problems.check()
    return replace(table, frame=frame.lazy(), problems=problems)


def _parsed(text: str) -> list[str | None] | None:
    """Return the entries of a list in JSON's or Python's notation; None if ``text`` is not a list."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(value, list | tuple) or any(isinstance(each, list | tuple | dict | set) for each in value):
        return None
    return [None if each is None else str(each).strip() or None for each in value]
