r"""Reads an answer in LaTeX or plain mathematics as one tree, whole or not at all.

Nothing is skipped or guessed: what this grammar does not know, and what mathematicians read in two ways ("1/2x",
"\sin 2x(y+1)", "a^b^c"), raises Unreadable. Libraries that look for the longest part that they can read turn
"1+\frac{1}{\mathrm{e}}" into 1, and then call it equal to anything in which they find a 1.

    answer   = relation ((","|";"|"or"|"and") relation)*      a list; "\pm" is expanded by who compares
    relation = union (("="|"<"|"\le"|"\in"|":"|...) union)*
    union    = sum ("\cup" sum)*
    sum      = term (("+"|"-"|"\pm"|"\mp") term)*
    term     = factor (("\cdot"|"\times"|"*"|"/")? factor)*
    factor   = base ("^" script)? ("!"|"%"|"°")*
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from stepmark.text import answers

MAX_EXPRESSION = 1000  # characters; longer expressions are not parsed
MAX_DEPTH = 60  # brackets within brackets


class Unreadable(ValueError):
    """The answer can't be read whole. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression."""

    kind: str  # "number", "name", "add", "call", "list", "brackets", "relation", ...
    parts: tuple[Node, ...] = ()
    text: str = ""  # digits, a name, the function, the two brackets, or the operators of a relation


_NAMES = (
    r"alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi chi psi"
)
NAMES = {
    *_NAMES.split(),
    "omega",
    "pi",
    "infty",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "ell",
}
_TRIG = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
FUNCTIONS = {*_TRIG, "arcsin", "arccos", "arctan", "asin", "acos", "atan", "ln", "log", "lg", "exp"}
_UNITS = {"cm", "mm", "km", "kg", "mg", "ml", "ft", "lb", "lbs", "oz", "hr", "hrs", "min", "sec", "mph", "rad", "deg"}
_RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\leq": "<=",
    r"\leqslant": "<=",
    r"\ge": ">=",
    r"\geq": ">=",
}
_RELATIONS |= {
    r"\geqslant": ">=",
    r"\lt": "<",
    r"\gt": ">",
    r"\ne": "!=",
    r"\neq": "!=",
    r"\in": "in",
    ":": ":",
    "≤": "<=",
}
_RELATIONS |= {"≥": ">=", "≠": "!=", "∈": "in", "<=": "<=", ">=": ">=", "!=": "!="}
_SYNONYMS = {"−": "-", "×": r"\cdot", "·": r"\cdot", "÷": "/", r"\div": "/", "*": r"\cdot", r"\times": r"\cdot"}
_SYNONYMS |= {r"\ast": r"\cdot", "±": r"\pm", "∓": r"\mp", "π": r"\pi", "∞": r"\infty", "∪": r"\cup", "√": r"\sqrt"}
_SYNONYMS |= {r"\colon": ":", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\degree": "°"}
_SYNONYMS |= {r"\ldots": "...", r"\dots": "...", r"\cdots": "...", "…": "...", r"\dotsc": "...", r"\lvert": "|"}
_SYNONYMS |= {r"\rvert": "|", r"\vert": "|", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac"}
_SYNONYMS |= {
    r"\vee": "or",
    r"\lor": "or",
    r"\wedge": "and",
    r"\land": "and",
    r"\varnothing": r"\emptyset",
    "∅": r"\emptyset",
}

_DROPPED = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|[bB]ig{1,2}[lr]?|quad|qquad|[,;: !])(?![A-Za-z])|(?<!\\)\$|~"
)
_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|operatorname|rm)\s*\{([^{}\\]*)\}"
_TOKEN = re.compile(
    rf"\s*(?:(?P<text>{_TEXT})|(?P<number>\d{{1,3}}(?:,\d{{3}})+(?![\d,]|\.\d+,)(?:\.\d+)?"
    r"|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![A-Za-z]))?)"
    r"|(?P<word>[A-Za-z]+)|(?P<mark>\.\.\.|<=|>=|!=|\\[A-Za-z]+|\\.|\S))",
    re.ASCII,
)
_BASE = re.compile(r"\(?([0-9A-F]+)\)?(?:_\{?(?:base\s*)?(\d+|[a-z]+)\}?|\s+\(?(?:in )?base[ -]?(\d+|[a-z]+)\)?)")
_APPLIED = re.compile(r"\s*([fghFGHPpQq])\s*\(\s*([a-z])\s*\)\s*=")
_SPLIT_NUMBER = re.compile(r"\d\.\d{3},\d|\d,\d\d,\d{3}(?!\d)|\{,\}(?!\d{3}(?!\d))|(?<!_)\d\s+\d", re.ASCII)
_MIXED = re.compile(
    r"(?<![\d.,/^_{}])(\d+)\s*(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|\\[dt]?frac(\d)(\d)|\s(\d+)/(\d+))(?![\d/^!.])"
)
_NOT_PRODUCTS = re.compile(r"\d\s*[ap]\.?m\b|\d(?:st|nd|rd|th)\b|(?<![A-Za-z\\])f\s*\(", re.ASCII)  # 2:30 pm, 1st, f(2)
_MATRIX = re.compile(r"\\(begin|end)\{[pb](matrix)\}")
_REPEATING = re.compile(r"(?<![\d.,])(\d*)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?", re.ASCII)


