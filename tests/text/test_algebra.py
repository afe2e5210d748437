from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stepmark.text import algebra
from stepmark.text.expressions import parse

Formula = tuple[str, Fraction]


def combined(children: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    """Formulas with their values, which are computed here and not by what is tested."""
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (rf"({p[0][0]}+{p[1][0]})", p[0][1] + p[1][1])),
        pairs.map(lambda p: (rf"\left({p[0][0]}-{p[1][0]}\right)", p[0][1] - p[1][1])),
        pairs.map(lambda p: (rf"({p[0][0]})({p[1][0]})", p[0][1] * p[1][1])),
        pairs.filter(lambda p: bool(p[1][1])).map(lambda p: (rf"\frac{{{p[0][0]}}}{{{p[1][0]}}}", p[0][1] / p[1][1])),
        st.tuples(children, st.integers(0, 3)).map(lambda p: (rf"({p[0][0]})^{{{p[1]}}}", p[0][1] ** p[1])),
    )


FORMULAS = st.recursive(st.integers(0, 20).map(lambda n: (str(n), Fraction(n))), combined, max_leaves=6)


@given(FORMULAS)
def test_a_formula_equals_its_value(formula: Formula) -> None:
    text, value = formula
    sign = "-" if value < 0 else ""
    assert algebra.equal(parse(text), parse(rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"))


@given(FORMULAS, FORMULAS)
def test_formulas_of_different_values_are_never_equal(a: Formula, b: Formula) -> None:
    assume(a[1] != b[1])
    assert not algebra.equal(parse(a[0]), parse(b[0]))
    assert not algebra.equal(parse(rf"\sqrt{{2}} \cdot {a[0]}"), parse(rf"\sqrt{{2}} \cdot {b[0]}"))
    assert not algebra.equal(parse(rf"x + {a[0]}"), parse(rf"x + {b[0]}"))


@given(st.integers(1, 10**6), st.integers(8, 300))
def test_no_difference_is_too_small(n: int, places: int) -> None:
    for one, other in ((rf"{n} + 10^{{-{places}}}", str(n)), (rf"\sqrt{{{n}}} + \pi^{{-{places}}}", rf"\sqrt{{{n}}}")):
        assert not algebra.equal(parse(one), parse(other))


@given(st.fractions(Fraction(1, 1000), 1, max_denominator=10**4))
def test_a_decimal_has_a_tolerance_only_where_it_can_not_be_exact(value: Fraction) -> None:
    exact = parse(rf"\frac{{{value.numerator}}}{{{value.denominator}}}")
    digits = parse(f"{float(value):.15f}")
    ends = 10**15 % value.denominator == 0
    assert algebra.equal(digits, exact)
    near = parse(f"{float(value) * (1 + 3e-7):.15f}")
    assert algebra.equal(near, exact) is not ends
    assert not algebra.equal(parse(f"{float(value) * 1.00001:.15f}"), exact)


@pytest.mark.parametrize(
    "pair", [("52_8", "52"), ("3:4", "0.75"), ("(1,2)", "1,2"), (r"\sqrt{x^2}", "x"), ("x=5", "y=5")]
)
def test_what_nobody_can_decide_is_undecided(pair: tuple[str, str]) -> None:
    for one, other in (pair, pair[::-1]):
        with pytest.raises(algebra.Undecided):
            algebra.equal(parse(one), parse(other))
