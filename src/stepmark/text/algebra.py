r"""Whether two answers that `expressions.parse` has read are equal: True, False, or Undecided with a reason.

Exact sides are compared exactly. Two values differ if their difference, evaluated with as many digits as it takes, is
not zero, however small it is; there is no absolute tolerance. They are equal if algebra proves it. A decimal has a
relative tolerance of 1e-6 only against a value that no finite decimal can write (1/3, \pi): 0.3333333 is 1/3, 0.33 is
not, and 0.1250001 is not 1/8. What is neither refuted nor proved raises Undecided.

Forms count where they say something else: (1,2) is not [1,2]; a list is a set; a base belongs to a number.

sympy is imported when a comparison needs it. It may hang: the symbolic grader runs this in a process that it can kill.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from stepmark.text.expressions import Node

TOLERANCE = Fraction(1, 10**6)  # relative, of a decimal against a value without a finite decimal
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_POINTS = (
    Fraction(7, 5),
    Fraction(13, 3),
    Fraction(2, 7),
    Fraction(-9, 4),
    Fraction(-3, 8),
)  # where formulas are tried


class Undecided(Exception):
    """Neither equal nor different can be shown. The message is the reason."""


def equal(ours: Node, theirs: Node) -> bool:
    """Whether two answers are equal. Raises Undecided."""
    if ours == theirs:
        return True
    if units := {n.text for n in (ours, theirs) if n.kind == "unit"}:
        if len(units) > 1:
            raise Undecided(f"different units: {', '.join(sorted(units))}")
        ours, theirs = (n.parts[0] if n.kind == "unit" else n for n in (ours, theirs))
    ours, theirs = _assigned(ours, theirs)
    kinds = {ours.kind, theirs.kind}
    if "based" in kinds:
        return _based(ours, theirs)
    if "ratio" in kinds:
        return _ratios(ours, theirs)
    if kinds & {"relation", "union"} or _inequalities(ours) or _inequalities(theirs):
        return _relations(ours, theirs)
    ours, theirs = _expanded(ours), _expanded(theirs)
    kinds = {ours.kind, theirs.kind}
    if kinds <= {"list", "set"}:
        return _unordered(ours.parts, theirs.parts)
    if "set" in kinds:
        lone = next(n for n in (ours, theirs) if n.kind != "set")
        return lone.kind != "brackets" and _unordered(*(n.parts if n.kind == "set" else (n,) for n in (ours, theirs)))
    if kinds == {"list", "brackets"}:
        if len(ours.parts) == len(theirs.parts) and _in_order(ours.parts, theirs.parts):
            raise Undecided("a list against a point or an interval")
        return False
    if kinds & {"brackets", "matrix", "list"}:
        if len(kinds) > 1:
            return False
        if ours.kind == "list":
            return _unordered(ours.parts, theirs.parts)
        if ours.kind == "matrix":
            shapes = [(len(n.parts), len(n.parts[0].parts)) for n in (ours, theirs)]
            return shapes[0] == shapes[1] and _in_order(
                *([c for r in n.parts for c in r.parts] for n in (ours, theirs))
            )
        return ours.text == theirs.text and _in_order(ours.parts, theirs.parts)
    return _values(ours, theirs)


def _assigned(ours: Node, theirs: Node) -> tuple[Node, Node]:
    """Both answers without "x =" or "x in" before a value, unless they give it to different names."""
    names: list[str] = []
    values = []
    for node in (ours, theirs):
        items = node.parts if node.kind == "list" else (node,)
        given = [n for n in items if n.kind == "relation" and n.text in ("=", "in") and n.parts[0].kind == "name"]
        if len(given) == len(items) and len({n.parts[0].text for n in given}) == 1:
            names.append(given[0].parts[0].text)
            rest = tuple(n.parts[1] for n in given)
            values.append(Node("list", rest) if node.kind == "list" else rest[0])
        else:
            values.append(node)
    if len(set(names)) == 2:
        if equal(*values):
            raise Undecided("the same value for two names")
        return ours, theirs
    if [n.kind == "relation" and set(n.text.split()) == {"="} for n in values].count(True) != 1:
        return values[0], values[1]
    if len(names) == 1:
        return ours, theirs
    return _result(values[0]), _result(values[1])


def _result(node: Node) -> Node:
    """The last side of "1 + 1 = 2" or "x = 1 + 1 = 2". All sides must be equal."""
    if node.kind != "relation":
        return node
    sides = node.parts[1:] if node.parts[0].kind == "name" else node.parts
    if not all(_values(a, b) for a, b in itertools.pairwise(sides)):
        raise Undecided("an equation against a value")
    return sides[-1]


def _in_order(ours: Any, theirs: Any) -> bool:
    if len(ours) != len(theirs):
        if any(n.kind == "dots" for n in (*ours, *theirs)):
            raise Undecided("a sequence that goes on")
        return False
    return all(equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _unordered(ours: Any, theirs: Any) -> bool:
    """Whether two lists have the same members. With dots the order counts."""
    dots = [any(n.kind == "dots" for n in side) for side in (ours, theirs)]
    if any(dots):
        if not all(dots):
            raise Undecided("a sequence that goes on against one that does not")
        return _in_order(ours, theirs)
    if len(ours) != len(theirs):
        return False
    named = [len({n.parts[0].text for n in side if n.kind == "relation"}) for side in (ours, theirs)]
    if max(named) > 1 and not min(named):
        raise Undecided("values of several names against a list without names")
    rest, unsure = list(theirs), None
    for a in ours:
        for b in rest:
            try:
                if equal(a, b):
                    rest.remove(b)
                    break
            except Undecided as e:
                unsure = e
        else:
            if unsure:
                raise unsure
            return False
    return True


def _expanded(node: Node) -> Node:
    r"""An answer with \pm as the list of its two values."""
    if any(_count(part) > 1 for part in (node.parts if node.kind in ("list", "set") else (node,))):
        raise Undecided(r"several \pm in one value")
    if node.kind not in ("list", "set"):
        return Node("list", (_signs(node, "+"), _signs(node, "-"))) if _has(node, "either") else node
    parts: list[Node] = []
    for part in node.parts:
        parts += [_signs(part, "+"), _signs(part, "-")] if _has(part, "either") else [part]
    if node.kind == "set":
        parts = list(dict.fromkeys(parts))  # {5, 5} is {5}
    return Node(node.kind, tuple(parts))


def _count(node: Node) -> int:
    r"""How many \pm a node has. With two of them nobody can say whether there are two values or four."""
    return (node.kind == "either" and node.text == r"\pm") + sum(_count(part) for part in node.parts)


def _has(node: Node, kind: str) -> bool:
    return node.kind == kind or any(_has(part, kind) for part in node.parts)


def _signs(node: Node, sign: str) -> Node:
    parts = tuple(_signs(part, sign) for part in node.parts)
    if node.kind != "either":
        return Node(node.kind, parts, node.text)
    return parts[0] if (node.text == r"\pm") == (sign == "+") else Node("negative", parts)


def _based(ours: Node, theirs: Node) -> bool:
    """Two numbers of one base are compared. A base on one side only is nobody's error for certain."""

    def value(node: Node) -> tuple[str, int, int]:
        digits, base = node.text.split() if node.kind == "based" else (node.text, "10")
        return digits, int(digits, int(base)), int(base)

    if all(n.kind == "based" or (n.kind == "number" and n.text.isdigit()) for n in (ours, theirs)):
        (a, m, base), (b, n, other) = value(ours), value(theirs)
        if base == other:
            return m == n
        if a.lstrip("0") != b.lstrip("0") and m != n:
            return False
    raise Undecided("a number with a base against one with another base or none")


