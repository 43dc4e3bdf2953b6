"""Find items by the names people use: the title, the title with its year, or the data's own id."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from recpeft.errors import RecpeftError, printable

BY_ID = "id:"
"""Prefix that marks a text as an id and not a title."""


class Titles:
    """Index of a catalogue's items by title, ignoring case and white space.

    Args:
        items: item table with ``raw_id``, and optionally ``title`` and ``year``.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self._ids = items["raw_id"]
        self._by_id = {raw_id: item for item, raw_id in enumerate(self._ids)}
        self.shown = shown_titles(items)
        """(I,) titles as tables show them."""
        self._by_title: dict[str, set[int]] = {}
        for column in (self.shown, items["title"]) if "title" in items.columns else ():
            for item, title in enumerate(column):
                if title:
                    self._by_title.setdefault(_plain(title), set()).add(item)

    def find(self, text: str) -> int:
        """Return the item that ``text`` names.

        Raises:
            RecpeftError: no item matches (the message lists the closest titles), or several do (it lists their ids).
        """
        if text.startswith(BY_ID):
            item = self._by_id.get(text.removeprefix(BY_ID).strip())
            if item is None:
                raise RecpeftError(f"no item has the id {text.removeprefix(BY_ID).strip()!r}; give an id of the data.")
            return item
        found = set(self._by_title.get(_plain(text), ()))
        if text in self._by_id:
            found.add(self._by_id[text])
        if not found:
            raise RecpeftError(f"no item has the title {text!r}; {self._closest(text)}.")
        if len(found) > 1:
            several = ", ".join(f"{BY_ID}{self._ids[item]} ({self.shown[item]})" for item in sorted(found))
            raise RecpeftError(f"{text!r} is {len(found)} items: {several}; give one by its id.")
        return found.pop()

    def read(self, texts: Iterable[str]) -> list[int]:
        """Return the items that ``texts`` name; each text is one title or several separated by semicolons.

        Raises:
            RecpeftError: see ``find``; also if no text names an item.
        """
        items: list[int] = []
        for text in texts:
            parts = [text] if self._is_one(text) else [part for part in text.split(";") if part.strip()]
            items += [self.find(part.strip()) for part in parts]
        if not items:
            raise RecpeftError("the history is empty; name at least one title.")
        return items

    def _is_one(self, text: str) -> bool:
        return _plain(text) in self._by_title or ";" not in text

    def _closest(self, text: str) -> str:
        from rapidfuzz import fuzz, process

        if not self._by_title:
            return "the data have no titles, so give ids"
        close = process.extract(_plain(text), list(self._by_title), scorer=fuzz.WRatio, limit=3)
        items = dict.fromkeys(min(self._by_title[title]) for title, _, _ in close)
        return f"the closest are {', '.join(repr(self.shown[item]) for item in items)}"


def shown_titles(items: pl.DataFrame) -> pl.Series:
    """Return (I,) titles, each followed by its year unless it ends with it; the id for an item without title."""
    title = pl.col("title") if "title" in items.columns else pl.lit(None, pl.String)
    year = pl.col("year").cast(pl.String) if "year" in items.columns else pl.lit(None, pl.String)
    behind = pl.format(" ({})", year)
    with_year = pl.when(~title.str.ends_with(behind)).then(title + behind)  # null if either is null
    titles = items.select(title=pl.coalesce(with_year, title, "raw_id"))["title"]
    return pl.Series("title", [title if title is None else printable(title) for title in titles], pl.String)


def _plain(title: str) -> str:
    return " ".join(title.split()).casefold()
