"""Filters and prepares rationales as training data: compares their verdicts, closes them, removes the reference.

GenRM (Zhang et al., arXiv 2408.15240, section 3.2) lets a model write rationales while it sees a correct solution, and
keeps those whose verdict equals the solution's grade. We add two things:

- A rationale that says "Expected Answer" teaches a verifier to rely on something that it will not see. `rewrite`
  removes such words: whole sections and lines under such a label, sentences, or the end of a sentence ("and matches the
  expected answer"). A judgement under such a label stays without the label ("Expected Answer: Correct." becomes
  "Correct."). Nothing replaces the removed words, so a "No" may lose its reason together with the reference's figures.
  The rest must say something about the solution, state the same verdict and name no reference; otherwise the rationale
  is dropped.
- A kept rationale ends in `prompts.VERDICT` and " Yes" or " No", and does not contain that question elsewhere: a
  verifier writes the question once, and the score is read at its answer.

A rationale that ran out of tokens is lost, even if it contains a verdict: the missing part may have withdrawn it. A
copy of the reference that names no source is not found (verdicts.leaks).

    python bench/rationales.py data/genrm_gsm8k
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.text.verdicts import Reader, Said, leaks
from stepmark.types import Finish, Rationale

Leak = Literal["drop", "rewrite", "keep"]
LEAK = ("drop", "rewrite", "keep")
LEAST = 5  # fewest words in a verification besides its verdict
SHORT = 8  # most words in a line that only introduces a verdict, or only says "the same"
READER = Reader()

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,9}\s*/?>")
_BOLD = re.compile(r"</?(?:b|strong)>")
_QUESTION = re.compile(r"\bis\s+the\s+answer\s+correct\s*\??[\s*]*\(\s*yes\s*/\s*no\s*\)\s*\??[ ]*", re.IGNORECASE)
# The words of a line that only introduces the verdict, or a verdict's label
_LEADS = re.compile(
    r"(?:[\W_]|\b(?:verification|verdict|final|finally|grade|overall|conclusion|summary|therefore|thus|hence|so|the|is|in|"
    r"answer|my|and|judge?ment|assessment|result|evaluation|solution|of)\b)*",
    re.IGNORECASE,
)
_LEAD = re.compile(r"[\s*_#\"'“‘(\[-]*\b(?:(?:final|overall)\s+)?(?:verification|grade|verdict|conclusion)\W*$", re.I)


def judged(
    text: str,
    correct: bool | None,
    source: str,
    *,
    leak: Leak = "drop",
    reader: Reader = READER,
    finish: Finish = Finish.STOP,
) -> Rationale:
    """Makes a rationale of `text`, with the reason if it is lost. `correct` is the solution's grade; with None no
    verdict is a mismatch. `leak` chooses what to do with a rationale that names a reference. A lost rationale keeps its
    text for inspection, unless the text names a reference and `leak` is not "keep"."""

    def lost(reason: str, said: Said = Said.UNPARSED) -> Rationale:
        shown = text if leak == "keep" or leaks(text) is None else ""
        return Rationale(shown, str(said), source, reason)

    if finish is Finish.FAILED:
        return lost("failed")
    said = reader.read(text).said
    if finish is Finish.LENGTH:
        return lost("truncated", said)
    if said is Said.UNPARSED:
        return lost("unparsed")
    if correct is not None and (said is Said.YES) != correct:
        return lost("mismatch", said)
    whole = closed(text, said, reader)
    if READER.read(whole).said is not said:  # the new last verdict may contradict other verdicts in the text
        return lost("unparsed")
    if leak == "keep" or leaks(whole) is None:
        return Rationale(whole, str(said), source)
    rewritten = _cleaned(whole, said) if leak == "rewrite" else None
    if rewritten is None:
        return lost("leak", said)
    return Rationale(rewritten, str(said), source, rewritten=True)


def closed(text: str, said: Said, reader: Reader = READER) -> str:
    """`text` up to its final verdict, then `prompts.VERDICT` with the answer `said`, on a line of its own. The question
    is removed from earlier places, and its answer stays there. Of a text without a verdict, everything is kept. Raises
    ValueError if the text states the opposite verdict, or if `said` is not a verdict."""
    text = _shortened(text)
    reading = reader.read(text)
    if said is Said.UNPARSED or reading.said not in (said, Said.UNPARSED):
        raise ValueError(f"the text's verdict is {reading.said.value!r}; it can't be closed with {said.value!r}")
    head = text
    for _ in range(SHORT):  # remove the last verdict, and equal verdicts directly above it
        if reading.said is not said or reading.start is None:
            break
        head = _without_lead(head[: reading.start])
        reading = reader.read(head)
        if reading.span is None or re.search(r"\w", head[reading.span[1] :]):
            break
    head = "\n".join(line.rstrip() for line in _QUESTION.sub("", head).split("\n")).strip("\n")
    return f"{head}\n{VERDICT}{YES if said is Said.YES else NO}".lstrip("\n")


def rewrite(text: str, reader: Reader = READER) -> str | None:
    """`text`, closed, without the parts that name a reference. None if it has no verdict, or if the rest is not a
    verification, states another verdict, or still names a reference."""
    said = reader.read(text).said
    if said is Said.UNPARSED:
        return None
    whole = closed(text, said, reader)
    if leaks(whole) is None:
        return whole if READER.read(whole).said is said else None
    return _cleaned(whole, said)


def _cleaned(whole: str, said: Said) -> str | None:
    """A closed text without the parts that name a reference; None in the same cases as `rewrite`."""
    body, _, verdict = whole.rpartition("\n")
    body = _without_leaks(body)
    whole = f"{body}\n{verdict}"
    if READER.read(whole).said is not said:
        return None
    whole = closed(whole, said, READER)  # the rest may end in a verdict that stood above a removed part
    return whole if leaks(whole) is None and _is_verification(whole.rpartition("\n")[0]) else None


def _shortened(text: str) -> str:
    """`text` with HTML bold as stars, and with long runs of white space or of one sign cut short: they have no meaning,
    and regular expressions are slow on them."""
    lines = [re.sub(r"([^\S\n]{8})[^\S\n]+", r"\1", line.rstrip()) for line in _BOLD.sub("**", text).split("\n")]
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"([^\w\s])\1{40,}", lambda m: m[1] * 40, "\n".join(lines)))


def _without_lead(head: str) -> str:
    """`head`, the text before a verdict, without the words that introduce the verdict."""
    fragment = head.rpartition("\n")[2]
    if fragment.strip():
        above = head[: len(head) - len(fragment)]
        shortened = _LEAD.sub("", fragment)
        if shortened == fragment:  # no words removed: remove marks whose closing mark came after the verdict
            shortened = re.sub(r"\s[*_\"'“‘(\[-]+\s*$", "", shortened)
        ends = [m.end() for m in _SENTENCE.finditer(shortened)]
        if ends and _LEADS.fullmatch(_without_markup(shortened[ends[-1] :])):  # "Therefore, the grade is"
            shortened = shortened[: ends[-1]]
        head = above + shortened
    while True:
        rest, _, line = head.rstrip().rpartition("\n")
        if not head.strip() or len(line.split()) > SHORT or not _LEADS.fullmatch(_without_markup(line)):
            return head.rstrip()
        head = rest


def _without_markup(line: str) -> str:
    """`line` with its markup replaced by spaces; the length is the same."""
    return re.sub(r"[*_`#]", " ", _TAG.sub(lambda m: " " * len(m[0]), line))


# ---- removing references ----

_ITEM = re.compile(r"^[\s>•+-]*(?:step\s+(\d{1,3})\b|(\d{1,3})[.)](?=\s|$))", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-+•*]\s+|\d{1,3}[.)]\s+)")
_THING = (
    r"(?:step|solution|answer|final answer|statement|calculation|part|reasoning|sentence|result|conclusion|value|logic)"
)
_BEFORE_LABEL = re.compile(
    r"(?:\W|\b(?:\d{1,3}|step|the|correct|final|overall|solution|answer|given|provided|verification|grade|grading|and|"
    r"vs|versus|of|with|to|against|from|comparison|comparing|compare|compared|check|checking|model|for|s)\b)*$",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^\W*(?:(?:the\s+)?(?:given|student|actual|provided|your|my)\s+)?(?:solution|answer|verification|verify|grade|"
    r"grading|final|overall|conclusion|result|error|mistake|correct|incorrect|correction|comparison|analysis|evaluation|"
    r"explanation|assessment|judge?ment|summary|note|therefore|verdict|reason|reasoning|feedback|comment|comments|check|"
    r"status|discrepancy|difference|issue|calculation|our|is|proposed)\b[^:\n]{0,40}:",
    re.IGNORECASE,
)
# Correct or not, after a verb: "is also incorrect", "are right"
_RATED = r"\b(?:is|are|was|were)\s+(?:\w+\s+){0,2}(?:correct|incorrect|right|wrong|accurate|inaccurate|valid|invalid)\b"
_JUDGES = re.compile(
    rf"\b(?:the|this|these|all|both|each|every|that)\s+(?:\w+\s+){{0,2}}{_THING}s?\b.{{0,60}}?(?:{_RATED}|\b(?:contains?|"
    rf"incorrectly|correctly|misses|fails|follows)\b)|\bsteps?\s+\d+.{{0,60}}{_RATED}|^\W*(?:in)?correct\b",
    re.IGNORECASE,
)
_MARKED = re.compile(r"\(\W*((?:in)?correct|wrong|right|error|erroneous(?: step)?|yes|no)\b[^()]*\)\W*$", re.IGNORECASE)
_GOOD = re.compile(
    rf"^\W*(?:(?:this|the|that|it|step)\s*(?:\w+\s+)?{_THING}?(?:\s+\d+)?\s*(?:is|are)\s+(?:also\s+)?"
    r"(?:correct|right|accurate|valid|incorrect|wrong|not\s+correct)|correct|right|accurate|valid|true|✓|✔|✅|yes|no"
    r"|incorrect|wrong|false|error|erroneous|mistake|✗|✘|❌|x)(?!\w)",
    re.IGNORECASE,
)
_SAME = re.compile(
    r"^\W*(?:(?:the\s+)?(?:exact\s+)?same|identical|match(?:es|ed)?|agrees?|consistent|as\s+(?:above|stated|in\s+the))\b",
    re.IGNORECASE,
)
_ALONE = {"yes": "Correct.", "true": "Correct.", "no": "Incorrect.", "false": "Incorrect."}
_PARENTHESIS = re.compile(r"\s*\(([^()]*)\)")
_SENTENCE = re.compile(r"(?<=[.!?])([\"'”’)*_]*\s+)(?=[\"'“‘(*_]*[A-Z0-9$])")
_BOUND = re.compile(
    r"(?:\s*[,;]\s*|\s+[-–—]+\s+|\s+)(?=(?:which|matching|and|while|whereas|but|as|so|since|because|however|"
    r"consistent|in line|aligning|compared|according|instead|rather|not|when)\b)",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|should|contains?|follows?|gives?|\w*correctly|accurately|calculate[sd]?|"
    r"arrives?|reach(?:es)?|makes?|miss(?:es)?|fails?|adds?|subtracts?|multipl(?:y|ies)|divides?|uses?|states?|does|"
    r"assumes?|ignores?|confuses?|forgets?|takes?|finds?|says?|counts?|leaves?|yes|no|correct|incorrect|wrong)\b|=",
    re.IGNORECASE,
)
_INCOMPLETE = re.compile(
    r"\b(?:the|a|an|same|is|are|be|was|were|to|of|not|and|or|than|different|equal|with|from|far|such|consistent|identical"
    r"|both|as|that|in|does|do|has|have|should|equivalent|close|similar)\W*$",
    re.IGNORECASE,
)
_JUDGEMENT = re.compile(
    r"\b(?:in)?correct(?:ly)?\b|\bright\b|\bwrong(?:ly)?\b|\berror|\berroneous|\bmistake|\baccurate|\bvalid\b|"
    r"\binvalid\b|\bshould\s+(?:be|have)\b|\b(?:yes|no)\b|✓|✔|✅|✗|✘|❌",
    re.IGNORECASE,
)
_TITLE = re.compile(r"[^\n]*:[*_\s]*$|#|(\*\*|__)(?:(?!\1).)+\1$")  # a line that is a heading of the text after it


def _is_verification(body: str) -> bool:
    """Whether `body` contains a judgement and at least LEAST words."""
    return len(re.findall(r"\w+", body)) >= LEAST and _JUDGEMENT.search(_without_markup(body)) is not None


def _without_leaks(body: str) -> str:
    """`body` without the parts that name a reference. None in `kept` is a removed line."""
    lines: list[str | None] = list(body.split("\n"))
    kept: list[str | None] = []
    last, i = 0, 0  # number of the last step or list item that was kept; index of the next line
    while i < len(lines):
        line = lines[i] or ""
        i += 1
        words = leaks(line)
        if words is None:
            item = _ITEM.match(_without_markup(line))
            last = int(item[1] or item[2]) if item else last
            kept.append(line)
            continue
        shortened = _PARENTHESIS.sub(_parenthesis, line)
        if (words := leaks(shortened) or "") == "":
            kept.append(shortened)
            continue
        line = shortened
        label = _label(line, words)
        if label is None:
            kept.append(_sentences(line))
            continue
        before, value = label
        if not value.strip(" *_:`\"'") and (following := _next_line(lines, i)) is not None:
            judgement = _judgement(lines[following] or "", alone=True)
            if judgement is not None:
                kept.append(before + judgement)
                i = following + 1
                continue
        judgement = _judgement(value)
        kept.append(_joined(before, judgement))
        if judgement is None:
            end = _end(lines, i, last, section=not value.strip(" *_:`\"'"))
            kept += [None] * (end - i)
            i = end
    return _tidied(kept)


def _label(line: str, words: str) -> tuple[str, str] | None:
    """The text before and after a label that names the reference; None if `words` are not in a label."""
    bare = _without_markup(line)
    start = line.find(words)
    end = start + len(words)
    if words.rstrip().endswith(":"):
        cut = end
    elif m := re.match(r"[^:.\n=]{0,40}?:", bare[end:]):
        cut = end + m.end()
    elif not bare[end:].strip(" -–—)"):
        cut = len(line)
    else:
        return None
    sentence = max((m.end() for m in _SENTENCE.finditer(line[:start])), default=0)
    sentence = max(sentence, *(m.end() for m in re.finditer(r"\)\W+|\|\s*|(?<=[.!?])\W*$", bare[:start])), 0, 0)
    if not _BEFORE_LABEL.match(bare[sentence:start]):
        return None
    lead = _BULLET.match(line)
    before = line[:sentence] if sentence else lead[0] if lead else re.match(r"\s*", line)[0]  # type: ignore[index]
    return before, line[cut:].lstrip(" *_`").strip()


def _judgement(value: str, alone: bool = False) -> str | None:
    """The judgement on the solution in the value of a label that names the reference; None if there is no judgement.
    With `alone`, the value must begin with the judgement."""
    plain = _without_markup(value).strip(" \"'.")
    if plain.lower() in _ALONE:
        return _ALONE[plain.lower()]
    if _SAME.match(plain) and len(plain.split()) <= SHORT:
        return "Correct."
    pieces = _SENTENCE.split(value)  # the first sentence may be the reference; the text from the judgement on is kept
    for i in range(0, len(pieces), 2):
        piece = _without_markup(pieces[i]).strip(" \"'.")
        if _GOOD.match(piece) or (i == 0 and not alone and _JUDGES.search(piece)):
            rest = "".join(pieces[i:])
            return rest if leaks(rest) is None else _sentences(rest)
        if alone:
            return None
    marked = _MARKED.search(value)
    return None if marked is None or leaks(marked[0]) else f"({marked[1]})"


def _joined(before: str, judgement: str | None) -> str | None:
    if judgement is not None:
        return before + judgement
    return before.rstrip() if len(re.findall(r"\w+", before)) > 1 else None


def _next_line(lines: Sequence[str | None], start: int) -> int | None:
    """Index of the next line, from `start`, that is not blank."""
    return next((i for i in range(start, len(lines)) if (lines[i] or "").strip()), None)


def _end(lines: Sequence[str | None], start: int, last: int, section: bool) -> int:
    """Index of the first line, from `start`, that does not belong to a label any more: to its section, or to the
    paragraph that its line begins. `last` is the number of the last step or item before the label."""
    in_section = 0  # the last number of a list inside the section
    for i in range(start, len(lines)):
        line = lines[i] or ""
        bare = _without_markup(line)
        item = _ITEM.match(bare)
        if item is not None:
            number, step = int(item[1] or item[2]), item[1] is not None
            follows = in_section > 0 and number == in_section + 1
            if not section or (not follows and (number > last > 0 or (step and not last))):
                return i
            in_section = number
            continue
        if not bare.strip():
            if not section:
                return i
            continue
        heading = line.lstrip().startswith(("**", "#")) and leaks(line) is None
        if in_section:  # the section may judge steps of its own, so only the heading of another part ends it
            if (heading or _HEADING.match(bare)) and not _GOOD.match(bare.partition(":")[2]):
                return i
        elif heading or _HEADING.match(bare) or (_JUDGES.search(bare) and leaks(line) is None):
            return i
        if not section and _BULLET.match(line):
            return i
    return len(lines)


def _sentences(line: str) -> str | None:
    """`line` without the sentences, or ends of sentences, that name a reference; None if nothing is left."""
    line = _PARENTHESIS.sub(_parenthesis, line)
    pieces = _SENTENCE.split(line)
    kept = ""
    for i in range(0, len(pieces), 2):
        piece = pieces[i] if leaks(pieces[i]) is None else _clause(pieces[i])
        if piece is not None:
            kept += piece + (pieces[i + 1] if i + 1 < len(pieces) else "")
    bare = _without_markup(kept)
    if not re.search(r"\w", bare) or re.fullmatch(r"\W*(?:[\w ]{1,40}:)?\W*", bare):
        return None
    for mark in ("**", "__"):
        if kept.count(mark) % 2 and not line.count(mark) % 2:
            kept = kept.replace(mark, "")
    return kept.rstrip()


def _parenthesis(m: re.Match[str]) -> str:
    if leaks(m[0]) is None:
        return m[0]
    clause = _clause(m[1])
    return "" if clause is None else f"{m[0][: m[0].index('(')]}({clause.rstrip('.')})"


def _clause(sentence: str) -> str | None:
    """The beginning of a sentence that can stand alone and does not name a reference; None if there is none."""
    end = sentence.find(leaks(sentence) or "")
    for m in reversed(list(_BOUND.finditer(sentence, 0, end))[-SHORT:]):
        head = sentence[: m.start()].rstrip(" ,;:")
        bare = _without_markup(head)
        if leaks(head) is None and _VERB.search(bare) and not _INCOMPLETE.search(bare):
            return head.rstrip(".") + "." + "**" * (head.count("**") % 2)
    return None


def _tidied(lines: Sequence[str | None]) -> str:
    """The remaining lines, without headings whose content was removed and without runs of blank lines."""
    kept: list[str] = []  # from the last line to the first
    empty = True  # the next line below that is not blank is a heading, or there is none
    removed = False  # a line below, up to that one, was removed
    for line in reversed(lines):
        if line is None:
            removed = True
            continue
        bare = _without_markup(line).strip()
        heading = len(bare) < 60 and _TITLE.match(line.strip()) is not None and not _JUDGEMENT.search(bare.rstrip(":"))
        if heading and empty and removed:
            continue
        if bare:
            empty, removed = heading, False
        kept.append(line)
    return re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", "\n".join(reversed(kept))).strip("\n")