def _ratios(ours: Node, theirs: Node) -> bool:
    if ours.kind == theirs.kind:
        if len(ours.parts) != len(theirs.parts):
            return False
        pairs = list(zip(ours.parts, theirs.parts, strict=True))
        same = all(_values(_times(a, d), _times(b, c)) for (a, b), (c, d) in itertools.pairwise(pairs))
        if same and ours != theirs and (_clock(ours) or _clock(theirs)):
            raise Undecided("two ratios or two times of day")
        return same
    ratio, other = (ours, theirs) if ours.kind == "ratio" else (theirs, ours)
    if len(ratio.parts) == 2 and not _values(Node("divide", ratio.parts), other):
        return False
    raise Undecided("a ratio against a number")


def _inequalities(node: Node) -> bool:
    """Whether a node is "x < 1 or x > 5" or "x > 1 and x < 5"."""
    return node.kind == "list" and bool(node.text) and all(n.kind == "relation" and n.text != "=" for n in node.parts)


def _clock(ratio: Node) -> bool:
    """Whether a ratio may be a time of day or a duration: "3:45"."""
    return all(len(n.text) == 2 and n.text.isdigit() and int(n.text) < 60 for n in ratio.parts[1:])


def _times(a: Node, b: Node) -> Node:
    return Node("multiply", (a, b))


