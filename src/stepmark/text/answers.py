r"""Extracts the answer that a text states, and normalises answers so that equal answers have one key.

There are three functions, because each fails in its own way:

- `extract(text)` finds the words that state the answer. Explicit marks have priority, then prose, then a guess:
  the last complete `\boxed{...}`; the last `#### x` line; the last "The answer is x", "Answer: x" or "A: x";
  otherwise the last number in the text. "Last" applies within a kind only: a mark has only one purpose, so
  "\boxed{7}. The answer is not 8." states 7.
- `read_number(answer)` reads these words as one quantity: the *first* number ("14 kg (60 - 46)" is 14) on the
  right-hand side of the last "=", with its fraction ("25/4" is not 25, "2 and 2/3" is not 2).
- `normalise(answer)` gives the key for grouping votes: "5", "5.0", "$5", "5 apples" and "\frac{10}{2}" are one
  answer. "1" and "12" are always two, because whole values are compared, not parts of strings.

Numbers are exact (`Fraction`), so 0.1 + 0.2 and 1/3 are exact too. `bench/grader_agreement.py` measures these rules
against published correctness flags.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER = 5000  # characters; a longer text is not treated as an answer
MAX_DIGITS = 1000  # a longer number is refused, because it takes too long to convert

_TRIES = 50  # most marks tried, from the end; so a text with a million broken marks takes linear time

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{}$.,;]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_CUE = re.compile(
    r"""(?: nswers?\b(?:\ to\ [^.:\n]{1,80}?)?(?:\*\*)?
            (?:\s+(?:is|was|are|equals|would\ be|should\ be|will\ be|must\ be)\b|\s*[:=])
        | (?<=inal\ [aA])nswer\W*\n )
        (?:\s|:|\*\*|\$\$|\\\[|\\\()*""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_FEW_SHOT = re.compile(r"answer is:?\s*", re.IGNORECASE)
_TOKEN = re.compile(r"(?:(?<![\w)\]%.])(?<![\d)\]%]\s)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII)
_LETTER_CUE = re.compile(r"A:[^\S\n]*(\S[^\n]{0,39})(?:\n|$)")
_SENTENCE_END = re.compile(r"[.!?](?=[\s*\"')]|$)|\n")

_BODY = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_QUANTITY = rf"""
    (?P<body>{_BODY})(?:[eE](?P<exp>[-+]?\d+)(?!\w))?
    (?: \s*/\s*(?P<den>\d+(?:\.\d+)?)(?![\d/])
      | (?:\s+and)?\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/]) )?
    (?P<percent>\s?%)?
"""
# In prose a minus is a sign only if nothing stands before it from which the number could be subtracted.
_IN_TEXT = re.compile(
    rf"(?P<sign>(?<![\w)\]%.])(?<![\d)\]%]\s)[-\u2212]\s?[$€£]?|(?<![\w)\]%])[$€£]\s?[-\u2212])?{_QUANTITY}",
    re.VERBOSE | re.ASCII,
)
# Words after a number are its unit. These words are not units but part of the value.
_NOT_UNIT = r"(?:pi|sqrt|sin|cos|tan|log|ln|exp|mod|and|or|hundred|thousand|million|billion|trillion|dozen)\b"
_UNIT_WORD = rf"(?!{_NOT_UNIT})[A-Za-z]{{2,}}"
_UNIT = rf"(?:\s+{_UNIT_WORD}(?:[ /]{_UNIT_WORD})*(?:\^?\{{?[23]\}}?)?)?"
_WHOLE = re.compile(rf"(?P<sign>[-+\u2212]?\s?[$€£]?\s?[-\u2212]?)\s?{_QUANTITY}\s?[€£]?{_UNIT}", re.VERBOSE | re.ASCII)
_NUMERAL = re.compile(r"[-+]?[$€£]?[\d,]*\.?\d+", re.ASCII)
_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0", re.ASCII)

_FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))", re.ASCII)
_MARKUP = (
    (re.compile(r"(?<=\d)\{,\}(?=\d)", re.ASCII), ","),
    (re.compile(r"(?<=\d),\s*\\!\s*(?=\d{3})", re.ASCII), ","),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr|!)(?![A-Za-z])"), ""),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"), "°"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"<(b|i|em|strong)>(.*?)</\1>"), r"\2"),
    (re.compile(r"\\[()\[\]]|\*\*|\\?\$|`"), ""),
    (re.compile(r"\\%|(?<=\d)\s*(?:percent|per cent)\b(?! point)"), "%"),
    # The degrees of one number; in "\sin 30°" they matter.
    (re.compile(r"^((?:[A-Za-z]\s*=\s*)?[-+]?(?:[\d.,/]+|\d*\\frac\{\d+\}\{\d+\}))\s*°$", re.ASCII), r"\1"),
)
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f"
_SUBSCRIPTS = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_SIGNS = {
    "\u2212": "-",
    "\uff0d": "-",
    "\u2044": "/",
    "\uff05": "%",
    "\uff0f": "/",
    "\uff0c": ",",
    "\uff0e": ".",
    "\uff08": "(",
    "\uff09": ")",
}
_SIGNS |= {"\u2236": ":", "\uff1a": ":", "\uff1d": "=", "\uff0b": "+", "\u00a0": " ", "\u2009": " ", "\u202f": " "}
_UNICODE = re.compile(rf"[{_SUPERSCRIPTS}]+|[{_SUBSCRIPTS}]+|[^\x00-\x7f]")
_GOES_ON = re.compile(r"(?:[,;]\s*|\.\d+)\.\.+$", re.ASCII)  # a sequence or a decimal that continues
_ASSIGNED = re.compile(r"[A-Za-z]\s*=\s*(.+)", re.DOTALL)
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_PROSE = re.compile(r"[A-Za-z]+(?:[ ,'-]+[A-Za-z]+)*")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)", re.ASCII)  # but the space in "1 2/3" matters
_MATHS = re.compile(r"[\\^_{}()\[\]=+*/<>|]")
_FUNCTIONS = ("sqrt", "sinh", "cosh", "tanh", "theta", "alpha", "beta", "gamma", "delta", "infty", "infinity")
# What makes a number a part of a larger value: before it, and after it.
_GOES_BEFORE = re.compile(
    r"""(?: \\(?:sqrt|pm|mp|pi|d?frac|binom|ln|log|sin|cos|tan|exp|cdot|times|le|ge|leq|geq|lt|gt|neq?|approx|overline)
          | [\u00b1\u221a^_<>\u2264\u2265\u2260|] | (?<![\w.])(?:sqrt|log|ln|sin|cos|tan|exp|pi)
          | (?<![A-Za-z])[a-zA-Z](?:\s*[-+*/]|(?=\())
          | \b(?:not|(?:less|more|fewer|greater)\s+than)
        ) [\s(){}\[\]$]*$""",
    re.VERBOSE | re.ASCII,
)
_OPERATOR = r"[-+*/<>&|\u00d7\u00f7\u00b7\u2013\u2014\u2264\u2265]"
_LETTER = r"[abdefijknopqrtuvwxyzKMB](?![A-Za-z])"  # variables and scales; 12m, 5g, 3h, 2L and 9s have units
_COMPOUND = (
    r"(?:(?:hour|hr|minute|min|day|week|month|year|pound|lb|dollar|yard|gallon)s?|feet|foot|ft|kg|km|cm|m|['\"])"
)
_GOES_AFTER = re.compile(
    rf"""\s*(?: [_^!]  |  :\s*(?!00(?!\d))\d  |  \.\.\.?  |  \u2026  |  \.?\\(?:overline|bar)  |  [\u00b1\u221a\u03c0]
      | \\(?:sqrt|pi|cdot|times|div|pm|mp|d?frac|binom|ln|log|sin|cos|tan|l?dots|cup|le|ge|leq|geq|lt|gt|\\)
      | (?:{_UNIT_WORD}\s*)?(?:{_OPERATOR}|to\b|base\b)\s*\\?[$\u20ac\u00a3(]?\s*\d
      | {_OPERATOR}\s*\(?[a-zA-Z](?![A-Za-z])  |  \+\s*$  |  (?<=\s)\d  |  x\s*\d  |  \.\d  |  {_COMPOUND}\s*\d
      | (?:pi|sqrt|hundred|thousand|million|billion|trillion|dozen)\b
      | \(?base\b | (?<=\d){_LETTER} | {_LETTER}\s*(?:[-+*/^=]|$) | (?<=\d)\( | \)\s*\( )""",
    re.VERBOSE | re.ASCII,
)
# Another number beside it: harmless if it is the same number ("30 and 30").
_LISTED = re.compile(
    rf"\s*(?:{_UNIT_WORD}\s*)?(?:[,;]|and\b|or\b)\s*(?:and\s|or\s)?"
    r"\s*(?:\\?[$\u20ac\u00a3]?-?\d|\\l?dots|\.\.)",
    re.ASCII,
)
_ASIDE = re.compile(r"\([^()]*=[^()]*\)")
_SPACED = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/.,])", re.ASCII)
WORDS = {
    word: value
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}


