"""Last-letter concatenation, GenRM's first algorithmic task (arXiv 2408.15240): train on short lists, test on longer.

    Concatenate the last letters of these words: apple tree cat.
    Take apple: apple, e.
    Take tree: apple tree, e e.
    Take cat: apple tree cat, e e t.
    The answer is eet.

Deviations: the paper trains on 2 to 4 words and tests on 6; here `test` has 4 words, unseen in training, and
`longer` has 5 and 6. The paper's models have read long lists before; `pretrain` (pretrain_lengths=[2, 3, 4, 5, 6],
say) gives ours that. Lists come from some 600 common words. A word follows a space wherever it stands, letters are
spelled apart on the way, and each line repeats the words taken, so that a small model finds its place and has few
tokens to learn.

`noise` and `slips` plant errors in demonstrations, never in references, each carried on: a misconception that most
demonstrators have misleads a vote.

    stepmark sample --task last_letter --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase

from stepmark.errors import ConfigError, DataError
from stepmark.text.words import comparison, wordlist
from stepmark.types import Problem, ProblemSet, Solution

QUESTION = "Concatenate the last letters of these words: {words}."

_ASKED = re.compile(r"Concatenate the last letters of these words: ([a-z ]+)\.")
_Q = "[\"'`]?"  # quotes are neither needed nor wrong
_STEP = re.compile(
    rf"(?:the last letter of )?{_Q}(?P<word>[a-z]+){_Q} (?:ends (?:in|with)|is) {_Q}(?P<letter>[a-z]){_Q}"
    rf"(?:[,;]? so(?: far)?:? {_Q}(?P<far>[a-z]+){_Q})?\.?",
    re.IGNORECASE,
)
_TAKE = re.compile(
    rf"take {_Q}(?P<word>[a-z]+){_Q}: (?P<words>[a-z]+(?: [a-z]+)*)[,;:] {_Q}(?P<far>[a-z](?: ?[a-z])*){_Q}\.?",
    re.IGNORECASE,
)
_ANSWER = re.compile(rf"(?:so )?(?:the )?(?:final )?answer(?: is|:) {_Q}(?P<said>[a-z]+){_Q}\.?", re.IGNORECASE)


@dataclass(frozen=True)
class LastLetter:
    """The task. Raises ConfigError, at construction, with every setting that can't be."""

    train_lengths: Sequence[int] = (2, 3, 4)  # words in a list of train
    test_lengths: Sequence[int] = (4,)  # ... of dev and test
    longer_lengths: Sequence[int] = (5, 6)  # ... of longer
    pretrain_lengths: Sequence[int] = ()  # ... of pretrain; as in train unless given
    train_size: int = 10_000  # problems in train, and in pretrain
    test_size: int = 1_000  # problems in each other split
    words: int | None = None  # how many different words there are; null takes all
    distinct: bool = False  # True makes lists in which no two words end alike: then a letter says where it stands
    noise: float = 0.0  # chance that a demonstration takes a final e for silent, and the letter before it for the last
    slips: float = 0.0  # chance, at each other step of a demonstration, of another letter of the word
    # Share of pretrain's demonstrations in which, after "Again:", somebody who makes no mistakes works anew and
    # compares what comes out with the answer above; nobody says whether that is right. From these a small model learns
    # to read far back, and to compare.
    threads: float = 0.0
    drills: float = 0.0  # share of pretrain's problems that ask for nothing but a comparison
    seed: int = 0  # another seed, other lists; splits stay disjoint across seeds
    grader: str = field(default="exact", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        if found := wordlist.settle(self):
            raise ConfigError([f"task last_letter: {fault}" for fault in found])

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, pretrain, dev, test or longer. Raises ConfigError for another split."""
        lists = wordlist.load(self, "last_letter", split, limit, self._fits)
        return ProblemSet(tuple(self._problem(split, i, words) for i, words in enumerate(lists)))

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step, True up to the first wrong one and False from there on. A step takes the first words and
        gives their letters; or it names a word and its last letter, and may add the result so far, up to that word.
        Words may be left out or come in another order as long as what is said is true. Raises DataError if the question
        isn't of this task."""
        words = _asked(problem)
        letters = "".join(w[-1] for w in words)
        flags: list[bool] = []
        for step in solution.steps:
            if m := _ANSWER.fullmatch(step):
                right = m["said"].lower() == letters
            elif m := _TAKE.fullmatch(step):
                taken = m["words"].lower().split()
                far = m["far"].lower().replace(" ", "")
                right = taken == words[: len(taken)] and taken[-1] == m["word"].lower() and far == letters[: len(taken)]
            elif (m := _STEP.fullmatch(step)) and (word := m["word"].lower()) in words:
                far = letters[: words.index(word) + 1]
                right = m["letter"].lower() == word[-1] and (m["far"] or far).lower() == far
            else:
                right = False
            flags.append(all(flags[-1:]) and right)
        return tuple(flags)

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """The problem worked anew, then its answer beside the solution's. Raises DataError if the question isn't of
        this task."""
        return "".join(f"{line}\n" for line in _anew(_asked(problem), solution.steps))

    def _fits(self, words: Sequence[str]) -> bool:
        return not self.distinct or len({w[-1] for w in words}) == len(words)

    def _problem(self, split: str, i: int, words: Sequence[str]) -> Problem:
        reference = "\n".join(_lines(words))
        rng = random.Random(f"{self.seed}/{split}-{i}/noise")
        if split == "pretrain" and rng.random() < self.drills:
            letters = [w[-1] for w in words]
            said = comparison.drill(letters, ascii_lowercase, rng)
            text = comparison.compared(letters, said)
            asked = f"Compare {' '.join(letters)} with {''.join(said)}."
            return Problem(f"{split}-{i}", asked, "", "last_letter", text, text)
        thread = split == "pretrain" and rng.random() < self.threads
        lines = _lines(words, [self._read(w, rng) for w in words])
        return Problem(
            f"{split}-{i}",
            QUESTION.format(words=" ".join(words)),
            "".join(w[-1] for w in words),
            "last_letter",
            reference,
            comparison.thread(lines, _anew(words, lines)) if thread else "\n".join(lines),
        )

    def _read(self, word: str, rng: random.Random) -> str:
        """The last letter of a word as a demonstration has it."""
        if word[-1] == "e" and rng.random() < self.noise:
            return word[-2]
        return rng.choice(word[:-1]) if rng.random() < self.slips else word[-1]


def _lines(words: Sequence[str], letters: Sequence[str] = ()) -> list[str]:
    """A worked solution by these last letters; by the true ones unless given."""
    letters = letters or [w[-1] for w in words]
    lines = [f"Take {word}: {' '.join(words[:i])}, {' '.join(letters[:i])}." for i, word in enumerate(words, 1)]
    return [*lines, f"The answer is {''.join(letters)}."]


def _anew(words: Sequence[str], steps: Sequence[str]) -> list[str]:
    """The problem worked without mistakes, and a comparison with the answer that `steps` give."""
    return [*_lines(words)[:-1], comparison.compared([w[-1] for w in words], _said(steps))]


def _asked(problem: Problem) -> list[str]:
    """The words of a question."""
    asked = _ASKED.fullmatch(problem.question)
    if not asked:
        raise DataError(f"not a question of task last_letter: {problem.question!r}")
    return asked[1].split()


def _said(steps: Sequence[str]) -> list[str]:
    """The letters of the answer that the last of the steps gives; none without one."""
    m = _ANSWER.fullmatch(steps[-1]) if steps else None
    return list(m["said"].lower()) if m else []
