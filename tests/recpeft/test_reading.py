"""What is read from outside: sentences for what is no YAML or JSON, and for what would never end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recpeft.errors import RecpeftError, cut, shortened, shown
from recpeft.reading import parse_yaml, read_json, read_yaml

BOMB = "\n".join(
    [
        "l0: &l0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)),
    ]
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("since: 2024-02-30", "'2024-02-30' is no timestamp .* in line 1"),
        ("a: 1\nb: !!int many", "'many' is no int .* in line 2"),
        ("a: !!bool perhaps", "'perhaps' is no bool"),
        (f"a: {'9' * 5000}", "is no int"),
        ("a: 1\nb: {c: 1, c: 2}", "the key c stands there a second time in line 2"),
        ("a: " + "[" * 900 + "]" * 900, "nested more than 100 levels deep"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "more than 100,000 values"),
        (
            "\n".join(f"l{n}: &l{n} " + "[" * 60 + (f"*l{n - 1}" if n else "") + "]" * 60 for n in range(3)),
            "nested more",
        ),
        ('a: "\\0"', "no text can hold"),
        ('a: "\\ud800"', "no text can hold"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_yaml_that_cannot_be_meant_is_a_clause(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        parse_yaml(text)
    assert len(str(error.value)) < 300


def test_days_and_aliases_are_read() -> None:
    import datetime

    assert parse_yaml("a: &x [1]\nb: *x\nc: 2024-02-29") == {"a": [1], "b": [1], "c": datetime.date(2024, 2, 29)}


def test_a_pipe_a_large_file_and_another_encoding_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("a: 1\n" * 60_000)
    (tmp_path / "utf16").write_text("a: 1", encoding="utf-16")
    (tmp_path / "latin").write_bytes(b"a: \xe4")
    for name, reason in {
        "pipe": "it is no regular file",
        "large": "it has 300,000 bytes, and at most 262,144 are read",
        "utf16": "it is UTF-16, not UTF-8",
        "latin": "it is not UTF-8",
        "x" * 300: "File name too long",
        "nul\0": "null byte",
    }.items():
        with pytest.raises(RecpeftError, match=reason):
            read_yaml(tmp_path / name, "a file")


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("[" * 30_000, "nested"),
        ("[" * 200 + "]" * 200, "nested"),
        ("9" * 5000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_json_that_cannot_be_walked_is_a_value_error(text: str, clause: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=clause):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("value", [{"a": [1, (2,), "x"], "b": None}, [], {}, "it's", (1.5, True), 10**50])
def test_a_short_value_is_shown_as_python_shows_it(value: Any) -> None:
    assert shown(value) == repr(value)


def test_a_long_text_keeps_its_ends_in_80_characters_and_any_other_value_its_beginning() -> None:
    assert shown("x" * 80 + "y" * 10**6) == f"'{'x' * 38}…{'y' * 39}'"
    assert cut("/folder" * 20 + "/weights") == f"{'/folder' * 5}/fol…lder{'/folder' * 4}/weights"
    assert shown([["x" * 10**6] * 10**6]) == f"[['{'x' * 76}…"
    assert shown(1 << 20_000) == "a whole number of 20001 bits"
    assert shortened(f"{'y' * 100!r} is wrong", {"a": ["y" * 100]}) == f"'{'y' * 38}…{'y' * 39}' is wrong"
