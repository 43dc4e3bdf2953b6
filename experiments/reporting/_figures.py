"""The report's plots, in colours that the colour-blind tell apart (Okabe & Ito 2008)."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.config.monitor import cut_of, lower_is_better
from experiments.reporting._table import Row, gaps
from recpeft.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.reporting._report import Report

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's, but for the yellow, which is hardly seen on white."""
_MARKERS = {"–": "X", "none": "o", "int8": "s", "nf4": "^", "fp4": "D"}
_LINES = {"none": "-", "int8": "--", "nf4": ":", "fp4": "-."}
"""Of each width."""
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9.0,
    "legend.frameon": False,
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "recpeft",  # the same records give the same file
    "text.parse_math": False,  # a dollar in a name is a dollar; ticks must not need it either
}
_MOST_LABELS = 16
"""With more rows only those on the front have their name in the plot, and a legend has the others'."""
_MOST_GROUPS = 24
"""An attribute with more groups, such as every postcode, has no plot."""
_LONG = 30
"""Letters of a name that a plot has space for."""
_DECADES = 30
"""An axis whose largest value is this many times its least is logarithmic."""


@dataclass(frozen=True)
class Plot:
    """One plot in both formats."""

    name: str
    """Of its files."""
    section: Literal["pareto", "curves", "groups"]
    title: str
    alt: str
    """What it shows, for those who do not see it."""
    svg: str
    png: bytes


class _Axis(NamedTuple):
    name: str
    label: str
    value: Callable[[Any], float | None]
    """Of a row's means, or standard deviations."""
    lower: bool
    """Whether less is better."""
    log: bool = False


class _Look(NamedTuple):
    colour: str
    marker: str
    line: str
    filled: bool


def draw(report: Report) -> list[Plot]:
    """The plots that the records have values for."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        looks = _looks(report.rows)
        return [
            *(plot for axis in _axes(report) if (plot := _pareto(report, axis, looks))),
            *_curves(report, looks),
            *_groups(report, looks),
        ]


def write_figures(plots: Sequence[Plot], folder: Path) -> None:
    """Each plot as SVG and PNG; what else is in ``folder``, as where it is a paper's, stays."""
    for plot in plots:
        write_text(folder / f"{plot.name}.svg", plot.svg)
        with atomic_path(folder / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.png)


def front(points: Sequence[tuple[float, float]], lower_x: bool, lower_y: bool) -> list[int]:
    """Places of the points that no other is at least as good as in both and better in one."""
    signed = [(x if lower_x else -x, y if lower_y else -y) for x, y in points]
    return [
        place
        for place, (x, y) in enumerate(signed)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in signed)
    ]


def _looks(rows: Sequence[Row]) -> dict[str, _Look]:
    """A colour for each name and a marker for each width; names beyond the colours have hollow markers."""
    names = list(dict.fromkeys(row.first.title for row in rows))
    looks = {}
    for row in rows:
        place, width = names.index(row.first.title), row.first.width
        colour = _COLOURS[place % len(_COLOURS)]
        filled = place // len(_COLOURS) % 2 == 0
        looks[_label(row)] = _Look(colour, _MARKERS.get(width, "P"), _LINES.get(width, "-"), filled)
    return looks


def _label(row: Row) -> str:
    return row.first.title if row.first.width == "–" else f"{row.first.title}, {row.first.width}"


def _tag(row: Row) -> str:
    """``_label``, or where that is long the options' values without their names, the end at any rate."""
    text, run = _label(row), row.first
    if len(text) > _LONG and run.options:
        parts = [run.study, str(run.record["method"]), *map(str, run.options.values()), run.width]
        text = ", ".join(part for part in parts if part not in ("", "–"))
    return _shorten(text)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONG else f"{text[:10]}…{text[11 - _LONG :]}"


