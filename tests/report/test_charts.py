"""Charts: every number is drawn inside the canvas, for any data."""

import itertools
import math
import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from stepmark.report.charts import Line, bars, chart, small, thin
from stepmark.report.reading import Estimate

values = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.lists(values, min_size=1, max_size=8), min_size=1, max_size=6), st.booleans())
def test_every_point_is_inside(rows, share):
    lines = [
        Line(f"l{i}", tuple((2.0**k, Estimate(y, y - 1, y + 1)) for k, y in enumerate(row)))
        for i, row in enumerate(rows)
    ]
    html = chart(lines, title="t", x_label="x", share=share)
    drawings = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)" role="img".*?>(.*?)</svg>', html, flags=re.S)
    assert len(drawings) == 2
    for width, height, inner in ((int(w), int(h), inner) for w, h, inner in drawings):
        assert inner.count('class="hit"') == sum(map(len, rows))
        for x, y in re.findall(r'cx="([^"]+)" cy="([^"]+)"', inner):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_values_that_are_no_numbers_are_not_drawn():
    nan = float("nan")
    line = Line(
        "a", ((1, Estimate(nan)), (2, Estimate(0.5, nan, 0.6)), (4, Estimate(float("inf"))), (8, Estimate(0.7)))
    )
    html = chart([line, Line("b", ((1, Estimate(nan)),))], title="t", x_label="x")
    assert "nan" not in html
    assert "inf" not in html
    assert html.count('class="hit"') == 4  # two points, drawn wide and narrow
    assert chart([], title="t", x_label="x") == ""
    assert small([Line("b", ((1, Estimate(nan)),))], title="t", x_label="x") == ""


def test_tooltips_hold_the_numbers():
    html = chart([Line("votes", ((4, Estimate(0.5, 0.4, 0.6)),))], title="t", x_label="N")
    assert "votes\nN 4: 50.0% (95% interval 40.0% to 60.0%)" in html


def test_longest_bar_fills_its_track():
    html = bars([("a", 5.0, "5 s"), ("b", 10.0, "10 s"), ("c", 0.0, "0 s")])
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "100.00", "0.00"]


@given(st.lists(values, min_size=1, max_size=700), st.integers(1, 200))
def test_thinning_keeps_the_end_and_the_mean_of_runs(ys, most):
    points = [(float(i), y) for i, y in enumerate(ys)]
    kept = thin(points, most)
    assert len(kept) <= most
    assert kept[-1][0] == points[-1][0]
    assert min(ys) - 1e-6 <= min(y for _, y in kept) and max(y for _, y in kept) <= max(ys) + 1e-6


# ---- axes ----


def drawn(html, kind="tick middle"):
    """The texts of one class in the wide drawing, with their places: (x, y, text)."""
    wide = html.split('class="narrow"')[0]
    found = re.findall(rf'<text x="([^"]+)" y="([^"]+)" class="{kind}">(?:<title>[^<]*</title>)?([^<]*)</text>', wide)
    return [(float(x), float(y), unescape(text)) for x, y, text in found]


def value(text):
    """The number that an axis shows, and whether it is 1, 2 or 5 times a power of ten."""
    number = float(text[:-1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[text[-1]] if text[-1] in "kMB" else float(text)
    return number, f"{number:.0e}"[0] in "125" and math.isclose(number, float(f"{number:.0e}"))


def test_a_token_axis_has_round_numbers():
    xs = (42.37072917, 169.4829167, 677.9, 2711.7, 11326.85)
    line = Line("a", tuple((x, Estimate(0.5)) for x in xs))
    labels = drawn(chart([line], title="t", x_label="tokens", scale="log"))
    assert [text for _, _, text in labels] == ["50", "100", "200", "500", "1k", "2k", "5k", "10k"]


@given(st.lists(st.floats(1e-2, 1e8), min_size=1, max_size=12), st.sampled_from(["log", "linear"]))
def test_labels_of_the_x_axis_are_few_numbers_that_do_not_touch(xs, scale):
    points = tuple((x, Estimate(0.5)) for x in sorted(set(xs)))
    labels = drawn(chart([Line("a", points)], title="t", x_label="x", scale=scale))
    assert len(labels) <= 20
    places = [(x - 3.5 * len(text), x + 3.5 * len(text)) for x, _, text in labels]
    assert all(b[0] - a[1] >= 4 for a, b in itertools.pairwise(places))
    if scale == "log":
        assert labels
        assert max(len(text) for _, _, text in labels) <= 7
        if max(xs) > 5 * min(xs):  # else any round numbers of a narrow range
            assert len(labels) > 1
            assert all(value(text)[1] for _, _, text in labels)


def test_updates_are_whole():
    line = Line("a", ((0, Estimate(0.5)), (1, Estimate(0.6)), (2, Estimate(0.7))))
    labels = drawn(chart([line], title="t", x_label="updates", scale="linear"))
    assert [text for _, _, text in labels] == ["0", "1", "2"]


def test_thousands_are_short_and_small_numbers_are_told_apart():
    line = Line("a", ((0, Estimate(1200.0)), (1, Estimate(2600.0))))
    labels = drawn(chart([line], title="t", x_label="x", share=False), "tick end")
    assert [text for _, _, text in labels] == ["1k", "1.5k", "2k", "2.5k", "3k"]
    near = Line("a", ((0, Estimate(0.30941)), (1, Estimate(0.30952))))
    texts = [text for _, _, text in drawn(chart([near], title="t", x_label="x", share=False), "tick end")]
    assert len(set(texts)) == len(texts)


# ---- labels at the lines ----


@given(st.lists(st.integers(0, 100).map(lambda x: x / 100), min_size=2, max_size=40))
def test_names_at_the_lines_are_apart_in_order_and_whole(ends):
    lines = [Line(f"<n{i}>", ((1, Estimate(0.5)), (2, Estimate(y)))) for i, y in enumerate(ends)]
    labels = drawn(chart(lines, title="t", x_label="x"), "direct")
    heights = [y for _, y, _ in labels]
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(sorted(heights)))
    assert min(heights) >= 12 and max(heights) <= 420 - 36
    by_height = [text for _, _, text in sorted(labels, key=lambda label: label[1])]
    if len(ends) <= 24:  # there is room for each
        assert sorted(by_height) == sorted(line.label for line in lines)
    cut = [text for text in by_height if text.endswith("…")]
    shown = [ends[int(i)] for text in by_height for i in re.findall(r"<n(\d+)>", text)]
    assert shown == sorted(shown, reverse=True) or cut
    assert cut or len(shown) == len(ends)


def test_a_long_name_is_cut_and_its_whole_is_shown_on_hovering():
    name = "votes weighted by " + "x" * 60
    html = chart([Line(name, ((1, Estimate(0.5)), (2, Estimate(0.6))))], title="t", x_label="x")
    assert drawn(html, "direct")[0][2].endswith("…")
    assert f"<title>{name}</title>" in html
