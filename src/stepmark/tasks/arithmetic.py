"""Word problems in English, each step of which can be checked exactly: Stepmark's own benchmark.

    Ann has 5 apples. Ben has 4 fewer than Ann. Cat has 2 times as many as Ben. How many apples does Cat have?
    Ben has 5 - 4 = 1.
    Cat has 1 * 2 = 2.
    The answer is 2.

It replaces GSM8K because it has the truth about each step, against which Monte-Carlo labels can be measured.
Math-Shepherd (arXiv 2312.08935, section 4.4) labels 160 steps of GSM8K by hand for this. Numbers are small and always
follow a space, and people come in a fixed order: a model of a few hundred thousand parameters learns that from a few
million tokens, but not digits, and not which random name has which number.

Splits: train, dev, test (3 to 5 steps), hard (longer chains), unseen (the lengths of train, other wording).
A hash of a problem's numbers and operations decides which split it belongs to, so no two splits share a problem,
whatever the seeds and settings. Within a split all problems are distinct.

`noise` plants misconceptions in `Problem.demonstration` (the generator's training data), never in `reference`:
"fewer" read as "more", "3 times as many" read as "3 more". If most demonstrations have them, voting is misled. The
questions do not depend on `noise`. A demonstration in which an error leads to a number outside 0..max_value is drawn
again, so such errors are a little rarer than their nominal rate.

    stepmark sample --task arithmetic --split test --model generator/ --out solutions.jsonl
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

from stepmark.errors import ConfigError, DataError
from stepmark.text.words.comparison import compared, thread
from stepmark.types import Problem, ProblemSet, Solution

NAMES = ("Ann", "Ben", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida")
ITEMS = {"apples": "apple", "books": "book", "coins": "coin", "shells": "shell"}
LONGEST = len(NAMES) - 1  # steps: one person per step and one to start from

SIGNS = {"more": "+", "fewer": "-", "times": "*"}
MISREAD_AS = {"fewer": "more", "times": "more"}

# kind of sentence -> its wordings. The split "unseen" uses all but the first one, the other splits use the first one.
# The same table serves to write and to read questions. Every number follows a space.
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "start": ("{b} has {k} {items}.", "{b} owns {k} {items}.", "There are {k} {items} with {b}."),
    "more": ("{b} has {k} more than {a}.", "{b} owns {k} over what {a} has.", "Compared to {a}, {b} has {k} extra."),
    "fewer": ("{b} has {k} fewer than {a}.", "{b} owns {k} less than {a} does.", "Compared to {a}, {b} is {k} short."),
    "times": (
        "{b} has {k} times as many as {a}.",
        "{b} owns {k} times what {a} has.",
        "Compared to {a}, {b} has {k} times the number.",
    ),
    "ask": (
        "How many {items} does {b} have?",
        "What number of {items} does {b} own?",
        "Find the number of {items} with {b}.",
    ),
}
# split -> its range of the hash, in hundredths
SHARES = {"train": (0, 60), "dev": (60, 70), "test": (70, 80), "hard": (80, 90), "unseen": (90, 100)}

RIGHT, MISCONCEPTION, SLIP, OPERAND, OTHER = "right", "misconception", "slip", "operand", "other"


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one person's number follows from another's."""

    op: str  # a key of SIGNS
    person: str  # the other person
    k: int  # the operand: how many more or fewer, or how many times

    def apply(self, value: int) -> int:
        return {"more": value + self.k, "fewer": value - self.k, "times": value * self.k}[self.op]


@dataclass(frozen=True, slots=True)
class _Facts:
    """The content of a question, with the true numbers."""

    rules: Mapping[str, _Rule]  # by person; the first person has none
    values: Mapping[str, int]  # every person's true number
    asked: str  # the person whose number is the answer
    items: str  # the things that are counted, plural