def extract(text: str) -> str | None:
    """The words that state the answer, without the marks around them; None if the text states no answer."""
    return _boxed(text) or _hashes(text) or _stated(text) or last_number(text)


def token_after_cue(text: str) -> str | None:
    """The number right after the first "answer is" (or after an "=" in that sentence), as scripts for few-shot prompts
    read it: without a fraction, without a sign before a currency, and without later corrections. In a text without
    "answer is", the last number. Use it to compare with figures that such a script produced; `extract` reads the answer
    that the text means."""
    m = _FEW_SHOT.search(text)
    if m is None:
        return last_number(text)
    sentence = _SPACED.sub(lambda n: n.group().replace(" ", ""), _sentence(text, m.end()))
    number = _TOKEN.search(sentence, sentence.rfind("=") + 1) or _TOKEN.search(sentence)
    return number and number.group()


def last_number(text: str) -> str | None:
    """The last number as it is written, with its sign and fraction; None if there is no number."""
    for size in (256, 4096, len(text)):
        tail = text[-size:]
        last = next(iter(deque(_IN_TEXT.finditer(tail), maxlen=1)), None)
        # The beginning of a number at the very start of the window may be cut off.
        if last is not None and (last.start() >= 64 or len(tail) == len(text)):
            return last.group().strip()
    return None


