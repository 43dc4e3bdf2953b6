"""Write docs/metrics-reference.md: every metric of the catalogue with its function's docstring.

    python -m metrics._reference > docs/metrics-reference.md

This needs no torch; ``tests/test_docs.py`` compares the page with its output.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

from metrics._info import MetricInfo, Spread
from metrics.catalog import DEFAULT_NAMES, METRICS, SPREADS

_BETTER = {"+": "higher", "-": "lower", "0": "nearer to 0", None: "as the metric"}
_OVER = {
    "relevant": "users with a relevant item",
    "listed": "users with a list",
    "all": "all users",
    "items": "the catalogue",
    "groups": "groups",
    "pairs": "pairs of user and item",
}
_HEAD = """# Every metric

Written by `make metrics-reference` from the files of [`metrics/`](../metrics), what they declare and the functions'
docstrings; change those, not this page. [What is measured](metrics.md) says how they are asked for.

- **better**: whether a higher or a lower value is better, or one nearer to 0.
- **over**: what the value is a mean over, or a value of.
- **needs**: what must be known beside the lists. `train_counts` and `history` always are; `categories` and
  `main_category` come from the item table, `embeddings` from `evaluation.embeddings`, `groups` and
  `item_groups` from `evaluation`, `grades` are the ratings of held-out items, and `scores`, `all_scores` (of the
  whole catalogue), `logits` (scores that are log-odds), `ratings`, `predicted_ratings` and `impressions` are of what is
  ranked.
- Those in bold are always measured. In a record a metric of lists ends in the length of the list, `ndcg@10`.
"""


def reference() -> str:
    """Return the page as Markdown."""
    rows: dict[Callable[..., Any], list[str]] = {}
    for info in METRICS.values():
        rows.setdefault(info.function, []).append(_row(info))
    for spread in SPREADS:
        rows.setdefault(spread.function, []).append(_row_of_spread(spread))
    parts = [_HEAD, _index()]
    for file in dict.fromkeys(function.__module__ for function in rows):
        parts.append(f"## {file.rpartition('.')[2]}\n\n{_prose(sys.modules[file].__doc__)}\n")
        for function, of_function in rows.items():
            if function.__module__ == file:
                lines = ["| name | better | over | needs | options |", "| --- | --- | --- | --- | --- |", *of_function]
                table = "\n".join(lines)
                parts.append(f"### {_title(function)}\n\n{table}\n\n{_prose(function.__doc__)}\n")
    return "\n".join(parts)


def _title(function: Callable[..., Any]) -> str:
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def _index() -> str:
    anchors = {info.name: _title(info.function).replace(".", "") for info in METRICS.values()}
    links = ", ".join(f"[{name}](#{anchors[name]})" for name in sorted(anchors))
    return f"{links}.\n"


def _row(info: MetricInfo) -> str:
    name = f"**`{info.name}`**" if info.name in DEFAULT_NAMES else f"`{info.name}`"
    options = ", ".join(f"`{key} = {value!r}`" for key, value in info.options.items())
    return f"| {name} | {_BETTER[info.direction]} | {_OVER[info.population]} | {', '.join(info.needs)} | {options} |"


def _row_of_spread(spread: Spread) -> str:
    more = ", or another percentage" if spread.percent else ""
    over, needs = ("groups", "groups") if spread.kind == "user_groups" else ("users", "")
    return f"| `<name>_{spread.ending}`{more} | {_BETTER[spread.direction]} | {over} | {needs} | |"


def _prose(docstring: str | None) -> str:
    """Return a docstring as Markdown, without its sections Args and Raises."""
    text = inspect.cleandoc(docstring or "")
    text = re.split(r"^(?:Args|Raises):$", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = re.sub(r"^Returns:\n\s+", "Returns ", text, flags=re.MULTILINE)
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)
    pieces = re.split(r"``(.+?)``", text, flags=re.DOTALL)  # odd pieces are code
    pieces[::2] = [re.sub(r"([*_<\[|])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces).strip()


if __name__ == "__main__":
    print(reference(), end="")
