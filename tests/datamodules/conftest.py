"""MovieLens-100K for the tests: the real one from the cache, and tiny ones in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from datamodules._fetch import fetch
from datamodules.movielens import GENRES

Rows = Sequence[Sequence[str]]

# item, title, year, genres: one title has a quote without its pair, one an accent
FILMS = [
    ("1", "Toy Story", "1995", "Children's Comedy Animation"),
    ("2", 'Shawshank "Redemption, The', "1994", "Drama"),
    ("10", "Misérables, Les", "1995", "Musical Drama"),
]
PEOPLE = [
    ("1", "24", "M", "technician", "85711"),
    ("2", "17", "F", "other", "T8H1N"),
    ("10", "56", "F", "none", "0"),
]
RATINGS = [
    ("10", "2", "3", "881250949"),
    ("1", "10", "5", "881250950"),
    ("1", "1", "4", "881250950"),
    ("2", "1", "1", "881250948"),
]


def write_atomic(folder: Path, films: Rows = FILMS, people: Rows = PEOPLE, ratings: Rows = RATINGS) -> Path:
    """RecBole's three files."""
    tables = {
        "inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float", ratings),
        "item": ("item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", films),
        "user": ("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", people),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, (header, rows) in tables.items():
        lines = [header, *("\t".join(row) for row in rows)]
        (folder / f"ml-100k.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_official(folder: Path, films: Rows = FILMS, people: Rows = PEOPLE, ratings: Rows = RATINGS) -> Path:
    """GroupLens's three files; a film without a year is written with its title alone."""
    items = []
    for item, title, year, genres in films:
        flags = "|".join(str(int(genre in genres.split())) for genre in GENRES)
        dated = f"{title} ({year})" if year else title
        items.append(f"{item}|{dated}|01-Jan-1995||http://us.imdb.com/|{flags}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.item").write_text("".join(items) + "\n", encoding="latin-1")  # it ends with a blank line
    (folder / "u.data").write_text("".join("\t".join(row) + "\n" for row in ratings))
    (folder / "u.user").write_text("".join("|".join(row) + "\n" for row in people))
    return folder


@pytest.fixture(params=[write_atomic, write_official], ids=["atomic", "official"])
def write(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Writes a tiny data set: ``write(folder, films=…, people=…, ratings=…)``; once for each layout."""
    writer: Callable[..., Path] = request.param
    return writer


@pytest.fixture
def write_both() -> tuple[Callable[..., Path], Callable[..., Path]]:
    return write_atomic, write_official


@pytest.fixture(scope="session")
def ml100k_dir() -> Path:
    """The real files, from the cache; fetched on the first use ever."""
    return fetch("ml-100k")