def parse_number(answer: str, percent: bool = False) -> Fraction | None:
    r"""The value of an answer that is one number, with or without a currency, %, unit words, thousands separators,
    `\frac`, or a mixed fraction. "50%" is 50, or 1/2 with `percent`. None for all other answers."""
    if _INTEGER.fullmatch(answer):
        return Fraction(int(answer))
    if len(answer) > MAX_ANSWER or not any(c.isnumeric() for c in answer):
        return None
    m = _WHOLE.fullmatch(_figures(plain(answer)))
    try:
        return None if m is None else _value(m, percent)
    except OverflowError:
        return None


def read_number(answer: str, percent: bool = False) -> Fraction | None:
    """The quantity that an answer states, even among other words (see above); None if it states no quantity. Raises
    OverflowError for a number of more than MAX_DIGITS digits."""
    value = parse_number(answer, percent)
    if value is not None:
        return value
    text = plain(answer[:MAX_ANSWER])
    if text.casefold() in WORDS:
        return Fraction(WORDS[text.casefold()])
    m = _quantity(answer)
    return m and _value(m, percent)


def part_of_more(answer: str) -> bool:
    r"""Whether the number that `read_number` reads is part of a larger value, so that reading it alone changes the
    answer: "52_8", "3:4", "2\sqrt{3}", "5!", "1 - 1/e", "x > 3", "±3", "3 or 4", "1, 2, 3", "5 million". Words around
    a number ("14 kg (60 - 46)", "about 3") do not."""
    if _NUMERAL.fullmatch(answer) or parse_number(answer) is not None:
        return False
    m = _quantity(answer)
    if m is None:
        return False
    if _LISTED.match(m.string, m.end()):
        return len({n["body"] for n in _IN_TEXT.finditer(m.string)}) > 1 or ".." in m.string or "dots" in m.string
    return bool(_GOES_BEFORE.search(m.string[: m.start()]) or _GOES_AFTER.match(m.string, m.end()))


def units(answer: str) -> frozenset[str]:
    """The words that follow the one number of an answer, in lower case and without the plural's s; none if there are
    none, or if the answer is anything else."""
    if _NUMERAL.fullmatch(answer):
        return frozenset()
    text = _figures(plain(answer[:MAX_ANSWER]))
    m = _WHOLE.fullmatch(text)
    end = max(m.end(part) for part in ("body", "exp", "den", "bottom", "percent")) if m else 0
    words = re.findall(r"[a-z]{2,}|[23]", text[end:].casefold()) if m else []
    if m and m["percent"]:
        words.append("%")
    return frozenset(word if len(word) < 3 else word.removesuffix("s") for word in words)


