r"""Medicine: multiple choice questions, a grader that reads the choice by its letter or its content, and a rule that
divides free-text reasoning into steps.

A row has the question, the options by letter, and the letter of the right one, as in MedQA:

    {"question": "...", "options": {"A": "Aspirin", "B": "Heparin"}, "answer_idx": "B"}

The grader reads what follows the last "answer is", "Answer:" or \boxed. These count as a choice: a letter ("(B)", "B.",
"option B"), the whole text of an option, or both. The letter is the key by which votes are counted.

- INCORRECT: another option, a letter that is no option, no answer at all.
- UNGRADABLE: two options ("B or C"), a letter with the text of another option, an option that is denied ("not B"), and
  words that are no option's, since they may mean the right one ("acetylsalicylic acid" for "Aspirin").

    stepmark run examples/medical.yaml
"""

import re
from dataclasses import dataclass, field

from stepmark.data import rows
from stepmark.errors import ConfigError
from stepmark.types import Grade, Problem, Quarantined, Verdict

SPLITS = ("train", "test")

# A step begins after a sentence, or on a new line. These end no sentence, nor does the number of a list.
SHORT = ("Dr", "Mr", "Mrs", "Ms", "St", "vs", "approx", "resp", "e.g", "i.e", "cf", "i.v", "p.o", "i.m", "s.c")
NO_END = r"(?<!^\d\.)" + "".join(rf"(?<!\b{re.escape(s)}\.)" for s in SHORT)
STEPS = rf"re:(?m)(?<=[.!?]){NO_END}[ \t]+(?=[A-Z0-9(\"'])|\n\s*"

CUE = re.compile(r"\banswer\b(?:\s+(?:is|was|(?:would|should|must)\s+be)\b|\s*:)|\\boxed\b", re.IGNORECASE)
MARKUP = re.compile(r"[*_`$#{}\[\]]|\\[a-zA-Z]*")
LETTER = re.compile(
    r"[\s:(]*(?:(?:the\s+)?(?:[Oo]ption|[Cc]hoice)\s*\(?)?([A-Z])"
    r"(?=\s*(?:$|[).,:;(]|because\b|since\b|as\b)|\s+[-–—]\s)"
)
ANOTHER = re.compile(r"[\s).:;]*(?:,|or\b|and\b)[\s(]*([A-Z])\b")
NAME = re.compile(r"\.\s+[a-z]")  # goes on after a letter that abbreviates a name: "E. coli"
DENIED = re.compile(r"\b(?:not|neither|nor|never|except|unless|rather|or|either)\b")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Cases:
    """The task. A directory with a file for each split, such as train.jsonl; other endings as for the task jsonl."""

    path: str
    options: str = "options"  # the field with the options: a mapping from letter to text, or a list of texts
    answer: str = "answer_idx"  # ... with the letter of the right one
    solution: str = "solution"  # ... with a worked solution, which a row may lack
    grader: str = field(default=__file__, init=False)
    steps: str = field(default=STEPS, init=False)

    def load(self, split, limit=None):
        if split not in SPLITS:
            raise ConfigError(f"medical has no split {split!r}. It has: {', '.join(SPLITS)}.")
        fields = (rows.QUESTION, rows.Field(self.answer), rows.Field(self.solution, required=False))
        return rows.problems(rows.read(self.path, fields, split=split), self._problem, limit)

    def _problem(self, row):
        given = row.values.get(self.options)
        if isinstance(given, list):
            given = {chr(ord("A") + i): text for i, text in enumerate(given)}
        good = isinstance(given, dict) and all(
            isinstance(text, str) and text.strip() and re.fullmatch("[A-Z]", letter) for letter, text in given.items()
        )
        answer = row.text[self.answer].strip()
        if not good or answer not in given:
            reason = f"field {self.options!r}: needs a text for each letter, with the answer {answer!r} among them"
            return Quarantined(row.file, row.line, reason)
        listed = "\n".join(f"({letter}) {' '.join(text.split())}" for letter, text in given.items())
        solution = row.text[self.solution]
        return Problem(row.id, f"{row.text['question'].strip()}\n{listed}", answer, "medical", solution, solution)


@dataclass(frozen=True)
class Choice:
    """The grader. It finds the options in the question: lines such as "(B) Heparin" at its end."""

    def grade(self, text, problem):
        options = options_of(problem.question)
        if problem.answer.strip() not in options:
            return Grade(Verdict.UNGRADABLE, "the question's options don't have the reference answer")
        cues = list(CUE.finditer(text))
        if not cues:
            return Grade(Verdict.INCORRECT, "no answer found")
        stated = text[cues[-1].end() :][:500].strip()
        letter, why = chosen(stated, options)
        if letter is None:
            return Grade(Verdict.UNGRADABLE, why)
        verdict = Verdict.CORRECT if letter == problem.answer.strip() else Verdict.INCORRECT
        return Grade(verdict, why, letter)


def options_of(question):
    """Letter -> text of the options that end a question."""
    return dict(re.findall(r"^\(([A-Z])\) (.*)$", question, re.MULTILINE))


def chosen(stated, options):
    """The letter that a stated answer chooses, or None; and the reason, in words."""
    plain = next((line for line in MARKUP.sub(" ", stated).split("\n") if line.strip()), "")
    excerpt = repr(plain.strip()[:60])
    named, lone = _named(plain, options), LETTER.match(plain)
    if lone:
        letter, beside = lone[1], _named(plain[lone.end() :], options)
        if letter in beside:
            return letter, f"it says {letter} and its text"
        if beside:
            return None, f"it says {letter} with the text of {' and '.join(beside)}"
        if not named:  # otherwise an option's text begins with the letter: "E. coli"
            another = ANOTHER.match(plain, lone.end())
            if another and another[1] in options:
                return None, f"it names the options {letter} and {another[1]}"
            if NAME.match(plain, lone.end()):
                return None, f"{letter} may begin a name: {excerpt}"
            return letter, f"it says {letter}"
    if len(named) != 1:
        return None, f"it names {'the options ' + ' and '.join(named) if named else 'no option'}: {excerpt}"
    [letter] = named
    if DENIED.search(_words(plain).replace(_words(options[letter]), " ")):
        return None, f"it names {letter} with words that may deny it: {excerpt}"
    return letter, f"it says the text of {letter}"


def _named(text, options):
    """The letters of the options whose whole text is in `text`. Of two of which one holds the other ("aspirin" and
    "aspirin and heparin") the longer one is meant."""
    words = _words(text)
    found = {letter: content for letter, x in options.items() if (content := _words(x)).strip() and content in words}
    return [x for x, c in found.items() if not any(c != other and c in other for other in found.values())]


def _words(text):
    """The words of a text in lower case, each between spaces, so that whole words are compared."""
    return f" {' '.join(WORD.findall(text.casefold()))} "
