"""Draw the report's plots, in colours that colour-blind readers can tell apart (Okabe & Ito 2008)."""

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
from experiments.reporting._pairs import signed
from experiments.reporting._runs import LONG
from experiments.reporting._table import Row, ends_of, gaps
from recpeft.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.records.layout import EpochPart
from experiments.reporting._report import Report

Section = Literal["differences", "pareto", "curves", "groups"]
"""Section of the page that holds a plot."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito's colours, without yellow, which is hardly visible on white."""
_MARKERS = {"–": "X", "none": "o", "int8": "s", "nf4": "^", "fp4": "D"}
_LINES = {"none": "-", "int8": "--", "nf4": ":", "fp4": "-."}
"""Line style of each width."""
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9.0,
    "legend.frameon": False,
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "recpeft",  # the same records give the same file
    "text.parse_math": False,  # keeps dollars in names literal; ticks must not need math text either
}
_MOST_LABELS = 16
"""Maximum number of rows named in the plot; with more, only those on the front are, and a legend names the others."""
_MOST_GROUPS = 24
"""Maximum number of groups of an attribute with a plot; one with more, such as postcodes, has none."""
_SMALL = 8.0
_LABEL = 7.5
"""Font sizes in points: in the plot of differences, and of names beside their points."""
_PNG_DPI = 160
_MOST_DIFFERENCES = 40
"""Maximum number of rows in the plot of differences."""
_LONG_PAIR = 64
"""Maximum length in characters of two compared names in that plot."""
_DECADES = 30
"""Ratio of an axis's largest to its smallest positive value above which the axis is logarithmic."""


_Line = tuple[tuple[float, float], tuple[float, float]]
"""Line from one point to another."""


@dataclass(frozen=True)
class Plot:
    """One plot in both formats."""

    name: str
    """Name of its files, without extension."""
    section: Section
    title: str
    alt: str
    """Text alternative for readers who cannot see the plot."""
    svg: str
    png: bytes


class _Axis(NamedTuple):
    name: str
    label: str
    value: Callable[[Any], float | None]
    """Function that returns the axis's value from a row's means or standard deviations."""
    lower: bool
    """Whether lower is better."""
    log: bool = False


class _Look(NamedTuple):
    colour: str
    marker: str
    line: str
    filled: bool


def draw(report: Report) -> list[Plot]:
    """Return the plots for which the records have values."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        looks = _looks(report.rows)
        return [
            *_forest(report),
            *(plot for axis in _axes(report) if (plot := _pareto(report, axis, looks))),
            *_curves(report, looks),
            *_groups(report, looks),
        ]


def write_figures(plots: Sequence[Plot], folder: Path) -> None:
    """Write each plot as SVG and PNG; other files in ``folder``, for example a paper's, are kept."""
    for plot in plots:
        write_text(folder / f"{plot.name}.svg", plot.svg)
        with atomic_path(folder / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.png)


def front(points: Sequence[tuple[float, float]], lower_x: bool, lower_y: bool) -> list[int]:
    """Return the Pareto front: indices of the points that no other equals or beats in both values and beats in one."""
    signed = [(x if lower_x else -x, y if lower_y else -y) for x, y in points]
    return [
        place
        for place, (x, y) in enumerate(signed)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in signed)
    ]


def _looks(rows: Sequence[Row]) -> dict[str, _Look]:
    """Return a colour for each name and a marker for each width; names beyond the colours get hollow markers."""
    names = list(dict.fromkeys(row.first.title for row in rows))
    looks = {}
    for row in rows:
        place, width = names.index(row.first.title), row.first.width
        colour = _COLOURS[place % len(_COLOURS)]
        filled = place // len(_COLOURS) % 2 == 0
        looks[row.first.label] = _Look(colour, _MARKERS.get(width, "P"), _LINES.get(width, "-"), filled)
    return looks


def _tag(row: Row) -> str:
    return _shorten(row.first.short)


def _shorten(text: str, most: int = LONG) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"


