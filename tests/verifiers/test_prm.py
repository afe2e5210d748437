"""The process verifier: where its tags are, what it learns there, and that scoring reads the same indices."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stepmark
from seeds import SEED
from stepmark.errors import CheckpointError, ConfigError, EncodingError
from stepmark.models import checkpoints, packing, scoring
from stepmark.models.encoding import token_ids
from stepmark.plugins import registry
from stepmark.stages.train import TrainSettings, train
from stepmark.text import steps
from stepmark.text.sanitize import sanitize
from stepmark.types import Grade, LabelledSolution, Outcome, Solution, StepLabel, Verdict
from stepmark.verifiers.prm import ProcessVerifier

QUICK = TrainSettings(batch_tokens=800, row_tokens=200, lr=3e-3, tensorboard=False, device="cpu", seed=SEED)
MARKS = [
    "<good>",
    "<step>",
    "<eos>",
    "Verification: Is the answer correct? Yes",
    "\n",
    "\n\n",
    "\r\n",
    "\u2028",
    " = 4",
    "3.",
]
TEXT = st.lists(st.sampled_from(MARKS) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=14).map("".join)


@pytest.fixture(scope="module")
def ids(tiny):
    tokenizer = checkpoints.load_tokenizer(tiny)
    return {t: tokenizer.convert_tokens_to_ids(f"<{t}>") for t in ("step", "good", "bad", "bos", "eos")}


@pytest.fixture(scope="module")
def crossing(tiny, tmp_path_factory):
    """A tokenizer whose tokens cross the borders of lines and of question and solution, and that adds BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    specials = ["<pad>", "<bos>", "<eos>", "<step>", "<good>", "<bad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["a = 4\nb = 4\nc = 4\n"] * 9,
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    path = shutil.copytree(tiny, tmp_path_factory.mktemp("crossing") / "m")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=specials[3:],
    ).save_pretrained(path)
    return str(path)


def solution(text, how="line"):
    return Solution("p#0", "p", 0, text, steps.split(text, how))


def check_encoding(path, question, text, how):
    verifier = ProcessVerifier(path)
    tokenizer = checkpoints.load_tokenizer(path)
    s = solution(text, how)
    encoded = verifier.encode(question, s)
    s = sanitize(s).solution
    text = s.text
    ids, spans = token_ids(tokenizer, f"{question}\n{text}")
    tag = tokenizer.convert_tokens_to_ids("<step>")
    assert len(encoded.at) == len(s.spans)
    assert [i for i, t in enumerate(encoded.ids) if t == tag] == list(encoded.at)  # user text adds none
    rest = [t for t in encoded.ids if t != tag]
    assert rest == ids[: len(rest)]
    if s.spans:  # only the white space after the last step is left out
        assert not (f"{question}\n{text}"[spans[len(rest)][0] :].strip() if len(rest) < len(ids) else "")
    assert not set(rest[1:]) & set(tokenizer.all_special_ids)
    # Each tag comes after the whole of its step, and before the end of the next one.
    for k, (at, (_, end)) in enumerate(zip(encoded.at, s.spans, strict=True)):
        covered = at - k
        step_end = len(question) + 1 + len(text[:end].rstrip())
        assert spans[covered - 1][1] >= step_end
        assert spans[covered - 1][0] < step_end


@given(TEXT, TEXT, st.sampled_from(sorted(steps.SPLITTERS)))
def test_without_its_tags_a_sequence_is_the_tokenizers_own(tiny, question, text, how):
    check_encoding(tiny, question, text, how)


@given(TEXT, TEXT, st.sampled_from(sorted(steps.SPLITTERS)))
def test_also_with_tokens_across_steps_and_a_bos_token(crossing, question, text, how):
    check_encoding(crossing, question, text, how)


def test_the_crossing_tokenizer_does_cross(crossing):
    spans = token_ids(checkpoints.load_tokenizer(crossing), "a = 4\nb = 4\n")[1]
    assert any(start < 5 and end > 6 for start, end in spans)
    encoded = ProcessVerifier(crossing).encode("Q", solution("a = 4\nb = 4\n"))
    assert encoded.ids[0] == 1
    assert 2 not in encoded.ids


def test_targets_are_the_steps_with_evidence(tiny, problems, labelled, ids):
    problem, example = labelled(problems[0], "a = 1\nb = 2\nc = 3\nd = 4", [0.9, None, 0.0, 0.1])
    hard = ProcessVerifier(tiny).encode_example((problem, example))
    soft = ProcessVerifier(tiny, labels="soft").encode_example((problem, example))
    assert hard.targets == (1.0, 0.0, 1.0)
    assert soft.targets == (0.9, 0.0, 0.1)
    tag_indices = [i for i, t in enumerate(soft.ids) if t == ids["step"]]
    assert len(tag_indices) == 4  # a step without evidence keeps its tag
    assert soft.at == hard.at == (tag_indices[0], tag_indices[2], tag_indices[3])
    batch = packing.batch([[soft]], 0)
    assert batch.targets.tolist() == pytest.approx([0.9, 0.0, 0.1], abs=1e-7)


