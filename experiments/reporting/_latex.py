"""The report's tables for a paper, in LaTeX with booktabs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from experiments.reporting._table import Column

if TYPE_CHECKING:
    from experiments.reporting._report import Report

_NOT_PRINTED = ("optimiser MB", "steps", "best step", "tokens", "total s")
"""Cost columns left out, because a printed page is too narrow for them."""

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
    """Escape ``text`` for LaTeX, in one line; other characters rely on LaTeX's UTF-8."""
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def latex(report: Report, caption: str) -> str:
    """Return the tables of quality, cost and differences, and the notes; needs packages booktabs and graphicx."""
    names, printed = report.names, [column for column in report.costs if column.header not in _NOT_PRINTED]
    parts = ["% In the preamble: \\usepackage{booktabs} \\usepackage{graphicx}"]
    parts.append(_table(names + report.quality, f"Quality: {caption}", "tab:quality", len(names)))
    parts.append(_table(names + printed, f"Cost: {caption}", "tab:cost", len(names)))
    notes = report.notes
    if report.differences:
        parts.append(_table(report.difference_columns, f"Differences: {caption}", "tab:differences", 1))
        notes = notes + report.about_differences
    items = "\n".join(rf"\item {escape(note)}" for note in notes)
    parts.append("\\begin{itemize}\\footnotesize\n" + items + "\n\\end{itemize}")
    return "\n\n".join(parts) + "\n"


def _table(columns: list[Column], caption: str, label: str, names: int) -> str:
    header = " & ".join(escape(column.header.replace("_", " ")) for column in columns)
    # LaTeX would read a row that begins with a bracket or a star as an option of the preceding line break.
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
