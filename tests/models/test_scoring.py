"""Shared parts of the verifier kinds: cards, batches and results."""

import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from stepmark.errors import CheckpointError
from stepmark.models import packing, scoring
from stepmark.models.encoding import Encoded, joint
from stepmark.plugins import verifier_card
from stepmark.stages.train import TrainSettings, train
from stepmark.types import Finish, Outcome
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

pytestmark = pytest.mark.robust

QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu")


@pytest.fixture(scope="module", params=[OutcomeVerifier, ProcessVerifier])
def trained(request, tiny, examples, tmp_path_factory):
    out = tmp_path_factory.mktemp("scoring") / "verifier"
    train(request.param(tiny, head="token", device="cpu"), examples, out, QUICK)
    return stepmark.load_verifier(out, device="cpu")


@pytest.mark.parametrize("tokens", [1, 300, 16384])
def test_a_score_depends_on_its_solution_alone(trained, examples, solve, monkeypatch, tokens):
    question = examples[0][0].question
    solutions = [x.solution for _, x in examples]
    solutions += [solve("a"), solve("b\n" * 20), solve("cut", finish=Finish.LENGTH), solve(""), solve("x = 1\n" * 90)]
    alone = [trained.verify(question, [s])[0] for s in solutions]
    monkeypatch.setattr(scoring, "SCORING_TOKENS", tokens)
    order = list(range(len(solutions)))
    random.Random(0).shuffle(order)
    for verification, i in zip(trained.verify(question, [solutions[i] for i in order]), order, strict=True):
        assert verification.solution_id == solutions[i].id
        assert verification.outcome is alone[i].outcome
        assert verification.scores == pytest.approx(alone[i].scores, abs=1e-5)
        assert verification.score == pytest.approx(alone[i].score, abs=1e-5)
    assert {v.outcome for v in alone} == {Outcome.SCORED, Outcome.TRUNCATED, Outcome.FAILED}
    assert trained.verify(question, []) == []


@pytest.mark.parametrize("room", [9, 10, 11])
def test_a_sequence_of_exactly_the_largest_length_is_scored(solve, room):
    def encode(s):
        return Encoded(tuple(range(10)), at=(9,))

    def read(batch):
        assert batch.ids.shape == (1, 10)
        return torch.tensor([0.25])

    [verification] = scoring.verify(
        [solve("a")], encode, read, aggregate="last", max_length=room, pad_id=0, device="cpu"
    )
    assert verification.outcome is (Outcome.TRUNCATED if room < 10 else Outcome.SCORED)
    assert verification.scores == (() if room < 10 else (0.25,))
    assert verification.tokens == (0 if room < 10 else 10)


def test_zero_is_a_valid_score(solve):
    """If zeros were dropped, the scores of later steps would shift."""
    values = torch.tensor([0.5, 0.0, 1.0, 0.0])
    [verification] = scoring.verify(
        [solve("a\nb\nc\nd")],
        lambda s: Encoded((1, 2, 3, 4), at=(0, 1, 2, 3)),
        lambda b: values,
        aggregate="min",
        max_length=9,
        pad_id=0,
        device="cpu",
    )
    assert verification.scores == (0.5, 0.0, 1.0, 0.0)
    assert verification.score == 0.0
    assert verification.outcome is Outcome.SCORED


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_score_fails_one_solution_only(solve, bad):
    solutions = [solve("a\nb", sample=i) for i in range(3)]
    verifications = scoring.verify(
        solutions,
        lambda s: Encoded((1, 2), at=(0, 1)),
        lambda b: torch.tensor([0.1, 0.2, 0.3, bad, 0.5, 0.6]),
        aggregate="min",
        max_length=9,
        pad_id=0,
        device="cpu",
    )
    assert [v.outcome for v in verifications] == [Outcome.SCORED, Outcome.FAILED, Outcome.SCORED]
    assert [v.scores for v in verifications] == [pytest.approx((0.1, 0.2)), (), pytest.approx((0.5, 0.6))]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 300)), max_size=30), st.data())
def test_passes_hold_every_sequence_once_and_read_what_is_common_once(kinds, data):
    """Texts after one of three questions, of which they repeat a part."""
    encoded = {}
    for i, (question, same, own) in enumerate(kinds):
        ids = (question,) * 40 + (7,) * same + tuple(data.draw(st.lists(st.integers(8, 9), min_size=own, max_size=own)))
        encoded[i] = Encoded(ids, at=(len(ids) - 1, 39), weights=(0.0,) * 40 + (1.0,) * (len(ids) - 40))
    passes = list(scoring.passes(encoded))
    assert sorted(i for group in passes for i in group) == list(range(len(kinds)))
    for group in passes:
        whole = joint([encoded[i] for i in group])
        assert len(group) == 1 or len(whole) <= scoring.SCORING_TOKENS
        # As few tokens as possible: one for each text with which some sequence begins.
        assert len(whole) == len({encoded[i].ids[: t + 1] for i in group for t in range(len(encoded[i]))})
        assert whole.longest == max(len(encoded[i]) for i in group)
        batch = packing.batch([[whole]], 0)
        places = iter(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
        for e in (encoded[i] for i in group):
            for t in e.at:
                row, column = next(places)
                seen = batch.mask[row, 0, column].nonzero()[:, 0]
                assert tuple(batch.ids[row, seen].tolist()) == e.ids[: t + 1]
                assert batch.positions[row, seen].tolist() == list(range(t + 1))
                assert tuple(batch.weights[row, seen].tolist()) == (0.0, *e.weights[1 : t + 1])
                assert batch.previous[row, seen[1:]].tolist() == seen[:-1].tolist()


def test_outputs_of_a_padded_row_are_those_of_the_row_alone(tiny):
    from stepmark.models import checkpoints

    model = checkpoints.load_model(tiny, device="cpu")
    short, long = Encoded(tuple(range(6, 16))), Encoded(tuple(range(6, 90)))
    with torch.inference_mode():
        both = scoring.outputs(model, packing.batch([[short], [long]], 0))
        plain = [
            model(input_ids=torch.tensor([e.ids]), output_hidden_states=True).hidden_states[-1] for e in (short, long)
        ]
    torch.testing.assert_close(both[:1, :10], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1:], plain[1], rtol=1e-4, atol=1e-5)


def test_a_card_comes_back(tmp_path):
    verifier_card.write_card(tmp_path, "prm", {"template": "Й {question}"}, {"tag": 3}, "abc")
    card = verifier_card.read_card(tmp_path)
    assert (card["kind"], card["options"], card["ids"]) == ("prm", {"template": "Й {question}"}, {"tag": 3})
    verifier_card.check_card(tmp_path, {"tag": 3, "new": 9}, "abc")
    with pytest.raises(CheckpointError, match="tag: trained 3, now 4"):
        verifier_card.check_card(tmp_path, {"tag": 4}, "abc")
    with pytest.raises(CheckpointError, match="another prompt template"):
        verifier_card.check_card(tmp_path, {"tag": 3}, "abd")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", json.dumps({"kind": "prm"}), "\udcff"])
def test_a_card_that_cannot_be_read(tmp_path, text):
    (tmp_path / "verifier.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="can't be read as a verifier's card"):
        verifier_card.read_card(tmp_path)


def test_no_card_is_no_verifier(tiny):
    with pytest.raises(CheckpointError, match=r"no verifier\.json.*stepmark train"):
        stepmark.load_verifier(tiny)