def _relations(ours: Node, theirs: Node) -> bool:
    import sympy

    def both_sides(node: Node) -> Any:
        return _formula(node.parts[0]) - _formula(node.parts[1])

    texts = [n.text for n in (ours, theirs)]
    if texts == ["=", "="]:
        a, b = both_sides(ours), both_sides(theirs)
        if sympy.simplify(a / b).is_number:
            return True
        factors = [{f.primitive()[1].monic() for f, _ in sympy.Poly(x).factor_list()[1]} for x in (a, b)]
        return bool(factors[0] == factors[1])
    if "=" in texts or any("!=" in t for t in texts):
        if ours.kind == theirs.kind == "relation" and texts[0] == texts[1]:
            return _in_order(ours.parts, theirs.parts) or _undecided("two relations")
        return _undecided("a relation against another form")
    sets, names = [], set()
    for node in (ours, theirs):
        found = _set(node)
        if found is None:
            if ours.kind == theirs.kind and texts[0] == texts[1] and _in_order(ours.parts, theirs.parts):
                return True
            if all(t in _FLIPPED for t in texts) and _same_half(ours, theirs):
                return True
            return _undecided("relations of several variables, or a relation against another form")
        sets.append(found[1])
        names |= found[0]
    if len(names) > 1:
        return _undecided(f"relations of {', '.join(sorted(names))}")
    return bool(sets[0] == sets[1]) or _same_ends(*sets)


def _same_half(ours: Node, theirs: Node) -> bool:
    """Whether two inequalities of several variables are one, but for a positive factor: "y < x" and "2x > 2y"."""
    import sympy

    sides, strict = [], []
    for node in (ours, theirs):
        difference = _formula(node.parts[0]) - _formula(node.parts[1])
        sides.append(difference if "<" in node.text else -difference)
        strict.append("=" not in node.text)
    return strict[0] == strict[1] and bool(sympy.simplify(sides[0] / sides[1]).is_positive)


def _undecided(reason: str) -> bool:
    raise Undecided(reason)


def _same_ends(a: Any, b: Any) -> bool:
    """Whether two unions of intervals have the same ends, after algebra."""
    import sympy

    parts = [list(s.args) if isinstance(s, sympy.Union) else [s] for s in (a, b)]
    if len(parts[0]) != len(parts[1]):
        return False
    for x, y in zip(*(sorted(p, key=lambda i: float(i.inf)) for p in parts), strict=True):
        if not isinstance(x, sympy.Interval) or not isinstance(y, sympy.Interval):
            return _undecided("sets that are not intervals")
        if (x.left_open, x.right_open) != (y.left_open, y.right_open):
            return False
        if not (_same(x.start, y.start) and _same(x.end, y.end)):
            return False
    return True