def _axes(report: Report) -> list[_Axis]:
    """Return the axes that quality is plotted against."""
    cut = cut_of(report.monitor, report.rows[0].first.record.config.json_values)

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
    """Plot quality against one axis; None if fewer than two rows have both values."""
    rows = [
        row for row in report.rows if axis.value(row.values) is not None and row.values.get(report.monitor) is not None
    ]
    points = [(float(axis.value(row.values) or 0.0), float(row.values[report.monitor])) for row in rows]
    if len(points) < 2:
        return None
    best = sorted(front(points, axis.lower, lower_is_better(report.monitor)), key=lambda place: points[place])
    named = set(range(len(rows)) if len(rows) <= _MOST_LABELS else best)
    while True:
        figure, axes = _scatter(report, axis, looks, rows, points, best, named)
        texts = [_tag(row) if place in named else "" for place, row in enumerate(rows)]
        errors = [(axis.value(row.sd) or 0.0, row.sd.get(report.monitor, 0.0)) for row in rows]
        crowded = _place_labels(figure, axes, points, errors, texts)
        if not crowded:
            break
        named -= crowded  # the legend names them and takes space, so the others are placed again
    on_front = "; ".join(rows[place].first.label for place in best)
    return _finish(
        figure,
        f"pareto_{axis.name}",
        "pareto",
        f"{report.monitor} against {axis.label}",
        f"{report.monitor} against {axis.label} of {len(rows)} rows; on the Pareto front: {on_front}",
    )


def _scatter(
    report: Report,
    axis: _Axis,
    looks: dict[str, _Look],
    rows: Sequence[Row],
    points: Sequence[tuple[float, float]],
    best: Sequence[int],
    named: set[int],
) -> tuple[Figure, Axes]:
    """Draw the points with the front's line, and a legend for the rows that are not named beside their points."""
    listed = [row for place, row in enumerate(rows) if place not in named]
    figure, (axes,) = _figure(6.4, max(4.2, 0.8 + 0.17 * len(listed)))
    axes.plot(*zip(*(points[place] for place in best), strict=True), color="0.6", linestyle="--", linewidth=1, zorder=1)
    for place, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        look = looks[row.first.label]
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
    axes.margins(0.14, 0.1)  # names have room beside the outermost points
    axes.set_xlabel(f"{axis.label} ({'lower' if axis.lower else 'higher'} is better)")
    axes.set_ylabel(f"{report.monitor} ({'lower' if lower_is_better(report.monitor) else 'higher'} is better)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    _legend(figure, listed, list(dict.fromkeys(row.first.width for row in rows)), looks)
    return figure, axes


def _forest(report: Report) -> list[Plot]:
    """Plot one line per difference with its interval, the best first; filled marks are differences that are shown."""
    from matplotlib.figure import Figure

    found = sorted(report.differences[:_MOST_DIFFERENCES], key=lambda one: one.value)
    if not found:
        return []
    lower = lower_is_better(report.monitor)
    if not lower:
        found.reverse()
    names = [_shorten(one.short, _LONG_PAIR) for one in found]
    told = [f"{signed(one.value)} {one.interval}  {one.result}".rstrip() for one in found]
    beside, behind = (max(_size(text, _SMALL)[0] for text in texts) + 0.15 for texts in (names, told))  # inches
    width, height, top, bottom = beside + 4.2 + behind, 0.75 + 0.24 * len(found), 0.1, 0.55
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((beside / width, bottom / height, 4.2 / width, (height - top - bottom) / height))
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    for place, (one, text) in enumerate(zip(found, told, strict=True)):
        shown = one.result.startswith("shown")
        axes.plot([one.low, one.high], [place, place], color="0.45", linewidth=1.4, zorder=2)
        style: dict[str, Any] = {"markerfacecolor": "black" if shown else "white", "markeredgecolor": "black"}
        axes.plot(one.value, place, marker="D" if shown else "o", markersize=6, zorder=3, **style)
        axes.annotate(
            text,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=_SMALL,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(found)), names, fontsize=_SMALL)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"difference of {report.monitor} with its 95% interval ({'left' if lower else 'right'} is better)")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    left = len(report.differences) - len(found)
    rest = f", the {len(found)} largest; {left} smaller ones are left out" if left else ""
    alt = "; ".join(f"{one.compared}: {text}" for one, text in zip(found, told, strict=True))
    return [_finish(figure, "differences", "differences", f"differences of {report.monitor}{rest}", alt)]


