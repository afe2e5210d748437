"""What a written verification has to be before anything learns from it: judged, closed, and free of the reference.

GenRM (Zhang et al., arXiv 2408.15240, section 3.2) has a model write rationales with a correct solution in sight and
keeps those whose verdict is what is known of the solution. Two things are added here:

- A rationale that says "Expected Answer" teaches a verifier to lean on what it won't see. `rewrite` takes such words
  out: whole sections and lines under such a label, sentences, or the end of a sentence ("and matches the expected
  answer"). A judgement under such a label stays without it ("Expected Answer: Correct." is "Correct."). Nothing is
  put in their place, so a "No" may lose its reason with the reference's figures. What is left has to say something
  about the solution, to say the same verdict and to name no reference; otherwise the rationale is dropped.
- A kept rationale ends in `prompts.VERDICT` and " Yes" or " No", and has that question nowhere else: a verifier that
  writes reaches the question once, and its answer is where the score is read.

A rationale that ran out of tokens is lost even where a verdict stands in it: what was cut off may have taken it back.
A copy of the reference that names no source is not found (verdicts.leaks).

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
LEAST = 5  # words that a verification has beside its verdict
SHORT = 8  # words that a line which only leads up to something, or only says "the same", has at the most
READER = Reader()

_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,9}\s*/?>")
_BOLD = re.compile(r"</?(?:b|strong)>")
_ASKED = re.compile(r"\bis\s+the\s+answer\s+correct\s*\??[\s*]*\(\s*yes\s*/\s*no\s*\)\s*\??[ ]*", re.IGNORECASE)
# Words of a line that does nothing but lead up to the verdict, or to a verdict's label
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
    """The rationale that `text` is, and why it is lost if it is. `correct` is what is known of the solution; None is
    nothing, and then no verdict is a mismatch. `leak` says what becomes of one that leans on a reference. A lost one
    keeps its text to be looked at, unless that leaks and `leak` isn't "keep"."""

    def lost(why: str, said: Said = Said.UNPARSED) -> Rationale:
        shown = text if leak == "keep" or leaks(text) is None else ""
        return Rationale(shown, str(said), source, why)

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
    if READER.read(whole).said is not said:  # its other verdicts count, now that the last one is like them
        return lost("unparsed")
    if leak == "keep" or leaks(whole) is None:
        return Rationale(whole, str(said), source)
    rewritten = _cleaned(whole, said) if leak == "rewrite" else None
    if rewritten is None:
        return lost("leak", said)
    return Rationale(rewritten, str(said), source, rewritten=True)


def closed(text: str, said: Said, reader: Reader = READER) -> str:
    """`text` up to its final verdict, then `prompts.VERDICT` with the answer `said` on a line of its own. Where that
    question comes earlier it is taken out and its answer left. A text without a verdict is taken whole. Raises
    ValueError when the text says the opposite, or `said` is no verdict."""
    text = _plain(text)
    reading = reader.read(text)
    if said is Said.UNPARSED or reading.said not in (said, Said.UNPARSED):
        raise ValueError(f"the text says {reading.said.value!r}, and is to be closed with {said.value!r}")
    head = text
    for _ in range(SHORT):  # the last verdict, and others like it right above
        if reading.said is not said or reading.start is None:
            break
        head = _led(head[: reading.start])
        reading = reader.read(head)
        if reading.span is None or re.search(r"\w", head[reading.span[1] :]):
            break
    head = "\n".join(line.rstrip() for line in _ASKED.sub("", head).split("\n")).strip("\n")
    return f"{head}\n{VERDICT}{YES if said is Said.YES else NO}".lstrip("\n")


def rewrite(text: str, reader: Reader = READER) -> str | None:
    """`text`, closed, without what leans on a reference; None where it has no verdict, or where what is left is no
    verification, says another verdict, or still leans on one."""
    said = reader.read(text).said
    if said is Said.UNPARSED:
        return None
    whole = closed(text, said, reader)
    if leaks(whole) is None:
        return whole if READER.read(whole).said is said else None
    return _cleaned(whole, said)


def _cleaned(whole: str, said: Said) -> str | None:
    """A closed text without its leaning parts; None where `rewrite` has none."""
    body, _, verdict = whole.rpartition("\n")
    body = _without(body)
    whole = f"{body}\n{verdict}"
    if READER.read(whole).said is not said:
        return None
    whole = closed(whole, said, READER)  # what is left may end in a verdict that stood above the leaning part
    return whole if leaks(whole) is None and _verifies(whole.rpartition("\n")[0]) else None