def _set(node: Node) -> tuple[set[str], Any] | None:
    """The variable and the real numbers that a relation or an interval stands for; None for anything else."""
    import sympy

    if node.kind == "brackets" and len(node.parts) == 2:
        ends = [_formula(n) for n in node.parts]
        if any(e.free_symbols for e in ends):
            return None
        return set(), sympy.Interval(*ends, node.text[0] == "(", node.text[1] == ")")
    if node.kind == "name" and node.text == "Reals":
        return set(), sympy.S.Reals
    if node.kind == "set":
        return set(), sympy.FiniteSet(*(_formula(n) for n in node.parts))
    if node.kind == "union" or _inequalities(node):
        found = [f for f in map(_set, node.parts) if f is not None]
        if len(found) < len(node.parts):
            return None
        join = sympy.Intersection if node.text == "and" else sympy.Union
        return set().union(*(f[0] for f in found)), join(*(f[1] for f in found))
    if node.kind != "relation":
        return None
    if node.text == "in" and node.parts[0].kind == "name":
        found_in = _set(node.parts[1])
        return found_in and ({node.parts[0].text}, found_in[1])
    operators = node.text.split()
    formulas = [_formula(n) for n in node.parts]
    variables = set().union(*(f.free_symbols for f in formulas))
    if len(variables) != 1 or not set(operators) <= set(_FLIPPED):
        return None
    [symbol] = variables
    x = sympy.Symbol("x", real=True)
    numbers = sympy.S.Reals
    for operator, left, right in zip(operators, formulas[:-1], formulas[1:], strict=True):
        relation = sympy.Rel(left.subs(symbol, x), right.subs(symbol, x), operator)
        numbers = sympy.Intersection(numbers, sympy.solve_univariate_inequality(relation, x, relational=False))
    return {symbol.name}, numbers


def _values(ours: Node, theirs: Node) -> bool:
    """Whether two single values are equal."""
    if "dots" in (ours.kind, theirs.kind):
        return ours.kind == theirs.kind
    if (ours.kind == "degrees") != (theirs.kind == "degrees"):  # "90°" against "90": the task asks for degrees
        bare = [n.parts[0] if n.kind == "degrees" else n for n in (ours, theirs)]
        if _values(*bare):
            return True
    a, b = _formula(ours), _formula(theirs)
    decimals = [_has_decimal(n) for n in (ours, theirs)]
    if decimals[0] != decimals[1]:
        exact, rounded = (b, a) if decimals[0] else (a, b)
        if not exact.free_symbols and not rounded.free_symbols and not _ends(exact):
            return _close(rounded, exact)
    if _same(a, b):
        return True
    percent = [n.kind == "percent" for n in (ours, theirs)]
    if percent[0] != percent[1]:  # "50%" against "50": the task asks for a percentage
        return _same(a * 100 if percent[0] else a, b * 100 if percent[1] else b)
    return False


def _has_decimal(node: Node) -> bool:
    return (node.kind == "number" and "." in node.text) or any(_has_decimal(part) for part in node.parts)


def _ends(value: Any) -> bool:
    """Whether a finite decimal can write a value."""
    denominator = int(value.q) if value.is_Rational else 3
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _close(rounded: Any, exact: Any) -> bool:
    import sympy

    difference = sympy.Abs(rounded - exact).evalf(30)
    size = sympy.Abs(exact).evalf(30)
    if not (difference.is_number and difference.is_comparable and size.is_comparable):
        return _undecided("a decimal against a value that can't be evaluated")
    return bool(difference <= sympy.Rational(TOLERANCE.numerator, TOLERANCE.denominator) * size)


