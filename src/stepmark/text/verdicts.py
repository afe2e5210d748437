"""The Yes or No that a verification rationale ends in, and whether the rationale leans on a reference answer.

GenRM (Zhang et al., arXiv 2408.15240) keeps a rationale for training only if its verdict is what is known of the
solution, and reads votes from rationales that a verifier writes. Either needs the verdict that a text states, and
no other: what can't be read is `Said.UNPARSED` with a reason, never a guess, and never a No.

What counts as a verdict, after markup (bold, HTML tags, quotes, full-width punctuation) is looked through:

- an answer to one of `Reader.questions`: "Is the answer correct (Yes/No)? **No**", also on the next line or after
  an echo such as "Answer:";
- a closing label: "Verdict: No", "Final grade: Verification: Yes", "Overall verification is: No".

An answer is one of a few whole words that nothing but punctuation or "because" follows: "not", "nobody", "no errors
were found" and "Yes/No" are no answers. Letter grades and marks ("A+", "3 out of 4") aren't either.

Which one counts: writers often put the question under each step too. An answer after which the step numbers go on is
that step's; where steps have their own, the first after the last step is that one's, unless its line says "final" or
the like. Of the others all must agree; the last is returned. Where the last question stands without an answer (cut
off), or a sentence after the last verdict says the opposite, there is no verdict.

A text that quotes the solution it judges may quote a verdict that the solution brought along. Lines that begin with
"Solution:" are not read; anything else quoted is the text's own word as far as this file can tell, so a disagreement
is a contradiction. Encoders have to neutralise what a solution brings (this file sees rationales only).

    python bench/rationales.py data/genrm_gsm8k
"""

from __future__ import annotations

import re
from bisect import bisect
from dataclasses import dataclass, field
from enum import StrEnum

from stepmark.errors import ConfigError

HEADING = 40  # characters; a longer line is no heading
QUESTIONS = ("Is the answer correct", "Is the solution correct", "Is the final answer correct")

# Markup is replaced by as many "*", so that offsets stay those of the text.
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,9}\s*/?>|\\(?:boxed|textbf|text)\b|&nbsp;|&quot;")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("_`#\"'“”„‟‘’«»‹›「」『』【】〈〉《》{}[]|", "*"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "*"),
        "？": "?",
        "：": ":",
        "。": ".",
        "．": ".",
        "，": ",",
        "！": "!",
        "；": ";",
        "（": "(",
        "）": ")",
        "／": "/",
        "\u00a0": " ",
        "\u3000": " ",
        "\r": "\n",
        "–": "-",
        "—": "-",
        "−": "-",
    }
)

_YES = r"yes|correct"
_NO = r"no|incorrect|not\s+correct|wrong"
# What follows must end the answer: the line, a mark, a dash with a space, or a reason.
# Repetitions are possessive (*+), so that no text, however odd, takes more than linear time.
_ENDED = (
    r"(?=\s*+(?:$|[.,;:!?)*]|-\s|(?:because|since|as|due\s+to)\b)|[ \t]*+\n)"
    r"(?![\s*]*+(?:/|(?:or|and)\b))(?!\s*+[,*)]*+\s*+(?:yes|no)\b[^\w\n]*+(?:$|\n))"
)
_ANSWER = rf"(?:(?P<yes>(?:{_YES})\b)|(?P<no>(?:{_NO})\b)){_ENDED}"
_GAP = r"[ \t*?:.(]*+(?:\n[ \t*?:.(]*+){0,3}+"  # between a question and its answer; at most two empty lines
_CHOICE = r"yes[*\s]*+(?:/|or|\\)[*\s]*+(?:yes|no)\b[*\s)?]*+"
_ECHO = (
    r"(?:(?:the[ ]+)?(?:final[ ]+|overall[ ]+)?(?:answer|verification|verdict|grade|result|response)[ *]*+(?::|is\b))"
)
_CLOSING = re.compile(r"\b(?:final(?:ly)?|overall|conclusion|in[ ]+summary|therefore)\b", re.IGNORECASE)
_LABEL = (
    r"\b(?:verdict|conclusion|(?:final|overall)[ ]+(?:\w+[ ]+)?"
    r"(?:grade|verification|verdict|judge?ment|assessment|decision|evaluation|conclusion))\b"
    rf"[ *]*+(?::|-[ ]|is\b|\n){_GAP}(?:{_ECHO}{_GAP})?{_ANSWER}"
)
_STEP = re.compile(r"^[ \t*>-]*+(?:step[ *]+(\d{1,3})\b|(\d{1,3})[.)](?=[\s*]|$))", re.IGNORECASE | re.MULTILINE)
_QUOTE = re.compile(r"^[ \t*>-]*+solution[ *]*+:.*$", re.IGNORECASE | re.MULTILINE)
_RIGHT = r"(?:correct|right)\b"
_WRONG = r"(?:incorrect|wrong|not[ ]+(?:correct|right))\b"
_SUBJECT = (
    r"(?:^|[.!?:]\s)[ \t*>-]*(?:(?:therefore|thus|so|hence|overall|in[ ]+conclusion)[ *,]+)?(?:the|this)[ ]+"
    r"(?:(?:given|provided|proposed|final|student[*]s)[ ]+)*(?:answer|solution)(?:[ ]+(?:given|provided))?[ ]+is[ *]+"
)
_STATED = re.compile(
    rf"{_SUBJECT}(?:(?P<no>{_WRONG})|(?P<yes>{_RIGHT}))(?=[ *]*(?:$|[.!,]|because\b|and[ ]+(?:match|the)))"
    r"|(?P<none>\bno[ ]+(?:errors?|mistakes?)[ ]+(?:were|was|are|is)[ ]+found\b)",
    re.IGNORECASE | re.MULTILINE,
)


class Said(StrEnum):
    """What a text says of the answer it judges."""

    YES = "yes"
    NO = "no"
    UNPARSED = "unparsed"


class Why(StrEnum):
    """Where a reading comes from, or why there is none."""

    QUESTION = "the question's answer"
    LABEL = "a closing label"
    MISSING = "no verdict"
    UNANSWERED = "the last question has no answer"
    STEPS = "verdicts on steps only"
    CONTRADICTORY = "verdicts that contradict one another"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read."""

    said: Said
    why: Why
    span: tuple[int, int] | None = None  # characters of the answer's word in the text; None when unparsed
    start: int | None = None  # where its question or label begins, characters; None when unparsed


@dataclass(frozen=True, slots=True)
class _Found:
    """One question or label of the text."""

    start: int  # where it begins, characters
    yes: bool | None  # None: a question without an answer
    word: tuple[int, int]  # the answer's characters
    final: bool  # its line, or the heading above it, says that it closes the text
    why: Why


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads verdicts. Case, markup and white space of the questions don't matter; "(Yes/No)" and "?" may be left out.
    Raises ConfigError when there is no question."""

    questions: tuple[str, ...] = QUESTIONS  # what the text was asked to answer, without "(Yes/No)?"
    strict: bool = False  # the plain rule of the release's kind: see `_plain`
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.questions or not all(map(_words, self.questions)):
            raise ConfigError(
                f"questions is {self.questions!r}; it must be a tuple of questions, each with words in it."
            )
        object.__setattr__(self, "_pattern", _compiled(self.questions))

    def read(self, text: str) -> Reading:
        """The verdict of `text`. Never raises."""
        if self.strict:
            return _plain(text, self.questions)
        plain = _looked_through(text)
        found = list(_verdicts(plain, self._pattern))
        if not found:
            return Reading(Said.UNPARSED, Why.MISSING)
        if found[-1].yes is None:
            return Reading(Said.UNPARSED, Why.UNANSWERED)
        whole = _of_the_whole([f for f in found if f.yes is not None], plain)
        if not whole:
            return Reading(Said.UNPARSED, Why.STEPS)
        last = whole[-1]
        if len({f.yes for f in whole}) > 1 or _denied(plain[last.word[1] :], bool(last.yes)):
            return Reading(Said.UNPARSED, Why.CONTRADICTORY)
        return Reading(Said.YES if last.yes else Said.NO, last.why, last.word, last.start)

    def places(self, text: str) -> tuple[tuple[int, int], ...]:
        """[start, end) of every question and label in `text`, answered or not, in order."""
        return tuple(m.span() for m in self._pattern.finditer(_looked_through(text)))


def read(text: str) -> Reading:
    """The verdict of `text` by the default reader."""
    return _DEFAULT.read(text)


def _compiled(questions: tuple[str, ...]) -> re.Pattern[str]:
    asked = "|".join(r"[\W_]+".join(map(re.escape, _words(q))) for q in questions)
    question = rf"\b(?P<question>{asked})\b(?:{_GAP}{_CHOICE})?(?:{_GAP}(?:{_ECHO}{_GAP})?{_ANSWER})?"
    # The two alternatives can't share group names, so the label's have their own.
    label = _LABEL.replace("(?P<yes>", "(?P<label_yes>").replace("(?P<no>", "(?P<label_no>")
    return re.compile(f"{question}|(?P<label>{label})", re.IGNORECASE)


def _words(question: str) -> list[str]:
    stem = re.sub(r"\(?\s*yes\s*/\s*no\s*\)?", " ", question.translate(_SIGNS), flags=re.IGNORECASE)
    return re.findall(r"\w+", stem)


def _looked_through(text: str) -> str:
    """`text` with its markup blanked out, as long as it was."""
    plain = _TAG.sub(lambda m: "*" * len(m[0]), text).translate(_SIGNS)
    return _QUOTE.sub(lambda m: " " * len(m[0]), plain)


def _verdicts(plain: str, pattern: re.Pattern[str]) -> list[_Found]:
    found: list[_Found] = []
    for m in pattern.finditer(plain):
        yes, no = ("yes", "no") if m["question"] else ("label_yes", "label_no")
        word = m.span(yes) if m[yes] else m.span(no)
        answer = True if m[yes] else False if m[no] else None
        why = Why.QUESTION if m["question"] else Why.LABEL
        final = _closes(plain, m.start()) or bool(_CLOSING.match(m[0]))
        found.append(_Found(m.start(), answer, word, final, why))
    return found


def _closes(plain: str, at: int) -> bool:
    """Whether what leads up to `at`, on its line or in a heading above it, says "final" or the like."""
    head, _, line = plain[:at].rpartition("\n")
    above = head.rstrip().rpartition("\n")[2].strip("* ")
    return bool(_CLOSING.search(line) or (len(above) < HEADING and _CLOSING.search(above)))


def _of_the_whole(found: list[_Found], plain: str) -> list[_Found]:
    """Those that aren't a single step's."""
    steps = [(m.start(), int(m[1] or m[2])) for m in _STEP.finditer(plain)]
    starts, last_of = [at for at, _ in steps], {n: at for at, n in steps}
    whole, own = [], False  # own: steps have their own verdicts
    for f in found:
        before = bisect(starts, f.start)
        goes_on = before > 0 and last_of.get(steps[before - 1][1] + 1, -1) > f.start
        if f.final or not goes_on:
            whole.append(f)
        else:
            own = True
    return whole[1:] if own and whole and not whole[0].final else whole


def _denied(rest: str, yes: bool) -> bool:
    """Whether a sentence after the verdict says the opposite of it."""
    return any((m["no"] is not None) if yes else (m["no"] is None) for m in _STATED.finditer(rest))


def _plain(text: str, questions: tuple[str, ...]) -> Reading:
    """The strict rule: the first question to the letter, "(Yes/No)?", stars or white space, then Yes or No.
    The last such place counts, whatever else the text says."""
    rule = re.compile(re.escape(questions[0]) + r" \(Yes/No\)\?[\s*]*(Yes|No)\b")
    found = list(rule.finditer(text))
    if not found:
        return Reading(Said.UNPARSED, Why.MISSING)
    return Reading(Said.YES if found[-1][1] == "Yes" else Said.NO, Why.QUESTION, found[-1].span(1), found[-1].start())


_DEFAULT = Reader()

# Words for something that a verifier at work hasn't got. "The correct answer is 12" names no source and isn't here:
# a verifier may have found that itself.
_SOURCE = r"(?:answers?|solutions?|values?|results?|outputs?)"
_LEAK = re.compile(
    rf"\b(?:expected|reference|ground[ -]?truth)[ ]+{_SOURCE}\b"
    r"|\b(?:gold(?:en)?|official|model|target)[ ]+(?:answers?|solutions?)\b|\bgold(?:en)?[ -]standard\b"
    r"|\bground[ -]?truth\b|\bexpected[ ]?:|\baccording[ ]+to[ ]+the[ ]+(?:reference|key)\b"
    rf"|\bthe[ ]+reference\b(?:[ ]+{_SOURCE}\b)?"
    r"|\b(?:answer|solution|marking)[ ]+(?:key|sheet|scheme)\b"
    rf"|\bthe[ ]+(?:correct|right|true)[ ]+{_SOURCE}[ ]+(?:says?|states?|shows?|uses?|gives|given|provided)\b"
    r"|\b(?:compar\w+|match\w*|consistent|agrees?|according|differs?)[ ]+(?:(?:to|with|from)[ ]+)?the[ ]+"
    rf"(?:correct|known)[ ]+{_SOURCE}\b",
    re.IGNORECASE,
)


def leaks(text: str) -> str | None:
    """The first words by which `text` leans on a reference that a verifier at work won't see ("Expected Answer",
    "the answer key"), or None. A reference that is copied without being named is not found."""
    looked = _TAG.sub(lambda m: " " * len(m[0]), text)
    m = _LEAK.search(re.sub(r"[*_`\s]", " ", looked))
    return None if m is None else text[m.start() : m.end()]
