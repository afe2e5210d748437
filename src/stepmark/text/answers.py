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
_INTEGER = re.compile(r"-?[1-9]\d{0,17}|0", re.ASCII)

_FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))", re.ASCII)
_MARKUP = (
    (re.compile(r"(?<=\d),\s*\\!\s*(?=\d{3})", re.ASCII), ","),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr|!)(?![A-Za-z])"), ""),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°"), ""),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\[()\[\]]|\*\*|\\?\$|`"), ""),
    (re.compile(r"\\%"), "%"),
)
_ASSIGNED = re.compile(r"[A-Za-z]\s*=\s*(.+)", re.DOTALL)
_CHOICE = re.compile(r"\(([A-Za-z])\)")
_PROSE = re.compile(r"[A-Za-z]+(?:[ ,'-]+[A-Za-z]+)*")
_MATHS = re.compile(r"[\\^_{}()\[\]=+*/<>|]")
_FUNCTIONS = ("sqrt", "sinh", "cosh", "tanh", "theta", "alpha", "beta", "gamma", "delta", "infty", "infinity")
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
    if len(answer) > MAX_ANSWER or not any(c in "0123456789" for c in answer):
        return None
    m = _WHOLE.fullmatch(_figures(_plain(answer)))
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
    plain = _figures(_plain(answer[:MAX_ANSWER]))
    if plain.casefold() in WORDS:
        return Fraction(WORDS[plain.casefold()])
    outside = _ASIDE.sub("", plain)
    for part in (outside[outside.rfind("=") + 1 :], plain):
        m = _IN_TEXT.search(part)
        if m is not None:
            return _value(m, percent)
    return None


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
    plain = _plain(answer)
    if plain.casefold() in WORDS:
        return str(WORDS[plain.casefold()])
    assigned = _ASSIGNED.fullmatch(plain)
    if assigned and (value := parse_number(assigned[1])) is not None:
        return canonical(value)
    if choice := _CHOICE.fullmatch(plain):
        return choice[1]
    if _MATHS.search(plain):
        return "".join(plain.split())
    return plain.casefold() if len(plain) > 1 else plain  # a single letter is a name: x is not X


def is_words(answer: str) -> bool:
    r"""Whether an answer is language, not mathematics: \text{...}, or letters that include a real word."""
    plain = _plain(answer[:MAX_ANSWER])
    if not _PROSE.fullmatch(plain):
        return False
    return "\\text" in answer or any(len(word) > 3 and word not in _FUNCTIONS for word in plain.split())


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
    answer = answer.strip(" \t\r\n*\"'`\u201c\u201d").removesuffix("\\)").removesuffix("\\]").removesuffix("$$").strip()
    if len(answer) > 1 and answer.endswith("."):
        answer = answer[:-1].rstrip(" *\"'")
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    return answer.removesuffix(".")


@lru_cache(maxsize=4096)
def _plain(answer: str) -> str:
    """The answer without LaTeX and Markdown markup that does not change its meaning."""
    for pattern, replacement in _MARKUP:
        answer = pattern.sub(replacement, answer)
    return " ".join(answer.split()).lstrip(" ,;:\"'").rstrip(" .,;:\"'")


def _figures(plain: str) -> str:
    r"""`plain` with numbers as digits: `1\frac{4}{5}` is the mixed number 1 4/5, `-\frac12` is -1/2, "325 000" is
    325000."""
    if "frac" in plain:
        plain = _FRAC.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", plain).strip()
    return _SPACED.sub(lambda m: m.group().replace(" ", ""), plain) if " " in plain else plain


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
            value += Fraction(int(m["top"]), int(m["bottom"]))
    except ZeroDivisionError:
        return None
    if percent and m["percent"]:
        value /= 100
    sign = m["sign"] or ""
    return -value if "-" in sign or "\u2212" in sign else value