def _same(a: Any, b: Any) -> bool:
    """Whether two formulas are equal everywhere."""
    import sympy

    if a == b:
        return True
    if any(x.has(sympy.nan, sympy.zoo) for x in (a, b)):
        return _undecided("a value that does not exist")
    if any(x.has(sympy.oo, -sympy.oo) for x in (a, b)):
        return False
    difference = a - b
    symbols = sorted(difference.free_symbols, key=lambda s: str(s.name))
    if not symbols:
        if _nonzero(difference):
            return False
    else:
        signs = _refuted(difference, symbols)
        if signs == "everywhere":
            return False
        if signs:
            return _undecided("equal for some values of the variables only")
    if sympy.simplify(difference) == 0 or difference.equals(0):
        return True
    return _undecided("neither proved nor refuted by algebra")


def _refuted(difference: Any, symbols: Any) -> str:
    """ "everywhere" if formulas differ at a point of positive values, "somewhere" if only at others; "" if nowhere."""
    import sympy

    result = ""
    for shift, first in enumerate(_POINTS):
        positive = first > 0
        values = {}
        for k, symbol in enumerate(symbols):
            point = (abs(first) if positive else first) + Fraction(k * (shift + 2), 11)
            values[symbol] = sympy.Rational(point.numerator, point.denominator)
        there = difference.subs(values)
        if there.has(sympy.nan, sympy.zoo, sympy.oo):
            continue
        if _nonzero(there):
            if positive:
                return "everywhere"
            result = "somewhere"
    return result


def _nonzero(value: Any) -> bool:
    """Whether a number is certainly not zero: enough of its digits are known, however small it is."""
    import sympy
    from sympy.core.evalf import PrecisionExhausted

    if value.is_Rational:
        return bool(value != 0)
    try:
        digits = sympy.N(value, 10, maxn=400, strict=True)
    except PrecisionExhausted:
        return False
    if not digits.is_number or digits.has(sympy.nan, sympy.zoo) or not digits.is_finite:
        return _undecided("a value that can't be evaluated")
    return bool(digits != 0)


def _formula(node: Node) -> Any:
    """The sympy expression of a single value. Raises Undecided for anything else."""
    import sympy

    if node.kind == "number":
        value = Fraction(node.text)
        return sympy.Rational(value.numerator, value.denominator)
    if node.kind == "name":
        constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo}
        if node.text in ("Reals", "emptyset"):
            raise Undecided("a set against another form")
        return constants.get(node.text) or sympy.Symbol(node.text)
    if node.kind not in _BUILD and node.kind != "call":
        raise Undecided(f"can't compare: {node.kind} inside an expression")
    parts = [_formula(part) for part in node.parts]
    if node.kind == "call":
        return _call(node.text, parts)
    return _BUILD[node.kind](sympy, parts)


_BUILD: dict[str, Callable[[Any, Any], Any]] = {
    "group": lambda s, p: p[0],
    "add": lambda s, p: s.Add(*p),
    "multiply": lambda s, p: s.Mul(*p),
    "negative": lambda s, p: -p[0],
    "divide": lambda s, p: p[0] / p[1],
    "power": lambda s, p: _power(p[0], p[1]),
    "root": lambda s, p: _root(s, p[0], p[1] if len(p) > 1 else s.Integer(2)),
    "percent": lambda s, p: p[0] / 100,
    "degrees": lambda s, p: p[0] * s.pi / 180,
}


def _power(base: Any, exponent: Any) -> Any:
    if base.is_negative and exponent.is_Rational and exponent.q % 2 and exponent.q > 1:
        raise Undecided("a power of a negative number: its real or its principal value")
    return base**exponent


def _root(sympy: Any, value: Any, index: Any) -> Any:
    """The real root, where there is one: the cube root of -8 is -2."""
    if index.is_odd and value.could_extract_minus_sign():
        return -sympy.root(-value, index)
    return sympy.root(value, index)


def _call(name: str, parts: list[Any]) -> Any:
    import sympy

    if name in ("log", "lg", "ln"):
        if name == "log" and len(parts) == 1:
            raise Undecided("a logarithm without a base: of 10 or of e")
        return sympy.log(parts[0], *({"lg": [10]}.get(name, parts[1:])))
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "abs": "Abs"}
    return getattr(sympy, names.get(name, name))(*parts)