def say_different_things(a: str, b: str) -> bool:
    """Whether two answers with one key differ in what the key leaves out: "3 hours" and "3 minutes", "x = 5" and
    "y = 5"."""
    left_out = [(units(x), assigned_name(x)) for x in (a, b)]
    a, b = plain(a), plain(b)
    if len(a) == 2 and a.isalpha() and a != b and a.casefold() != "no" and (a.isupper() or b.isupper()):
        return True  # a product or a segment: ab is not AB
    return any(x and y and x != y for x, y in zip(*left_out, strict=True))


def assigned_name(answer: str) -> str | None:
    """The letter to which an answer gives its value ("x" in "x = 5"); None if there is none."""
    m = _ASSIGNED.fullmatch(plain(answer[:MAX_ANSWER]))
    return m and m.string.lstrip()[0]


def canonical(value: Fraction) -> str:
    """The one form of each number: "-3"; "0.25" if the decimals end; "1/3" if they don't."""
    remaining, places = value.denominator, 0
    twos = fives = 0
    while remaining % 2 == 0:
        remaining, twos = remaining // 2, twos + 1
    while remaining % 5 == 0:
        remaining, fives = remaining // 5, fives + 1
    places = max(twos, fives)
    if remaining != 1:
        return f"{value.numerator}/{value.denominator}"
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def normalise(answer: str) -> str:
    """The key of an answer: two answers with one key are the same answer. The reverse does not hold for expressions:
    "2x + 2" and "2(x + 1)" have two keys. A grader can compare expressions."""
    value = parse_number(answer)
    if value is not None:
        return canonical(value)
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    text = plain(answer)
    if text.casefold() in WORDS:
        return str(WORDS[text.casefold()])
    assigned = _ASSIGNED.fullmatch(text)
    if assigned and (value := parse_number(assigned[1])) is not None:
        return canonical(value)
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    if _MATHS.search(text):
        return _SPACE.sub("", text)
    return text.casefold() if len(text) > 1 else text  # a single letter is a name: x is not X


def is_words(answer: str) -> bool:
    r"""Whether an answer is language, not mathematics: \text{...}, or letters that include a real word."""
    text = plain(answer[:MAX_ANSWER])
    if not _PROSE.fullmatch(text):
        return False
    return "\\text" in answer or any(_is_word(word) for word in text.casefold().split())


def _is_word(word: str) -> bool:
    return word in ("yes", "no") or (len(word) > 3 and word not in _FUNCTIONS)


@lru_cache(maxsize=4096)
def plain(answer: str) -> str:
    """The answer without LaTeX and Markdown markup that does not change its meaning."""
    answer = unified(answer)
    for pattern, replacement in _MARKUP:
        answer = pattern.sub(replacement, answer)
    answer = " ".join(answer.split())
    quotes = "\"'" if answer[:1] in "\"'" else '"'  # x' is not x
    answer = answer.lstrip(" ,;:\"'")
    return answer.rstrip(f" ,;:{quotes}" if _GOES_ON.search(answer) else f" .,;:{quotes}")


def unified(answer: str) -> str:
    r"""The answer with Unicode digits, fractions, superscripts and signs as ASCII or LaTeX: "2½" is `2\frac{1}{2}`,
    "5²" is 5^{2} and never 52."""
    if answer.isascii():
        return answer
    return _UNICODE.sub(lambda m: _unified(m.group()), answer)