def _size(text: str, font: float) -> tuple[float, float]:
    """Return a text's width and height in inches, the maximum over all drawing resolutions, which round letters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    sizes = []
    for dpi in (72, 100, _PNG_DPI):  # resolutions of SVG, figure and PNG
        figure = Figure(dpi=dpi)
        box = Text(0, 0, text, fontsize=font, figure=figure).get_window_extent(FigureCanvasAgg(figure).get_renderer())
        sizes.append((box.width / dpi, box.height / dpi))
    widths, heights = zip(*sizes, strict=True)
    return max(widths), max(heights)


def _curves(report: Report, looks: dict[str, _Look]) -> list[Plot]:
    """Plot validation and training loss by step, for the rows with more than one validation."""
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in report.rows if any(len(run.record.trace) > 1 for run in row.runs)]
    if not rows:
        return []
    figure, panels = _figure(8.4, 3.6, columns=2)
    readers: tuple[tuple[str, Callable[[EpochPart], float | None]], ...] = (
        (f"validation {report.monitor}", lambda epoch: epoch.validation.get(report.monitor)),
        ("training loss", lambda epoch: epoch.train_loss),
    )
    for axes, (label, value) in zip(panels, readers, strict=True):
        for row in rows:
            look = looks[row.first.label]
            style: dict[str, Any] = {"color": look.colour, "linestyle": look.line}
            lines: list[dict[int, float]] = [
                {epoch.step: found for epoch in run.record.trace if (found := value(epoch)) is not None}
                for run in row.runs
            ]
            if len(lines) > 1:
                for line in lines:
                    axes.plot(list(line), list(line.values()), linewidth=0.7, alpha=0.45, **style)
            # Average only steps that all runs reached; some stop early.
            steps = sorted(set.intersection(*(set(line) for line in lines)))
            means = [statistics.mean(line[step] for line in lines) for step in steps]
            marker = look.marker if len(steps) < 25 else ""
            face = look.colour if look.filled else "white"
            axes.plot(steps, means, marker=marker, markersize=4, markerfacecolor=face, linewidth=1.5, **style)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(color="0.92")
    _legend(figure, rows, [], looks)
    return [
        _finish(
            figure,
            "curves",
            "curves",
            f"validation {report.monitor} and training loss by step",
            f"a line a row: {'; '.join(row.first.label for row in rows)}; thin lines are seeds, thick ones their means",
        )
    ]


def _groups(report: Report, looks: dict[str, _Look]) -> list[Plot]:
    """Plot each attribute with one panel per group and one bar per row."""
    cut = cut_of(report.monitor, report.rows[0].first.record.config.json_values)
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
            value, look = row.values.get(key), looks[row.first.label]
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
        axes.tick_params(labelbottom=True)  # panels above an incomplete last line have no neighbour below
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_xlim(left=0)  # shared by all panels, set once all bars are drawn
    panels[0].invert_yaxis()
    figure.supxlabel(f"ndcg@{cut}", fontsize="medium")
    kind = "items" if attribute.startswith("item_") else "users"
    name = attribute.removeprefix("item_") if kind == "items" else attribute
    values = "; ".join(
        f"{row.first.label}: "
        + ", ".join(
            f"{label} {value:.3f}"
            for label in labels
            if (value := row.values.get(f"ndcg_{attribute}={label}@{cut}")) is not None
        )
        for row in rows
    )
    return _finish(figure, f"groups_{attribute}", "groups", f"ndcg@{cut} by {name} of {kind}", values)


def _group_ends(row: Row, key: str) -> tuple[float, float] | None:
    """Return the ends of the interval over users, averaged over seeds; None if a run has none."""
    found = [ends for run in row.runs if (ends := ends_of(run.record, key)) is not None]
    if len(found) < len(row.runs):
        return None
    low, high = zip(*found, strict=True)
    return statistics.mean(low), statistics.mean(high)


def _figure(
    width: float, height: float, columns: int = 1, lines: int = 1, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """Create a figure without pyplot, which keeps its figures in memory and may look for a display.

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
    if linear:  # rows with value 0 get a place too, left of a short linear stretch
        axes.set_xscale("symlog", linthresh=linear, linscale=0.8)
    else:
        axes.set_xscale("log")
    thousands = EngFormatter(sep="")

    def tick(value: float, _: float) -> str:
        if 0 < value < linear:  # no space beside 0
            return ""
        return f"{value:g}" if value < 1000 else thousands(value)

    axes.xaxis.set_major_formatter(tick)


def _legend(figure: Figure, rows: Sequence[Row], widths: Sequence[str], looks: dict[str, _Look]) -> None:
    """Add a legend of names by colour and widths by marker."""
    from matplotlib.lines import Line2D

    handles = []
    for row in rows:
        look = looks[row.first.label]
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