def _plain(text: str) -> str:
    """`text` with HTML's bold as stars, and without long runs of white space or of one sign: those say nothing, and
    patterns take their time with them."""
    lines = [re.sub(r"([^\S\n]{8})[^\S\n]+", r"\1", line.rstrip()) for line in _BOLD.sub("**", text).split("\n")]
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"([^\w\s])\1{40,}", lambda m: m[1] * 40, "\n".join(lines)))


def _led(head: str) -> str:
    """`head` without the words that lead up to the verdict which followed it."""
    fragment = head.rpartition("\n")[2]
    if fragment.strip():
        above = head[: len(head) - len(fragment)]
        left = _LEAD.sub("", fragment)
        if left == fragment:  # nothing taken: only marks that would have closed after the verdict
            left = re.sub(r"\s[*_\"'“‘(\[-]+\s*$", "", left)
        ends = [m.end() for m in _SENTENCE.finditer(left)]
        if ends and _LEADS.fullmatch(_bare(left[ends[-1] :])):  # "Therefore, the grade is"
            left = left[: ends[-1]]
        head = above + left
    while True:
        rest, _, line = head.rstrip().rpartition("\n")
        if not head.strip() or len(line.split()) > SHORT or not _LEADS.fullmatch(_bare(line)):
            return head.rstrip()
        head = rest


def _bare(line: str) -> str:
    """`line` with its markup blanked out, as long as it was."""
    return re.sub(r"[*_`#]", " ", _TAG.sub(lambda m: " " * len(m[0]), line))


