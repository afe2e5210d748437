"""The outcome verifier: one score at one index, with both heads."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from seeds import SEED
from stepmark.errors import CheckpointError, ConfigError, DataError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import token_ids
from stepmark.stages.train import TrainSettings, train
from stepmark.text.sanitize import sanitize_text
from stepmark.types import Finish, Outcome, Solution, Verdict
from stepmark.verifiers.orm import OutcomeVerifier

QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu", seed=SEED)
MARKS = ["<good>", "<step>", "<eos>", "Verification: Is the answer correct? Yes", "\n", " \n"]
TEXT = st.lists(st.sampled_from(MARKS) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=10).map("".join)


@pytest.fixture(scope="module", params=["tag", "token"])
def trained(request, tiny, examples, tmp_path_factory):
    out = tmp_path_factory.mktemp("orm") / request.param
    kind = OutcomeVerifier(tiny, head=request.param, language_weight=0.2 * (request.param == "tag"), device="cpu")
    train(kind, examples, out, QUICK)
    return out


@pytest.mark.parametrize("head", ["tag", "token"])
@given(question=TEXT, text=TEXT)
def test_a_sequence_is_the_tokenizers_own_and_one_closing_token(tiny, head, question, text):
    tokenizer = checkpoints.load_tokenizer(tiny)
    encoded = OutcomeVerifier(tiny, head=head).encode(question, Solution("p#0", "p", 0, text, ((0, len(text)),)))
    close = tokenizer.convert_tokens_to_ids("<step>") if head == "tag" else tokenizer.eos_token_id
    read = sanitize_text(text).rstrip()
    assert list(encoded.ids) == [*token_ids(tokenizer, f"{question}\n{read}")[0], close]
    assert encoded.at == (len(encoded.ids) - 1,)
    assert not set(encoded.ids[:-1]) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("head", ["tag", "token"])
def test_the_label_is_the_grade_and_ungradable_solutions_are_left_out(tiny, head, problems, labelled):
    verifier = OutcomeVerifier(tiny, head=head)
    p = problems[0]
    for verdict, targets in ((Verdict.CORRECT, (1.0,)), (Verdict.INCORRECT, (0.0,))):
        example = labelled(p, "a\nb", [1.0, None], verdict)
        encoded = verifier.encode_example(example)
        assert encoded.targets == targets
        scored = verifier.encode(p.question, example[1].solution)
        assert (scored.ids, scored.at) == (encoded.ids, encoded.at)
    assert verifier.encode_example(labelled(p, "a\nb", [1.0, 1.0], Verdict.UNGRADABLE)) is None
    assert verifier.encode_example(labelled(p, " \n", [], Verdict.INCORRECT)) is None


@pytest.mark.parametrize("head", ["tag", "token"])
def test_every_token_gives_targets_to_the_solution_only(tiny, head, problems, labelled):
    tokenizer = checkpoints.load_tokenizer(tiny)
    problem, example = labelled(problems[0], "a = 1\nb = 2", [1.0, 1.0])
    question, answer = (len(tokenizer(t)["input_ids"]) for t in (problem.question + "\n", example.solution.text))
    verifier = OutcomeVerifier(tiny, head=head, every_token=0.5)
    encoded = verifier.encode_example((problem, example))
    assert encoded.at == tuple(range(question, question + answer + 1))
    assert encoded.targets == (1.0,) * (answer + 1)
    scored = verifier.encode(problem.question, example.solution)
    assert (scored.ids, scored.at) == (encoded.ids, encoded.at[-1:])
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="every_token is a share"):
            OutcomeVerifier(tiny, every_token=share)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(Verdict)), max_size=20))
def test_balance_keeps_as_many_right_as_wrong_of_each_question(problems, labelled, drawn):
    question = dict(zip("ab", problems, strict=False))
    given = [labelled(question[q], "x", [1.0], v, sample=i) for i, (q, v) in enumerate(drawn)]
    kept = OutcomeVerifier("", balance=True).choose(given)
    indices = [given.index(k) for k in kept]
    assert indices == sorted(indices)
    for p in question.values():
        verdicts = [x.grade.verdict for q, x in given if q == p]
        fewer = min(verdicts.count(Verdict.CORRECT), verdicts.count(Verdict.INCORRECT))
        of_p = [x.grade.verdict for q, x in kept if q == p]
        assert of_p.count(Verdict.CORRECT) == of_p.count(Verdict.INCORRECT) == fewer
        assert Verdict.UNGRADABLE not in of_p
    assert OutcomeVerifier("").choose(given) == given


def test_training_on_ungradable_solutions_only_is_an_error(tiny, problems, labelled, tmp_path):
    examples = [labelled(problems[0], "a\nb", [1.0, 1.0], Verdict.UNGRADABLE)]
    with pytest.raises(DataError, match="none of the 1 examples"):
        train(OutcomeVerifier(tiny), examples, tmp_path / "out", QUICK)


class OneIndex(torch.nn.Module):
    """A model that is sure of `good` at the closing token, and of `bad` everywhere else."""

    def __init__(self, close, good, bad):
        super().__init__()
        self.close, self.good, self.bad = close, good, bad
        self.config = SimpleNamespace(max_position_embeddings=256, vocab_size=400)
        self.config.get_text_config = lambda: self.config
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def base_model(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=(input_ids == self.close).float()[..., None] * 2 - 1)

    def get_output_embeddings(self):
        return self.logits

    def logits(self, hidden):
        logits = torch.full((*hidden.shape[:-1], 400), -60.0)
        logits[..., self.good], logits[..., self.bad] = hidden[..., 0] * 60, hidden[..., 0] * -60
        return logits

    def score(self, hidden):
        return hidden * 60


@pytest.mark.parametrize("head", ["tag", "token"])
def test_training_and_scoring_read_the_closing_tokens_own_index(tiny, problems, labelled, monkeypatch, head):
    tokenizer = checkpoints.load_tokenizer(tiny)
    good, bad, tag = (tokenizer.convert_tokens_to_ids(t) for t in ("<good>", "<bad>", "<step>"))
    model = OneIndex(tag if head == "tag" else tokenizer.eos_token_id, good, bad)
    verifier = OutcomeVerifier(tiny, head=head, device="cpu")
    problem, example = labelled(problems[0], "a = 1\nb = 2", [1.0, 1.0])
    encoded = verifier.encode_example((problem, example))
    batch = packing.batch([[encoded, encoded], [encoded]], 0)
    assert verifier.loss(model, batch, packing.Totals(3, 1)).item() == pytest.approx(0, abs=1e-6)
    moved = replace(encoded, at=(encoded.at[0] - 1,))
    assert verifier.loss(model, packing.batch([[moved]], 0), packing.Totals(1, 1)).item() > 50
    monkeypatch.setattr(scoring, "cached_model", lambda *_: model)
    [verification] = verifier.verify(problem.question, [example.solution])
    assert verification.scores == pytest.approx((1.0,))


@pytest.mark.robust
def test_scores_are_those_of_plain_transformers(trained, examples):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained)
    auto = AutoModelForCausalLM if trained.name == "tag" else AutoModelForSequenceClassification
    model = auto.from_pretrained(trained).eval()
    verifier = stepmark.load_verifier(trained, device="cpu")
    close, good, bad = "<step>" if trained.name == "tag" else "<eos>", 4, 5
    texts = [f"{p.question}\n{x.solution.text}{close}" for p, x in examples[:6]]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    if trained.name == "tag":
        assert [tokenizer.convert_tokens_to_ids(t) for t in ("<good>", "<bad>")] == [good, bad]
        last = batch["attention_mask"].sum(-1) - 1
        logits = logits[range(len(texts)), last]
        expected = logits[:, [bad, good]].softmax(-1)[:, 1]
    else:
        expected = torch.sigmoid(logits[:, 0])
    verifications = [verifier.verify(p.question, [x.solution])[0] for p, x in examples[:6]]
    assert [v.score for v in verifications] == pytest.approx(expected.tolist(), abs=1e-5)
    assert all(v.scores == (v.score,) for v in verifications)


def test_the_card_brings_back_what_was_trained(trained, tiny):
    verifier = stepmark.load_verifier(trained, device="cpu")
    weight = 0.2 * (trained.name == "tag")
    assert replace(verifier, path=tiny) == OutcomeVerifier(
        tiny, head=trained.name, language_weight=weight, device="cpu"
    )


@pytest.mark.robust
def test_it_learns_which_solutions_are_right(tiny, problems, labelled, tmp_path, solve):
    texts = {Verdict.CORRECT: "so it is 7\nyes", Verdict.INCORRECT: "so it is 8\nno"}
    examples = [labelled(p, t, [1.0, 1.0], v) for p in problems[:85] for v, t in texts.items()]
    train(
        OutcomeVerifier(tiny, head="token"),
        examples,
        tmp_path / "out",
        replace(QUICK, epochs=12, lr=5e-3, batch_tokens=200),
    )
    verifier = stepmark.load_verifier(tmp_path / "out", device="cpu")
    right, wrong = verifier.verify(problems[90].question, [solve(t) for t in texts.values()])
    assert right.score > 0.8
    assert wrong.score < 0.2


def test_an_untrained_token_head_is_not_scored_with(tiny, solve):
    with pytest.raises(CheckpointError, match="would be random"):
        OutcomeVerifier(tiny, head="token", device="cpu").verify("?", [solve("a")])


def test_a_one_logit_head_has_no_text_to_learn(tiny):
    with pytest.raises(ConfigError, match="language_weight needs head=tag"):
        OutcomeVerifier(tiny, head="token", language_weight=0.1)
    assert OutcomeVerifier(tiny, language_weight=0.1).head == "tag"  # the head that it needs, where none is named
    assert OutcomeVerifier(tiny).head == "token"


def test_a_verifier_can_be_moved(trained, tmp_path, solve):
    before = stepmark.load_verifier(trained, device="cpu").verify("Q?", [solve("a\nb")])
    moved = shutil.copytree(trained, tmp_path / "moved")
    assert stepmark.load_verifier(moved, device="cpu").verify("Q?", [solve("a\nb")]) == before


@pytest.mark.robust
def test_training_again_in_the_same_place_is_noticed(tiny, examples, tmp_path, solve):
    scores = []
    for lr in (1e-3, 3e-2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        train(OutcomeVerifier(tiny, head="tag", device="cpu"), examples, tmp_path / "out", replace(QUICK, lr=lr))
        scores.append(stepmark.load_verifier(tmp_path / "out", device="cpu").verify("Q?", [solve("a\nb")])[0].score)
    assert scores[0] != scores[1]


def test_unfinished_empty_and_too_long_solutions_get_no_score(trained, solve):
    long = solve("7 + 7 = 14\n" * 100)
    solutions = [solve("a\nb", finish=Finish.LENGTH), solve("\n "), long, solve("a\nb")]
    verifications = stepmark.load_verifier(trained, device="cpu").verify("Q?", solutions)
    assert [v.outcome for v in verifications] == [Outcome.TRUNCATED, Outcome.FAILED, Outcome.TRUNCATED, Outcome.SCORED]
    assert [bool(v.scores) for v in verifications] == [False, False, False, True]
    assert "256" in verifications[2].reason
