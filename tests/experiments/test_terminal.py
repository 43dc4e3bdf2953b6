"""What others wrote reaches a terminal as text."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from experiments.finished.check_certificate import Check, show
from experiments.reporting._table import Cell, Column
from experiments.reporting._text import _print_table
from experiments.study.trials import line_of
from experiments.study.workers import _Display
from recpeft import terminal
from recpeft.terminal import say


def test_lines_of_others_records_and_processes_repeat_no_escape_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path, [Check("versions.\x1b[2J", "differs", "\x1b]0;owned\x07", "1")])
    _Display().line(0, "run", "\x1b[2Jsaid")
    row = {"number": 0, "state": "failed", "values": {"prompt.instruction": "\x1b[2J"}, "validation": None}
    say(line_of(row | {"same_as": None, "error": "\x07"}, "ndcg@10"))
    _print_table([Column("\x1b[2Jgap [red]", [Cell("1", 1)])], 1)
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(printed)
    assert "[red]" in printed


def test_what_is_printed_as_json_is_json_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say_json({"é\x9b2J": ["\x1b", "\x7f", "a\nb"]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"é\x9b2J": ["\x1b", "\x7f", "a\nb"]}
    assert "é" in printed
    assert not {"\x1b", "\x9b", "\x7f"} & set(printed)


def test_a_name_that_is_no_utf_8_is_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(b"runs/caf\xe9 is done".decode("utf-8", "surrogateescape"))
    assert capsys.readouterr().out == "runs/caf\\udce9 is done\n"


def test_warnings_logs_and_tracebacks_of_libraries_repeat_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    terminal.guard()
    assert warnings.formatwarning("\x1b[2Jsaid", UserWarning, "file.py", 1).endswith(r"UserWarning: \x1b[2Jsaid" + "\n")
    record = logging.getLogger("library").makeRecord("library", 30, "file.py", 1, "%s is odd", ("\x1b[2J",), None)
    assert record.getMessage() == r"\x1b[2J is odd"
    error = KeyError("x")
    error.add_note("\x1b[2J")
    sys.excepthook(KeyError, error, None)
    assert capsys.readouterr().err == "KeyError: 'x'\n\\x1b[2J\n"
