"""The error types that users see, and the formatting of values in their messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

SHOWN = 80
"""Maximum number of characters of a value that a message repeats."""


class RecpeftError(ValueError):
    """A mistake the user can fix: one sentence with what, where, what is allowed and the remedy.

    The command line prints only the sentence and exits with code 2; ``--debug`` adds the traceback. Control characters
    in the message are escaped, because a terminal would obey them.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in arguments))


class DiskError(RecpeftError):
    """A full disk or a folder without write permission: no further run can succeed either."""


class LeftOut(RecpeftError):
    """A run that needs more resources than this machine has: the study reports it and continues without it."""


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped, except line breaks and tabs: ESC becomes ``\\x1b``.

    Bytes of a file name that are not UTF-8, which could not be printed, are escaped too.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def cut(text: str) -> str:
    """Shorten ``text`` to one line of at most ``SHOWN`` characters without its middle: a path ends in a file name."""
    short = text if len(text) <= SHOWN else f"{text[: (SHOWN - 1) // 2]}…{text[-(SHOWN // 2) :]}"
    return short if short.isprintable() else repr(short)[1:-1]


def shown(value: object) -> str:
    """Return ``repr(value)`` in at most ``SHOWN`` characters: ``cut`` shortens text, anything else loses its end.

    The part that is left out is never computed.
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
    """Return ``message`` with each long text of ``value`` shortened as ``shown`` and ``cut`` do."""
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
    """Yield ``repr(value)`` in short pieces."""
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
