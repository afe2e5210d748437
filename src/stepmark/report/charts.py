"""Charts as inline SVG and plain HTML bars: no library, no script, colours from the style sheet.

A line chart has two drawings, one for wide and one for narrow screens, because text in a scaled SVG is too small to
read on a phone. The style sheet shows one of them. Hovering over a point shows its numbers (`<title>`); the
tables of the report have the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.report import axes
from stepmark.report.axes import Scale
from stepmark.report.markup import Html, h, join
from stepmark.report.reading import Estimate

WIDE, NARROW, SMALL = 760, 360, 250  # widths in pixels of the drawings
CHAR = 6.9  # mean width of a character at the charts' font size in a wide font, in pixels
DIGIT = 7.6  # width of a digit at the axes' font size in a wide font, in pixels
LABEL_GAP = 15  # least distance of the labels at the lines, in pixels
BANDED = 12  # with more lines than this, interval bands are left out because they cover one another
GREY, INK = "grey", "ink"  # colours in addition to the palette's "0".."6"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    label: str
    points: tuple[tuple[float, Estimate], ...]  # (x, value with interval), x ascending
    colour: str = "0"  # "0".."6" of the palette, GREY or INK
    dash: str = "solid"  # solid, dashed, dotted
    markers: bool = True  # whether each point has a dot with its numbers


def chart(lines: Sequence[Line], *, title: str, x_label: str, scale: Scale = "log_values", share: bool = True) -> Html:
    """A line chart with labels at the lines, and the same chart with a legend for narrow screens."""
    lines = _drawable(lines)
    if not lines:
        return Html("")
    wide = _svg(lines, WIDE, 420, title, x_label, scale, share, direct=True)
    narrow = _svg(lines, NARROW, 300, title, x_label, scale, share, direct=False)
    return join([h("div", wide, class_="wide"), h("div", narrow, legend(lines), class_="narrow")])


def small(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    scale: Scale = "linear",
    share: bool = False,
    keyed: bool = True,
) -> Html:
    """One of several small charts, with its title above. With keyed=False it has no legend of its own, and the caller
    adds one `legend` for all of them."""
    lines = _drawable(lines)
    if not lines:
        return Html("")
    drawing = _svg(lines, SMALL, 170, title, x_label, scale, share, direct=False)
    key = legend(lines) if keyed and len(lines) > 1 else None
    return h("figure", h("figcaption", title), drawing, key, class_="small")


def bars(rows: Sequence[tuple[str, float, str]], colour: str = "0") -> Html:
    """Horizontal bars: (label, value, value as text). The longest fills its track."""
    top = max((value for _, value, _ in rows if math.isfinite(value)), default=0.0) or 1.0
    return h(
        "ul",
        join(
            h(
                "li",
                h("span", label, class_="bar-label"),
                h("span", h("span", style=f"width:{100 * value / top:.2f}%", class_=f"c{colour}"), class_="track"),
                h("span", text, class_="bar-value"),
            )
            for label, value, text in rows
        ),
        class_="bars",
    )


def thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` points: the means over runs of neighbouring points, each at the last x of its run."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def _drawable(lines: Sequence[Line]) -> list[Line]:
    finite = [(line, tuple((x, e) for x, e in line.points if e.finite and math.isfinite(x))) for line in lines]
    return [Line(line.label, points, line.colour, line.dash, line.markers) for line, points in finite if points]


def _svg(
    lines: Sequence[Line], width: int, height: int, title: str, x_label: str, scale: Scale, share: bool, *, direct: bool
) -> Html:
    top, bottom = (12, 40) if height > 200 else (8, 34)
    longest = max(len(line.label) for line in lines)
    right = min(round(longest * CHAR) + 26, width // 3) if direct else 14
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, e in line.points for y in (e.mean, *(e.interval or ()))]
    ticks = axes.ticks(min(ys), max(ys), 6 if height > 200 else 4, cap=1.0 if share else None)
    y_labels = [f"{100 * t:.4g}%" if share else axes.short(t) for t in ticks]
    left = round(max(map(len, y_labels)) * DIGIT) + 12
    x_ticks = axes.labelled(xs, scale)
    shown = [axes.position(x, scale) for x in (*xs, *x_ticks)]
    x0, x1 = min(shown), max(shown)

    def px(x: float) -> float:
        fraction = (axes.position(x, scale) - x0) / (x1 - x0) if x1 > x0 else 0.5
        return left + 8 + fraction * (width - left - right - 16)

    def py(y: float) -> float:
        return top + (ticks[-1] - y) / (ticks[-1] - ticks[0]) * (height - top - bottom)

    grid = [
        join(
            [
                h("line", x1=left, x2=width - right, y1=f"{py(t):.1f}", y2=f"{py(t):.1f}", class_="grid"),
                h("text", label, x=left - 7, y=f"{py(t) + 4:.1f}", class_="tick end"),
            ]
        )
        for t, label in zip(ticks, y_labels, strict=True)
    ]
    free_from = -math.inf  # labels of the x axis never touch
    for t in x_ticks:
        text = axes.short(t)
        half = len(text) * DIGIT / 2
        if px(t) - half >= free_from:
            grid.append(h("text", text, x=f"{px(t):.1f}", y=height - bottom + 18, class_="tick middle"))
            free_from = px(t) + half + 8
    grid.append(h("text", x_label, x=f"{(left + width - right) / 2:.1f}", y=height - 4, class_="axis middle"))

    bands, strokes, dots = [], [], []
    for line in lines:
        path = " ".join(f"{px(x):.1f},{py(e.mean):.1f}" for x, e in line.points)
        banded = [(x, *e.interval) for x, e in line.points if e.interval]
        if len(banded) > 1 and len(lines) <= BANDED:
            upper = [f"{px(x):.1f},{py(high):.1f}" for x, _, high in banded]
            lower = [f"{px(x):.1f},{py(low):.1f}" for x, low, _ in reversed(banded)]
            bands.append(h("polygon", points=" ".join(upper + lower), class_=f"band c{line.colour}"))
        if len(line.points) > 1:
            strokes.append(h("polyline", points=path, class_=f"line {line.dash} c{line.colour}"))
        if line.markers:
            dots += [
                _dot(px(x), py(e.mean), line, f"{x_label} {axes.exact(x)}: {_interval(e, share)}")
                for x, e in line.points
            ]
    parts = [*grid, *bands, *strokes, *dots]
    if direct:
        ends = [(px(line.points[-1][0]), py(line.points[-1][1].mean)) for line in lines]
        parts += _labels(lines, ends, width - right, width, top + 4, height - bottom)
    return h(
        "svg",
        h("title", title),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. Lines: {', '.join(line.label for line in lines)}.",
    )


def _labels(
    lines: Sequence[Line], ends: Sequence[tuple[float, float]], left: float, width: float, top: float, bottom: float
) -> list[Html]:
    """The names of the lines to the right of `left`, each led to by a thin line from the line's end. They are set apart
    where they would touch, and joined where there is no room for each."""
    groups = axes.grouped([y for _, y in ends], 1 + int((bottom - top) // LABEL_GAP))
    targets = [sum(ends[i][1] for i in group) / len(group) for group in groups]
    most = int((width - left - 16) / CHAR)  # characters
    parts = []
    for group, level in zip(groups, axes.spread(targets, LABEL_GAP, top, bottom), strict=True):
        for i in group:
            x, y = ends[i]
            leader = f"M{x + 5:.1f} {y:.1f}L{left + 12} {level:.1f}"
            parts.append(h("path", d=leader, class_=f"leader c{lines[i].colour}"))
        name = ", ".join(lines[i].label for i in group)
        cut = h("title", name) if len(name) > most else None
        name = name if cut is None else name[: most - 1] + "…"
        parts.append(h("text", cut, name, x=left + 16, y=f"{level + 4:.1f}", class_="direct"))
    return parts


def _dot(x: float, y: float, line: Line, text: str) -> Html:
    return h(
        "g",
        h("title", f"{line.label}\n{text}"),
        h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=10, class_="hit"),
        h("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.2, class_=f"dot c{line.colour}"),
    )


def _interval(e: Estimate, share: bool) -> str:
    def label_of(y: float) -> str:
        return f"{100 * y:.1f}%" if share else f"{y:.4g}"

    interval = e.interval
    return label_of(e.mean) + (
        f" (95% interval {label_of(interval[0])} to {label_of(interval[1])})" if interval else ""
    )


def legend(lines: Sequence[Line]) -> Html:
    """The legend. Lines with the same label and the same look have one entry."""
    keys = dict.fromkeys((_key(line), line.label) for line in lines)
    return h("ul", *(h("li", key, label) for key, label in keys), class_="legend")


def _key(line: Line) -> Html:
    if len(line.points) == 1:
        mark = h("circle", cx=11, cy=5, r=3.2, class_=f"dot c{line.colour}")
    else:
        mark = h("polyline", points="0,5 22,5", class_=f"line {line.dash} c{line.colour}")
    return h("svg", mark, viewBox="0 0 22 10", class_="key", aria_hidden="true")
