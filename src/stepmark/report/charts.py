"""Charts as inline SVG and plain HTML bars: no library, no script, colours from the style sheet.

A line chart has two drawings, one for wide and one for narrow screens, because text in a scaled SVG is too small to
read on a phone. The style sheet shows one of them. Hovering over a point shows its numbers (`<title>`); the
tables of the report have the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepmark.report.markup import Html, h, join
from stepmark.report.reading import Estimate

WIDE, NARROW, SMALL = 760, 360, 250  # widths in pixels of the drawings
CHAR = 6.3  # mean width of a character at the charts' font size, in pixels
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


def chart(lines: Sequence[Line], *, title: str, x_label: str, log2_x: bool = True, share: bool = True) -> Html:
    """A line chart with labels at the lines, and the same chart with a legend for narrow screens."""
    lines = _drawable(lines)
    if not lines:
        return Html("")
    wide = _svg(lines, WIDE, 420, title, x_label, log2_x, share, direct=True)
    narrow = _svg(lines, NARROW, 300, title, x_label, log2_x, share, direct=False)
    return join([h("div", wide, class_="wide"), h("div", narrow, legend(lines), class_="narrow")])


def small(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    log2_x: bool = False,
    share: bool = False,
    keyed: bool = True,
) -> Html:
    """One of several small charts, with its title above. With keyed=False it has no legend of its own, and the caller
    adds one `legend` for all of them."""
    lines = _drawable(lines)
    if not lines:
        return Html("")
    drawing = _svg(lines, SMALL, 170, title, x_label, log2_x, share, direct=False)
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
    lines: Sequence[Line], width: int, height: int, title: str, x_label: str, log2_x: bool, share: bool, *, direct: bool
) -> Html:
    left, top, bottom = (46, 12, 40) if height > 200 else (42, 8, 34)
    longest = max(len(line.label) for line in lines)
    right = min(round(longest * CHAR) + 26, width // 3) if direct else 14
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, e in line.points for y in (e.mean, *(e.interval or ()))]
    ticks = _ticks(min(ys), max(ys), 6 if height > 200 else 4, cap=1.0 if share else None)
    x_ticks = _log_ticks(xs) if log2_x else [t for t in _ticks(min(xs), max(xs), 6) if min(xs) <= t <= max(xs)]

    def axis_value(x: float) -> float:
        return math.log2(x) if log2_x and x > 0 else x

    x0, x1 = axis_value(min(xs)), axis_value(max(xs))

    def px(x: float) -> float:
        fraction = (axis_value(x) - x0) / (x1 - x0) if x1 > x0 else 0.5
        return left + 8 + fraction * (width - left - right - 16)

    def py(y: float) -> float:
        return top + (ticks[-1] - y) / (ticks[-1] - ticks[0]) * (height - top - bottom)

    def label_of(y: float) -> str:
        return f"{100 * y:.4g}%" if share else f"{y:.3g}"

    grid = [
        join(
            [
                h("line", x1=left, x2=width - right, y1=f"{py(t):.1f}", y2=f"{py(t):.1f}", class_="grid"),
                h("text", label_of(t), x=left - 7, y=f"{py(t) + 4:.1f}", class_="tick end"),
            ]
        )
        for t in ticks
    ]
    min_gap = 34 if width > NARROW else 26  # least distance of tick labels, in pixels
    last_x = -math.inf
    for t in x_ticks:
        if px(t) - last_x >= min_gap:
            grid.append(h("text", f"{t:,.10g}", x=f"{px(t):.1f}", y=height - bottom + 18, class_="tick middle"))
            last_x = px(t)
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
                _dot(px(x), py(e.mean), line, f"{x_label} {x:,.6g}: {_interval(e, share)}") for x, e in line.points
            ]
    parts = [*grid, *bands, *strokes, *dots]
    if direct:
        ends = [(px(line.points[-1][0]), py(line.points[-1][1].mean)) for line in lines]
        levels = _spread([y for _, y in ends], 15, top + 4, height - bottom)
        for line, level, (x, y) in zip(lines, levels, ends, strict=True):
            leader = f"M{x + 5:.1f} {y:.1f}L{width - right + 12} {level:.1f}"
            parts.append(h("path", d=leader, class_=f"leader c{line.colour}"))
            parts.append(h("text", line.label, x=width - right + 16, y=f"{level + 4:.1f}", class_="direct"))
    return h(
        "svg",
        h("title", title),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title}. Lines: {', '.join(line.label for line in lines)}.",
    )


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


def _log_ticks(xs: Sequence[float]) -> list[float]:
    """The values themselves if they are few, as with N or K; otherwise powers of two in their range."""
    values = sorted(set(xs))
    if len(values) <= 12 or values[0] <= 0:
        return values
    low, high = math.ceil(math.log2(values[0])), math.floor(math.log2(values[-1]))
    step = 1 + (high - low) // 12
    return [2.0**i for i in range(low, high + 1, step)] or values[:1]


def _ticks(low: float, high: float, count: int, cap: float | None = None) -> list[float]:
    """At least two round numbers from below `low` to above `high`; not above `cap` if the data is constant."""
    if high - low < 1e-9:
        pad = abs(high) * 0.1 or 0.1
        low, high = low - pad, high + pad
        if cap is not None:
            low, high = max(0.0, low), max(min(cap, high), low + 1e-3)
    min_step = (high - low) / max(1, count - 1)
    magnitude = 10.0 ** math.floor(math.log10(min_step))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= min_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the targets, at least `gap` apart, and in [low, high] if there is room."""
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    positions = list(targets)
    previous = low - gap
    for i in order:
        previous = positions[i] = max(targets[i], previous + gap)
    previous = high + gap
    for i in reversed(order):
        previous = positions[i] = min(positions[i], previous - gap)
    return positions
