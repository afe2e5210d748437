"""Last-letter concatenation, GenRM's first algorithmic task (arXiv 2408.15240): train on short lists, test on longer.

    Concatenate the last letters of these words: apple tree cat.
    Take apple: apple, e.
    Take tree: apple tree, e e.
    Take cat: apple tree cat, e e t.
    The answer is eet.

Deviations: the paper trains on 2 to 4 words and tests on 6. Here `test` has 4 words, in lists that training does not
have, and `longer` has 5 and 6. The paper's models have read long lists in pretraining; the split `pretrain` (for
example with pretrain_lengths=[2, 3, 4, 5, 6]) gives ours the same. Lists are drawn from about 600 common words. A word
always follows a space, letters are separated by spaces, and each line repeats the words so far, so that a small model
knows its position and has few tokens to learn.

`noise` and `slips` plant errors in demonstrations, never in references, and later lines build on them. If most
demonstrations have the same misconception, voting is misled.

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
_Q = "[\"'`]?"  # quotes are optional
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
    """The task. Its constructor raises ConfigError with all settings that are not allowed."""

    train_lengths: Sequence[int] = (2, 3, 4)  # numbers of words in the lists of train
    test_lengths: Sequence[int] = (4,)  # ... of dev and test
    longer_lengths: Sequence[int] = (5, 6)  # ... of longer
    pretrain_lengths: Sequence[int] = ()  # ... of pretrain; () means the same as train
    train_size: int = 10_000  # problems in train, and in pretrain
    test_size: int = 1_000  # problems in each other split
    words: int | None = None  # number of different words; null means all
    distinct: bool = False  # True: no two words of a list have the same last letter, so a letter tells its position
    noise: float = 0.0  # chance, for a word that ends in e, that a demonstration takes the letter before the e
    slips: float = 0.0  # chance, at each other step of a demonstration, that it takes another letter of the word
    # Share of pretrain's demonstrations that continue with "Again:", a solution without mistakes, and a comparison of
    # its answer with the answer above. They do not say which one is right. A small model learns from them to read far
    # back and to compare.
    threads: float = 0.0
    drills: float = 0.0  # share of pretrain's problems that are only a comparison
    seed: int = 0  # seed of the lists; splits stay disjoint across seeds
    grader: str = field(default="exact", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        if faults := wordlist.settle(self):
            raise ConfigError([f"task last_letter: {fault}" for fault in faults])

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of train, pretrain, dev, test or longer. Raises ConfigError for another split."""
        lists = wordlist.load(self, "last_letter", split, limit, self._fits)
        return ProblemSet(tuple(self._problem(split, i, words) for i, words in enumerate(lists)))

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step, True before the first wrong step and False from it on. A step lists the first words with
        their letters; or it names a word and its last letter, and may add the result up to that word. Words may be left
        out or come in another order, as long as each step is true. Raises DataError for a question of another task."""
        words = _words_of(problem)
        letters = "".join(w[-1] for w in words)
        flags: list[bool] = []
        for step in solution.steps:
            if m := _ANSWER.fullmatch(step):
                correct = m["said"].lower() == letters
            elif m := _TAKE.fullmatch(step):
                prefix = m["words"].lower().split()
                letters_so_far = m["far"].lower().replace(" ", "")
                correct = (
                    prefix == words[: len(prefix)]
                    and prefix[-1] == m["word"].lower()
                    and letters_so_far == letters[: len(prefix)]
                )
            elif (m := _STEP.fullmatch(step)) and (word := m["word"].lower()) in words:
                letters_so_far = letters[: words.index(word) + 1]
                correct = m["letter"].lower() == word[-1] and (m["far"] or letters_so_far).lower() == letters_so_far
            else:
                correct = False
            flags.append(all(flags[-1:]) and correct)
        return tuple(flags)

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """A correct solution of the problem, then a comparison of its answer with the solution's. Raises DataError for
        a question of another task."""
        return "".join(f"{line}\n" for line in _verification(_words_of(problem), solution.steps))

    def _fits(self, words: Sequence[str]) -> bool:
        return not self.distinct or len({w[-1] for w in words}) == len(words)

    def _problem(self, split: str, i: int, words: Sequence[str]) -> Problem:
        reference = "\n".join(_lines(words))
        rng = random.Random(f"{self.seed}/{split}-{i}/noise")
        if split == "pretrain" and rng.random() < self.drills:
            letters = [w[-1] for w in words]
            answer = comparison.drill(letters, ascii_lowercase, rng)
            text = comparison.compared(letters, answer)
            question = f"Compare {' '.join(letters)} with {''.join(answer)}."
            return Problem(f"{split}-{i}", question, "", "last_letter", text, text)
        has_thread = split == "pretrain" and rng.random() < self.threads
        lines = _lines(words, [self._demonstrated_letter(w, rng) for w in words])
        return Problem(
            f"{split}-{i}",
            QUESTION.format(words=" ".join(words)),
            "".join(w[-1] for w in words),
            "last_letter",
            reference,
            comparison.thread(lines, _verification(words, lines)) if has_thread else "\n".join(lines),
        )

    def _demonstrated_letter(self, word: str, rng: random.Random) -> str:
        """The last letter of a word in a demonstration, perhaps with an error."""
        if word[-1] == "e" and rng.random() < self.noise:
            return word[-2]
        return rng.choice(word[:-1]) if rng.random() < self.slips else word[-1]


def _lines(words: Sequence[str], letters: Sequence[str] = ()) -> list[str]:
    """The lines of a solution with the given last letters; by default the true ones."""
    letters = letters or [w[-1] for w in words]
    lines = [f"Take {word}: {' '.join(words[:i])}, {' '.join(letters[:i])}." for i, word in enumerate(words, 1)]
    return [*lines, f"The answer is {''.join(letters)}."]


def _verification(words: Sequence[str], steps: Sequence[str]) -> list[str]:
    """A correct solution, and a comparison of its answer with the answer in `steps`."""
    return [*_lines(words)[:-1], comparison.compared([w[-1] for w in words], _stated_answer(steps))]


def _words_of(problem: Problem) -> list[str]:
    """The words in a question. Raises DataError for a question of another task."""
    match = _ASKED.fullmatch(problem.question)
    if not match:
        raise DataError(f"not a question of task last_letter: {problem.question!r}. It must match {QUESTION!r}.")
    return match[1].split()


def _stated_answer(steps: Sequence[str]) -> list[str]:
    """The letters of the answer in the last step; [] if it states no answer."""
    m = _ANSWER.fullmatch(steps[-1]) if steps else None
    return list(m["said"].lower()) if m else []
