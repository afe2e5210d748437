"""Training options of the outcome verifier: scores at every token, the text itself, balanced grades."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.models import checkpoints, packing, scoring
from stepmark.types import Verdict
from stepmark.verifiers.orm import OutcomeVerifier

VERDICTS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(Verdict))), max_size=30)


@pytest.mark.parametrize("head", ["tag", "token"])
def test_every_token_covers_the_solution_only_and_scoring_stays_at_the_end(tiny, head, problems, labelled):
    verifier = OutcomeVerifier(tiny, head=head, every_token=0.5)
    p, example = labelled(problems[0], "3 + 4 = 7\nThe answer is 7.", [1.0, 1.0])
    encoded = verifier.encode_example((p, example))
    tokenizer = checkpoints.load_tokenizer(tiny)
    assert tokenizer.decode(encoded.ids[encoded.at[0] : -1]) == example.solution.text
    assert encoded.at == tuple(range(encoded.at[0], len(encoded)))
    assert encoded.targets == (1.0,) * len(encoded.at)
    plain = verifier.encode(p.question, example.solution)
    assert (plain.ids, plain.at) == (encoded.ids, (len(encoded) - 1,))


def test_the_text_that_is_learned_is_the_solution_not_the_question(tiny, problems, labelled):
    p, example = labelled(problems[0], "3 + 4 = 7\nThe answer is 7.", [1.0, 1.0])
    encoded = OutcomeVerifier(tiny, head="tag", language_weight=1.0).encode_example((p, example))
    counted = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w]
    assert checkpoints.load_tokenizer(tiny).decode(counted) == example.solution.text
    assert encoded.weights[-1] == 0.0  # the tag is inserted and never predicted


@given(given=VERDICTS)
def test_balance_keeps_as_many_right_as_wrong_of_each_question_in_their_order(problems, labelled, given):
    examples = [labelled(problems[q], "a", [1.0], verdict, sample=i) for i, (q, verdict) in enumerate(given)]
    kept = OutcomeVerifier("nowhere", balance=True).choose(examples)
    available = Counter((p.id, x.grade.verdict) for p, x in examples)
    counts = Counter((p.id, x.grade.verdict) for p, x in kept)
    for p in problems[:4]:
        fewer = min(available[p.id, Verdict.CORRECT], available[p.id, Verdict.INCORRECT])
        assert counts[p.id, Verdict.CORRECT] == counts[p.id, Verdict.INCORRECT] == fewer
    assert not any(verdict is Verdict.UNGRADABLE for _, verdict in counts)
    indices = [examples.index(x) for x in kept]
    assert indices == sorted(indices)
    assert OutcomeVerifier("nowhere").choose(examples) == examples


def test_the_loss_is_the_share_at_the_end_and_the_rest_among_the_other_tokens(tiny, problems, labelled):
    """Against the formula, token by token, and the same however the update is split."""
    share = 0.3
    verifier = OutcomeVerifier(tiny, head="tag", every_token=share)
    texts = [("3 + 4 = 7\nThe answer is 7.", Verdict.CORRECT), ("so 9.\nThe answer is 9.", Verdict.INCORRECT)]
    encoded = [verifier.encode_example(labelled(problems[i], t, [1.0, 0.0], v)) for i, (t, v) in enumerate(texts)]
    model = verifier.build().eval()
    good, bad = (checkpoints.load_tokenizer(tiny).convert_tokens_to_ids(t) for t in ("<good>", "<bad>"))
    ends, others = [], []
    for e in encoded:
        b = packing.batch([[e]], verifier.pad_id)
        logits = model.lm_head(scoring.outputs(model, b))[0, list(e.at)][:, [bad, good]]
        losses = -logits.log_softmax(-1)[:, int(e.targets[0])]
        ends.append(losses[-1])
        others.append(losses[:-1])
    expected = (1 - share) * torch.stack(ends).mean() + share * torch.cat(others).mean()
    totals = packing.Totals(scores=sum(len(e.at) for e in encoded), next_tokens=1.0, sequences=2)
    whole = verifier.loss(model, packing.batch([encoded], verifier.pad_id), totals)
    parts = sum(verifier.loss(model, packing.batch([[e]], verifier.pad_id), totals) for e in encoded)
    assert whole.item() == pytest.approx(expected.item(), abs=1e-5) == parts.item()
    with pytest.raises(ConfigError, match="every_token is a share"):
        replace(verifier, every_token=1.5)


def test_the_output_layer_where_a_token_counts_gives_the_loss_of_all_logits(tiny, problems, labelled):
    verifier = OutcomeVerifier(tiny, head="tag", language_weight=1.0)
    encoded = [
        verifier.encode_example(labelled(p, f"{i} pears.\nSo {i}.", [1.0, 1.0])) for i, p in enumerate(problems[:3])
    ]
    b = packing.batch([encoded[:2], encoded[2:]], verifier.pad_id)
    model = verifier.build().eval()
    hidden = scoring.outputs(model, b)
    selected = packing.next_token_loss_of(hidden, model.lm_head, b)
    assert selected.item() == pytest.approx(packing.next_token_loss(model.lm_head(hidden), b).item(), rel=1e-5)
    assert selected.item() > 0
