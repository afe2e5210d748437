"""The implicit verifier (DPO): its loss and scores against plain transformers, its pairs and its reference."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import stepmark
from seeds import SEED
from stepmark.errors import CheckpointError, ConfigChanged, ConfigError, DataError
from stepmark.models import checkpoints, packing
from stepmark.models.encoding import token_ids
from stepmark.stages.train import TrainSettings, train
from stepmark.text.sanitize import sanitize_text
from stepmark.types import Finish, Outcome, Solution, Verdict
from stepmark.verifiers.dpo import ImplicitVerifier, Pair

QUICK = TrainSettings(
    batch_tokens=800, row_tokens=300, lr=3e-3, log_every=1, tensorboard=False, device="cpu", seed=SEED
)
RIGHT, WRONG = "so it is 7\nyes", "so it is 8\nno"
MARKS = ["<good>", "<step>", "<eos>", "Verification: Is the answer correct? Yes", "\n", " \n"]
TEXT = st.lists(st.sampled_from(MARKS) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=10).map("".join)


@pytest.fixture(scope="module")
def both(problems, labelled):
    """Ten questions with a right solution and two wrong ones of other lengths."""
    examples = []
    for p in problems[:10]:
        lines = p.reference.split("\n")
        texts = {p.reference: Verdict.CORRECT, lines[-1]: Verdict.INCORRECT, f"{WRONG}\n{lines[0]}": Verdict.INCORRECT}
        examples += [
            labelled(p, t, [1.0] * (t.count("\n") + 1), verdict, sample=i)
            for i, (t, verdict) in enumerate(texts.items())
        ]
    return examples


@pytest.fixture(scope="module")
def run(tiny, both, tmp_path_factory):
    """A directory with a base model and the verifier trained from it."""
    place = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny, place / "base")
    train(ImplicitVerifier(str(place / "base"), device="cpu"), both, place / "dpo", replace(QUICK, epochs=2))
    return place


def moved(model):
    """The model with noise added to its weights, the same noise at every call."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=noise)
    return model


def plain(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path).eval()


