"""The table in the terminal at the end of a run."""

from stepmark import report
from stepmark.report import Metrics


def test_table_has_methods_intervals_quality_and_place(raw_metrics):
    text = report.table(raw_metrics, "runs/demo/report.html")
    lines = text.splitlines()
    row = next(line for line in lines if line.split()[:1] == ["self_consistency+prm_logprob"])
    assert row.split()[1:] == ["33.2", "30-36", "62.0", "59-65", "87.0", "84-90", "96.0*", "93-99"]
    oracle = next(line for line in lines if line.split()[:1] == ["oracle"])
    assert "*" not in oracle
    assert next(line for line in lines if "false negatives" in line).split()[-1] == "12.0%"
    assert lines[-1] == "Report: runs/demo/report.html"
    assert "With 64 candidates" in text


def test_columns_line_up(raw_metrics):
    lines = report.table(raw_metrics).splitlines()
    start = next(i for i, line in enumerate(lines) if set(line.strip()) == {"-"})
    rows = lines[start + 1 : lines.index("", start)]
    assert len(rows) == 9
    assert len({row.index(".") for row in rows}) == 1
    assert max(map(len, rows)) <= 100


def test_best_is_marked_only_where_somebody_won():
    m = Metrics.parse({"best_of_n": {"self_consistency": {"1": 0.3, "4": 0.4}, "orm": {"1": 0.3, "4": 0.5}}})
    rows = {line.split()[0]: line.split()[1:] for line in report.table(m).splitlines() if line.startswith("  ")}
    assert rows["orm"] == ["30.0", "50.0*"]
    assert rows["self_consistency"] == ["30.0", "40.0"]


def test_parts_that_were_not_measured_are_left_out():
    text = report.table({"best_of_n": {"orm": {"4": 0.5}}})
    assert "label" not in text.lower()
    assert "Report:" not in text
    assert "nothing" not in text


def test_names_cannot_steer_the_terminal():
    text = report.table({"best_of_n": {"\x1b[2Jevil\r": {"4": 0.5}}}, "x\x1b]0;t\x07")
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "evil" in text
