"""Sorting words, GenRM's second algorithmic task (arXiv 2408.15240): train on short lists, test on longer.

    Sort these words in alphabetical order: pear fig apple.
    Insert pear: pear.
    Insert fig: fig pear.
    Insert apple: apple fig pear.
    The answer is apple fig pear.

The steps are those of insertion sort, or each names the word of one position ("Next is apple."). Deviations: the paper
trains on 2 to 4 words and tests on 5. Here `test` has 4 words and `longer` has 5 and 6. Lists are drawn from about 600
common words. The paper's models have read long lists in pretraining; the split `pretrain` (for example with
pretrain_lengths=[2, 3, 4, 5]) gives ours the same. `noise` and `slips` plant errors in demonstrations, never in
references, and later lines build on them.

    stepmark sample --task word_sort --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stepmark.errors import ConfigError, DataError
from stepmark.text.words import comparison, wordlist
from stepmark.types import Problem, ProblemSet, Solution

QUESTION = "Sort these words in alphabetical order: {words}."
METHODS = ("insertion", "position")

_ASKED = re.compile(r"Sort these words in alphabetical order: ([a-z ]+)\.")
_LIST = r"(?P<list>[a-z]+(?:,? [a-z]+)*)"
_INSERT = re.compile(rf"Insert (?P<word>[a-z]+): {_LIST}\.?", re.IGNORECASE)
_NEXT = re.compile(r"(?:(?:Next|First|Then|Last) is |(?P<place>[0-9]{1,3})[.:)] )(?P<word>[a-z]+)\.?", re.IGNORECASE)
_ANSWER = re.compile(rf"(?:So )?(?:the )?(?:final )?answer(?: is|:) {_LIST}\.?", re.IGNORECASE)


@dataclass(frozen=True)
class WordSort:
    """The task. Its constructor raises ConfigError with all settings that are not allowed."""

    method: str = "insertion"  # form of the references: insertion or position; the oracle reads both
    train_lengths: Sequence[int] = (2, 3, 4)  # numbers of words in the lists of train
    test_lengths: Sequence[int] = (4,)  # ... of dev and test
    longer_lengths: Sequence[int] = (5, 6)  # ... of longer
    pretrain_lengths: Sequence[int] = ()  # ... of pretrain; () means the same as train
    train_size: int = 10_000  # problems in train, and in pretrain
    test_size: int = 1_000  # problems in each other split
    words: int | None = None  # number of different words; null means all
    noise: float = 0.0  # chance that a demonstration compares only first letters; equal ones keep their order
    slips: float = 0.0  # chance, at each step of a demonstration, that the word is inserted one place off
    # Share of pretrain's demonstrations that continue with "Again:", a solution without mistakes, and a comparison of
    # its answer with the answer above. They do not say which one is right. A small model learns from them to read far
    # back and to compare.
    threads: float = 0.0
    drills: float = 0.0  # share of pretrain's problems that are only a comparison
    seed: int = 0  # seed of the lists; splits stay disjoint across seeds
    grader: str = field(default="exact", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        faults = wordlist.settle(self)
        if self.method not in METHODS:
            faults.append(f"method={self.method!r}: allowed are {', '.join(METHODS)}.")
        if self.method != "insertion" and self._errs:
            faults.append("noise and slips: only demonstrations of method=insertion can have errors.")
        if faults:
            raise ConfigError([f"task word_sort: {fault}" for fault in faults])

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, pretrain, dev, test or longer. Raises ConfigError for another split."""
        lists = wordlist.load(self, "word_sort", split, limit)
        return ProblemSet(tuple(self._problem(split, i, words) for i, words in enumerate(lists)))

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step, True before the first wrong step and False from it on. "Insert w: ..." inserts a word of
        the question, in any order and each once, and lists all inserted words in order. "Next is w." and "3. w" name
        the word of the next position. Raises DataError for a question of another task."""
        flags: list[bool] = []
        for correct in _judge(_words_of(problem), solution.steps):
            flags.append(all(flags[-1:]) and correct)
        return tuple(flags)

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """A correct solution of the problem, then a comparison of its answer with the solution's. Raises DataError for
        a question of another task."""
        return "".join(f"{line}\n" for line in self._verification(_words_of(problem), solution.steps))

    def _verification(self, words: Sequence[str], steps: Sequence[str]) -> list[str]:
        """A correct solution, and a comparison of its answer with the answer in `steps`."""
        return [*self._lines(words)[:-1], comparison.compared(sorted(words), _stated_answer(steps))]

    def _lines(self, words: Sequence[str]) -> list[str]:
        if self.method == "insertion":
            lines = [f"Insert {w}: {' '.join(sorted(words[: i + 1]))}." for i, w in enumerate(words)]
        else:
            lines = [f"Next is {w}." for w in sorted(words)]
        return [*lines, f"The answer is {' '.join(sorted(words))}."]

    def _with_errors(self, words: Sequence[str], rng: random.Random) -> list[str]:
        """An insertion sort with errors; later lines build on them."""
        first_letters_only = rng.random() < self.noise  # the same comparison in the whole demonstration
        inserted: list[str] = []
        lines = []
        for word in words:
            position = sum(w[0] <= word[0] if first_letters_only else w < word for w in inserted)
            if inserted and rng.random() < self.slips:
                position += 1 if position == 0 or (position < len(inserted) and rng.random() < 0.5) else -1
            inserted.insert(position, word)
            lines.append(f"Insert {word}: {' '.join(inserted)}.")
        return [*lines, f"The answer is {' '.join(inserted)}."]

    def _problem(self, split: str, i: int, words: Sequence[str]) -> Problem:
        reference = "\n".join(self._lines(words))
        rng = random.Random(f"{self.seed}/{split}-{i}/noise")
        if split == "pretrain" and rng.random() < self.drills:
            answer = comparison.drill(words, words, rng)
            text = comparison.compared(words, answer)
            question = f"Compare {' '.join(words)} with {' '.join(answer)}."
            return Problem(f"{split}-{i}", question, "", "word_sort", text, text)
        has_thread = split == "pretrain" and rng.random() < self.threads
        lines = self._with_errors(words, rng) if self._errs else self._lines(words)
        return Problem(
            f"{split}-{i}",
            QUESTION.format(words=" ".join(words)),
            " ".join(sorted(words)),
            "word_sort",
            reference,
            comparison.thread(lines, self._verification(words, lines)) if has_thread else "\n".join(lines),
        )

    @property
    def _errs(self) -> bool:
        return bool(self.noise or self.slips)


def _judge(words: Sequence[str], steps: Sequence[str]) -> Iterator[bool]:
    """Whether each step is correct, given that all steps before it are."""
    ordered = sorted(words)
    inserted: list[str] = []
    placed = 0
    for step in steps:
        if m := _ANSWER.fullmatch(step):
            yield _list(m["list"]) == ordered
        elif m := _INSERT.fullmatch(step):
            word = m["word"].lower()
            is_new = word in words and word not in inserted
            inserted.append(word)
            yield is_new and _list(m["list"]) == sorted(inserted)
        elif m := _NEXT.fullmatch(step):
            placed += 1
            yield (
                placed <= len(ordered)
                and m["word"].lower() == ordered[placed - 1]
                and int(m["place"] or placed) == placed
            )
        else:
            yield False


def _list(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()


def _words_of(problem: Problem) -> list[str]:
    """The words in a question. Raises DataError for a question of another task."""
    match = _ASKED.fullmatch(problem.question)
    if not match:
        raise DataError(f"not a question of task word_sort: {problem.question!r}. It must match {QUESTION!r}.")
    return match[1].split()


def _stated_answer(steps: Sequence[str]) -> list[str]:
    """The words of the answer in the last step; [] if it states no answer."""
    m = _ANSWER.fullmatch(steps[-1]) if steps else None
    return _list(m["list"]) if m else []