@given(st.lists(st.none() | st.integers(0, 10), min_size=1, max_size=8))
def test_as_many_targets_as_labels(tiny, problems, labelled, tenths):
    shares = [t if t is None else t / 10 for t in tenths]
    example = labelled(problems[0], "\n".join(f"x = {i}" for i in range(len(shares))), shares)
    encoded = ProcessVerifier(tiny, labels="soft").encode_example(example)
    known = tuple(s for s in shares if s is not None)
    assert (encoded.targets if encoded else ()) == known


def test_labels_and_steps_must_be_as_many(tiny, problems, labelled):
    problem, example = labelled(problems[0], "a\nb", [1.0, 1.0])
    with pytest.raises(EncodingError, match=r"2 steps and 1 labels"):
        ProcessVerifier(tiny).encode_example((problem, replace(example, labels=example.labels[:1])))


def test_tags_have_no_weight_in_the_language_loss(tiny, problems, labelled, ids):
    encoded = ProcessVerifier(tiny, language_weight=1.0).encode_example(labelled(problems[0], "a\nb", [1.0, 0.0]))
    assert [w for t, w in zip(encoded.ids, encoded.weights, strict=True) if t == ids["step"]] == [0.0, 0.0]
    assert sum(encoded.weights) == len(encoded.ids) - 2
    with pytest.raises(ConfigError, match="language_weight needs head=tag"):
        ProcessVerifier(tiny, head="token", language_weight=1.0)


class OneIndex(torch.nn.Module):
    """A model that is sure of `good` at the index of a tag, and of `bad` everywhere else."""

    def __init__(self, ids, size):
        super().__init__()
        self.ids, self.size = ids, size
        self.config = SimpleNamespace(max_position_embeddings=256, vocab_size=400)
        self.config.get_text_config = lambda: self.config
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def base_model(self, input_ids, **_):
        good = (input_ids == self.ids["step"]).float()[..., None]
        return SimpleNamespace(last_hidden_state=torch.cat([1 - good, good], -1))

    def get_output_embeddings(self):
        return self.logits

    def logits(self, hidden):
        logits = torch.full((*hidden.shape[:-1], self.size), -60.0)
        logits[..., self.ids["bad"]] = hidden[..., 0] * 60
        logits[..., self.ids["good"]] = hidden[..., 1] * 60
        return logits

    def score(self, hidden):
        return hidden * 60


@pytest.mark.parametrize("head", ["tag", "token"])
def test_training_and_scoring_read_the_tags_own_index(tiny, problems, labelled, ids, monkeypatch, head):
    model = OneIndex(ids, 400)
    verifier = ProcessVerifier(tiny, head=head, device="cpu")
    problem, example = labelled(problems[0], "a = 1\nb = 2\nc = 3", [1.0, 1.0, 1.0])
    encoded = verifier.encode_example((problem, example))
    batch = packing.batch([[encoded, encoded], [encoded]], 0)
    loss = verifier.loss(model, batch, packing.Totals(9, 1)).item()
    assert loss == pytest.approx(0, abs=1e-6)
    for shift in (-1, 1):  # the same targets at any other index give a high loss
        moved = replace(encoded, at=tuple(max(0, i + shift) for i in encoded.at[:-1]), targets=encoded.targets[:-1])
        assert verifier.loss(model, packing.batch([[moved]], 0), packing.Totals(2, 1)).item() > 50
    monkeypatch.setattr(scoring, "cached_model", lambda *_: model)
    [verification] = verifier.verify(problem.question, [example.solution])
    assert verification.scores == pytest.approx((1.0, 1.0, 1.0))


@pytest.fixture(scope="module", params=["tag", "token"])
def trained(request, tiny, examples, tmp_path_factory):
    out = tmp_path_factory.mktemp("prm") / request.param
    kind = ProcessVerifier(tiny, head=request.param, labels="soft", template="Q: {question}\nA:\n", device="cpu")
    train(kind, examples, out, QUICK)
    return out


