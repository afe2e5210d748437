"""Charts: every number is drawn inside the canvas, for any data."""

import re

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
