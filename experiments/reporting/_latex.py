"""The report's tables for a paper, with the rules of booktabs."""

from __future__ import annotations

import re

from experiments.reporting._table import Column
from experiments.reporting._text import NOT_PRINTED

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "λ": r"$\lambda$",
    "–": "--",
    "…": r"\ldots{}",
}


def escape(text: str) -> str:
    """``text`` as LaTeX prints it, in one line; other letters are left to its UTF-8."""
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def latex(names: list[Column], quality: list[Column], costs: list[Column], caption: str, notes: list[str]) -> str:
    """Two tables, quality and cost, and the notes; needs the packages booktabs and graphicx."""
    printed = [column for column in costs if column.header not in NOT_PRINTED]
    parts = ["% In the preamble: \\usepackage{booktabs} \\usepackage{graphicx}"]
    parts.append(_table(names + quality, f"Quality: {caption}", "tab:quality", len(names)))
    parts.append(_table(names + printed, f"Cost: {caption}", "tab:cost", len(names)))
    items = "\n".join(rf"\item {escape(note)}" for note in notes)
    parts.append("\\begin{itemize}\\footnotesize\n" + items + "\n\\end{itemize}")
    return "\n\n".join(parts) + "\n"


def _table(columns: list[Column], caption: str, label: str, names: int) -> str:
    header = " & ".join(escape(column.header.replace("_", " ")) for column in columns)
    # A row that begins with a bracket or a star would be read as an option of the line break before it.
    lines = [
        " & ".join("{}" * cell.text.startswith(("[", "*")) + escape(cell.text) for cell in cells) + r" \\"
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(columns) - names)}}}",
            r"\toprule",
            header + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )
