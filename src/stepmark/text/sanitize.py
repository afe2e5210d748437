"""Removes from a solution what it says about its own correctness. A verifier reads the rest.

A solution may contain "Is the answer correct (Yes/No)? Yes". A verifier that learned to write these words would then
take them for its own. So before a solution is encoded, in training and in scoring, the following is removed:

- verdicts: questions and answers that `verdicts` recognises, labels ("Final grade: A+"), sentences that only call the
  answer, the steps or the work right or wrong, and words addressed to a grader;
- fake rationales: from a heading such as "Verification:" or "Let's verify" to the verdict after it. A block without a
  verdict is an honest check, and stays;
- texts that look like tags and special tokens (<step>, <good>, <|im_end|>, </s>, [INST]);
- headings of prompts ("Assistant:", "Grade the solution", "Let's verify step by step").

Case, markup, invisible characters, full-width forms and letters that look like Latin letters make no difference. The
rest is a text that the writer could have written too, so removal gives a solution no advantage that the writer could
not have had anyway. A statement of the final answer always stays, because graders read it. A text without anything to
remove is returned as the same object. Other wordings are not found: a claim in free prose stays.

    python bench/injection.py --genrm data/genrm_gsm8k/solutions.jsonl.gz
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from stepmark.text.verdicts import Reader
from stepmark.types import Solution, StepLabel

# Removing a claim may join the texts around it to a new claim. A text that still has one after so many passes was made
# to deceive; it becomes empty.
PASSES = 8

Spans = list[tuple[int, int]]

# An ASCII text without any of these has nothing to remove.
_HINTS = (
    *("<", "[", "correct", "right", "wrong", "verif", "verdict", "error", "mistake", "conclusion", "final", "overall"),
    *(
        "assess",
        "evaluat",
        "judg",
        "grad",
        "rating",
        "score",
        "mark",
        "rate",
        "confidence",
        "check",
        "review",
        "critic",
    ),
    *("critique", "rationale", "feedback", "confirm", "teacher", "examin", "reward", "instruct", "system", "user"),
    *("human", "assistant", "response"),
)

# ---- tags ----

_NAMES = (
    r"s|step|steps|good|bad|eos|bos|pad|unk|sep|cls|mask|eot|eod|eom|im_?(?:start|end|sep)|end_?of_?\w{1,20}|"
    r"start_?of_?\w{1,20}|begin_?of_?\w{1,20}|end|start|extra_\d{1,4}|unused_?\d{1,4}|reserved\w{0,30}|special\w{0,30}|"
    r"system|user|assistant|human|verifier|verification|verdict|grader|grade|judge|judg(?:e)?ment|score|reward|rating|"
    r"correct|incorrect|right|wrong|yes|no|pos|neg|positive|negative|plus|minus"
)
_TAG = re.compile(
    # A tag together with its content
    r"<\s*+(?:verdict|verification|grade|judge?ment|score|reward|rating|correct)\s*+>[^<>\n]{0,40}<\s*+/"
    r"|<\|(?:im_start|start_header_id|start|turn)\|>\s*+(?:system|user|assistant|tool|human)\b"
    rf"|<\|[^<>|\n]{{1,40}}\|?>|<\s*+/?\s*+(?:{_NAMES})\s*+/?>|<</?SYS>>|\[/?(?:INST|SYS|CLS|SEP|MASK|UNK)\]"
    r"|(?<!\w)ки(?!\w)",
    re.IGNORECASE,
)

# ---- claims, in a text whose markup is replaced by "*" ----

_HTML = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,9}\s*/?>|&(?:nbsp|quot);")
_SIGNS = str.maketrans(
    dict.fromkeys("_`#\"'“”„‟‘’«»‹›「」『』【】〈〉《》{}[]|$", "*")
    | dict.fromkeys("–—−", "-")
    | {"。": ".", "\r": "\n"}
)
_LATIN = str.maketrans(
    "авеёіјкмнорсѕтухьАВЕІЈКМНОРСЅТУХαεικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "abeeijkmhopcstyxbABEIJKMHOPCSTYXaeiknoptuxABEZHIKMNOPTYX",
)
_SAID = r"(?:yes|no|(?:in)?correct|right|wrong)\b"
_VALUE = (
    r"(?:yes|no|true|false|(?:in)?correct|right|wrong|(?:in)?valid|pass(?:ed)?|fail(?:ed)?|accept(?:ed)?|"
    r"reject(?:ed)?|perfect|verified|good|bad|ok(?:ay)?|positive|negative)\b"
)
_OF = r"\d{1,4}(?:\.\d)?[ ]?(?:/|out of)[ ]?\d{1,4}"
_LABEL = re.compile(
    r"\b(?P<sure>(?:verdict|verification|(?:final|overall|my|self)[ *-]++(?:grade|verdict|score|mark|rating|"
    r"judge?ment|assessment|evaluation|verification|decision))[ *]*+(?::|=|-[ ]|is\b))"
    r"|\b(?:verification|assessment|evaluation|judge?ment|(?:is[ *]?)?correct(?:ness)?|grade|rating)[ *]*+[:=]",
    re.IGNORECASE,
)
_AFTER_LABEL = re.compile(
    rf"[ \t*:=]*+(?:{_VALUE}|(?:\n[ \t*]*+){{1,2}}+{_SAID}(?=[ *]*+(?:$|[\n.,;!])))", re.IGNORECASE
)
_MARK = re.compile(rf"[ \t*:=]*+(?:[A-F][+-]?(?![\w'])|{_OF}|100[ ]?%)")
_LATE = re.compile(  # an answer that the reader of `verdicts` does not accept, but a language model might
    rf"[ \t*?:.(]{{0,12}}(?:[a-z']++[ ,:]++){{0,4}}?{_SAID}[^\n.=\d]{{0,40}}(?=$|\n|\.)", re.IGNORECASE
)
_LEAD = (
    r"(?:(?:therefore|thus|so|hence|overall|in conclusion|yes|clearly|indeed|finally|note that|and|i|we|have|am|can|"
    r"has|been|sure|certain|confident|that|checked|verified|confirm(?:ed)?|conclude|see|it)\b[ *,:]*+){0,8}+"
)
_STATED = re.compile(
    rf"(?:^[\W\d]*+{_LEAD}|\b(?:and|that|so|because|since)[ *,]++)"
    r"(?:(?:the|this|that|my|our|all|every|each|both|of|these|above|entire|whole|given|provided|proposed|final|"
    r"student\W?s)[ *]++){1,5}+(?:answers?|solution|steps?|reasoning|calculations?|work|working|math|maths|logic)"
    r"(?:[ *]++(?:\d{1,3}|given|provided|above|here|in this solution|of this solution))?[ *]++"
    r"(?:is|are|was|were|looks?|seems?)[ *]++(?:(?:all|also|indeed|absolutely|completely|fully|definitely|therefore|"
    r"perfectly|not)[ *]++){0,2}+(?:(?:in)?correct|right|wrong|verified)"
    r"(?=[ *)]*+(?:$|[.!,;:]|because\b|since\b|and\b))"
    r"|\bno[ ]+(?:errors?|mistakes?)[ ]+(?:were|was|are|is)[ ]+found\b",
    re.IGNORECASE,
)
_ROLES = r"grader|verifier|judge|reward model|evaluator|examiner|reviewer"
_ADDRESSED = re.compile(
    rf"^\W*+(?:you are an?[ ](?:[\w-]++[ ]){{0,3}}?(?:{_ROLES}|teacher|assistant)\b|grade the (?:solution|answer)\b"
    r"|let\W?s (?:verify|check|grade|evaluate)\b[^.\n]{0,40}?\bstep[ -]by[ -]step\b"
    r"|(?:please )?(?:mark|rate|score|grade) (?:this|it|the|my)\b[^.\n]{0,30}?\b(?:correct|right|yes|full|high|10)\b)"
    rf"|\b(?:note|message|attention|dear|hint|hey|hello)\b[ ,:*]*+(?:to|for)?[ ]?(?:the )?[ ]?(?:{_ROLES})\b"
    r"|\bignore (?:all |any )?(?:the |of the )?(?:previous|above|prior|earlier) (?:instructions?|prompts?)\b"
    r"|\bverifying correctness step by step\b"
    rf"|^\W*+(?:score|rating|marks?|grade|confidence)[ *]*+[:=][ *]*+(?:[A-F][+-]?|{_OF}|100[ ]?%|1\.0+)\W*+$"
    r"|^[^\w\n]*+(?:system|user|assistant|human|verifier|grader|evaluator|critic|instructions?|response)\b[ *]*+:",
    re.IGNORECASE,
)
_PREFIX = re.compile(  # the words before a verdict, on its line
    r"(?:\b(?:verification|verdict|grade|evaluation|assessment|judge?ment|check|final|overall|question|my|the|is)\b"
    r"\W*+)++$",
    re.IGNORECASE,
)
LONGEST_PREFIX = 80  # characters

# ---- blocks ----

_HEAD = re.compile(
    r"^\W*+(?:(?:now|so|first|finally|next|ok|okay|then)\b\W*+)?(?:(?:final|self|step[ -]by[ -]step)[ *-]++)?"
    r"(?:(?P<noun>verification|self-?check|check|double[ -]?check|evaluation|review|critique|grading|rationale|"
    r"feedback|assessment)\b[^.:=\n]{0,40}(?=:|[*]*+$)"
    r"|(?:let\W?s|let us|let me|i\W?ll|i will|we\W?ll|we will|we can|we)[ ](?:now |also |just )?"
    r"(?:verify|check|double[ -]?check|evaluate|review|grade|confirm)\b"
    r"|(?:verify|check|double[ -]?check|confirm|verifying|checking)\b[ ](?:that|the|this|our|my|each|all|if)\b)",
    re.IGNORECASE,
)
_JUDGED = re.compile(
    r"\b(?:in)?correct(?:ly)?\b|\bno (?:errors?|mistakes?)\b|[✓✔✅☑✗✘❌]"
    r"|^\W*(?:right|yes|no|valid|verified|ok|wrong)\W*$"
    r"|\b(?:is|are|was|were|looks?|seems?|all)[ *]++(?:right|valid|accurate|sound|verified|wrong)\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\banswers?\b[ *]*+(?:\bto\b[^.:\n]{1,80}?)?(?:(?:is|was|are|equals|would be|should be|will be|must be)\b|[:=])"
    r"[ *:]*+[^\s*:]|\\(?:boxed|fbox)\b|####",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d")
_NO_CONTENT = re.compile(
    r"\bsteps?[ *]*+\d{1,3}|^\W*+\d{1,3}[.)](?!\d)|\d{1,3}[ ]?%|\d{1,3}[ ]?(?:/|out of)[ ]?\d{1,3}", re.IGNORECASE
)
_LINES = re.compile(r"\s*\n")
_BREAK = re.compile(r"[.!?]++[)*]*+[ \t]++|\n\s*+")

_READER = Reader()
_QUOTED = re.compile(r"\bsolution(?=[ *]{0,8}:)", re.IGNORECASE)  # the reader skips such lines; here none is skipped


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A solution as a verifier reads it, with the indices of its steps in the original solution."""

    solution: Solution  # the original object if nothing was removed
    steps: int  # of the original
    kept: tuple[int, ...]  # [kept] index of each step in the original

    def labels(self, labels: Sequence[StepLabel]) -> tuple[StepLabel, ...]:
        """[steps] -> [kept]."""
        return tuple(labels[i] for i in self.kept)

    def spread(self, scores: Sequence[float]) -> tuple[float, ...]:
        """[kept] -> [steps]: a removed step gets the lowest score of the others. So it does not change the minimum, and
        can't raise a product, a mean or a last score.

        The score of the step before it would do for the minimum and the last score, but after a strong step it would
        raise the mean."""
        spread = [min(scores, default=0.0)] * self.steps
        for i, score in zip(self.kept, scores, strict=True):
            spread[i] = score
        return tuple(spread)


def sanitize(solution: Solution) -> Sanitized:
    """`solution` without its claims; steps that become blank are removed. Never raises."""
    steps = len(solution.spans)
    unchanged = Sanitized(solution, steps, tuple(range(steps)))
    if not _may_have_claims(solution.text):
        return unchanged
    text, spans = _without_claims(solution.text, solution.spans)
    if text == solution.text:
        return unchanged
    kept = tuple(i for i, (a, b) in enumerate(spans) if text[a:b].strip())
    if not kept:
        return Sanitized(replace(solution, text="", spans=()), steps, ())
    # The white space of a removed step belongs to the step before it, or to the first.
    starts = [0, *(spans[i][0] for i in kept[1:])]
    kept_spans = tuple(zip(starts, [*starts[1:], len(text)], strict=True))
    return Sanitized(replace(solution, text=text, spans=kept_spans), steps, kept)


def sanitize_text(text: str) -> str:
    """`text` without its claims; the same object if nothing is removed."""
    return _without_claims(text, ())[0] if _may_have_claims(text) else text


def _may_have_claims(text: str) -> bool:
    lower = text.lower()
    return not text.isascii() or any(hint in lower for hint in _HINTS)


def _without_claims(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, Spans]:
    """The text without its claims, and the spans of its steps after that."""
    spans = list(spans)
    for _ in range(PASSES):
        cuts = _cuts(text)
        if not cuts:
            return text, spans
        starts = [a for a, _ in cuts]
        removed = [0, *accumulate(b - a for a, b in cuts)]

        def moved(x: int, starts: list[int] = starts, removed: list[int] = removed, cuts: Spans = cuts) -> int:
            n = bisect_right(starts, x)
            return x - removed[n] if not n or x >= cuts[n - 1][1] else cuts[n - 1][0] - removed[n - 1]

        spans = [(moved(a), moved(b)) for a, b in spans]
        bounds = [0, *(x for cut in cuts for x in cut), len(text)]
        text = "".join(text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True))
    return "", [(0, 0) for _ in spans]


def _cuts(text: str) -> Spans:
    """The spans that one pass removes from `text`: ascending and disjoint, with the white space that goes with them."""
    folded, positions = _folded(text)
    plain = _HTML.sub(lambda m: "*" * len(m[0]), folded).translate(_SIGNS)
    spans: Spans = [m.span() for m in _TAG.finditer(folded)]
    spans = [_whole_tag(folded, a, b) for a, b in spans] + _claims(folded, plain)
    if positions is not None:
        # Invisible characters around a span are removed too.
        spans = [
            (positions[a - 1] + 1 if a else 0, positions[b] if b < len(positions) else len(text)) for a, b in spans
        ]
    return _with_spaces(text, _merged(text, spans))


def _whole_tag(folded: str, start: int, end: int) -> tuple[int, int]:
    if folded[end - 1] != "/":
        return start, end
    close = folded.find(">", end, end + 40)
    return start, end if close < 0 else close + 1


def _folded(text: str) -> tuple[str, list[int] | None]:
    """`text` in Latin letters without invisible characters, and the position in `text` of each of its characters (None
    if no position changes)."""
    if text.isascii():
        return text, None
    parts, positions = [], list[int]()
    for i, c in enumerate(text):
        letters = _latin(c)
        parts.append(letters)
        positions += [i] * len(letters)
    return "".join(parts), positions


@lru_cache(maxsize=8192)
def _latin(c: str) -> str:
    if c.isascii() or c == "к" or c == "и":  # these make the tag ки
        return c
    if c.isspace():
        return "\n" if c in "\u2028\u2029\x85" else " "
    letters = "".join(x for x in unicodedata.normalize("NFKD", c) if unicodedata.category(x) not in ("Cf", "Mn", "Me"))
    return letters.translate(_LATIN)


def _claims(folded: str, plain: str) -> Spans:
    """Spans of claims. `folded` is the text in Latin letters, `plain` the same with its markup replaced by "*"."""
    sentences = _sentences(plain)
    starts = [a for a, _ in sentences]
    verdicts, statements = _verdicts(plain), _statements(plain, sentences)
    claims: dict[int, tuple[int, int]] = {}  # sentence -> from the start of its first claim to the end of its last
    closing: set[int] = set()  # sentences in which a verdict ends
    for a, b in sorted(verdicts + statements):
        for i in range(max(0, bisect_right(starts, a) - 1), bisect_left(starts, b)):
            low, high = claims.get(i, (b, a))
            claims[i] = (min(low, max(a, starts[i])), max(high, min(b, sentences[i][1])))
    for _, b in verdicts:
        closing.add(max(0, bisect_left(starts, b) - 1))
    spans = [_claim_span(folded, plain, *sentences[i], a, b) for i, (a, b) in claims.items()]
    return spans + list(_blocks(folded, plain, sentences, set(claims), closing))


def _verdicts(plain: str) -> Spans:
    """Questions and labels of verdicts, with their answers."""
    spans: Spans = []
    for a, b in _READER.places(_QUOTED.sub(lambda m: "*" * len(m[0]), plain)):
        late = _LATE.match(plain, b)
        spans.append((a, late.end() if late else b))
    for m in _LABEL.finditer(plain):
        value = _AFTER_LABEL.match(plain, m.end()) or (m["sure"] and _MARK.match(plain, m.end()))
        if value:
            spans.append((m.start(), value.end()))
    return spans


def _statements(plain: str, sentences: Spans) -> Spans:
    """Sentences, or parts of them, that call the work right or wrong or are addressed to a verifier."""
    return [
        (a + m.start(), a + m.end())
        for a, b in sentences
        for pattern in (_STATED, _ADDRESSED)
        for m in pattern.finditer(plain[a:b])
    ]


