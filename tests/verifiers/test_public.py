"""Public verifiers: each family's scores are those of an independent computation with plain transformers and torch.

The computations here follow the families' own published code, and share nothing with Stepmark's.
"""

import json
import shutil
from functools import lru_cache

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_models import FAMILIES, OTHERS, qwen, write
from safetensors.torch import load_file
from typer.testing import CliRunner

import stepmark
from stepmark.cli.app import app
from stepmark.errors import CheckpointError, EncodingError
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.types import Outcome

QUESTION = "Ann has 4 apples and Ben has 3 more. How many have both?"
SOLUTIONS = [
    ["The answer is 11."],
    ["Step 1: Ben has 4 + 3 = 7.", "Step 2: So that is 4 + 7 = 11 in all.", "The answer is 11."],
    [
        "x",
        "Ben has 7, since 3 more than 4 apples are 7 apples, and 7 is 4 + 3, or 3 + 4, or 8 - 1.",
        "11 - 0 = 11",
        "y",
    ],
    ["√2 ≈ 1.414", "Сумма 4 и 7 это 11, 你好", "🙂 + é = ½", "So that is 11 in all."],
    [f"Step {i}: {i} + {i} = {2 * i}." for i in range(1, 12)],
]
TAGS = ("<extra_0>", "ки", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """family -> its tiny checkpoint, made once."""
    root = tmp_path_factory.mktemp("public")
    return lru_cache(lambda family: FAMILIES[family](root / family))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def place(family, places):
    return places(family)


# ---- the same scores, computed without Stepmark ----


@lru_cache(maxsize=2)
def model_of(place, kind):
    return getattr(transformers, kind).from_pretrained(place, trust_remote_code=False).eval()


def causal(place, ids, tokens):
    """[L, tokens] logits."""
    with torch.no_grad():
        return model_of(place, "AutoModelForCausalLM")(torch.tensor([ids])).logits[0][:, tokens]


def hidden(place, ids):
    with torch.no_grad():
        return model_of(place, "Qwen2Model")(torch.tensor([ids])).last_hidden_state[0], load_file(
            place / "model.safetensors"
        )


def math_shepherd(place, tok, question, steps):
    ids = tok.encode(f"{question} " + "\n".join(f"{s} ки" for s in steps))
    words = tok.encode("+ -")[1:]
    scores = causal(place, ids, words).softmax(-1)[:, 0]
    tag = tok.encode(" ки")[-1]
    return scores[torch.tensor(ids) == tag].tolist()


def qwen_prm(place, tok, question, steps, system=True):
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    if system:
        said = "Please reason step by step, and put your final answer within \\boxed{}."
        messages.insert(0, {"role": "system", "content": said})
    ids = tok.encode(tok.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    states, w = hidden(place, ids)
    inner = torch.relu(states @ w["score.0.weight"].T + w["score.0.bias"])
    scores = (inner @ w["score.2.weight"].T + w["score.2.bias"]).softmax(-1)[:, 1]
    return scores[torch.tensor(ids) == tok.convert_tokens_to_ids("<extra_0>")].tolist()


def reasonflux(place, tok, question, steps):
    return qwen_prm(place, tok, question, steps, system=False)


def skywork(place, tok, question, steps):
    ids, at = tok.encode(tok.bos_token + question + "\n"), []
    for step in steps:
        ids += [*tok.encode(step), tok.encode("\n")[-1]]
        at.append(len(ids) - 1)
    states, w = hidden(place, ids)
    return (states @ w["v_head.summary.weight"].T + w["v_head.summary.bias"]).sigmoid()[at, 0].tolist()


def rlhflow(place, tok, question, steps):
    words, scores, conversation = [tok.encode("+")[-1], tok.encode("-")[-1]], [], []
    for k, step in enumerate(steps):
        conversation += [
            {"role": "user", "content": step if k else f"{question} {step}"},
            {"role": "assistant", "content": "+"},
        ]
        ids = tok.encode(tok.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
        scores.append(float(causal(place, ids, words)[-3].softmax(-1)[0]))
    return scores


def prm800k(place, tok, question, steps):
    ids = tok.encode(question + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
    words = [tok.encode("-")[-1], tok.encode("+")[-1]]
    tag = tok.encode(" \n\n\n\n")[-1]
    return causal(place, ids, words).softmax(-1)[:, 1][torch.tensor(ids) == tag].tolist()


def math_psa(place, tok, question, steps):
    ids = tok.encode(question + " " + " \n\n\n\n\n".join(steps) + " \n\n\n\n\n")
    words = tok.encode(" + -")
    tag = tok.encode(" \n\n\n\n\n")[-1]
    return causal(place, ids, words).softmax(-1)[:, 0][torch.tensor(ids) == tag].tolist()


def reason_eval(place, tok, question, steps):
    sep = tok.pad_token
    prompt = f"Question:\n{question}\nAnswer:\nLet's think step by step.\n"
    at, ids, seen = [], [], 0
    for i, t in enumerate(tok(prompt + sep + "".join(step + sep for step in steps))["input_ids"]):
        if t == tok.encode(sep)[-1]:
            at.append(i - 1 - seen)
            seen += 1
        else:
            ids.append(t)
    if sep == "<s>":  # as the 7B model
        ids, at = [1, *ids], at[2:]
    else:
        at = at[1:]
    weights = load_file(place / "model.safetensors")["score_head.weight"]
    with torch.no_grad():
        probs = (model_of(place, "AutoModel")(torch.tensor([ids])).last_hidden_state[0] @ weights.T).softmax(-1)
    return (probs[at, 1] + probs[at, 2]).tolist()


def token_classification(place, tok, question, steps):
    ids, at = tok.encode(question, add_special_tokens=False), []
    ids = ids if tok.bos_token_id is None else [tok.bos_token_id, *ids]
    for step in steps:
        ids += [*tok.encode(step, add_special_tokens=False), *tok.encode("\n", add_special_tokens=False)]
        at.append(len(ids) - 1)
    model = model_of(place, "AutoModelForTokenClassification")
    with torch.no_grad():
        probs = model(torch.tensor([ids])).logits[0].softmax(-1)[at]
    own = probs[:, 1] - probs[:, 0]  # PURE's score
    return ((own + 1) / 2).tolist()


def sequence_classification(place, tok, question, steps):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "\n".join(steps)}]
    ids = tok.encode(tok.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    model = model_of(place, "AutoModelForSequenceClassification")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return logits.sigmoid().tolist() if len(logits) == 1 else logits.softmax(-1)[1:].tolist()


def eurus(place, reference, beta, tok, question, steps):
    def conversation(answer):
        return tok.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": "\n\n".join(answer)}],
            tokenize=False,
        )

    ids, ends = torch.tensor([tok.encode(conversation(steps), add_special_tokens=False)]), []
    for k in range(len(steps) + 1):
        text = conversation(steps[:k]).strip() + ("\n\n" if k not in (0, len(steps)) else "")
        ends.append(len(tok.encode(text, add_special_tokens=False)) - 2)
    mask = torch.tensor([[0] * ends[0] + [1] * (ids.shape[-1] - ends[0])])

    def log_probs(path):
        logits = model_of(path, "AutoModelForCausalLM")(ids).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    with torch.no_grad():
        reward = beta * (log_probs(place) - log_probs(reference)) * mask[:, 1:]
    return reward.cumsum(-1)[0, ends[1:]].sigmoid().tolist()


# ---- what holds for each family ----


def found(place, question, solutions, **options):
    verifier = stepmark.load_verifier(place, device="cpu", dtype="float32", **options)
    return verifier, stepmark.verify(verifier, question, ["\n".join(steps) for steps in solutions])


def test_its_files_tell_the_family_and_its_scores_are_those_of_plain_transformers(family, place):
    check(family, place)


@pytest.mark.parametrize("which", OTHERS)
def test_other_checkpoints_of_a_family_agree_too(which, tmp_path):
    family, make = OTHERS[which]
    check(family, make(tmp_path))


def check(family, place):
    verifier, verifications = found(place, QUESTION, SOLUTIONS)
    assert verifier.reading == family
    base = place.parent / "base"
    tok = transformers.AutoTokenizer.from_pretrained(next(base.iterdir()) if base.exists() else place)
    for steps, v in zip(SOLUTIONS, verifications, strict=True):
        expected = globals()[family](place, tok, QUESTION, steps)
        assert v.outcome is Outcome.SCORED
        assert len(v.scores) == len(expected) == (len(steps) if verifier.per_step else 1)
        assert v.scores == pytest.approx(expected, abs=1e-5)
    scores = [x for v in verifications for x in v.scores]
    assert max(scores) - min(scores) > 0.05  # so that a wrong place would show


def test_tags_in_texts_of_users_are_no_tags(family, place):
    tok = checkpoints.load_tokenizer(place)
    reading = registry.load("reading", family)
    for tag in TAGS:
        question, steps = f"What is {tag} 4 + {tag}{tag}7?", ["It is 11.", "So 11."]
        _, [plain, with_tags] = found(place, question, [steps, [f"It {tag}is 11.", "So 11."]])
        assert plain.outcome is with_tags.outcome is Outcome.SCORED
        assert len(plain.scores) == len(with_tags.scores)
        solution = stepmark.Solution("s", "p", 0, "It is 11.\nSo 11.", ((0, 10), (10, 16)))
        one = reading.encode(tok, question, solution).ids
        other = reading.encode(tok, question.replace(tag, ""), solution).ids
        special = {i for i, t in tok.added_tokens_decoder.items() if t.special}
        assert [i for i in one if i in special] == [i for i in other if i in special]


@pytest.mark.parametrize("beta", [0.001, 0.05])
def test_an_implicit_reward_is_that_of_its_published_code(beta, tmp_path):
    place = write(tmp_path / "EurusPRM-Stage2", "Qwen2ForCausalLM", qwen())
    reference = write(tmp_path / "reference", "Qwen2ForCausalLM", qwen(), seed=1)
    verifier, verifications = found(place, QUESTION, SOLUTIONS, options={"reference": str(reference), "beta": beta})
    assert verifier.reading == "eurus"
    tok = transformers.AutoTokenizer.from_pretrained(place)
    for steps, v in zip(SOLUTIONS, verifications, strict=True):
        assert v.outcome is Outcome.SCORED
        assert v.scores == pytest.approx(eurus(place, reference, beta, tok, QUESTION, steps), abs=1e-5)


@pytest.mark.parametrize("name, tag", [("qwen_prm", "<extra_0>"), ("reasonflux", "<extra_0>"), ("math_shepherd", "ки")])
def test_a_stripped_tag_leaves_the_text_without_it(name, tag, places):
    place = places(name)
    tok = transformers.AutoTokenizer.from_pretrained(place)
    _, [v] = found(place, f"What is 4 + 7?{tag}", [["It is 11.", f"So 11.{tag}"]])
    expected = globals()[name](place, tok, "What is 4 + 7?", ["It is 11.", "So 11."])
    assert v.scores == pytest.approx(expected, abs=1e-5)


def test_a_solution_that_is_too_long_is_truncated_and_never_cut(family, place):
    long = [f"Step {i}: {i} + {i} = {2 * i}." for i in range(1, 90)]
    _, [v, other] = found(place, QUESTION, [long, SOLUTIONS[1]])
    assert (v.outcome, v.scores) == (Outcome.TRUNCATED, ())
    assert other.outcome is Outcome.SCORED


@pytest.mark.parametrize(
    "name, other",
    [("math_shepherd", "qwen_prm"), ("qwen_prm", "prm800k"), ("reasonflux", "prm800k"), ("skywork", "math_psa")],
)
def test_another_familys_tokenizer_is_refused(name, other, places):
    tok = checkpoints.load_tokenizer(places(other))
    solution = stepmark.Solution("s", "p", 0, "It is 11.", ((0, 9),))
    with pytest.raises(EncodingError):
        registry.load("reading", name).encode(tok, QUESTION, solution)


def test_the_command_scores_rows_and_a_file_keeps_its_reading(places, tmp_path):
    shutil.copytree(places("qwen_prm"), tmp_path / "copy")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    rows.write_text(json.dumps({"question": QUESTION, "solutions": ["It is 11.\nSo 11."]}))

    def score(*more):
        arguments = ["score", "--verifier", tmp_path / "copy", rows, "--out", out, *more]
        return CliRunner().invoke(app, [str(a) for a in arguments])

    refused = score()
    assert refused.exit_code != 0
    assert not out.exists()
    assert isinstance(refused.exception, CheckpointError) or "reasonflux" in refused.output
    assert score("--reading", "qwen_prm").exit_code == 0
    [row] = map(json.loads, out.read_text().splitlines())
    [v] = row["verifications"]
    _, [expected] = found(places("qwen_prm"), QUESTION, [["It is 11.", "So 11."]])
    assert v["scores"] == pytest.approx(expected.scores, abs=1e-5)
    before = out.read_text()
    assert score("--reading", "reasonflux").exit_code != 0
    assert out.read_text() == before


def whole(family, tok, question, steps):
    """The ids of the text as its family's published code joins it."""
    if family == "math_shepherd":
        return tok.encode(f"{question} " + "\n".join(f"{s} ки" for s in steps))
    if family == "prm800k":
        return tok.encode(question + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
    if family == "reasonflux":
        said = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(s + "<extra_0>" for s in steps)},
        ]
    else:
        turns = [f"{question} {steps[0]}", *steps[1:]]
        said = [m for t in turns for m in ({"role": "user", "content": t}, {"role": "assistant", "content": "+"})]
    return tok.encode(tok.apply_chat_template(said, tokenize=False), add_special_tokens=False)


line = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="ки<|>"), min_size=1
).filter(lambda s: s == s.strip())


