"""What an error repeats of what it was given."""

from __future__ import annotations

from recpeft.errors import DiskError, RecpeftError, printable


def test_a_terminal_obeys_nothing_that_an_error_repeats() -> None:
    given = "a\x1b[31m\x07\x9b2J\x7f\x00\r b\tc\nd é"
    shown = r"a\x1b[31m\x07\x9b2J\x7f\x00\r b" + "\tc\nd é"
    assert printable(given) == shown
    assert str(RecpeftError(given)) == shown
    assert str(DiskError(given)) == shown