# ---- taking out ----

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
_FOUND = r"\b(?:is|are|was|were)\s+(?:\w+\s+){0,2}(?:correct|incorrect|right|wrong|accurate|inaccurate|valid|invalid)\b"
_JUDGES = re.compile(
    rf"\b(?:the|this|these|all|both|each|every|that)\s+(?:\w+\s+){{0,2}}{_THING}s?\b.{{0,60}}?(?:{_FOUND}|\b(?:contains?|"
    rf"incorrectly|correctly|misses|fails|follows)\b)|\bsteps?\s+\d+.{{0,60}}{_FOUND}|^\W*(?:in)?correct\b",
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
_STANDS = re.compile(
    r"\b(?:is|are|was|were|has|have|had|should|contains?|follows?|gives?|\w*correctly|accurately|calculate[sd]?|"
    r"arrives?|reach(?:es)?|makes?|miss(?:es)?|fails?|adds?|subtracts?|multipl(?:y|ies)|divides?|uses?|states?|does|"
    r"assumes?|ignores?|confuses?|forgets?|takes?|finds?|says?|counts?|leaves?|yes|no|correct|incorrect|wrong)\b|=",
    re.IGNORECASE,
)
_HANGS = re.compile(
    r"\b(?:the|a|an|same|is|are|be|was|were|to|of|not|and|or|than|different|equal|with|from|far|such|consistent|identical"
    r"|both|as|that|in|does|do|has|have|should|equivalent|close|similar)\W*$",
    re.IGNORECASE,
)
_JUDGEMENT = re.compile(
    r"\b(?:in)?correct(?:ly)?\b|\bright\b|\bwrong(?:ly)?\b|\berror|\berroneous|\bmistake|\baccurate|\bvalid\b|"
    r"\binvalid\b|\bshould\s+(?:be|have)\b|\b(?:yes|no)\b|✓|✔|✅|✗|✘|❌",
    re.IGNORECASE,
)
_TITLE = re.compile(r"[^\n]*:[*_\s]*$|#|(\*\*|__)(?:(?!\1).)+\1$")  # a line that announces what follows


def _verifies(body: str) -> bool:
    """Whether a judgement stands in it, and more than that."""
    return len(re.findall(r"\w+", body)) >= LEAST and _JUDGEMENT.search(_bare(body)) is not None


def _without(body: str) -> str:
    """`body` without its leaning parts. None in the list below is a line taken out."""
    lines: list[str | None] = list(body.split("\n"))
    out: list[str | None] = []
    last, at = 0, 0  # number of the last step or item that was kept
    while at < len(lines):
        line = lines[at] or ""
        at += 1
        words = leaks(line)
        if words is None:
            item = _ITEM.match(_bare(line))
            last = int(item[1] or item[2]) if item else last
            out.append(line)
            continue
        bared = _PARENTHESIS.sub(_parenthesis, line)
        if (words := leaks(bared) or "") == "":
            out.append(bared)
            continue
        line = bared
        label = _label(line, words)
        if label is None:
            out.append(_sentences(line))
            continue
        before, value = label
        if not value.strip(" *_:`\"'") and (following := _next(lines, at)) is not None:
            heard = _judgement(lines[following] or "", alone=True)
            if heard is not None:
                out.append(before + heard)
                at = following + 1
                continue
        heard = _judgement(value)
        out.append(_joined(before, heard))
        if heard is None:
            end = _end(lines, at, last, section=not value.strip(" *_:`\"'"))
            out += [None] * (end - at)
            at = end
    return _tidied(out)


def _label(line: str, words: str) -> tuple[str, str] | None:
    """What stands before a label that names the reference, and after it; None where the words are no label's."""
    bare = _bare(line)
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
    """A judgement on the solution that stands where the reference was to stand; None where it is anything else.
    `alone`: the value has to begin with it."""
    plain = _bare(value).strip(" \"'.")
    if plain.lower() in _ALONE:
        return _ALONE[plain.lower()]
    if _SAME.match(plain) and len(plain.split()) <= SHORT:
        return "Correct."
    pieces = _SENTENCE.split(value)  # the first may be the reference's, the next the judgement: from there on
    for i in range(0, len(pieces), 2):
        piece = _bare(pieces[i]).strip(" \"'.")
        if _GOOD.match(piece) or (i == 0 and not alone and _JUDGES.search(piece)):
            rest = "".join(pieces[i:])
            return rest if leaks(rest) is None else _sentences(rest)
        if alone:
            return None
    marked = _MARKED.search(value)
    return None if marked is None or leaks(marked[0]) else f"({marked[1]})"


def _joined(before: str, heard: str | None) -> str | None:
    if heard is not None:
        return before + heard
    return before.rstrip() if len(re.findall(r"\w+", before)) > 1 else None


def _next(lines: Sequence[str | None], at: int) -> int | None:
    """Index of the next line that isn't blank."""
    return next((i for i in range(at, len(lines)) if (lines[i] or "").strip()), None)


def _end(lines: Sequence[str | None], at: int, last: int, section: bool) -> int:
    """Index of the first line that is no longer part of what a label began: of a section, or of the rest of a line's
    paragraph."""
    own = 0  # the last number of a list that the section has of its own
    for i in range(at, len(lines)):
        line = lines[i] or ""
        bare = _bare(line)
        item = _ITEM.match(bare)
        if item is not None:
            number, step = int(item[1] or item[2]), item[1] is not None
            follows = own > 0 and number == own + 1
            if not section or (not follows and (number > last > 0 or (step and not last))):
                return i
            own = number
            continue
        if not bare.strip():
            if not section:
                return i
            continue
        heading = line.lstrip().startswith(("**", "#")) and leaks(line) is None
        if own:  # its steps may be judged too: only what names another part ends it
            if (heading or _HEADING.match(bare)) and not _GOOD.match(bare.partition(":")[2]):
                return i
        elif heading or _HEADING.match(bare) or (_JUDGES.search(bare) and leaks(line) is None):
            return i
        if not section and _BULLET.match(line):
            return i
    return len(lines)


def _sentences(line: str) -> str | None:
    """`line` without the sentences, or ends of sentences, that lean on a reference; None where nothing is left."""
    line = _PARENTHESIS.sub(_parenthesis, line)
    pieces = _SENTENCE.split(line)
    kept = ""
    for i in range(0, len(pieces), 2):
        piece = pieces[i] if leaks(pieces[i]) is None else _clause(pieces[i])
        if piece is not None:
            kept += piece + (pieces[i + 1] if i + 1 < len(pieces) else "")
    if not re.search(r"\w", _bare(kept)) or re.fullmatch(r"\W*(?:[\w ]{1,40}:)?\W*", _bare(kept)):
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
    """The beginning of a sentence that can stand alone and leans on nothing; None where there is none."""
    end = sentence.find(leaks(sentence) or "")
    for m in reversed(list(_BOUND.finditer(sentence, 0, end))[-SHORT:]):
        head = sentence[: m.start()].rstrip(" ,;:")
        if leaks(head) is None and _STANDS.search(_bare(head)) and not _HANGS.search(_bare(head)):
            return head.rstrip(".") + "." + "**" * (head.count("**") % 2)
    return None


def _tidied(lines: Sequence[str | None]) -> str:
    """The lines that are left, without headings whose content was taken out and without rows of blank lines."""
    kept: list[str] = []  # from the last line to the first
    empty = True  # the next thing below is a heading, or the end
    gone = False  # something was taken out since
    for line in reversed(lines):
        if line is None:
            gone = True
            continue
        bare = _bare(line).strip()
        heading = len(bare) < 60 and _TITLE.match(line.strip()) is not None and not _JUDGEMENT.search(bare.rstrip(":"))
        if heading and empty and gone:
            continue
        if bare:
            empty, gone = heading, False
        kept.append(line)
    return re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", "\n".join(reversed(kept))).strip("\n")