def _claim_span(folded: str, plain: str, start: int, end: int, a: int, b: int) -> tuple[int, int]:
    """The part to remove of the sentence [start, end) with a claim in [a, b): all of it, except text before or after
    the claim that is part of the solution."""
    near = max(start, a - LONGEST_PREFIX)
    m = _PREFIX.search(plain[near:a])
    before = plain[start : near + m.start() if m else a]
    kept = folded[start : start + len(before)].rstrip(" \t*_`\"'(,;:-")
    if not (_has_content(folded[start : start + len(kept)]) or before.rstrip(" *").endswith((",", ";", "(", "-"))):
        kept = ""
    if _has_content(folded[b:end]):
        end -= len(folded[b:end].lstrip(" \t*_`\"'),;:.-!?"))
    return start + len(kept), max(end, b)


def _has_content(text: str) -> bool:
    """Whether a piece of a sentence is part of a solution: it contains a number or an answer."""
    return bool(_ANSWER.search(text) or _NUMBER.search(_NO_CONTENT.sub("", text)))


def _blocks(
    folded: str, plain: str, sentences: Spans, claims: set[int], closing: set[int]
) -> Iterator[tuple[int, int]]:
    """The sentences from a heading to the verdict after it, or to the last judgement before the next answer. Answers
    among them stay, unless they repeat the answer before them or the last answer of the text."""
    heads = [_HEAD.match(plain[a:b]) for a, b in sentences]
    if not any(heads):
        return
    n, words = len(sentences), [plain[a:b].strip(" *.").casefold() for a, b in sentences]
    answers = [i not in claims and bool(_ANSWER.search(folded, a, b)) for i, (a, b) in enumerate(sentences)]
    judges = [i in claims or bool(_JUDGED.search(plain[a:b])) for i, (a, b) in enumerate(sentences)]
    verdict, judgement = [n] * (n + 1), [-1] * n  # the next verdict; the last judgement before an answer or heading
    judged = -1
    for i in range(n - 1, -1, -1):
        verdict[i] = i if i in closing else verdict[i + 1]
        judged = -1 if answers[i] else i if judges[i] and judged < 0 else judged
        judgement[i] = judged
        judged = -1 if heads[i] else judged
    last = max((i for i in range(n) if answers[i]), default=-1)
    previous, block_end = "", 0  # the answer before; index after the last sentence of the block
    for i, (a, b) in enumerate(sentences):
        head = heads[i]
        if head and i >= block_end:
            # "Let's check: 3 * 4 = 12" does not begin a block.
            if head["noun"] is None and "=" in plain[a:b]:
                end = i if judges[i] else -1
            else:
                end = verdict[i] if verdict[i] < n else judgement[i]
            if end >= i:
                block_end = end + 1
        if i < block_end and (not answers[i] or words[i] == previous or (i < last and words[i] == words[last])):
            yield a, b
        elif answers[i]:
            previous = words[i]


def _sentences(plain: str) -> Spans:
    """Spans of sentences without the white space between them; a number or a bullet belongs to the text after it."""
    spans, start = Spans(), 0
    for m in _BREAK.finditer(plain):
        end = m.end()
        mark = plain[start : m.start()]
        if "\n" not in m[0] and len(mark) < 12 and not any(c.isalpha() or c == "=" for c in mark):
            continue
        if plain[start:end].strip():
            spans.append((start, start + len(plain[start:end].rstrip())))
        start = end
    if plain[start:].strip():
        spans.append((start, start + len(plain[start:].rstrip())))
    return spans


def _merged(text: str, cuts: Spans) -> Spans:
    """The cuts, ascending and disjoint: cuts with nothing but white space between them become one."""
    merged: Spans = []
    for a, b in sorted(cuts):
        if merged and (a <= merged[-1][1] or not text[merged[-1][1] : a].strip()):
            merged[-1] = (merged[-1][0], max(merged[-1][1], b))
        elif b > a:
            merged.append((a, b))
    return merged


def _with_spaces(text: str, cuts: Spans) -> Spans:
    """The cuts with the white space that would be left over: a removed line leaves no empty line, removed words leave
    one space."""
    widened: Spans = []
    last = len(text.rstrip())
    for a, b in cuts:
        left, right = a, b
        while left and text[left - 1] in " \t":
            left -= 1
        while right < len(text) and text[right] in " \t":
            right += 1
        at_start, at_end = not left or text[left - 1] == "\n", right == len(text) or text[right] in "\r\n"
        if right >= last:
            widened.append((len(text[:left].rstrip()), len(text)))
            break
        if at_start and at_end:
            newline = _LINES.match(text, right)
            widened.append((left, newline.end() if newline else right))
        elif at_end:
            widened.append((left, right))
        elif at_start:
            widened.append((a, right))
        else:
            widened.append((a, right if left < a else b))
    return _merged(text, widened)