def parse(answer: str) -> Node:
    """The tree of an answer. Raises Unreadable."""
    if len(answer) > MAX_EXPRESSION:
        raise Unreadable(f"an expression of more than {MAX_EXPRESSION} characters")
    if based := _BASE.fullmatch(answers.plain(answer)):
        return _based(based[1], based[2] or based[3])
    text = answers.unified(answer)
    text = re.sub(r"(?<=\d)(?:,\s*\\!\s*|\{,\})(?=\d{3}(?!\d))", "", text, flags=re.ASCII)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = re.sub(r"\\mathrm\{e\}|\\rm\s*e(?![a-z])", "e", _DROPPED.sub(" ", text))
    text = re.sub(r"\\mathbb\{R\}", r"\\Reals", text)
    text = _MATRIX.sub(lambda m: "\\" + m[1] + m[2], text)
    text = _REPEATING.sub(_repeating, _APPLIED.sub(r" \1 =", text))
    text = _MIXED.sub(_mixed, text)
    if m := _NOT_PRODUCTS.search(text):
        raise Unreadable(f"{answers.excerpt(m.group())} is no product")
    if m := _SPLIT_NUMBER.search(text):
        raise Unreadable(f"can't tell how {answers.excerpt(m.group())} divides into numbers")
    parser = _Parser(text.strip().removesuffix(".") if not text.strip().endswith("..") else text)
    return parser.answer()


def _based(digits: str, base: str) -> Node:
    """A number with its base. The base may be a word."""
    names = {**answers.WORDS, "sixteen": 16}
    number = int(base) if base.isdigit() else names.get(base, 0)
    if not 2 <= number <= 36 or any(int(d, 36) >= number for d in digits):
        raise Unreadable(f"{digits!r} is not a number of base {base!r}")
    return Node("based", text=f"{digits} {number}")


def _mixed(m: re.Match[str]) -> str:
    whole, top, bottom = m[1], m[2] or m[4] or m[6], m[3] or m[5] or m[7]
    if int(top) >= int(bottom):
        raise Unreadable(f"{answers.excerpt(m.group())} is neither a mixed number nor clearly a product")
    return rf"(\frac{{{int(whole) * int(bottom) + int(top)}}}{{{int(bottom)}}})"


def _repeating(m: re.Match[str]) -> str:
    whole, fixed, repeated = m[1] or "0", m[2], m[3]
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


