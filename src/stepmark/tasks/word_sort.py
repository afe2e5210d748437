"""Sorting words, GenRM's second algorithmic task (arXiv 2408.15240): train on short lists, test on longer.

    Sort these words in alphabetical order: pear fig apple.
    Insert pear: pear.
    Insert fig: fig pear.
    Insert apple: apple fig pear.
    The answer is apple fig pear.

The steps are those of insertion, or name one position each ("Next is apple."). Deviations: the paper trains on 2 to 4
words and tests on 5; here `test` has 4 words and `longer` has 5 and 6. Lists come from some 600 common words. The
paper's models have read long lists before; `pretrain` (say pretrain_lengths=[2, 3, 4, 5]) gives a model of ours that.
`noise` and `slips` plant errors in demonstrations, never in references, each carried on.

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
    """The task. Raises ConfigError, at construction, with every setting that can't be."""

    method: str = "insertion"  # how references are worked: insertion or position; the oracle takes both
    train_lengths: Sequence[int] = (2, 3, 4)  # words in a list of train
    test_lengths: Sequence[int] = (4,)  # ... of dev and test
    longer_lengths: Sequence[int] = (5, 6)  # ... of longer
    pretrain_lengths: Sequence[int] = ()  # ... of pretrain; as in train unless given
    train_size: int = 10_000  # problems in train, and in pretrain
    test_size: int = 1_000  # problems in each other split
    words: int | None = None  # how many different words there are; null takes all
    noise: float = 0.0  # chance that a demonstration compares first letters only, so that others stay as they came
    slips: float = 0.0  # chance, at each step of a demonstration, that the word goes one place off
    # Share of pretrain's demonstrations in which, after "Again:", somebody who makes no mistakes works anew and
    # compares what comes out with the answer above; nobody says whether that is right. From these a small model learns
    # to read far back, and to compare.
    threads: float = 0.0
    drills: float = 0.0  # share of pretrain's problems that ask for nothing but a comparison
    seed: int = 0  # another seed, other lists; splits stay disjoint across seeds
    grader: str = field(default="exact", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        found = wordlist.settle(self)
        if self.method not in METHODS:
            found.append(f"method={self.method!r}: allowed are {', '.join(METHODS)}.")
        if self.method != "insertion" and self._errs:
            found.append("noise and slips: only demonstrations of method=insertion can have errors.")
        if found:
            raise ConfigError([f"task word_sort: {fault}" for fault in found])

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, pretrain, dev, test or longer. Raises ConfigError for another split."""
        lists = wordlist.load(self, "word_sort", split, limit)
        return ProblemSet(tuple(self._problem(split, i, words) for i, words in enumerate(lists)))

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step, True up to the first wrong one and False from there on. "Insert w: ..." takes a word of
        the question that wasn't inserted yet, in any order, and shows all inserted ones sorted; "Next is w." and
        "3. w" name the word of the next position. Raises DataError if the question isn't of this task."""
        flags: list[bool] = []
        for right in _judge(_asked(problem), solution.steps):
            flags.append(all(flags[-1:]) and right)
        return tuple(flags)

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """The problem worked anew, then its answer beside the solution's. Raises DataError if the question isn't of
        this task."""
        return "".join(f"{line}\n" for line in self._anew(_asked(problem), solution.steps))

    def _anew(self, words: Sequence[str], steps: Sequence[str]) -> list[str]:
        """The problem worked without mistakes, and a comparison with the answer that `steps` give."""
        return [*self._lines(words)[:-1], comparison.compared(sorted(words), _said(steps))]

    def _lines(self, words: Sequence[str]) -> list[str]:
        if self.method == "insertion":
            lines = [f"Insert {w}: {' '.join(sorted(words[: i + 1]))}." for i, w in enumerate(words)]
        else:
            lines = [f"Next is {w}." for w in sorted(words)]
        return [*lines, f"The answer is {' '.join(sorted(words))}."]

    def _misled(self, words: Sequence[str], rng: random.Random) -> list[str]:
        """An insertion with errors, each carried on."""
        lazy = rng.random() < self.noise  # one demonstrator, one way to compare
        done: list[str] = []
        lines = []
        for word in words:
            at = sum(w[0] <= word[0] if lazy else w < word for w in done)
            if done and rng.random() < self.slips:
                at += 1 if at == 0 or (at < len(done) and rng.random() < 0.5) else -1
            done.insert(at, word)
            lines.append(f"Insert {word}: {' '.join(done)}.")
        return [*lines, f"The answer is {' '.join(done)}."]

    def _problem(self, split: str, i: int, words: Sequence[str]) -> Problem:
        reference = "\n".join(self._lines(words))
        rng = random.Random(f"{self.seed}/{split}-{i}/noise")
        if split == "pretrain" and rng.random() < self.drills:
            said = comparison.drill(words, words, rng)
            text = comparison.compared(words, said)
            asked = f"Compare {' '.join(words)} with {' '.join(said)}."
            return Problem(f"{split}-{i}", asked, "", "word_sort", text, text)
        thread = split == "pretrain" and rng.random() < self.threads
        lines = self._misled(words, rng) if self._errs else self._lines(words)
        return Problem(
            f"{split}-{i}",
            QUESTION.format(words=" ".join(words)),
            " ".join(sorted(words)),
            "word_sort",
            reference,
            comparison.thread(lines, self._anew(words, lines)) if thread else "\n".join(lines),
        )

    @property
    def _errs(self) -> bool:
        return bool(self.noise or self.slips)


def _judge(words: Sequence[str], steps: Sequence[str]) -> Iterator[bool]:
    """Whether each step is right, given that all before it are."""
    ordered = sorted(words)
    inserted: list[str] = []
    placed = 0
    for step in steps:
        if m := _ANSWER.fullmatch(step):
            yield _list(m["list"]) == ordered
        elif m := _INSERT.fullmatch(step):
            word = m["word"].lower()
            new = word in words and word not in inserted
            inserted.append(word)
            yield new and _list(m["list"]) == sorted(inserted)
        elif m := _NEXT.fullmatch(step):
            placed += 1
            yield (
                placed <= len(ordered)
                and m["word"].lower() == ordered[placed - 1]
                and int(m["place"] or placed) == placed
            )
        else:
            yield False


def _list(said: str) -> list[str]:
    return said.lower().replace(",", " ").split()


def _asked(problem: Problem) -> list[str]:
    """The words of a question."""
    asked = _ASKED.fullmatch(problem.question)
    if not asked:
        raise DataError(f"not a question of task word_sort: {problem.question!r}")
    return asked[1].split()


def _said(steps: Sequence[str]) -> list[str]:
    """The words of the answer that the last of the steps gives; none without one."""
    m = _ANSWER.fullmatch(steps[-1]) if steps else None
    return _list(m["list"]) if m else []