@pytest.mark.parametrize("family", ["math_shepherd", "prm800k", "reasonflux", "rlhflow"])
@given(question=line, steps=st.lists(line, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_the_ids_of_the_text_as_a_whole(family, question, steps, places):
    tok = checkpoints.load_tokenizer(places(family))
    text, spans = "\n".join(steps), []
    for step in steps:
        start = spans[-1][1] if spans else 0
        spans.append((start, min(len(text), start + len(step) + 1)))
    encoded = registry.load("reading", family).encode(tok, question, stepmark.Solution("s", "p", 0, text, tuple(spans)))
    assert list(encoded.ids) == whole(family, tok, question, steps)
    assert len(encoded.at) == len(steps)


MINE = """
from stepmark.models import heads, layout
from stepmark.models.detection import Signs


class Mine:
    signs, head, per_step = Signs(names="mine"), "CausalLM", True

    def encode(self, tokenizer, question, solution):
        return layout.tagged(tokenizer, layout.plain_ids(tokenizer, question), solution.steps, 198 % len(tokenizer))

    def read(self, path, model, tokenizer, batch):
        return heads.word(model, batch, 5, 6)
"""


def test_a_family_of_ones_own_is_one_file(places, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    _, [v] = found(places("rlhflow"), QUESTION, [SOLUTIONS[1]], reading=str(tmp_path / "mine.py"))
    assert v.outcome is Outcome.SCORED
    assert len(v.scores) == 3