def _place_labels(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float]],
    errors: Sequence[tuple[float, float]],
    texts: Sequence[str],
) -> set[int]:
    """Place each text near its point, covering no point, no other text, and few error bars.

    Args:
        errors: half-lengths of each point's error bars.
    Returns:
        Indices of the texts without room.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # otherwise drawing would move the placed texts
    inside = axes.get_window_extent()
    places = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    bars = []
    for (x, y), (dx, dy) in zip(points, errors, strict=True):
        for right, up in ((dx, 0.0), (0.0, dy)):
            (left, low), (far, high) = axes.transData.transform([(x - right, y - up), (x + right, y + up)])
            bars.append((left - 1, low - 1, far + 1, high + 1))
    taken, lines, crowded = [(x - 7, y - 7, x + 7, y + 7) for x, y in places], list[_Line](), set()
    for number in sorted(range(len(places)), key=lambda number: -places[number][1]):  # neighbours one after the other
        (x, y), text = places[number], texts[number]
        if not text:
            continue
        width, height = (figure.dpi * inches + 1 for inches in _size(text, _LABEL))
        options = []
        for dx, dy in _centres(width, height):
            left, low = x + dx - width / 2, y + dy - height / 2
            box = (left, low, left + width, low + height)
            beyond = box[0] < inside.x0 or box[2] > inside.x1 or box[1] < inside.y0 or box[3] > inside.y1
            if beyond or any(_overlap(box, other) for other in taken):
                continue
            away = _distance(box, (x, y))
            nearest = min((_distance(box, other) for other in places if other != (x, y)), default=math.inf)
            line = ((min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])), (x, y))
            crossed = sum(_cross(line, other) for other in lines)
            crossed += sum(_cuts(line, other) for other in taken[len(places) :])
            covered = sum(_overlap(box, bar) for bar in bars)
            led = away > 13 or nearest < away
            # A line below 14 pixels is hardly visible, and a name beside another's mark seems to belong to that one.
            cost = (
                away
                + 10 * (led and away < 14)
                + 20 * (nearest < away)
                + 60 * (nearest < min(away, 14))
                + 40 * crossed
                + 25 * covered
            )
            options.append((cost, dx, dy, led, line, box))
        if not options:
            crowded.add(number)
            continue
        _, dx, dy, led, line, box = min(options)
        taken.append(box)
        lines.append(line)
        start = ((line[0][0] - box[0]) / width, (line[0][1] - box[1]) / height)
        leader = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": start}
        axes.annotate(
            text,
            points[number],
            xytext=(dx * 72 / figure.dpi, dy * 72 / figure.dpi),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="center",
            fontsize=_LABEL,
            color="0.2",
            arrowprops=leader if led else None,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            zorder=4,
        )
    return crowded


def _centres(width: float, height: float) -> list[tuple[float, float]]:
    """Return possible offsets of a text's centre from its point: beside it at several heights, above and below."""
    gaps = (8, 16, 28, 44)
    beside = [(way * (gap + width / 2), step * height) for gap in gaps for way in (1, -1) for step in range(-6, 7)]
    return beside + [(0.0, way * (gap + height / 2)) for gap in gaps for way in (1, -1)]


def _cross(one: _Line, other: _Line) -> bool:
    """Return whether two line segments cross."""

    def turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, other
    return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0


def _cuts(line: _Line, box: tuple[float, float, float, float]) -> bool:
    """Return whether a line segment crosses a box (left, low, right, high)."""
    left, low, right, high = box
    return _cross(line, ((left, low), (right, high))) or _cross(line, ((left, high), (right, low)))


def _distance(box: tuple[float, float, float, float], point: tuple[float, float]) -> float:
    """Return the distance from a box (left, low, right, high) to a point."""
    (left, low, right, high), (x, y) = box, point
    return math.hypot(max(left - x, 0, x - right), max(low - y, 0, y - high))


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Return whether two boxes (left, low, right, high) share more than an edge."""
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1])


def _finish(figure: Figure, name: str, section: Section, title: str, alt: str) -> Plot:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laying out once is enough, since it takes as long as drawing
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return Plot(re.sub(r"\W+", "_", name), section, title, alt, svg.getvalue(), png.getvalue())