class _Parser:
    """Recursive descent over the tokens of one answer."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        self.depth = 0
        self.separators: set[str] = set()
        self.bars = 0  # how many |...| are open
        position = 0
        while m := _TOKEN.match(text, position):
            kind = str(m.lastgroup) if m["text"] is None else "text"
            words = m[2] or ""
            self._add(kind, " ".join(words.split()) if kind == "text" else m[kind], words != words.strip())
            position = m.end()
        self.tokens.append(("end", ""))

    def _add(self, kind: str, token: str, spaced: bool) -> None:
        """`spaced`: whether there is white space inside \\text{}, as in "3\\text{ m}" for metres."""
        if kind == "mark":
            token = _SYNONYMS.get(token, token)
        unit = spaced or (token not in ("e", "i") and self.tokens[-1:] and self.tokens[-1][0] == "number")
        if kind == "text" and len(token) == 1 and not unit:
            kind = "word"
        if token in ("or", "and"):
            self.tokens.append(("mark", token))
        elif kind == "mark" and token[0] == "\\" and token[1:] in NAMES:
            self.tokens.append(("name", token[1:]))
        elif token.lstrip("\\") in FUNCTIONS:
            self.tokens.append(("function", token.lstrip("\\")))
        elif kind == "word":
            if token in NAMES - {"nu", "mu", "xi", "chi"}:
                self.tokens.append(("name", token))
            elif token == "sqrt":
                self.tokens.append(("mark", r"\sqrt"))
            elif token in _UNITS:
                self.tokens.append(("text", token))
            elif len(token) > 3 or (len(token) > 1 and not token.islower()):
                raise Unreadable(f"can't read the word {answers.excerpt(token)}")
            else:
                self.tokens += [("name", letter) for letter in token]
        else:
            self.tokens.append((kind, token))

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    def sees(self, *marks: str) -> bool:
        kind, token = self.tokens[self.at]
        return kind == "mark" and token in marks

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def accept(self, *marks: str) -> bool:
        if self.sees(*marks):
            self.at += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.fault(f", {mark!r} was expected")

    def fault(self, wanted: str = "") -> Unreadable:
        kind, token = self.tokens[self.at]
        return Unreadable(f"can't read {answers.excerpt(token) if kind != 'end' else 'on at the end'}{wanted}")

    def answer(self) -> Node:
        items = self.items(self.relation)
        if self.kind == "text" and self.at:
            unit = self.take()
            if self.accept("^"):
                unit += "^" + (self.take() if self.kind == "number" else self.group_digits())
            items[-1] = Node("unit", (items[-1],), unit.casefold())
        if self.kind != "end":
            raise self.fault()
        text = next(iter(self.separators)) if self.separators in ({"or"}, {"and"}) else ""
        return items[0] if len(items) == 1 else Node("list", tuple(items), text)

    def group_digits(self) -> str:
        self.expect("{")
        digits = self.take()
        self.expect("}")
        return digits

    def items(self, item: Callable[[], Node]) -> list[Node]:
        items = [item()]
        while self.sees(",", ";", "or", "and"):
            separator = self.take()
            if separator in (",", ";") and self.sees("or", "and"):  # "1, 2, and 3"
                separator = self.take()
            self.separators.add(separator)
            items.append(item())
        return items

    def relation(self) -> Node:
        first, operators, operands = self.union(), [], []
        while self.kind == "mark" and self.tokens[self.at][1] in _RELATIONS:
            operators.append(_RELATIONS[self.take()])
            operands.append(self.union())
        if ":" in operators and set(operators) != {":"}:
            raise Unreadable("a ratio inside a relation")
        if operators and set(operators) == {":"}:
            return Node("ratio", (first, *operands))
        return Node("relation", (first, *operands), " ".join(operators)) if operators else first

    def union(self) -> Node:
        parts = [self.sum()]
        while self.accept(r"\cup"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        parts = [self.signed()]
        while self.sees("+", "-", r"\pm", r"\mp"):
            parts.append(self.signed())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Node("add", tuple(parts))

    def signed(self) -> Node:
        sign = self.take() if self.sees("+", "-", r"\pm", r"\mp") else "+"
        if self.sees("+", "-", r"\pm", r"\mp"):
            raise self.fault(", two signs in a row")
        term = self.term()
        return term if sign == "+" else Node({"-": "negative"}.get(sign, "either"), (term,), sign)

    def starts_factor(self) -> bool:
        if self.kind in ("number", "name", "function"):
            return True
        if self.sees("|"):
            return not self.bars
        return self.sees("(", "[", "{", r"\{", r"\frac", r"\sqrt", r"\binom", r"\emptyset", r"\lfloor", r"\lceil")

    def term(self) -> Node:
        parts, divided = [self.factor()], False
        while True:
            if self.accept(r"\cdot"):
                negative = self.accept("-")  # 2 \cdot -3
                factor = self.factor()
                parts.append(Node("negative", (factor,)) if negative else factor)
            elif self.accept("/"):
                if divided:
                    raise Unreadable("two divisions in a row")
                parts, divided = [Node("divide", (_product(parts), self.factor()))], True
                if self.starts_factor():
                    raise Unreadable("a product after a division can be read in two ways")
                continue
            elif self.starts_factor() and not self.sees("[", r"\{"):
                if divided or self.kind == "number":
                    raise Unreadable("two factors without a sign between them")
                parts.append(self.factor())
            else:
                return _product(parts)

    def factor(self) -> Node:
        base = self.base()
        while self.accept("!"):
            if self.sees("!"):
                raise Unreadable("a double factorial")
            base = Node("call", (base,), "factorial")
        if self.accept("^"):
            base = Node("power", (base, self.script()))
            if self.sees("^", "_"):
                raise self.fault()
        if self.accept("!"):
            raise Unreadable("a factorial after a power can be read in two ways")
        if self.accept("%", r"\%"):
            base = Node("percent", (base,))
        elif self.accept("°"):
            base = Node("degrees", (base,))
        return base

    def script(self) -> Node:
        if self.accept("{"):
            node = self.sum()
            self.expect("}")
            return node
        if self.accept("-"):
            return Node("negative", (self.base(),))
        return self.base()

    def base(self) -> Node:
        kind, token = self.tokens[self.at]
        if kind not in ("number", "name", "function", "mark"):
            raise self.fault()
        self.at += 1
        if kind == "number":
            if self.sees("_"):
                raise Unreadable("a base inside an expression")
            if "," in token and self.depth > 1:
                raise Unreadable(f"{token!r} inside brackets is one number or two")
            if "e" in token.lower() and int(token.lower().split("e")[1]) not in range(
                -answers.MAX_DIGITS, answers.MAX_DIGITS
            ):
                raise Unreadable(f"{answers.excerpt(token)} is too large or too small")
            return Node("number", text=token.replace(",", ""))
        if kind == "name":
            return Node("name", text=token + self.subscript())
        if kind == "function":
            return self.function(token)
        if token == r"\frac" or token == r"\binom":
            return Node(
                "divide" if token == r"\frac" else "call",
                (self.argument(), self.argument()),
                "binomial" * (token != r"\frac"),
            )
        if token == r"\sqrt":
            index = (self.bracketed("]"),) if self.accept("[") else ()
            return Node("root", (self.argument(), *index))
        if token == r"\emptyset":
            return Node("name", text="emptyset")
        if token == r"\Reals":
            infinity = Node("name", text="infty")
            return Node("brackets", (Node("negative", (infinity,), "-"), infinity), "()")
        if token == "...":
            return Node("dots")
        if token == "|":
            self.bars += 1
            node = self.bracketed("|")
            self.bars -= 1
            return Node("call", (node,), "abs")
        if token in (r"\lfloor", r"\lceil"):
            kind = "floor" if token == r"\lfloor" else "ceiling"
            return Node("call", (self.bracketed(r"\rfloor" if kind == "floor" else r"\rceil"),), kind)
        if token == r"\beginmatrix":
            return self.matrix()
        if token in ("(", "[", "{", r"\{"):
            return self.brackets(token)
        self.at -= 1
        raise self.fault()

    def subscript(self) -> str:
        if not self.accept("_"):
            return ""
        braced = self.accept("{")
        if self.kind not in ("number", "name", "text"):
            raise self.fault()
        name = "_" + self.take()
        if braced:
            self.expect("}")
        return name

    def argument(self) -> Node:
        if self.accept("{"):
            return self.bracketed("}")
        kind, token = self.tokens[self.at]
        if kind == "number" and len(token) > 1 and token.isdigit():
            if self.tokens[self.at - 1][1] == r"\sqrt":
                raise Unreadable("a root of several digits without braces")
            self.at += 1
            self.tokens[self.at - 1 : self.at] = [("number", token[0]), ("number", token[1:])]
            return Node("number", text=token[0])
        return self.base()

    def bracketed(self, closing: str) -> Node:
        node = self.sum()
        self.expect(closing)
        return node

    def brackets(self, opening: str) -> Node:
        if opening == r"\{" and self.accept(r"\}"):
            return Node("name", text="emptyset")
        bars, self.bars = self.bars, 0
        items = self.items(self.sum)
        closing = self.take()
        self.bars = bars
        if closing not in {"{": ("}",), r"\{": (r"\}",)}.get(opening, (")", "]")):
            self.at -= 1
            raise self.fault(", a closing bracket was expected")
        if opening == r"\{" or (opening == "{" and len(items) > 1):
            return Node("set", tuple(items))
        if len(items) == 1 and opening + closing in ("()", "{}"):
            return items[0] if opening == "{" else Node("group", (items[0],))
        return Node("brackets", tuple(items), opening + closing)

    def function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        if self.accept("_"):
            if name != "log":
                raise self.fault()
            base = (self.script(),)
        power = self.script() if self.accept("^") else None
        if power is not None and power.kind == "negative":
            if name not in _TRIG or power.parts[0] != Node("number", text="1"):
                raise Unreadable(f"a negative power of {name}")
            name, power = f"arc{name}", None
        if self.accept("("):
            arguments: tuple[Node, ...] = (self.bracketed(")"),)
        elif self.accept("{"):
            arguments = (self.bracketed("}"),)
        else:
            parts = [self.factor()]
            while self.kind in ("number", "name") or self.sees(r"\frac", r"\sqrt"):
                parts.append(self.factor())
            if self.sees("(", "{", "/", r"\cdot", "["):
                raise Unreadable(f"how far {name} reaches can be read in two ways")
            arguments = (_product(parts),)
        call = Node("call", arguments + base, name)
        return call if power is None else Node("power", (call, power))

    def matrix(self) -> Node:
        rows = [self.row()]
        while self.accept("\\\\") and not self.sees(r"\endmatrix"):
            rows.append(self.row())
        self.expect(r"\endmatrix")
        if len({len(row.parts) for row in rows}) != 1:
            raise Unreadable("a matrix with rows of different lengths")
        return Node("matrix", tuple(rows))

    def row(self) -> Node:
        cells = [self.sum()]
        while self.accept("&"):
            cells.append(self.sum())
        return Node("row", tuple(cells))


def _product(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Node("multiply", tuple(parts))