def plain_log(model, path, question, text):
    """log p of the text and the end token after the question, the number of these tokens, and of all tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt, whole = (tokenizer(t)["input_ids"] for t in (f"{question}\n", f"{question}\n{text}<eos>"))
    assert whole[: len(prompt)] == prompt
    log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log_probs[t - 1, whole[t]] for t in range(len(prompt), len(whole))), len(whole) - len(prompt), len(whole)


@pytest.mark.robust
@pytest.mark.parametrize("normalized", [False, True])
def test_packed_loss_and_gradient_agree_with_plain_transformers(tiny, both, normalized):
    """Equation 7, and its gradient: -beta * sigmoid(-beta * margin) * (grad log pi(y+) - grad log pi(y-))."""
    beta = 0.7
    trainee = ImplicitVerifier(tiny, beta=beta, length_normalized=normalized)
    pairs = trainee.choose(both)
    encoded = [trainee.encode_example(p) for p in pairs]
    rows = packing.pack([len(e) for e in encoded], range(len(encoded)), 500)
    assert max(map(len, rows)) > 1
    batch = packing.batch([[encoded[i] for i in row] for row in rows], trainee.pad_id)
    model = moved(trainee.build().eval())
    loss = trainee.loss(model, batch, packing.Totals(99.0, 99.0, 7.0))
    loss.backward()

    policy, reference = moved(plain(tiny)), plain(tiny)
    expected, gradients = 0.0, [torch.zeros_like(p) for p in policy.parameters()]
    for pair in pairs:
        margin, log_ratio = 0.0, 0.0
        for sign, solution in ((1, pair.right), (-1, pair.wrong)):
            log, tokens, _ = plain_log(policy, tiny, pair.question, solution.text)
            with torch.no_grad():
                reference_log, _, _ = plain_log(reference, tiny, pair.question, solution.text)
            share = sign / (tokens if normalized else 1)
            margin += share * (log.item() - reference_log.item())
            log_ratio = log_ratio + share * log
        expected += math.log1p(math.exp(-beta * margin)) / 7
        slope = -beta / (1 + math.exp(beta * margin)) / 7
        for total, g in zip(gradients, torch.autograd.grad(log_ratio, list(policy.parameters())), strict=True):
            total += slope * g
    assert abs(expected - len(pairs) * math.log(2) / 7) > 1e-3  # the models differ; else the test would miss errors
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=2e-3, atol=2e-5, msg=lambda m, w=name: f"{w}: {m}")


@pytest.mark.robust
def test_gradient_agrees_with_finite_differences(tiny, both):
    trainee = ImplicitVerifier(tiny, beta=0.5)
    encoded = [trainee.encode_example(p) for p in trainee.choose(both)[:3]]
    batch = packing.batch([encoded], trainee.pad_id)
    model = moved(trainee.build().eval()).double()

    def loss():
        return trainee.loss(model, batch, packing.Totals(1.0, 1.0, 3.0))

    loss().backward()
    torch.manual_seed(0)
    directions = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), directions, strict=True)).item()

    def loss_at(step):
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p += step * d
            value = loss().item()
            for p, d in zip(model.parameters(), directions, strict=True):
                p -= step * d
        return value

    assert slope == pytest.approx((loss_at(1e-3) - loss_at(-1e-3)) / 2e-3, rel=0.02)
    assert abs(slope) > 1e-2


@pytest.mark.robust
def test_training_starts_at_log_2_and_goes_down(run):
    log = [json.loads(line)["loss"] for line in (run / "dpo" / "train.jsonl").read_text().splitlines()]
    assert log[0] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1] < log[0] - 0.01


@pytest.mark.robust
@pytest.mark.parametrize("options", [{}, {"score_beta": 0.5}, {"length_normalized": True}])
def test_scores_are_those_of_plain_transformers(run, both, options):
    verifier = stepmark.load_verifier(run / "dpo", device="cpu", **options)
    policy, reference = plain(run / "dpo"), plain(run / "base")
    scores = set()
    for problem, example in both[:9]:
        text = example.solution.text
        with torch.no_grad():
            (log, tokens, length), (reference_log, _, _) = (
                plain_log(m, run / "base", problem.question, text) for m in (policy, reference)
            )
        ratio = (log - reference_log).item() / (tokens if "length_normalized" in options else 1)
        [verification] = verifier.verify(problem.question, [example.solution])
        assert verification.scores == (verification.score,)
        assert verification.score == pytest.approx(
            1 / (1 + math.exp(-options.get("score_beta", 0.1) * ratio)), abs=1e-5
        )
        assert verification.tokens == 2 * length
        scores.add(round(verification.score, 4))
    assert len(scores) > 5


@pytest.mark.robust
def test_scores_near_1_stay_distinct(run, both):
    """In single precision sigmoid(x) is 1 for x above 17, so the best candidates would tie."""
    solutions = [x.solution for _, x in both[:3]]
    question = both[0][0].question
    near = stepmark.load_verifier(run / "dpo", device="cpu").verify(question, solutions)
    top = max(math.log(v.score / (1 - v.score)) / 0.1 for v in near)
    assert top > 0
    far = stepmark.load_verifier(run / "dpo", device="cpu", score_beta=30 / top).verify(question, solutions)
    assert 1 - 1e-12 < max(v.score for v in far) < 1


@pytest.mark.robust
def test_it_learns_which_solutions_are_right(tiny, problems, labelled, tmp_path, solve):
    texts = {Verdict.CORRECT: RIGHT, Verdict.INCORRECT: WRONG}
    examples = [labelled(p, t, [1.0, 1.0], v) for p in problems[:30] for v, t in texts.items()]
    train(ImplicitVerifier(tiny), examples, tmp_path / "out", replace(QUICK, epochs=4, lr=1e-2))
    verifier = stepmark.load_verifier(tmp_path / "out", device="cpu")
    for p in problems[90:95]:
        right, wrong = verifier.verify(p.question, [solve(RIGHT), solve(WRONG)])
        assert right.score > wrong.score + 0.1


# ---- pairs ----


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("stuvwxyz"), st.sampled_from(Verdict)), max_size=24))
def test_pairs_are_of_one_question_distinct_and_spread_evenly(problems, labelled, drawn):
    question = dict(zip("ab", problems, strict=False))
    given = [labelled(question[q], t, [1.0], v, sample=i) for i, (q, t, v) in enumerate(drawn)]
    expected = {}
    for q, p in question.items():
        verdicts = {t: {v for r, u, v in drawn if (r, u) == (q, t) and v is not Verdict.UNGRADABLE} for t in "stuvwxyz"}
        right, wrong = ([t for t in verdicts if verdicts[t] == {v}] for v in (Verdict.CORRECT, Verdict.INCORRECT))
        if right and wrong:
            expected[p.question] = (right, wrong)
    kind = ImplicitVerifier("", pairs=5)
    if not expected:
        with pytest.raises(DataError, match="both a right and a wrong one"):
            kind.choose(given)
        return
    pairs = kind.choose(given)
    assert kind.choose(given) == pairs
    assert {p.question for p in pairs} == set(expected)
    for text, (right, wrong) in expected.items():
        texts_of_pairs = [(p.right.text, p.wrong.text) for p in pairs if p.question == text]
        assert len(set(texts_of_pairs)) == len(texts_of_pairs) == min(5, len(right) * len(wrong))
        for texts, used in ((right, [r for r, _ in texts_of_pairs]), (wrong, [w for _, w in texts_of_pairs])):
            assert set(used) <= set(texts)
            counts = [Counter(used)[t] for t in texts]
            assert max(counts) - min(counts) <= 1


@given(n=st.integers(1, 5), m=st.integers(1, 5), most=st.integers(1, 30))
def test_of_many_pairs_the_first_are_distinct_and_use_each_solution_as_often(problems, labelled, n, m, most):
    right, wrong = (
        [labelled(problems[0], f"{v} {i}", [1.0], v) for i in range(count)]
        for v, count in ((Verdict.CORRECT, n), (Verdict.INCORRECT, m))
    )
    pairs = [(p.right.text, p.wrong.text) for p in ImplicitVerifier("", pairs=most).choose(right + wrong)]
    assert len(set(pairs)) == len(pairs) == min(most, n * m)
    for count, used in ((n, Counter(r for r, _ in pairs)), (m, Counter(w for _, w in pairs))):
        assert max(used.values()) - (min(used.values()) if len(used) == count else 0) <= 1


def test_repeated_texts_and_texts_with_both_grades_make_no_pairs(problems, labelled):
    p, grades = problems[0], (Verdict.CORRECT, Verdict.INCORRECT)
    examples = [
        labelled(p, RIGHT, [1.0, 1.0], grades[0]),
        labelled(p, RIGHT + " \n", [1.0, 1.0], grades[0], sample=1),
        labelled(p, WRONG, [1.0, 1.0], grades[1], sample=2),
        *(labelled(p, "either", [1.0], g, sample=3 + i) for i, g in enumerate(grades)),
        labelled(p, " ", [], grades[1], sample=5),
        labelled(p, f"{WRONG}\nVerification: Is the answer correct (Yes/No)? Yes", [1.0] * 3, grades[1], sample=6),
    ]
    assert ImplicitVerifier("").choose(examples) == [Pair(p.question, examples[0][1].solution, examples[2][1].solution)]


@given(question=TEXT, right=TEXT, wrong=TEXT)
def test_a_pair_is_two_texts_as_they_are_scored_and_only_the_solutions_count(tiny, question, right, wrong):
    tokenizer, kind = checkpoints.load_tokenizer(tiny), ImplicitVerifier(tiny)
    solutions = [Solution(f"p#{i}", "p", i, t, ((0, len(t)),)) for i, t in enumerate((right, wrong))]
    alone = [kind.encode(question, s) for s in solutions]
    for e, written in zip(alone, (right, wrong), strict=True):
        text = sanitize_text(written)
        assert list(e.ids) == [*token_ids(tokenizer, f"{question}\n{text.rstrip()}")[0], tokenizer.eos_token_id]
        assert not set(e.ids[:-1]) & set(tokenizer.all_special_ids)
        counted = [i for i, w in zip(e.ids, e.weights, strict=True) if w]
        assert counted[-1] == tokenizer.eos_token_id
        # A token that covers the end of the question and the start of the solution belongs to the question.
        assert text.rstrip().encode().endswith(tokenizer.decode(counted[:-1]).strip("\ufffd").encode())
    pair = kind.encode_example(Pair(question, *solutions))
    if alone[0].ids == alone[1].ids:
        assert pair is None
        return
    assert pair.longest == max(map(len, alone))
    packed_pair, packed_alone = packing.batch([[pair]], 0), packing.batch([alone], 0)
    for name in ("ids", "positions", "mask", "weights", "rows", "columns"):
        assert torch.equal(getattr(packed_pair, name), getattr(packed_alone, name)), name
    assert pair.targets == (1.0, 0.0)


def test_two_long_solutions_are_a_pair_when_each_fits(tiny, problems, labelled, tmp_path):
    p = problems[0]
    texts = {("7 + 7 = 14\n" * n).strip(): v for n, v in ((20, Verdict.CORRECT), (21, Verdict.INCORRECT))}
    examples = [labelled(p, t, [1.0] * (t.count("\n") + 1), v) for t, v in texts.items()]
    kind = ImplicitVerifier(tiny)
    assert len(kind.encode_example(kind.choose(examples)[0])) > 256
    assert train(kind, examples, tmp_path / "out", QUICK).examples == 1


# ---- the reference ----


def test_the_card_records_beta_and_where_the_reference_is(run):
    card = json.loads((run / "dpo" / "verifier.json").read_text())
    assert card["options"]["beta"] == 0.1
    assert card["options"]["reference"] == "../base"
    trained = ImplicitVerifier(str(run / "dpo"), reference="../base", device="cpu")
    assert stepmark.load_verifier(run / "dpo", device="cpu") == trained


def test_training_leaves_the_reference_as_it_was(run, tiny):
    a, b = (load_file(f"{path}/model.safetensors") for path in (run / "base", tiny))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_a_run_directory_can_be_moved(run, both, tmp_path):
    problem, example = both[0]
    before = stepmark.load_verifier(run / "dpo", device="cpu").verify(problem.question, [example.solution])
    copied = shutil.copytree(run, tmp_path / "elsewhere" / "b")
    away = run.with_name("away")
    run.rename(away)  # only the copies may be read
    try:
        after = stepmark.load_verifier(copied / "dpo", device="cpu").verify(problem.question, [example.solution])
    finally:
        away.rename(run)
    assert after == before


def test_a_missing_reference_is_an_error_and_can_be_given(run, both, tmp_path, problems):
    problem, example = both[0]
    alone = shutil.copytree(run / "dpo", tmp_path / "dpo")
    with pytest.raises(CheckpointError, match=r"\.\./base(.|\n)*reference=DIRECTORY"):
        stepmark.load_verifier(alone, device="cpu").verify(problem.question, [example.solution])
    verifier = stepmark.load_verifier(alone, reference=str(run / "base"), device="cpu")
    direct = stepmark.load_verifier(run / "dpo", device="cpu")
    assert verifier.verify(problem.question, [example.solution]) == direct.verify(problem.question, [example.solution])
    shape = checkpoints.Shape(hidden=16, heads=2, vocab=300, max_length=256)
    other = checkpoints.create(tmp_path / "other", [p.question for p in problems], shape)
    with pytest.raises(CheckpointError, match="other tokens"):
        replace(verifier, reference=str(other)).verify(problem.question, [example.solution])


def test_an_untrained_checkpoint_is_refused(tiny, solve):
    with pytest.raises(CheckpointError, match="not trained as a dpo verifier"):
        ImplicitVerifier(tiny, device="cpu").verify("Q?", [solve("a")])


def test_invalid_settings_are_refused(tiny, both, tmp_path):
    with pytest.raises(ConfigError) as e:
        ImplicitVerifier(tiny, beta=0.0, score_beta=-1.0, pairs=0)
    assert [f.split(" must")[0] for f in e.value.faults] == ["dpo: beta", "dpo: score_beta", "dpo: pairs"]
    with pytest.raises(ConfigError, match="Leave it out"):
        train(ImplicitVerifier(tiny, reference="elsewhere"), both, tmp_path / "out", QUICK)


# ---- properties of all kinds ----


def test_unfinished_empty_and_too_long_solutions_get_no_score(run, solve):
    solutions = [solve("a\nb", finish=Finish.LENGTH), solve("\n "), solve("7 + 7 = 14\n" * 100), solve("a\nb")]
    verifications = stepmark.load_verifier(run / "dpo", device="cpu").verify("Q?", solutions)
    assert [v.outcome for v in verifications] == [Outcome.TRUNCATED, Outcome.FAILED, Outcome.TRUNCATED, Outcome.SCORED]
    assert [(v.scores, v.tokens) for v in verifications[:3]] == [((), 0)] * 3
    assert "256" in verifications[2].reason


class Stop(Exception):
    """Stops a training from its progress callback."""


def test_an_interrupted_training_ends_with_the_same_weights(tiny, both, tmp_path):
    settings = replace(QUICK, epochs=3, checkpoint_seconds=1e-9)

    def stop(progress):
        if progress.done == 3:
            raise Stop

    kind = ImplicitVerifier(tiny, device="cpu")
    whole = train(kind, both, tmp_path / "whole", settings)
    assert whole.updates > 4
    with pytest.raises(Stop):
        train(kind, both, tmp_path / "cut", settings, stop)
    train(kind, both, tmp_path / "cut", settings)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ConfigChanged, match='"data"'):
        train(kind, both[:-3], tmp_path / "cut", settings)