@dataclass(frozen=True)
class Arithmetic:
    """The task. Its constructor raises ConfigError with all settings that are not allowed."""

    steps_min: int = 0  # shortest chain, in steps, 2 to 8; 0 takes 3, or a smaller steps_max
    steps_max: int = 0  # longest chain of all splits but hard, which goes to 8; 0 takes 5, or a larger steps_min
    noise: float = 0.0  # chance that a demonstration misreads a step of a kind in `misread`; 0 plants no errors at all
    misread: Sequence[str] = ("fewer", "times 3")  # kinds of steps that may be misread: fewer, times, or with a number
    consistent: bool = False  # True draws a misreading once per problem and kind, False at each step
    slips: float = 0.04  # chance, if noise > 0, that a step that is not misread states a result off by one or two
    # Chance, if noise > 0, that a step that is not misread and has no slip takes another person's number
    wrong_operands: float = 0.04
    # Share of train's demonstrations that continue with "Again:", a solution without mistakes, and a comparison of its
    # numbers with those above. They do not say which are right. A small model learns from them to compare.
    threads: float = 0.0
    seed: int = 0  # seed of the problems; splits stay disjoint across seeds
    max_value: int = 0  # every number is in 0..max_value, also in demonstrations; 0 takes 60, or a larger start_max
    start_max: int = 0  # the first person has 2..start_max; 0 takes 20, or a smaller max_value
    amount_max: int = 9  # "more" and "fewer" are by 1..amount_max
    times_max: int = 3  # "times" is by 2..times_max
    weight_more: float = 1.0  # relative frequencies of the operations
    weight_fewer: float = 1.0
    weight_times: float = 1.0
    names: str = "ordered"  # "ordered": Ann, Ben, Cat, ...; "random": in any order (much harder to learn)
    train_size: int = 20_000  # problems in train
    test_size: int = 1_000  # problems in each other split
    grader: str = field(default="numeric", init=False)
    steps: str = field(default="line", init=False)

    def __post_init__(self) -> None:
        # A recipe gives a list, but a command line may give a single word.
        object.__setattr__(self, "misread", (self.misread,) if isinstance(self.misread, str) else tuple(self.misread))
        self._check_types()
        self._fill()
        kinds = set(MISREAD_AS) | {f"{op} {k}" for op in MISREAD_AS for k in range(1, 100)}
        checks = [
            (
                2 <= self.steps_min <= self.steps_max <= LONGEST,
                f"steps_min={self.steps_min}, steps_max={self.steps_max}: "
                f"need 2 <= steps_min <= steps_max <= {LONGEST}.",
            ),
            *(
                (0 <= rate <= 1, f"{name}={rate}: a chance must be between 0 and 1.")
                for name, rate in (
                    ("noise", self.noise),
                    ("slips", self.slips),
                    ("wrong_operands", self.wrong_operands),
                    ("threads", self.threads),
                )
            ),
            (
                set(self.misread) <= kinds,
                f"misread={list(self.misread)}: allowed are 'fewer', 'times', and either with a number, as 'times 3'.",
            ),
            (
                self.max_value >= 10 and 2 <= self.start_max <= self.max_value,
                f"start_max={self.start_max}, max_value={self.max_value}: "
                "need max_value >= 10 and 2 <= start_max <= max_value.",
            ),
            (
                self.amount_max >= 1 and self.times_max >= 2,
                f"amount_max={self.amount_max}, times_max={self.times_max}: need amount_max >= 1 and times_max >= 2.",
            ),
            (
                min(self._weights.values()) >= 0 and max(self._weights.values()) > 0,
                "weight_more, weight_fewer, weight_times: none may be negative and one must be positive.",
            ),
            (self.names in ("ordered", "random"), f"names={self.names!r}: allowed are 'ordered' and 'random'."),
            (self.train_size >= 1 and self.test_size >= 1, "train_size and test_size: at least 1."),
        ]
        if faults := [f"task arithmetic: {message}" for good, message in checks if not good]:
            raise ConfigError(faults)

    def _fill(self) -> None:
        """Limits that are not set fit those that are."""
        low, high, most, start = self.steps_min, self.steps_max, self.max_value, self.start_max
        filled = {"steps_min": low or min(3, high or 3), "steps_max": high or max(5, low)}
        filled |= {"max_value": most or max(60, start), "start_max": start or min(20, most or 20)}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        allowed: dict[type, tuple[tuple[type, ...], str]] = {
            bool: ((bool,), "true or false is needed"),
            int: ((int,), "a whole number is needed"),
            float: ((int, float), "a number is needed"),
        }
        typed_fields = [
            (f.name, getattr(self, f.name), *allowed[type(f.default)])
            for f in fields(self)
            if type(f.default) in allowed
        ]
        if faults := [
            f"task arithmetic: {name}={value!r}: {need}."
            for name, value, types, need in typed_fields
            if type(value) not in types
        ]:
            raise ConfigError(faults)

    @property
    def _weights(self) -> dict[str, float]:
        return {"more": self.weight_more, "fewer": self.weight_fewer, "times": self.weight_times}

    def load(self, split: str, limit: int | None = None) -> ProblemSet:
        """The first `limit` problems of the split. Raises ConfigError for an unknown split, or if the settings allow
        too few distinct problems."""
        if split not in SHARES:
            raise ConfigError(f"task arithmetic has no split {split!r}. It has: {', '.join(SHARES)}.")
        if split == "hard" and self.steps_max == LONGEST:
            raise ConfigError(
                f"task arithmetic: no chain is longer than steps_max={LONGEST}; lower it to have a split 'hard'."
            )
        size = self.train_size if split == "train" else self.test_size
        return ProblemSet(tuple(self._problems(split, size if limit is None else min(limit, size))))

    def judge_steps(self, problem: Problem, solution: Solution) -> tuple[bool, ...]:
        """One flag per step, True before the first wrong step and False from it on.

        A step is correct if it states a person's number or the answer, and every side of its equation is true and
        follows from the question: "Ben has 5 - 4 = 1", "Ben has 1 apple", "So Cat has 2 x (5 - 4) = 2". Steps may come
        in any order, may be left out or merged, and `+` and `*` commute. A step that can't be read is wrong. All steps
        after a wrong step are wrong, even if a line is true by itself, because they build on a wrong number. Raises
        DataError for a question of another task."""
        facts = _read(problem.question)
        flags: list[bool] = []
        for step in solution.steps:
            flags.append(all(flags[-1:]) and _judge(step, facts) == RIGHT)
        return tuple(flags)

    def error_kind(self, problem: Problem, solution: Solution) -> str | None:
        """The kind of the first error: "misconception" (the rule read as in MISREAD_AS), "slip" (correct expression,
        wrong result), "operand" (correct operation on a wrong number) or "other"; None if all steps are correct."""
        facts = _read(problem.question)
        return next((kind for step in solution.steps if (kind := _judge(step, facts)) != RIGHT), None)

    def rationale(self, problem: Problem, solution: Solution) -> str:
        """A correct solution, then a comparison of its numbers with the solution's, person by person, and of the
        answers. Raises DataError for a question of another task."""
        return "".join(f"{line}\n" for line in _verification(_read(problem.question), solution.steps))

    def _problems(self, split: str, count: int) -> Iterator[Problem]:
        seen: set[str] = set()
        for i in range(count):
            rng = random.Random(f"{self.seed}/{split}/{i}")
            for _ in range(20_000):
                start, moves = self._draw(rng, split)
                skeleton = f"{start} " + " ".join(f"{SIGNS[op]}{k}" for op, k in moves)
                if skeleton not in seen and _belongs_to(split, skeleton):
                    break
            else:
                raise ConfigError(
                    f"task arithmetic: these settings allow only about {i} distinct problems in split {split!r}, and "
                    f"{count} were asked for. Ask for fewer (limit, train_size, test_size) or allow longer chains."
                )
            seen.add(skeleton)
            yield self._write(f"{split}-{i}", split, start, moves, rng)

    def _draw(self, rng: random.Random, split: str) -> tuple[int, list[tuple[str, int]]]:
        """The first person's number and the (operation, k) of each step. All values stay in 1..max_value."""
        hard = split == "hard"
        steps = (
            rng.randint(self.steps_max + 1, min(self.steps_max + 3, LONGEST))
            if hard
            else rng.randint(self.steps_min, self.steps_max)
        )
        start = value = rng.randint(2, self.start_max)
        moves: list[tuple[str, int]] = []
        for _ in range(steps):
            ks = {
                "more": range(1, min(self.amount_max, self.max_value - value) + 1),
                "fewer": range(1, min(self.amount_max, value - 1) + 1),
                # 2 * 2 = 2 + 2: misread as "2 more", it would be correct by luck
                "times": range(3 if value == 2 else 2, min(self.times_max, self.max_value // value) + 1),
            }
            weights = [w if ks[op] else 0.0 for op, w in self._weights.items()]
            if not any(weights):
                return self._draw(rng, split)
            op = rng.choices(list(self._weights), weights)[0]
            k = rng.choice(ks[op])
            moves.append((op, k))
            value = _Rule(op, "", k).apply(value)
        return start, moves

    def _write(self, id: str, split: str, start: int, moves: Sequence[tuple[str, int]], rng: random.Random) -> Problem:
        items = rng.choice(list(ITEMS))
        people = list(NAMES) if self.names == "ordered" else rng.sample(NAMES, len(NAMES))

        def sentence(kind: str, **slots: object) -> str:
            wordings = WORDINGS[kind]
            return (rng.choice(wordings[1:]) if split == "unseen" else wordings[0]).format(items=items, **slots)

        sentences = [sentence("start", b=people[0], k=start)]
        sentences += [sentence(op, a=people[i], b=people[i + 1], k=k) for i, (op, k) in enumerate(moves)]
        sentences.append(sentence("ask", b=people[len(moves)]))
        question = " ".join(sentences)

        value = start
        lines = []
        for person, (op, k) in zip(people[1:], moves, strict=False):
            result = _Rule(op, "", k).apply(value)
            lines.append(f"{person} has {value} {SIGNS[op]} {k} = {result}.")
            value = result
        reference = "\n".join([*lines, f"The answer is {value}."])
        demonstration = reference
        if self.noise > 0:
            noise_rng = random.Random(f"{self.seed}/{split}/{id}/noise")
            attempts = (self._with_errors(start, moves, people, noise_rng) for _ in range(100))
            demonstration = next((text for text in attempts if text is not None), reference)
        if split == "train" and random.Random(f"{self.seed}/{split}/{id}/threads").random() < self.threads:
            first = demonstration.split("\n")
            demonstration = thread(first, _verification(_read(question), first))
        return Problem(id, question, str(value), "arithmetic", reference, demonstration)

    def _with_errors(
        self, start: int, moves: Sequence[tuple[str, int]], people: Sequence[str], rng: random.Random
    ) -> str | None:
        """A demonstration with at most one planted error per step, on which later steps build; None if a number is
        outside 0..max_value."""
        values = [start]
        lines: list[str] = []
        misconceptions: dict[str, bool] = {}  # with `consistent`: kind of step -> whether it is misread
        for person, (op, k) in zip(people[1:], moves, strict=False):
            operand, slip, kind = values[-1], 0, next((m for m in (op, f"{op} {k}") if m in self.misread), None)
            other_values = [v for v in values[:-1] if v != operand]
            misled = kind is not None and rng.random() < self.noise
            if kind is not None and self.consistent:
                misled = misconceptions.setdefault(kind, misled)
            if misled:
                op = MISREAD_AS[op]
            elif rng.random() < self.slips:
                slip = rng.choice((-2, -1, 1, 2))
            elif rng.random() < self.wrong_operands and other_values:
                operand = rng.choice(other_values)
            result = _Rule(op, "", k).apply(operand) + slip
            if not 0 <= result <= self.max_value:
                return None
            lines.append(f"{person} has {operand} {SIGNS[op]} {k} = {result}.")
            values.append(result)
        return "\n".join([*lines, f"The answer is {values[-1]}."])


def _belongs_to(split: str, skeleton: str) -> bool:
    low, high = SHARES[split]
    return low <= int.from_bytes(hashlib.sha256(skeleton.encode()).digest()[:4]) % 100 < high


# --- reading a question, so that the oracle needs only the problem

_SLOTS = {"a": "[A-Z][a-z]+", "b": "[A-Z][a-z]+", "k": "[0-9]{1,9}", "items": "[a-z]+"}


def _pattern(wording: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_SLOTS[m[1]]})", re.escape(wording)))


_SENTENCES = [(kind, _pattern(wording)) for kind, wordings in WORDINGS.items() for wording in wordings]


@lru_cache(maxsize=4096)
def _read(question: str) -> _Facts:
    rules: dict[str, _Rule] = {}
    values: dict[str, int] = {}
    asked = items = ""
    for sentence in re.split(r"(?<=[.?])\s+", question.strip()):
        kind, slots = next(((kind, m.groupdict()) for kind, p in _SENTENCES if (m := p.fullmatch(sentence))), ("", {}))
        if kind == "start":
            values[slots["b"]] = int(slots["k"])
        elif kind in SIGNS and slots["a"] in values:
            rules[slots["b"]] = rule = _Rule(kind, slots["a"], int(slots["k"]))
            values[slots["b"]] = rule.apply(values[rule.person])
        elif kind == "ask" and slots["b"] in values:
            asked, items = slots["b"], slots["items"]
        else:
            raise DataError(f"not a question of task arithmetic: its oracle can't read {sentence!r} in {question!r}.")
    if not asked:
        raise DataError(f"not a question of task arithmetic: it asks for nobody's number: {question!r}.")
    return _Facts(rules, values, asked, items)


# --- writing a verification


def _verification(facts: _Facts, steps: Sequence[str]) -> list[str]:
    """A correct solution, and a comparison with the numbers in `steps`. The last word of the comparison is about the
    answer only, because a solution may have wrong steps and a correct answer."""
    chain = [facts.asked]
    while (rule := facts.rules.get(chain[-1])) is not None:
        chain.append(rule.person)
    people = chain[-2::-1]
    lines = []
    for person in people:
        rule = facts.rules[person]
        lines.append(f"{person} has {facts.values[rule.person]} {SIGNS[rule.op]} {rule.k} = {facts.values[person]}.")
    stated = dict[str, str]()
    for step in steps:
        if (m := _STATES.fullmatch(step)) and (number := _stated_number(m["said"], facts)):
            stated[m["who"]] = number
    m = _ANSWER.fullmatch(steps[-1]) if steps else None
    answer = (
        "nothing" if m is None else _stated_number(m["said"], facts) or " ".join(m["said"].removesuffix(".").split())
    )
    true_answer = str(facts.values[facts.asked])
    stated_people = [p for p in people if p in stated]
    true_numbers, stated_numbers = [str(facts.values[p]) for p in stated_people], [stated[p] for p in stated_people]
    return [*lines, compared([*true_numbers, true_answer], [*stated_numbers, answer], same=answer == true_answer)]


def _stated_number(text: str, facts: _Facts) -> str:
    """The number at the end of an equation; "" if there is none."""
    sides = _sides(text, facts.items)
    number = _number(sides[-1]) if sides else None
    return "" if number is None else f"{number:g}"


# --- judging one line, given that all lines before it are correct

_LEAD = r"(?:Step\s+[0-9]+\s*[:.]\s*|[0-9]+[.)]\s+)?(?:(?:So|Then|Thus|Hence|Therefore|Now|Next|Finally|And),?\s+)?"
_ANSWER = re.compile(
    rf"{_LEAD}(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is|\s*:|\s*=)|####)\s*(?P<said>.+)", re.IGNORECASE
)
_STATES = re.compile(rf"{_LEAD}(?P<who>[A-Z][a-z]+)\s*(?:\bhas\b|\bowns\b|\bgets\b|=|:)(?P<said>.+)")
_OPERATORS: Mapping[str, type[ast.operator]] = {"more": ast.Add, "fewer": ast.Sub, "times": ast.Mult}


def _judge(line: str, facts: _Facts) -> str:
    """RIGHT, or the kind of error in the line."""
    answer = _ANSWER.fullmatch(line)
    m = answer or _STATES.fullmatch(line)
    who = facts.asked if answer else m["who"] if m else ""
    sides = _sides(m["said"], facts.items) if m and who in facts.values else []
    result = _number(sides[-1]) if sides else None
    if result is None:  # no known person, no arithmetic, or no result
        return OTHER
    if all(_equals_number_of(s, who, facts) for s in sides):
        return RIGHT
    rule, first = facts.rules.get(who), sides[0]
    if rule is None or answer:
        return OTHER
    misread = _Rule(MISREAD_AS.get(rule.op, rule.op), rule.person, rule.k)
    if len(sides) == 1:  # a value without an expression: only a misconception can be recognised
        return MISCONCEPTION if result == misread.apply(facts.values[rule.person]) else OTHER
    if _follows(first, rule, facts):
        return SLIP
    if _value(first) != result:
        return OTHER
    if _follows(first, misread, facts):
        return MISCONCEPTION
    return OPERAND if isinstance(first, ast.BinOp) and isinstance(first.op, _OPERATORS[rule.op]) else OTHER


def _sides(equation: str, items: str) -> list[ast.expr]:
    """The sides of an equation such as "5 - 4 = 1 apple."; empty if one of them isn't plain arithmetic."""
    if len(equation) > 300:  # longer than any real step; a limit for the parser
        return []
    text = re.sub(rf"\b(?:{items}|{ITEMS.get(items, items)})\b", " ", equation.strip().removesuffix("."))
    text = re.sub(r"(?<=[\s0-9)])[x×·](?=[\s0-9(])", "*", text).replace("−", "-")
    sides: list[ast.expr] = []
    for side in text.split("="):
        if not re.fullmatch(r"[0-9.+\-*()\s]+", side):
            return []
        try:
            sides.append(ast.parse(" ".join(side.split()), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    return sides


def _number(node: ast.expr) -> int | float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return None if (positive := _number(node.operand)) is None else -positive
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None


def _value(node: ast.expr) -> int | float | None:
    """The value of an expression; None if it has anything but numbers, +, - and *."""
    if not isinstance(node, ast.BinOp):
        return _number(node)
    left, right = _value(node.left), _value(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    return left * right if isinstance(node.op, ast.Mult) else None


def _equals_number_of(node: ast.expr, who: str, facts: _Facts) -> bool:
    """Whether an expression is that person's number, or computes it as the question says."""
    if (number := _number(node)) is not None:
        return number == facts.values[who]
    return who in facts.rules and _follows(node, facts.rules[who], facts)


def _follows(node: ast.expr, rule: _Rule, facts: _Facts) -> bool:
    if not isinstance(node, ast.BinOp):
        return False
    pairs = [(node.left, node.right)] if rule.op == "fewer" else [(node.left, node.right), (node.right, node.left)]
    if isinstance(node.op, _OPERATORS[rule.op]):
        return any(_number(k) == rule.k and _equals_number_of(a, rule.person, facts) for a, k in pairs)
    if rule.op == "times" and isinstance(node.op, ast.Add):  # 3 times 4 written as 4 + 4 + 4
        terms = _terms(node)
        return len(terms) == rule.k and all(_number(t) == facts.values[rule.person] for t in terms)
    return False


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]
