"""Conditions on a solution's scores, as a person writes them: "min > 0.5 and steps <= 12".

A condition has comparisons of names and numbers, joined by and, or, not and parentheses. It is parsed into a tree that
is walked here; nothing in it is ever run as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stepmark.errors import ConfigError
from stepmark.evaluation.aggregate import AGGREGATES
from stepmark.types import Solution, Verification

Facts = Mapping[str, float]  # name -> number
LONGEST = 500  # characters; so none is nested too deeply to be walked

NAMES = {
    "min": "the lowest score of a step",
    "mean": "the mean of the steps' scores",
    "prod": "their product",
    "last": "the score of the last step",
    "score": "the solution's score, as the verifier aggregates it",
    "steps": "the number of steps",
    "tokens": "the tokens that the verifier read and wrote for the solution; 0 without a model",
    "characters": "the length of the solution",
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Condition:
    """A condition. Raises ConfigError for a text that is none; the message says what may stand there."""

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise ConfigError(f"a condition of {len(self.text):,} characters; at most {LONGEST:,} are allowed.")
        try:
            tree = ast.parse(self.text.strip(), mode="eval").body
            _truth(tree, dict.fromkeys(NAMES, 0.0))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            what = getattr(e, "msg", None) or str(e) or type(e).__name__
            raise ConfigError(
                f"the condition {self.text!r} can't be read: {what}. It has comparisons (<, <=, >, >=, ==, !=) of "
                f"numbers and of {', '.join(NAMES)}; and, or, not; parentheses. For example: min > 0.5 and steps <= 12"
            ) from None
        object.__setattr__(self, "_tree", tree)

    def __call__(self, facts: Facts) -> bool:
        """Whether it holds. `facts` has a number for each of NAMES."""
        return _truth(self._tree, facts)

    def failed(self, facts: Facts) -> str:
        """The parts that don't hold, of the parts that "and" joins; "" where it holds."""
        tree = self._tree
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        return "; ".join(ast.unparse(part) for part in parts if not _truth(part, facts))

    _tree: ast.expr = None  # type: ignore[assignment]  # made from `text`


def facts_of(verification: Verification, solution: Solution) -> dict[str, float]:
    """The facts of a solution that a verifier has scored, under NAMES."""
    scores = verification.scores
    aggregates = {name: float(how(scores)) if scores else 0.0 for name, how in AGGREGATES.items()}
    return aggregates | {
        "score": verification.score,
        "steps": float(len(solution.spans)),
        "tokens": float(verification.tokens),
        "characters": float(len(solution.text)),
    }


def _truth(node: ast.expr, facts: Facts) -> bool:
    """The truth of a part. Looks at all of it, so that a fault is found whatever the facts. Raises ValueError."""
    if isinstance(node, ast.BoolOp):
        truths = [_truth(value, facts) for value in node.values]
        return all(truths) if isinstance(node.op, ast.And) else any(truths)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _truth(node.operand, facts)
    if isinstance(node, ast.Compare):
        numbers = [_number(side, facts) for side in (node.left, *node.comparators)]
        truths = []
        for how, left, right in zip(node.ops, numbers, numbers[1:], strict=False):
            if type(how) not in _COMPARISONS:
                raise ValueError(f"{ast.unparse(node)!r} compares in another way")
            truths.append(_COMPARISONS[type(how)](left, right))
        return all(truths)
    raise ValueError(f"{ast.unparse(node)!r} is no comparison")


def _number(node: ast.expr, facts: Facts) -> float:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _number(node.operand, facts)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        if node.id not in facts:
            raise ValueError(f"there is no {node.id!r}")
        return facts[node.id]
    raise ValueError(f"{ast.unparse(node)!r} is neither a name nor a number")
