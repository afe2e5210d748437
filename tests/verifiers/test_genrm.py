"""The generative verifier: its loss (equation 6), its score (the mean p(Yes) over K rationales), and its outcomes and
errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import stepmark
from seeds import SEED
from stepmark.backends.scripted import ScriptedBackend
from stepmark.errors import CheckpointError, ConfigError
from stepmark.models import checkpoints, packing
from stepmark.plugins import registry
from stepmark.stages.train import TrainSettings, train
from stepmark.text import prompts
from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.types import Outcome, Rationale, StepLabel, Verdict
from stepmark.verifiers.genrm import FORMS, GenerativeVerifier

QUICK = TrainSettings(batch_tokens=500, row_tokens=250, lr=1e-2, tensorboard=False, device="cpu", seed=SEED)


def rationale(lines, answer, **fields):
    return Rationale(f"{lines}\n{VERDICT}{answer}", answer.strip().lower(), "oracle", **fields)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory, problems):
    """A tiny model whose tokenizer has Yes and No as tokens."""
    corpus = GenerativeVerifier("nowhere", mode="cot").corpus()
    texts = [f"{p.question}\n{p.reference}" for p in problems] + list(corpus) * 200
    shape = checkpoints.Shape(hidden=32, heads=2, kv_heads=1, layers=2, vocab=420, max_length=256)
    return str(checkpoints.create(tmp_path_factory.mktemp("knowing") / "model", texts, shape, SEED + 1))


@pytest.fixture(scope="module")
def lessons(problems, labelled):
    """A right and a wrong solution of each of 12 problems, each with a rationale that ends in the right verdict."""
    examples = []
    for p in problems[:12]:
        for sample, (text, verdict, answer) in enumerate(
            ((p.reference, Verdict.CORRECT, YES), ("so 9.\nThe answer is 9.", Verdict.INCORRECT, NO))
        ):
            problem, x = labelled(p, text, [1.0] * (text.count("\n") + 1), verdict, sample=sample)
            examples.append((problem, replace(x, rationales=(rationale(f"so it is{answer}.", answer),))))
    return examples


def by_hand(path, text):
    """p(Yes) after a text by plain transformers, among Yes and No and their one-token forms."""
    tokenizer, model = checkpoints.load_tokenizer(path), checkpoints.load_model(path, dtype="float32", device="cpu")
    ids = tokenizer(text)["input_ids"]
    with torch.inference_mode():
        probabilities = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    known = [[tokenizer(VERDICT + f)["input_ids"] for f in forms] for forms in FORMS]
    start = len(tokenizer(VERDICT)["input_ids"])
    yes, no = (sum(float(probabilities[ids[start]]) for ids in forms if len(ids) == start + 1) for forms in known)
    return yes / (yes + no)


@pytest.mark.robust
def test_direct_scores_are_the_models_probability_of_yes(knowing, problems, solve):
    verifier = GenerativeVerifier(knowing, device="cpu")
    texts = ["3 + 4 = 7\nThe answer is 7.", "The answer is 8."]
    verifications = verifier.verify(problems[0].question, [solve(t) for t in texts])
    for v, text in zip(verifications, texts, strict=True):
        prompt = f"{problems[0].question}\n{text}\n{VERDICT}"
        assert v.score == pytest.approx(by_hand(knowing, prompt), abs=1e-6)
        assert (v.outcome, v.votes, v.rationales) == (Outcome.SCORED, (), ())
        assert v.tokens == len(checkpoints.load_tokenizer(knowing)(prompt)["input_ids"])


@pytest.mark.robust
def test_votes_are_p_yes_after_each_rationale_and_the_score_is_their_mean(taught, problems, solve):
    verifier = replace(stepmark.load_verifier(taught), votes=12, keep=12, temperature=2.0)
    s = solve("so 9.\nThe answer is 9.")
    [v] = verifier.verify(problems[0].question, [s])
    assert v.outcome is Outcome.SCORED
    assert len(v.rationales) == len(v.votes) > 0
    for text, vote in zip(v.rationales, v.votes, strict=True):
        assert text.endswith(VERDICT)
        if "\ufffd" not in text:
            prompt = f"{problems[0].question}\n{s.text}\nVerification:\n{text}"
            assert vote == pytest.approx(by_hand(taught, prompt), abs=1e-4)
    assert v.score == pytest.approx(sum(v.votes) / len(v.votes))
    assert v.tokens > len(checkpoints.load_tokenizer(taught)(f"{problems[0].question}\n{s.text}")["input_ids"])


@pytest.mark.robust
def test_solutions_of_one_text_share_their_votes_and_seeds_change_them(taught, problems, solve):
    # At temperature 1 it would repeat its training text; much hotter, few rationales would end.
    verifier = replace(stepmark.load_verifier(taught), votes=12, temperature=2.0)
    twice = [solve("so 9.\nThe answer is 9.", sample=i) for i in range(2)]
    a, b = verifier.verify(problems[0].question, twice)
    assert (a.votes, a.rationales) == (b.votes, b.rationales)
    assert a.solution_id != b.solution_id
    [other] = replace(verifier, seed=5).verify(problems[0].question, twice[:1])
    assert other.votes != a.votes


@pytest.mark.robust
def test_several_questions_at_once_change_no_score(taught, problems, solve):
    verifier = replace(stepmark.load_verifier(taught), votes=3)
    requests = [(p.question, [solve(p.reference, p.id), solve("The answer is 1.", p.id, 1)]) for p in problems[:3]]
    together = verifier.verify_many(requests)
    alone = [v for question, solutions in requests for v in verifier.verify(question, solutions)]
    assert [v.votes for v in together] == [pytest.approx(v.votes, abs=1e-5) for v in alone]


@pytest.fixture(scope="module")
def taught(knowing, lessons, tmp_path_factory):
    """A cot verifier that overfitted on its examples."""
    out = tmp_path_factory.mktemp("taught") / "genrm"
    train(GenerativeVerifier(knowing, mode="cot", max_tokens=60), lessons, out, replace(QUICK, epochs=40))
    return str(out)


@pytest.mark.robust
def test_it_learns_to_tell_right_from_wrong(taught, lessons):
    verifier = replace(stepmark.load_verifier(taught), votes=2)
    scores = {True: [], False: []}
    for p, x in lessons:
        scores[x.grade.correct] += [v.score for v in verifier.verify(p.question, [x.solution])]
    assert min(scores[True]) > max(scores[False])


@pytest.mark.robust
@pytest.mark.parametrize("mode", ["direct", "cot"])
def test_the_loss_is_verification_plus_lambda_times_generation(knowing, lessons, mode):
    """Equation 6 against plain transformers, sequence by sequence."""
    weight = 0.3
    verifier = GenerativeVerifier(knowing, mode=mode, generation=weight)
    items = verifier.choose(lessons[:6])
    encoded = [verifier.encode_example(item) for item in items]
    model = verifier.build()
    batch = packing.batch([encoded[:5], encoded[5:]], verifier.pad_id)
    totals = packing.Totals(sum(len(e.targets) for e in encoded), sum(sum(e.weights) for e in encoded), len(encoded))
    tokenizer = checkpoints.load_tokenizer(knowing)
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for p, x in lessons[:6]:
        prompt = f"{p.question}\n"
        answer = YES if x.grade.correct else NO
        with_solution = f"{prompt}{x.solution.text}\n"
        pairs = [(with_solution + VERDICT, answer, "", True)]
        if mode == "cot":
            pairs = [(f"{with_solution}Verification:\n", x.rationales[0].text, "<eos>", True)]
        if x.grade.correct:
            pairs.append((prompt, x.solution.text, "<eos>", False))
        for input_text, target_text, end, verification in pairs:
            start, ids = (tokenizer(t)["input_ids"] for t in (input_text, input_text + target_text))
            ids = ids + [tokenizer.eos_token_id] * bool(end)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            target_ids = torch.tensor(ids[len(start) :])
            sums[verification] += float(cross_entropy(logits[len(start) - 1 : -1], target_ids, reduction="sum"))
            counts[verification] += len(target_ids)
    expected = sums[True] / counts[True] + weight * sums[False] / counts[False]
    assert float(verifier.loss(model, batch, totals)) == pytest.approx(expected, rel=1e-5)
    without = replace(verifier, generation=0.0)
    assert len(without.choose(lessons[:6])) == len(items) - 3


@pytest.mark.robust
def test_without_verifications_it_learns_generation_alone(knowing, lessons, tmp_path):
    """A control: with no verification in an update, equation 6 is lambda times its second term."""
    verifier = GenerativeVerifier(knowing, mode="direct", generation=0.3, examples=0)
    items = verifier.choose(lessons[:6])
    assert [(item.said, item.answer) for item in items] == [
        (x.solution.text, "") for _, x in lessons[:6] if x.grade.correct
    ]
    encoded = [verifier.encode_example(item) for item in items]
    totals = packing.Totals(sum(len(e.targets) for e in encoded), 1e-9, len(encoded))
    model = verifier.build()
    loss = verifier.loss(model, packing.batch([encoded], verifier.pad_id), totals)
    loss.backward()
    nats, count = 0.0, 0
    for item, e in zip(items, encoded, strict=True):
        start = len(checkpoints.load_tokenizer(knowing)(item.given)["input_ids"])
        logits = model(torch.tensor([e.ids])).logits[0, start - 1 : -1]
        nats += float(cross_entropy(logits, torch.tensor(e.ids[start:]), reduction="sum"))
        count += len(e.ids) - start
    assert float(loss.detach()) == pytest.approx(0.3 * nats / count, rel=1e-5)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    trained = train(verifier, lessons[:6], tmp_path / "control", QUICK)
    assert trained.examples == len(items)
    for options in ({"examples": 0}, {"examples": 1, "generation": 1.0}):
        with pytest.raises(ConfigError, match="or 0 where generation is above 0"):
            GenerativeVerifier(knowing, **options)


def test_a_solution_that_is_only_a_reference_is_generated_never_verified(knowing, problems, labelled):
    p, x = labelled(problems[0], "The answer is 7.", [1.0])
    reference = p, replace(x, labels=(StepLabel(0, 0, source="reference"),), rationales=(rationale("so", YES),))
    for mode in ("direct", "cot"):
        verifier = GenerativeVerifier(knowing, mode=mode, generation=1.0, balance=False)
        assert [item.answer for item in verifier.choose([reference])] == [""]
        assert replace(verifier, generation=0.0).choose([reference]) == []


def test_a_replayed_text_is_generated_whatever_its_grade(knowing, problems, labelled):
    p, x = labelled(problems[0], "The answer is 7.", [1.0], Verdict.UNGRADABLE)
    replayed = p, replace(x, labels=(StepLabel(0, 0, source="reference"),))
    for weight, expected in ((1.0, ["The answer is 7."]), (0.0, [])):
        verifier = GenerativeVerifier(knowing, mode="cot", generation=weight, balance=False)
        assert [item.said for item in verifier.choose([replayed])] == expected


def test_lost_rationales_and_ungradable_solutions_are_not_learned_from(knowing, problems, labelled):
    p, x = labelled(problems[0], "The answer is 7.", [1.0])
    lost = replace(x, rationales=(rationale("so", YES, lost="leak"), rationale("it is", YES)))
    verifier = GenerativeVerifier(knowing, mode="cot", balance=False)
    assert [item.said for item in verifier.choose([(p, lost)])] == [f"it is\n{VERDICT}"]
    ungradable = replace(lost, grade=replace(x.grade, verdict=Verdict.UNGRADABLE))
    assert verifier.choose([(p, ungradable)]) == []


def test_balance_takes_as_many_of_each_verdict_whatever_the_order(knowing, problems, labelled):
    examples = [
        labelled(p, f"The answer is {i}.", [1.0], Verdict.INCORRECT if i % 4 else Verdict.CORRECT, sample=i)
        for p in problems[:3]
        for i in range(8)
    ]
    verifier = GenerativeVerifier(knowing)
    kept = verifier.choose(examples)
    answers = [item.answer for item in kept]
    assert answers.count(YES) == answers.count(NO) == 6
    assert set(kept) == set(verifier.choose(examples[::-1]))
    assert len(replace(verifier, balance=False).choose(examples)) == 24
    few, more = (replace(verifier, examples=n).choose(examples) for n in (4, 8))
    assert [item.answer for item in few].count(YES) == 2 == len(few) / 2
    assert set(few) < set(more) < set(kept)


def test_verifications_of_one_text_count_as_often_as_they_come(knowing, problems, labelled):
    answers = {Verdict.CORRECT: (YES, 3), Verdict.INCORRECT: (NO, 1)}
    examples = [
        (p, replace(x, rationales=(rationale("the same words.", answer),) * count))
        for verdict, (answer, count) in answers.items()
        for p, x in [labelled(problems[0], f"so {count}.", [1.0], verdict)]
    ]
    verifier = GenerativeVerifier(knowing, mode="cot")
    assert sorted(lesson.answer for lesson in verifier.choose(examples)) == [NO, YES]
    assert len(replace(verifier, balance=False, examples=2).choose(examples)) == 2


def test_only_the_target_has_weight(knowing, lessons):
    tokenizer = checkpoints.load_tokenizer(knowing)
    p, x = lessons[1]
    for mode, expected in (("direct", NO), ("cot", x.rationales[0].text + "<eos>")):
        verifier = GenerativeVerifier(knowing, mode=mode, balance=False)
        encoded = verifier.encode_example(verifier.choose([(p, x)])[0])
        target = tokenizer.decode([i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w])
        assert target == expected
        # Training and scoring use the same prompt tokens.
        prompt = verifier.ask(p.question, x.solution.text)
        start = tokenizer(prompt)["input_ids"]
        assert list(encoded.ids[: len(start)]) == start
        assert not any(encoded.weights[: len(start)])


@pytest.mark.robust
def test_rationales_without_an_end_are_truncated_and_long_texts_are_refused(taught, problems, solve):
    verifier = replace(stepmark.load_verifier(taught), votes=2, max_tokens=3)
    long = solve("1 + 1 = 2\n" * 80)
    truncated, too_long, empty = verifier.verify(problems[0].question, [solve("The answer is 9."), long, solve("")])
    assert (truncated.outcome, truncated.scores, truncated.votes) == (Outcome.TRUNCATED, (), ())
    assert "end" in truncated.reason
    assert truncated.tokens > 0
    assert too_long.outcome is Outcome.TRUNCATED
    assert "reads 256" in too_long.reason
    assert empty.outcome is Outcome.FAILED


def test_a_second_request_gives_the_same_votes(taught, problems, solve, monkeypatch):
    """A server gives no choices with its rollouts. The verifier asks with a second request and gets the same votes."""
    from stepmark.backends.local import LocalBackend

    verifier = replace(stepmark.load_verifier(taught), votes=3, keep=3)
    s = solve("so 9.\nThe answer is 9.")
    [fused] = verifier.verify(problems[0].question, [s])
    sample = LocalBackend.sample

    def blind(self, prompts, params):
        for r in sample(self, prompts, replace(params, choices=())):
            assert r.choices == ()
            yield r

    monkeypatch.setattr(LocalBackend, "sample", blind)
    [separate] = verifier.verify(problems[0].question, [s])
    assert separate.rationales == fused.rationales
    assert separate.votes == pytest.approx(fused.votes, abs=1e-5)


@pytest.mark.parametrize("said", ["it is so.", "it is so.\n", ""])
def test_the_question_stands_on_a_line_of_its_own_for_every_backend(taught, problems, solve, monkeypatch, said):
    """Some backends return the choices after a question that does not begin a line. These are no score."""
    own = f"Verification:\n{said.strip()}\n{VERDICT}" if said else f"Verification:\n{VERDICT}"
    backend = ScriptedBackend(
        lambda text: [f"{said}{VERDICT} Yes", said],  # with the question, and without it
        chances=lambda text: {YES: 0.8, NO: 0.2} if text.endswith(own) else {YES: 0.1, NO: 0.9},
    )
    monkeypatch.setattr(GenerativeVerifier, "_backend", backend)
    verifier = replace(stepmark.load_verifier(taught), votes=2)
    [v] = verifier.verify(problems[0].question, [solve("so 9.\nThe answer is 9.")])
    assert v.votes == pytest.approx((0.8, 0.8))


def test_a_backend_without_probabilities_is_refused(taught, problems, solve):
    class Silent:
        def sample(self, prompts, params):
            return iter(())

    load = registry.load
    verifier = stepmark.load_verifier(taught)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", lambda role, *a, **k: Silent() if role == "backend" else load(role, *a, **k))
        with pytest.raises(ConfigError, match="choice_probs"):
            verifier.verify(problems[0].question, [solve("The answer is 9.")])


def test_a_custom_prompt_is_filled_once(knowing):
    verifier = GenerativeVerifier(
        knowing, prompt="Check this.\n{problem}Proposed: {solution}\n", template="Q: {question}\n"
    )
    assert (
        verifier.ask("{solution}?", "it is {problem}")
        == f"Check this.\nQ: {{solution}}?\nProposed: it is {{problem}}\n{VERDICT}"
    )
    with pytest.raises(ConfigError, match=r"one \{problem\} and one \{solution\}"):
        GenerativeVerifier(knowing, prompt="{solution}")


def test_all_invalid_settings_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        GenerativeVerifier("x", mode="both", votes=0, temperature=-1.0, generation=-0.5)
    assert len(caught.value.faults) == 4
    with pytest.raises(ConfigError, match="votes=1"):
        GenerativeVerifier("x", mode="cot", temperature=0.0, votes=32)


def test_the_number_of_votes_fits_the_temperature_unless_it_is_set():
    assert GenerativeVerifier("x", mode="cot").votes == 32
    assert GenerativeVerifier("x", mode="cot", temperature=0.0).votes == 1
    assert GenerativeVerifier("x", mode="cot", votes=4).votes == 4


def test_its_card_keeps_the_settings_of_training_only(taught):
    card = json.loads(Path(taught, "verifier.json").read_text())
    assert card["kind"] == "genrm"
    assert card["options"]["mode"] == "cot"
    assert not {"path", "device", "backend", "backend_options"} & set(card["options"])
    with pytest.raises(CheckpointError, match="template"):
        replace(stepmark.load_verifier(taught), template="Q: {question}\n").verify("Q?", [])


def test_the_corpus_makes_yes_and_no_one_token_each(knowing):
    tokenizer = checkpoints.load_tokenizer(knowing)
    for answer in (YES, NO):
        assert len(tokenizer(prompts.VERDICT + answer)["input_ids"]) == len(tokenizer(prompts.VERDICT)["input_ids"]) + 1
