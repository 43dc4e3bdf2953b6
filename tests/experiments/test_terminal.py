"""What others wrote reaches a terminal as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.finished.check_certificate import Check, show
from experiments.reporting._table import Cell, Column
from experiments.reporting._text import _print_table
from experiments.study.trials import line_of
from experiments.study.workers import _Display


def test_lines_of_others_records_and_processes_repeat_no_escape_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(tmp_path, [Check("versions.\x1b[2J", "differs", "\x1b]0;owned\x07", "1")])
    _Display().line(0, "run", "\x1b[2Jsaid")
    row = {"number": 0, "state": "failed", "values": {"prompt.instruction": "\x1b[2J"}, "validation": None}
    assert "\x1b" not in line_of(row | {"same_as": None, "error": "\x07"}, "ndcg@10")
    _print_table([Column("\x1b[2Jgap [red]", [Cell("1", 1)])], 1)
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(printed)
    assert "[red]" in printed
