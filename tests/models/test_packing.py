"""Packing changes no result: rows, masks, and losses against plain transformers on one sequence at a time."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepmark.models import checkpoints, packing
from stepmark.models.encoding import Encoded, groups_to_learn, joint
from stepmark.models.packing import Totals
from stepmark.models.scoring import cross_entropy
from stepmark.stages.train import Generator
from stepmark.verifiers.orm import OutcomeVerifier
from stepmark.verifiers.prm import ProcessVerifier

pytestmark = pytest.mark.robust

TOTALS = Totals(7.0, 11.0, 3.0)  # arbitrary numbers; each part of the loss is divided by one of them
LENGTHS = st.lists(st.integers(1, 40), max_size=80)


@given(LENGTHS, st.integers(1, 50), st.randoms(use_true_random=False))
def test_every_sequence_is_in_one_row_with_room_for_it(lengths, room, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = packing.pack(lengths, order, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= room for row in rows)
    assert all(rows)


def test_rows_are_well_filled():
    lengths = np.random.default_rng(0).integers(20, 120, 500).tolist()
    rows = packing.pack(lengths, range(500), 256)
    assert sum(lengths) / (256 * len(rows)) > 0.9


def test_a_batch_by_hand():
    first = Encoded((5, 6, 7), at=(2,), targets=(0.9,), weights=(1.0, 1.0, 0.5))
    second = Encoded((8, 9), at=(0, 1), targets=(0.0, 1.0))
    b = packing.batch([[first, second], [second]], pad_id=3)
    assert b.ids.tolist() == [[5, 6, 7, 8, 9], [8, 9, 3, 3, 3]]
    assert b.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert (b.rows.tolist(), b.columns.tolist()) == ([0, 0, 0, 1, 1], [2, 3, 4, 0, 1])
    assert b.targets.tolist() == pytest.approx([0.9, 0.0, 1.0, 0.0, 1.0])
    assert b.targets.dtype == torch.float32
    assert b.weights.tolist() == [[0, 1, 0.5, 0, 0], [0] * 5]  # a first token has nothing before it
    sees = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert b.mask[0, 0].int().tolist() == sees
    assert b.mask[1, 0, :2].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert b.mask.any(-1).all()  # a row of the mask without any key would give NaN


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4))
def test_parts_of_one_encoded_are_batched_like_separate_sequences(rows):
    """Each list of lengths is one Encoded with that many parts."""
    number = iter(range(1, 10_000))

    def sequence(length):
        ids = tuple(next(number) for _ in range(length))
        return Encoded(ids, at=(length - 1, 0), targets=(0.25, 1.0), weights=tuple(0.5 + i for i in ids))

    def join(sequences):
        starts = np.cumsum([0, *(len(e) for e in sequences)]).tolist()
        return Encoded(
            tuple(i for e in sequences for i in e.ids),
            at=tuple(start + t for start, e in zip(starts, sequences, strict=False) for t in e.at),
            targets=tuple(t for e in sequences for t in e.targets),
            weights=tuple(w for e in sequences for w in e.weights),
            parts=tuple(starts[1:-1]),
        )

    apart = [[sequence(n) for n in lengths] for lengths in rows]
    joined = [join(sequences) for sequences in apart]
    assert [e.longest for e in joined] == [max(lengths) for lengths in rows]
    flat = [e for sequences in apart for e in sequences]
    for left, right in (([[e] for e in joined], apart), ([joined], [flat])):
        actual, expected = packing.batch(left, 0), packing.batch(right, 0)
        for field in fields(expected):
            assert torch.equal(getattr(actual, field.name), getattr(expected, field.name)), field.name


def test_log_probabilities_by_hand():
    first = Encoded((0, 1, 2), at=(2, 1), weights=(1.0, 0.0, 0.5))
    second = Encoded((1, 2), at=(1,), weights=(1.0, 1.0))
    logits = torch.zeros(2, 5, 4)
    logits[0, 1, 2] = 2.0  # before the first's last token
    logits[0, 3, 2] = 1.0  # before the second's
    logits[1, 0, 2] = 3.0  # before the second's in the other row
    b = packing.batch([[first, second], [second]], 3)
    log_probs = packing.log_probs_of(logits, lambda kept: kept, b)
    expected = [0.5 * (2 - np.log(np.exp(2) + 3)), 0.0, 1 - np.log(np.e + 3), 3 - np.log(np.exp(3) + 3)]
    assert log_probs.tolist() == pytest.approx(expected, rel=1e-6)


def test_next_token_loss_by_hand():
    e = Encoded((0, 1, 2), weights=(1.0, 1.0, 0.5))
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 1] = 2.0  # at position 0 the model predicts 1, the next token
    logits[0, 1, 2] = 1.0
    logits[0, 2, 0] = 9.0  # no token follows the last one, so this is not read
    loss = packing.next_token_loss(logits, packing.batch([[e]], 3))
    expected = (np.log(np.exp(2) + 3) - 2) + 0.5 * (np.log(np.e + 3) - 1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand_keeps_soft_labels():
    p = torch.tensor([0.8, 0.3, 0.5])
    loss = cross_entropy((1 - p).log(), p.log(), torch.tensor([0.9, 0.0, 1.0]))
    expected = -(0.9 * np.log(0.8) + 0.1 * np.log(0.2)) - np.log(0.7) - np.log(0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("which", ["next token", "scores"])
def test_gradients_are_those_of_finite_differences(which):
    torch.manual_seed(0)
    e = Encoded((0, 1, 2, 1), weights=(1.0, 1.0, 0.5, 2.0))
    b = packing.batch([[e, e]], 0)
    y = torch.tensor([0.9, 0.0, 1.0])

    def loss(x):
        if which == "next token":
            return packing.next_token_loss(x.reshape(1, 8, 3), b)
        log_probs = x.reshape(3, 8)[:, :2].log_softmax(-1)
        return cross_entropy(log_probs[:, 0], log_probs[:, 1], y)

    x, direction = torch.randn(24, requires_grad=True), torch.randn(24)
    (gradient,) = torch.autograd.grad(loss(x), x)
    shift = 1e-2 * direction
    with torch.no_grad():
        assert (gradient @ direction).item() == pytest.approx(
            ((loss(x + shift) - loss(x - shift)) / 0.02).item(), rel=2e-3
        )


def plain_next_tokens(model, e):
    """Sum of weighted -log p(ids[t] | ids[:t]) by a plain forward of one sequence."""
    log_probs = model(input_ids=torch.tensor([e.ids])).logits[0].float().log_softmax(-1)
    return -sum(e.weights[t] * log_probs[t - 1, e.ids[t]] for t in range(1, len(e.ids)))


def plain_scores(log_bad, log_good, targets):
    """-sum of y log r + (1 - y) log(1 - r)."""
    return -sum(y * g + (1 - y) * b for b, g, y in zip(log_bad, log_good, targets, strict=True))


def generator(tiny):
    def plain(model, e):
        return plain_next_tokens(model, e), 0.0

    return Generator(tiny, prompt_loss_weight=0.3), plain


def orm_token(tiny):
    def plain(model, e):
        logit = model(input_ids=torch.tensor([e.ids])).logits[0, 0]  # the class takes the last token by itself
        return 0.0, plain_scores([torch.sigmoid(-logit).log()], [torch.sigmoid(logit).log()], e.targets)

    return OutcomeVerifier(tiny, head="token"), plain


def tagged(kind):
    def make(tiny):
        tokenizer = checkpoints.load_tokenizer(tiny)
        good, bad = (tokenizer.convert_tokens_to_ids(t) for t in ("<good>", "<bad>"))

        def plain(model, e):
            log_probs = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
            scores = plain_scores(log_probs[list(e.at), bad], log_probs[list(e.at), good], e.targets)
            return 0.7 * plain_next_tokens(model, e), scores

        soft = {"labels": "soft"} if kind is ProcessVerifier else {}
        return kind(tiny, head="tag", language_weight=0.7, **soft), plain

    return make


def orm_every_token(head):
    def make(tiny):
        tokenizer = checkpoints.load_tokenizer(tiny)
        good, bad = (tokenizer.convert_tokens_to_ids(t) for t in ("<good>", "<bad>"))

        def plain(model, e):
            ids = torch.tensor([e.ids])
            if head == "tag":
                log_probs = model(input_ids=ids).logits[0][:, [bad, good]].log_softmax(-1)
            else:
                logit = model.score(model.base_model(input_ids=ids).last_hidden_state)[0, :, 0]
                log_probs = torch.stack([torch.sigmoid(-logit).log(), torch.sigmoid(logit).log()], -1)
            y = e.targets[0]
            losses = -(y * log_probs[:, 1] + (1 - y) * log_probs[:, 0])
            first = e.at[0]
            text = 0.7 * plain_next_tokens(model, e) if head == "tag" else 0.0
            ends = 0.75 * losses[-1] / TOTALS.sequences
            rest = 0.25 * losses[first:-1].sum() / (TOTALS.scores - TOTALS.sequences)
            return text, (ends + rest) * TOTALS.scores

        weight = 0.7 if head == "tag" else 0.0
        return OutcomeVerifier(tiny, head=head, every_token=0.25, language_weight=weight), plain

    return make


def prm_token(tiny):
    def plain(model, e):
        log_probs = model(input_ids=torch.tensor([e.ids])).logits[0].log_softmax(-1)
        return 0.0, plain_scores(log_probs[list(e.at), 0], log_probs[list(e.at), 1], e.targets)

    return ProcessVerifier(tiny, head="token", labels="soft"), plain


TRAINEES = {
    "generator": generator,
    "orm tag": tagged(OutcomeVerifier),
    "orm token": orm_token,
    "orm tag every token": orm_every_token("tag"),
    "orm token every token": orm_every_token("token"),
    "prm tag": tagged(ProcessVerifier),
    "prm token": prm_token,
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", TRAINEES)
def test_packed_losses_and_gradients_are_those_of_single_sequences(name, shared, tiny, problems, examples):
    """Shared: solutions of a question, some of them equal, have its text once."""
    trainee, plain = TRAINEES[name](tiny)
    torch.manual_seed(0)
    model = trainee.build().eval()
    items = problems[:18] if name == "generator" else examples
    if shared:  # five more solutions for the first question, one of them as before
        first = items[0] if name == "generator" else items[0][0]
        texts = [x.demonstration for x in items[:5]] if name == "generator" else [x for _, x in items[:5]]
        items = [*items, *(replace(first, demonstration=x) if name == "generator" else (first, x) for x in texts)]
    encoded = [e for e in map(trainee.encode_example, items) if e is not None]
    if shared:
        groups = groups_to_learn(encoded, 250)
        assert sorted(i for group in groups for i in group) == list(range(len(encoded)))
        members = [joint([encoded[i] for i in group], learning=True) for group in groups]
        assert max(map(len, members)) <= 250 and sum(map(len, members)) < 0.95 * sum(map(len, encoded))
    else:
        members = encoded
    rows = packing.pack([len(e) for e in members], range(len(members)), 250)
    assert max(map(len, rows)) > 1 or shared
    batch = packing.batch([[members[i] for i in row] for row in rows], trainee.pad_id)
    copied = copy.deepcopy(model)
    loss = trainee.loss(model, batch, TOTALS)
    parts = [plain(copied, e) for e in encoded]
    expected = sum(n for n, _ in parts) / TOTALS.next_tokens + sum(s for _, s in parts) / TOTALS.scores
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for (parameter, p), q in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), parameter
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda m, w=parameter: f"{w}: {m}")


def test_neighbours_in_a_row_change_no_outputs(tiny, examples):
    trainee = ProcessVerifier(tiny)
    model = trainee.build().eval()
    first, second, third = map(trainee.encode_example, examples[:3])
    alone = packing.batch([[first]], trainee.pad_id)
    packed = packing.batch([[second, first], [third]], trainee.pad_id)
    from stepmark.models.scoring import outputs

    with torch.inference_mode():
        a = outputs(model, alone)[0]
        b = outputs(model, packed)[0, len(second) : len(second) + len(first)]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