def _unified(run: str) -> str:
    if run[0] in _SUPERSCRIPTS:
        return f"^{{{unicodedata.normalize('NFKC', run).replace(chr(0x2212), '-')}}}"
    if run[0] in _SUBSCRIPTS:
        return f"_{{{unicodedata.normalize('NFKC', run)}}}"
    if run in _SIGNS:
        return _SIGNS[run]
    if "\u2044" in (parts := unicodedata.normalize("NFKC", run)):
        top, bottom = parts.split("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else run
    digit = unicodedata.decimal(run, None)
    return run if digit is None else str(digit)


def excerpt(answer: str, length: int = 60) -> str:
    """The answer for a message: quoted, on one line, cut to `length` characters."""
    return repr(answer if len(answer) <= length else answer[: length - 3] + "...")


def _boxed(text: str) -> str | None:
    end = len(text)
    for _ in range(_TRIES):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return None
        m = _BOXED.match(text, start)
        content = m and (m[2] or _balanced(text, m.end()))
        if content:
            return content.strip()
        end = start
    return None


def _balanced(text: str, start: int) -> str:
    """The text from `start` up to the brace that closes the brace just before `start`; "" if no brace closes it."""
    depth = 1
    for m in _BRACE.finditer(text, start, start + MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(m.group(), 0)
        if not depth:
            return text[start : m.start()].strip()
    return ""


def _hashes(text: str) -> str | None:
    """The answer of the last `#### x` line. It is a mark if x is a number or the line ends the text; otherwise it is a
    heading."""
    end = len(text)
    for _ in range(_TRIES):
        start = text.rfind("####", 0, end)
        if start < 0:
            return None
        stop = text.find("\n", start)
        line = text[start:] if stop < 0 else text[start:stop]
        answer = line.strip("# \t\r")
        if answer and (parse_number(answer) is not None or not text[start + len(line) :].strip()):
            return _trim(answer)
        end = start
    return None


def _stated(text: str) -> str | None:
    end = len(text)
    for _ in range(_TRIES):
        start = max(text.rfind("nswer", 0, end), text.rfind("NSWER", 0, end), text.rfind("A:", 0, end))
        if start < 0:
            return None
        if text.startswith("A:", start):
            m = _LETTER_CUE.match(text, start) if not start or text[start - 1] == "\n" else None
            answer = m and _trim(m[1])
        else:
            m = _CUE.match(text, start)
            answer = m and _sentence(text, m.end())
        if answer:
            return answer
        end = start
    return None


def _sentence(text: str, start: int) -> str:
    m = _SENTENCE_END.search(text, start, start + MAX_ANSWER)
    return _trim(text[start : m.start() if m else start + MAX_ANSWER])


def _trim(answer: str) -> str:
    """The answer without the white space, quotes, emphasis and full stop around it."""
    answer = answer.strip(" \t\r\n*\"'`\u201c\u201d")
    if answer.endswith(".."):  # "1, 2, ..." goes on; it is not the end of a sentence
        return answer
    answer = answer.removesuffix("\\)").removesuffix("\\]").removesuffix("$$").strip()
    if len(answer) > 1 and answer.endswith("."):
        answer = answer[:-1].rstrip(" *\"'")
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer.removesuffix(".")


def _quantity(answer: str) -> re.Match[str] | None:
    """The first number on the right-hand side of the last "=", or the first number at all."""
    text = _figures(plain(answer[:MAX_ANSWER]))
    outside = _ASIDE.sub("", text)
    for part in (outside[outside.rfind("=") + 1 :], text):
        m = _IN_TEXT.search(part)
        if m is not None:
            return m
    return None


def _figures(text: str) -> str:
    r"""`text` with numbers as digits: `1\frac{4}{5}` is the mixed number 1 4/5, `-\frac12` is -1/2, "325 000" is
    325000."""
    if "frac" in text:
        text = _FRAC.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", text).strip()
    return _SPACED.sub(lambda m: m.group().replace(" ", ""), text) if " " in text else text


def _value(m: re.Match[str], percent: bool) -> Fraction | None:
    """The value of a matched number; None for a denominator of zero. Raises OverflowError for too many digits."""
    if m.end() - m.start() > MAX_DIGITS or abs(int(m["exp"] or 0)) > MAX_DIGITS:
        raise OverflowError(f"a number of more than {MAX_DIGITS} digits")
    try:
        value = Fraction(m["body"].replace(",", ""))
        if m["exp"]:
            value *= Fraction(10) ** int(m["exp"])
        if m["den"]:
            value /= Fraction(m["den"])
        elif m["top"]:
            if int(m["top"]) >= int(m["bottom"]):
                return None  # "2 5/3" is neither a mixed number nor clearly a product
            value += Fraction(int(m["top"]), int(m["bottom"]))
    except ZeroDivisionError:
        return None
    if percent and m["percent"]:
        value /= 100
    sign = m["sign"] or ""
    return -value if "-" in sign or "\u2212" in sign else value
