"""Write docs/metrics-reference.md: every metric of the catalogue, with what its function's docstring says.

    python -m metrics._reference > docs/metrics-reference.md

The functions' files are read as text, so this needs no torch; ``tests/test_docs.py`` holds the page against it.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from metrics.catalog import DEFAULT_NAMES, METRICS, SPREADS, MetricInfo

_BETTER = {"+": "higher", "-": "lower", "0": "nearer to 0", None: "as the metric"}
_OVER = {
    "relevant": "users with a relevant item",
    "listed": "users with a list",
    "all": "all users",
    "items": "the catalogue",
    "groups": "groups",
    "pairs": "pairs of user and item",
}
_DERIVED = {
    "cvar": ("`<name>_cvar50`, or another percentage", "as the metric"),
    "user_gini": ("`<name>_user_gini`", "lower"),
}
"""Function in fairness.py of a metric that is derived from another one's users' values; see ``catalog.find``."""

_HEAD = """# Every metric

Written by `make metrics-reference` from [`metrics/catalog.py`](../metrics/catalog.py) and the functions' docstrings;
change those, not this page. [What is measured](metrics.md) says how they are asked for.

- **better**: whether a higher or a lower value is better, or one nearer to 0.
- **over**: what the value is a mean over, or a value of.
- **needs**: what must be known beside the lists. `train_counts` and `history` always are; `categories` and
  `main_category` come from the item table, `embeddings` from `evaluation.embeddings`, `groups` and
  `item_groups` from `evaluation`, `grades` are the ratings of held-out items, and `scores`, `logits` (scores that
  are log-odds), `ratings`, `predicted_ratings` and `impressions` are of what is ranked.
- Those in bold are always measured. In a record a metric of lists ends in the length of the list, `ndcg@10`.
"""


def reference() -> str:
    """The page, as Markdown."""
    functions: dict[str, list[MetricInfo]] = {}
    for info in METRICS.values():
        functions.setdefault(info.function, []).append(info)
    derived = {f"fairness:{name}": name for name in _DERIVED}
    spreads = {function: ending for ending, (function, _) in SPREADS.items()}
    everything = dict.fromkeys([*functions, *spreads, *derived])
    files = dict.fromkeys(function.partition(":")[0] for function in everything)
    parts = [_HEAD, _index(functions)]
    for file in files:
        tree = ast.parse((Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8"))
        docs = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
        parts.append(f"## {file}\n\n{_prose(ast.get_docstring(tree))}\n")
        for function in everything:
            if function.partition(":")[0] != file:
                continue
            name = function.partition(":")[2]
            rows = [_row(info) for info in functions.get(function, [])]
            if function in spreads:
                ending = spreads[function]
                rows.append(f"| `<name>_{ending}` | {_BETTER[SPREADS[ending][1]]} | groups | groups | |")
            if function in derived:
                form, better = _DERIVED[derived[function]]
                rows.append(f"| {form} | {better} | users | | |")
            table = "\n".join(["| name | better | over | needs | options |", "| --- | --- | --- | --- | --- |", *rows])
            parts.append(f"### {file}.{name}\n\n{table}\n\n{_prose(docs[name])}\n")
    return "\n".join(parts)


def _index(functions: dict[str, list[MetricInfo]]) -> str:
    anchors = {info.name: function.replace(":", "") for function, infos in functions.items() for info in infos}
    links = ", ".join(f"[{name}](#{anchors[name]})" for name in sorted(anchors))
    return f"{links}.\n"


def _row(info: MetricInfo) -> str:
    name = f"**`{info.name}`**" if info.name in DEFAULT_NAMES else f"`{info.name}`"
    options = ", ".join(f"`{key} = {value!r}`" for key, value in info.options.items())
    return f"| {name} | {_BETTER[info.direction]} | {_OVER[info.population]} | {', '.join(info.needs)} | {options} |"


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown, without its sections of arguments and failures."""
    text = inspect.cleandoc(docstring or "")
    text = re.split(r"^(?:Args|Raises):$", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = re.sub(r"^Returns:\n\s+", "Returns ", text, flags=re.MULTILINE)
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)
    pieces = re.split(r"``(.+?)``", text, flags=re.DOTALL)  # odd pieces are code
    pieces[::2] = [re.sub(r"([*_<\[|])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces).strip()


if __name__ == "__main__":
    print(reference(), end="")
