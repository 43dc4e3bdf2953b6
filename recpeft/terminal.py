"""All output to the terminal, with control characters escaped: a terminal would obey them.

Titles, ids, file names, records and the output of other processes may hold such characters.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recpeft.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str, error: bool = False) -> None:
    """Print ``text``, to standard error if ``error``."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def say_json(value: Any) -> None:
    """Print ``value`` as JSON, with control characters escaped as ``\\uXXXX``."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    say("".join(f"\\u{ord(sign):04x}" if sign != "\n" and printable(sign) != sign else sign for sign in text))


def console(width: int | None = None, piped: int | None = None, highlight: bool = True) -> Console:
    """Return a rich console that escapes control characters as ``say`` does.

    Table cells must be made ``printable`` by the caller, or their columns are too narrow.

    Args:
        width: line width; None is the terminal's.
        piped: line width for a pipe or a log file, which have none of their own.
    """
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class Escaped:
        def __init__(self, content: ConsoleRenderable) -> None:
            self._content = content

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in console.render(self._content, options):
                yield part if part.control else Segment(printable(part.text), part.style)

    class Escape(RenderHook):
        def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [Escaped(content) for content in renderables]

    if width is None and piped is not None and not Console().is_terminal:
        width = piped
    found = Console(highlight=highlight, width=width)
    found.push_render_hook(Escape())
    return found


def guard() -> None:
    """Escape control characters in this process's warnings, logs and tracebacks, including those of libraries."""
    write = warnings.formatwarning

    def warning(*found: Any, **named: Any) -> str:
        return printable(write(*found, **named))

    class Record(logging.LogRecord):
        def getMessage(self) -> str:
            return printable(super().getMessage())

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)

    warnings.formatwarning = warning
    logging.setLogRecordFactory(Record)
    sys.excepthook = uncaught
