"""The headline and the findings: they name the best method, also when the verifier is not the best."""

from hypothesis import given
from hypothesis import strategies as st

from stepmark.report import Metrics
from stepmark.report.findings import findings, headline


def made(best_of_n: dict, **parts: object) -> Metrics:
    return Metrics.parse({"problems": 200, "best_of_n": best_of_n, **parts})


def test_says_what_won():
    m = made({"self_consistency": {"64": 0.44}, "self_consistency+prm": {"64": 0.953}, "prm": {"64": 0.29}})
    assert headline(m) == "With 64 candidates, votes weighted by prm answer 95.3%, plain voting 44.0%."


def test_says_that_it_lost():
    m = made({"self_consistency": {"16": 0.907}, "orm": {"16": 0.80}, "self_consistency+orm": {"16": 0.899}})
    assert headline(m) == ("With 16 candidates, no verifier beats plain voting: 90.7%, votes weighted by orm 89.9%.")


def test_says_that_nobody_knows():
    curves = {"self_consistency": {"16": 0.90}, "self_consistency+orm": {"16": 0.91}}
    stored = {"self_consistency - self_consistency+orm": {"16": {"mean": -0.01, "low": -0.03, "high": 0.005}}}
    m = made(curves, differences=stored)
    assert headline(m).endswith("91.0%, plain voting 90.0%: within the noise.")
    assert "+1.0 points, with a 95% interval from −0.5 to +3.0, too wide to tell" in findings(m)[0]
    clear = {"self_consistency+orm - self_consistency": {"16": {"mean": 0.01, "low": 0.002, "high": 0.02}}}
    assert "noise" not in headline(made(curves, differences=clear))
    assert not any("too wide" in s for s in findings(made(curves, differences=clear)))


def test_compares_at_an_n_that_both_have():
    m = made({"self_consistency": {"4": 0.5, "16": 0.6}, "orm": {"4": 0.7, "64": 0.9}})
    assert "With 4 candidates" in headline(m)
    assert "70.0%" in headline(m)


def test_without_a_verifier():
    assert "no verifier, one sample answers 30.0%, plain voting 40.0%" in headline(
        made({"pass@1": {"4": 0.3}, "self_consistency": {"4": 0.4}, "oracle": {"4": 0.8}})
    )


def test_points_out_a_curve_that_falls():
    m = made({"self_consistency": {"4": 0.4, "64": 0.44}, "prm": {"4": 0.56, "64": 0.29}, "orm": {"4": 0.5, "64": 0.6}})
    falls = [s for s in findings(m) if "falls" in s]
    assert len(falls) == 1
    assert "Best by prm: accuracy falls from 56.0% at N = 4 to 29.0% at N = 64, below plain voting" in falls[0]


def test_further_aggregations_do_not_take_the_headline():
    m = made({"self_consistency": {"4": 0.4}, "prm": {"4": 0.5}, "prm:prod": {"4": 0.9}})
    assert "50.0%" in headline(m)
    assert not any("best of 2" in s for s in findings(m))


def test_points_out_what_was_lost_and_what_gets_chosen(raw_metrics):
    sentences = " ".join(findings(Metrics.parse(raw_metrics)))
    assert "could not count in full: truncated 1.2%, prm truncated 2.1%." in sentences
    assert (
        "Where prm_logprob alone chooses among 64, it is most often taken in by “slip”: 2.0% of the problems"
        in sentences
    )
    assert "of 4.7% that it gets wrong" in sentences


shares = st.floats(0, 1, allow_nan=False)


@given(vote=shares, alone=shares, weighted=shares)
def test_never_claims_a_win_that_is_not_there(vote, alone, weighted):
    m = made({"self_consistency": {"8": vote}, "v": {"8": alone}, "self_consistency+v": {"8": weighted}})
    assert ("no verifier beats" in headline(m)) == (max(alone, weighted) <= vote)
