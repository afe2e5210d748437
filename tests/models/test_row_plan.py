"""The plan of rows: updates of the asked size, and passes that waste little and never pass their limit."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.models.row_plan import PASS, Rows

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=9)


def padded(rows, parts):
    return sum(len(part) * max(map(rows.width, part)) for part in parts)


@given(LENGTHS, st.integers(1, 6000) | st.just(0))
def test_passes_hold_each_row_once_within_the_limit_and_cost_least(lengths, most):
    rows = Rows(lengths, 256, 0)
    alone = [[i] for i in range(len(lengths))]
    parts = rows.passes(alone, most)
    assert sorted(row for part in parts for row in part) == alone
    for part in parts:
        assert not most or len(part) == 1 or padded(rows, [part]) <= most
    if len(parts) == 1:
        assert parts == [alone]  # in the given order
    ordered, n = sorted(alone, key=rows.width), len(alone)
    every = [
        [ordered[a:b] for a, b in zip((0, *cuts), (*cuts, n), strict=True)]
        for k in range(n)
        for cuts in combinations(range(1, n), k)
    ]
    allowed = [x for x in every if not most or all(len(p) == 1 or padded(rows, [p]) <= most for p in x)]
    best = min(padded(rows, x) + PASS * len(x) for x in allowed)
    assert padded(rows, parts) + PASS * len(parts) == best


@given(LENGTHS, st.integers(1, 5000), st.sampled_from([1.0, 0.5, 2.25]))
def test_updates_have_the_tokens_that_were_asked_for(lengths, tokens, epochs):
    """Also where sequences are longer than a row."""
    rows = Rows(lengths, 256, 3)
    updates = rows.updates(epochs, tokens)
    seen = sorted(i for update in updates for row in update for i in row)
    if epochs == 1.0:
        assert seen == list(range(len(lengths)))
    for update in updates:
        assert len(update) == 1 or sum(max(256, rows.width(row)) for row in update) <= tokens
    for here, after in pairwise(updates):
        if epochs == 1.0:  # nothing that would have fitted is left for the next one
            assert sum(max(256, rows.width(row)) for row in (*here, after[0])) > tokens


@pytest.mark.parametrize("most", [0, 3000])
def test_padding_of_mixed_lengths_is_small(most):
    """Of questions with their solutions as in GSM8K, and of verifications: many are longer than a row."""
    import numpy as np

    lengths = np.random.default_rng(0).lognormal(np.log(323), 0.35, 600).astype(int).tolist()
    rows = Rows(lengths, 256, 0)
    updates = rows.updates(1, 8192)
    whole = sum(padded(rows, rows.passes(update, most)) for update in updates)
    assert 1 - sum(lengths) / whole < 0.15
    assert 1 - sum(lengths) / padded(rows, updates) > 0.35  # a pass for each update
