"""The one error type that users see, and how it shows what they gave."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

SHOWN = 80
"""Most characters of a value that a message repeats."""


class RecpeftError(ValueError):
    """A mistake the user can mend: one sentence with what, where, what is allowed and the remedy.

    The command line prints the sentence alone and exits with code 2; ``--debug`` adds the traceback. Control characters
    that it repeats are shown escaped, for a terminal would obey them.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in arguments))


class DiskError(RecpeftError):
    """A full disk or a folder that may not be written: no further run can succeed either."""


class LeftOut(RecpeftError):
    """A run that cannot be made here, as it needs more than there is: its study goes on, and says so."""


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped but for line breaks and tabs: ESC becomes ``\\x1b``.

    Bytes of a file's name that are no UTF-8, which could not be printed, are escaped too.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def cut(text: str) -> str:
    """``text`` in one line of ``SHOWN`` characters at most, without its middle: a path ends in a file's name."""
    short = text if len(text) <= SHOWN else f"{text[: (SHOWN - 1) // 2]}…{text[-(SHOWN // 2) :]}"
    return short if short.isprintable() else repr(short)[1:-1]


def shown(value: object) -> str:
    """``repr(value)`` in ``SHOWN`` characters at most: a text as ``cut`` cuts it, all else without its end.

    An end that is left out is not worked out.
    """
    if isinstance(value, str):
        return cut(repr(value))
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > SHOWN:
            return f"{text[: SHOWN - 1]}…"
    return text


def shortened(message: str, value: object) -> str:
    """``message`` with each text of ``value`` that is too long to be repeated cut as ``shown`` cuts it."""
    for text in _texts(value):
        if len(text) > SHOWN:
            message = message.replace(repr(text), shown(text)).replace(text, cut(text))
    return message


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _pieces(value: object) -> Iterator[str]:
    """``repr(value)`` in pieces, each of them short."""
    if type(value) is str:
        yield repr(value[: SHOWN + 1])
    elif type(value) is int and value.bit_length() > 4 * SHOWN:
        yield f"a whole number of {value.bit_length()} bits"  # Python writes none of more than 4,300 digits
    elif type(value) is dict:
        yield "{"
        for number, (key, part) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(part)
        yield "}"
    elif type(value) in (list, tuple):
        opening, closing = "[]" if type(value) is list else "()"
        yield opening
        for number, part in enumerate(value):  # type: ignore[arg-type]
            yield ", " if number else ""
            yield from _pieces(part)
        yield closing if type(value) is list or len(value) != 1 else ",)"  # type: ignore[arg-type]
    else:
        yield repr(value)