@pytest.mark.robust
def test_scores_are_those_of_a_plain_forward(trained, examples, ids):
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    head = trained.name
    auto = AutoModelForCausalLM if head == "tag" else AutoModelForTokenClassification
    model, tokenizer = auto.from_pretrained(trained).eval(), AutoTokenizer.from_pretrained(trained)
    verifier = stepmark.load_verifier(trained, device="cpu")
    for problem, example in examples[:4]:
        row, at = tokenizer(f"Q: {problem.question}\nA:\n")["input_ids"], []
        for i, step in enumerate(example.solution.text.split("\n")):
            row += tokenizer(step if not i else "\n" + step)["input_ids"]
            at.append(len(row))
            row.append(ids["step"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, at]
        pair = logits[:, [ids["bad"], ids["good"]]] if head == "tag" else logits
        [verification] = verifier.verify(problem.question, [example.solution])
        assert verification.scores == pytest.approx(pair.softmax(-1)[:, 1].tolist(), abs=1e-5)
        assert verification.score == min(verification.scores)
        assert verification.outcome is Outcome.SCORED


def test_the_card_brings_back_what_was_trained(trained, tiny):
    verifier = stepmark.load_verifier(trained, device="cpu", aggregate="prod")
    assert replace(verifier, path=tiny, aggregate="min") == ProcessVerifier(
        tiny, head=trained.name, labels="soft", template="Q: {question}\nA:\n", device="cpu"
    )


def test_another_template_than_the_trained_one_is_refused(trained, solve):
    with pytest.raises(CheckpointError, match="another prompt template"):
        stepmark.load_verifier(trained, template="{question}", device="cpu").verify("?", [solve("a\nb")])


def test_a_tag_that_moved_is_refused(trained, tmp_path, solve):
    path = shutil.copytree(trained, tmp_path / "moved")
    card = json.loads((path / "verifier.json").read_text())
    card["ids"]["tag"] += 1
    (path / "verifier.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"other ids than at training time \(tag: trained"):
        stepmark.load_verifier(path, device="cpu").verify("?", [solve("a\nb")])


def test_an_untrained_head_is_refused(tiny, solve):
    with pytest.raises(CheckpointError, match="would be random"):
        ProcessVerifier(tiny, head="token", device="cpu").verify("?", [solve("a\nb")])


@pytest.mark.parametrize("tags", [{"tag": "ки и"}, {"good": "no one token"}, {"good": "<bad>"}, {"tag": "<good>"}])
def test_tags_must_be_single_tokens_and_different(tiny, solve, tags):
    with pytest.raises(EncodingError, match=r"exactly one|different tokens"):
        ProcessVerifier(tiny, device="cpu", **tags).verify("?", [solve("a\nb")])


def test_nan_outputs_are_no_scores(tiny, solve, monkeypatch):
    model = checkpoints.load_model(tiny, device="cpu")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    monkeypatch.setattr(scoring, "cached_model", lambda *_: model)
    [verification] = ProcessVerifier(tiny, device="cpu").verify("?", [solve("a\nb")])
    assert (verification.outcome, verification.scores, verification.score) == (Outcome.FAILED, (), 0.0)


@pytest.mark.robust
def test_it_tells_wrong_steps_from_right_ones_that_it_has_not_seen(tmp_path):
    from sklearn.metrics import roc_auc_score

    task = registry.load(
        "task", "arithmetic", noise=0.7, slips=0.1, steps_min=2, steps_max=2, max_value=30, start_max=12, amount_max=6,
        weight_times=0.0, seed=SEED,
    )  # fmt: skip

    def judged(split, n):
        for p in task.load(split, n).problems:
            s = solution(p.demonstration)
            yield p, s, task.judge_steps(p, s)

    examples = [
        (p, LabelledSolution(s, Grade(Verdict.CORRECT, ""), tuple(StepLabel(int(f), 1) for f in flags)))
        for p, s, flags in judged("train", 700)
    ]
    texts = [f"{p.question}\n{x.solution.text}" for p, x in examples]
    base = checkpoints.create(tmp_path / "base", texts, checkpoints.Shape(hidden=32, max_length=128), SEED)
    settings = TrainSettings(epochs=5, lr=8e-3, batch_tokens=1024, tensorboard=False, device="cpu", seed=SEED)
    train(ProcessVerifier(str(base), language_weight=0.3), examples, tmp_path / "prm", settings)
    verifier = stepmark.load_verifier(tmp_path / "prm", device="cpu")
    right, scores, position = [], [], []
    for p, s, flags in judged("test", 120):
        right += flags
        scores += verifier.verify(p.question, [s])[0].scores
        position += range(len(flags))
    assert roc_auc_score(right, scores) > 0.8
    first = [i for i, k in enumerate(position) if k == 0]  # among first steps only, so that the position is no signal
    assert roc_auc_score([right[i] for i in first], [scores[i] for i in first]) > 0.75
