"""Budgets, and runs of consecutive indices."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data import ledger as ledgers
from stepmark.data.ledger import Budget, Spent, parse_budget
from stepmark.errors import ConfigError


@pytest.mark.parametrize(
    ("budget", "spent", "why"),
    [
        (Budget(rollouts=5), Spent(rollouts=5), "rollouts 5 of 5"),
        (Budget(tokens=10), Spent(prompt_tokens=6, tokens=4), "tokens 10 of 10"),
        (Budget(money=0.5), Spent(money=0.6), "money 0.6 of 0.5"),
        (Budget(hours=1, began=time.time() - 3601), Spent(), "hours 1"),
    ],
)
def test_each_limit_counts(budget, spent, why):
    assert why in budget.over(spent)
    assert Budget(1e9, 1e9, 1e9, 1e9).over(spent) is None
    assert budget.over(Spent(rollouts=4, tokens=9, money=0.4)) is None or budget.hours


def test_budgets_are_read_and_refused_with_all_faults():
    assert parse_budget([]) is None
    budget = parse_budget(["tokens=2e6", "money=5", "hours=1.5", "rollouts=10"])
    assert (budget.tokens, budget.money, budget.hours, budget.rollouts) == (2e6, 5, 1.5, 10)
    with pytest.raises(ConfigError) as e:
        parse_budget(["tokens=many", "monney=3", "hours", "=4"])
    text = str(e.value)
    assert [f"{bad!r}" in text for bad in ("tokens=many", "monney", "hours", "")] == [True] * 4
    for bad in ("tokens=0", "tokens=-1", "tokens=nan"):
        with pytest.raises(ConfigError, match="above 0"):
            parse_budget([bad])


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_indices_in_as_few_pieces_as_can_be(indices):
    pieces = list(ledgers.runs(sorted(indices)))
    assert [i for first, n in pieces for i in range(first, first + n)] == sorted(indices)
    assert all(n > 0 for _, n in pieces)
    assert all(a + n < b for (a, n), (b, _) in pairwise(pieces))