def _axes(report: Report) -> list[_Axis]:
    """What quality is plotted against."""
    cut = cut_of(report.monitor, report.rows[0].first.record["config"])

    def of(key: str, unit: float = 1.0) -> Callable[[Any], float | None]:
        return lambda values: None if values.get(key) is None else values[key] / unit

    axes = [
        _Axis("trainable", "trainable parameters", of("trainable"), True, log=True),
        _Axis("memory", "peak memory (MB)", of("peak_memory_bytes", 2**20), True),
        _Axis("time", "training time (s)", of("train_seconds"), True),
    ]
    diversity = f"ild_jaccard@{cut}"
    axes.append(_Axis("diversity", f"diversity: intra-list distance, {diversity}", of(diversity), False))
    for key in gaps(report.rows, cut):
        axes.append(_Axis(key.rpartition("@")[0].removeprefix("ndcg_"), f"fairness: {key}", of(key), True))
    return axes


def _pareto(report: Report, axis: _Axis, looks: dict[str, _Look]) -> Plot | None:
    """Quality against one cost; None where fewer than two rows have both."""
    rows = [
        row for row in report.rows if axis.value(row.values) is not None and row.values.get(report.monitor) is not None
    ]
    points = [(float(axis.value(row.values) or 0.0), float(row.values[report.monitor])) for row in rows]
    if len(points) < 2:
        return None
    lower_y = lower_is_better(report.monitor)
    best = sorted(front(points, axis.lower, lower_y), key=lambda place: points[place])
    figure, (axes,) = _figure(6.4, 4.2)
    axes.plot(*zip(*(points[place] for place in best), strict=True), color="0.6", linestyle="--", linewidth=1, zorder=1)
    for place, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        look = looks[_label(row)]
        axes.errorbar(
            x,
            y,
            xerr=axis.value(row.sd),
            yerr=row.sd.get(report.monitor),
            fmt=look.marker,
            markersize=8 if place in best else 6,
            markerfacecolor=look.colour if look.filled else "white",
            markeredgecolor="black" if place in best and look.filled else look.colour,
            ecolor=look.colour,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
    _scale(axes, [x for x, _ in points], axis.log)
    axes.margins(0.08, 0.1)
    axes.set_xlabel(f"{axis.label} ({'lower' if axis.lower else 'higher'} is better)")
    axes.set_ylabel(f"{report.monitor} ({'lower' if lower_y else 'higher'} is better)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    few = len(rows) <= _MOST_LABELS
    _legend(figure, [row for row in rows if not few], list(dict.fromkeys(row.first.width for row in rows)), looks)
    _place_labels(figure, axes, points, [_tag(row) if few or n in best else "" for n, row in enumerate(rows)])
    on_front = "; ".join(_label(rows[place]) for place in best)
    return _finish(
        figure,
        f"pareto_{axis.name}",
        "pareto",
        f"{report.monitor} against {axis.label}",
        f"{report.monitor} against {axis.label} of {len(rows)} rows; on the Pareto front: {on_front}",
    )


def _curves(report: Report, looks: dict[str, _Look]) -> list[Plot]:
    """Validation and training loss by step, of the rows that were validated more than once."""
    rows = [row for row in report.rows if any(len(run.record["trace"]) > 1 for run in row.runs)]
    if not rows:
        return []
    figure, panels = _figure(8.4, 3.6, columns=2)
    readers: tuple[tuple[str, Callable[[dict[str, Any]], float | None]], ...] = (
        (f"validation {report.monitor}", lambda epoch: epoch["validation"].get(report.monitor)),
        ("training loss", lambda epoch: epoch["train_loss"]),
    )
    for axes, (label, value) in zip(panels, readers, strict=True):
        for row in rows:
            look = looks[_label(row)]
            style: dict[str, Any] = {"color": look.colour, "linestyle": look.line}
            lines: list[dict[int, float]] = [
                {epoch["step"]: found for epoch in run.record["trace"] if (found := value(epoch)) is not None}
                for run in row.runs
            ]
            if len(lines) > 1:
                for line in lines:
                    axes.plot(list(line), list(line.values()), linewidth=0.7, alpha=0.45, **style)
            # Runs that stopped early have no later steps to be averaged.
            steps = sorted(set.intersection(*(set(line) for line in lines)))
            means = [statistics.mean(line[step] for line in lines) for step in steps]
            marker = look.marker if len(steps) < 25 else ""
            face = look.colour if look.filled else "white"
            axes.plot(steps, means, marker=marker, markersize=4, markerfacecolor=face, linewidth=1.5, **style)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(color="0.92")
    _legend(figure, rows, [], looks)
    return [
        _finish(
            figure,
            "curves",
            "curves",
            f"validation {report.monitor} and training loss by step",
            f"a line a row: {'; '.join(map(_label, rows))}; thin lines are seeds, thick ones their means",
        )
    ]


def _groups(report: Report, looks: dict[str, _Look]) -> list[Plot]:
    """Of each attribute a panel a group, with a bar a row."""
    cut = cut_of(report.monitor, report.rows[0].first.record["config"])
    pattern = re.compile(rf"ndcg_([^=]+)=(.*)@{re.escape(cut)}", re.DOTALL)
    attributes: dict[str, list[str]] = {}
    for row in report.rows:
        for key, value in row.values.items():
            found = pattern.fullmatch(key)
            if found and value is not None and found[2] not in attributes.setdefault(found[1], []):
                attributes[found[1]].append(found[2])
    return [
        _bars(report, attribute, labels, cut, looks)
        for attribute, labels in attributes.items()
        if 1 < len(labels) <= _MOST_GROUPS
    ]


def _bars(report: Report, attribute: str, labels: list[str], cut: str, looks: dict[str, _Look]) -> Plot:
    from matplotlib.ticker import MaxNLocator

    labels = sorted(labels) if attribute not in ("activity", "item_popularity", "item_familiarity") else labels
    columns = min(len(labels), 4)
    lines = math.ceil(len(labels) / columns)
    rows = report.rows
    figure, panels = _figure(2.6 + 1.7 * columns, lines * (0.9 + 0.24 * len(rows)), columns, lines, shared=True)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    for axes, label in zip(panels, labels, strict=False):
        key = f"ndcg_{attribute}={label}@{cut}"
        for place, row in enumerate(rows):
            value, look = row.values.get(key), looks[_label(row)]
            if value is None:
                continue
            ends = _group_ends(row, key)
            # A percentile interval may leave its mean outside.
            error = None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
            axes.barh(
                place,
                value,
                xerr=error,
                height=0.72,
                color=look.colour if look.filled else "white",
                edgecolor=look.colour,
                alpha=0.85,
                error_kw={"ecolor": "0.45", "elinewidth": 1, "capsize": 2},
            )
        axes.set_title(_shorten(label))
        axes.set_yticks(range(len(rows)), [_tag(row) for row in rows])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelbottom=True)  # a last line of fewer panels leaves others without a neighbour below
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_xlim(left=0)  # of all, now that the longest bar of all is there
    panels[0].invert_yaxis()
    figure.supxlabel(f"ndcg@{cut}", fontsize="medium")
    kind = "items" if attribute.startswith("item_") else "users"
    name = attribute.removeprefix("item_") if kind == "items" else attribute
    values = "; ".join(
        f"{_label(row)}: "
        + ", ".join(
            f"{label} {value:.3f}"
            for label in labels
            if (value := row.values.get(f"ndcg_{attribute}={label}@{cut}")) is not None
        )
        for row in rows
    )
    return _finish(figure, f"groups_{attribute}", "groups", f"ndcg@{cut} by {name} of {kind}", values)


def _group_ends(row: Row, key: str) -> tuple[float, float] | None:
    """Ends of the interval over users; of several seeds the means of theirs. None where a run has none."""
    found = [run.record.get("intervals", {}).get(key) for run in row.runs]
    if any(ends is None or ends["low"] is None for ends in found):
        return None
    return statistics.mean(ends["low"] for ends in found), statistics.mean(ends["high"] for ends in found)


def _figure(
    width: float, height: float, columns: int = 1, lines: int = 1, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """Without pyplot, which holds on to its figures and may look for a display.

    Args:
        width, height: inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(lines, columns, sharex=shared, sharey=shared, squeeze=False).flat)


def _scale(axes: Axes, values: Sequence[float], log: bool) -> None:
    from matplotlib.ticker import EngFormatter

    positive = [value for value in values if value > 0]
    if not positive or not (log or max(positive) > _DECADES * min(positive)):
        return
    linear = 0.0 if len(positive) == len(values) else 10 ** math.floor(math.log10(min(positive)))
    if linear:  # what trains nothing has a place too, left of a short linear stretch
        axes.set_xscale("symlog", linthresh=linear, linscale=0.8)
    else:
        axes.set_xscale("log")
    thousands = EngFormatter(sep="")

    def tick(value: float, _: float) -> str:
        if 0 < value < linear:  # beside 0 there is no space
            return ""
        return f"{value:g}" if value < 1000 else thousands(value)

    axes.xaxis.set_major_formatter(tick)


def _legend(figure: Figure, rows: Sequence[Row], widths: Sequence[str], looks: dict[str, _Look]) -> None:
    """Names by colour, widths by marker."""
    from matplotlib.lines import Line2D

    handles = []
    for row in rows:
        look = looks[_label(row)]
        face = look.colour if look.filled else "white"
        line: dict[str, Any] = {"color": look.colour, "linestyle": "" if widths else look.line, "linewidth": 1.5}
        handles.append(Line2D([], [], marker=look.marker, markerfacecolor=face, markersize=5, label=_tag(row), **line))
    named = [width for width in widths if width != "–"]
    if len(named) > 1:
        handles += [
            Line2D([], [], color="0.4", linestyle="", marker=_MARKERS.get(width, "P"), label=f"width {width}")
            for width in named
        ]
    if handles:
        place: dict[str, Any] = {"loc": "outside right upper"} if rows else {"loc": "outside upper right", "ncols": 5}
        figure.legend(handles=handles, fontsize="small", **place)


def _place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Put each text beside its point, where it covers least of other points and texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or drawing would move what is placed
    inside = axes.get_window_extent(renderer)
    places = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    for point, (x, y), text in zip(points, places, texts, strict=True):
        if not text:
            continue
        size = Text(0, 0, text, fontsize=7.5, figure=figure).get_window_extent(renderer)
        width, height = 1.05 * size.width, size.height  # letters are a little wider at other resolutions
        options = []
        for away in (8, 13, 20, 30, 42):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left, low = x + dx * away - width * (1 - dx) / 2, y + dy * away - height * (1 - dy) / 2
                box = (left, low, left + width, low + height)
                beyond = max(0, inside.x0 - box[0], box[2] - inside.x1, inside.y0 - box[1], box[3] - inside.y1)
                covered = sum(_overlap(box, other) for other in taken)
                own = _distance(box, (x, y))
                mistakable = any(_distance(box, other) < own for other in places if other != (x, y))
                options.append((3 * covered + 50 * beyond + 15 * mistakable + away, away, dx, dy, box))
        _, away, dx, dy, box = min(options)
        taken.append(box)
        axes.annotate(
            text,
            point,
            xytext=(dx * away * 72 / figure.dpi, dy * away * 72 / figure.dpi),
            textcoords="offset points",
            horizontalalignment=("center", "left", "right")[dx],
            verticalalignment=("center", "bottom", "top")[dy],
            fontsize=7.5,
            color="0.2",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4} if away > 13 else None,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            zorder=2,
        )


def _distance(box: tuple[float, float, float, float], point: tuple[float, float]) -> float:
    """From a box (left, low, right, high) to a point."""
    (left, low, right, high), (x, y) = box, point
    return math.hypot(max(left - x, 0, x - right), max(low - y, 0, y - high))


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, low, right, high) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _finish(figure: Figure, name: str, section: Literal["pareto", "curves", "groups"], title: str, alt: str) -> Plot:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough, and it takes as long as drawing
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(re.sub(r"\W+", "_", name), section, title, alt, svg.getvalue(), png.getvalue())
