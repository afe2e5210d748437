"""The rollout engine against plain transformers: same ids, tokens and probabilities in any batch."""

import dataclasses
import math
import shutil
from collections import Counter
from functools import lru_cache
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seeds import SEED
from stepmark.backends.local import LocalBackend
from stepmark.backends.local import draw as drawing
from stepmark.backends.local.cohort import Stream, Trunk
from stepmark.backends.local.draw import draw, key, uniforms
from stepmark.backends.local.engine import Draws, Engine
from stepmark.backends.local.text import group
from stepmark.errors import BackendError, CheckpointError, ConfigError
from stepmark.models.checkpoints import load_model, load_tokenizer
from stepmark.models.encoding import token_ids
from stepmark.types import Finish, Prompt, Rollout, SamplingParams

CONTEXTS = ("Ann has 4 apples. Ben has 3 more.\n", "Cat has 7 apples.\n", "How many?\n")
LINES = ("Ben has 4 + 3 = 7.\n", "So that is 7 in all.\n", "The answer is 7.\n")
WINDOWS = ("mistral_window", "gemma2", "gemma3", "gpt_oss", "llama4")
SHARING = ("llama", "llama_grouped", "llama_one_kv_head", "qwen2", "mistral", "gpt2", *WINDOWS)
OTHERS = ("llama_dynamic",)


def step_prefixes(n: int = 1) -> list[Prompt]:
    return [
        Prompt(f"{c}/{s}", context, prefix, n=n)
        for c, context in enumerate(CONTEXTS)
        for s, prefix in enumerate(accumulate(("", *LINES)))
    ]


def rolled(backend: LocalBackend, prompts: list[Prompt], **params: object) -> dict[str, Rollout]:
    rollouts = list(backend.sample(prompts, SamplingParams(**params)))  # type: ignore[arg-type]
    by_key = {r.key: r for r in rollouts}
    assert len(by_key) == len(rollouts) == sum(p.n for p in prompts)
    return by_key


def assert_same(a: dict[str, Rollout], b: dict[str, Rollout]) -> None:
    """Checks that rollouts are equal. Rounding can change a draw at the border of two tokens, so 1 in 50 may differ."""
    assert a.keys() == b.keys()
    tipped = 0
    for k in a:
        if dataclasses.replace(a[k], logprob=0) == dataclasses.replace(b[k], logprob=0):
            assert a[k].logprob == pytest.approx(b[k].logprob, abs=1e-3)
        else:
            tipped += 1
    assert tipped <= len(a) // 50


@pytest.mark.robust
@pytest.mark.parametrize("name", SHARING + OTHERS)
def test_greedy_agrees_with_generate(model_of, name):
    path = model_of(name)
    backend = LocalBackend(path, device="cpu")
    rollouts = rolled(backend, step_prefixes(), temperature=0, max_tokens=24)
    model, tokenizer = load_model(path, device="cpu", attention=None), load_tokenizer(path)
    ended = 0
    for prompt in step_prefixes():
        ids = token_ids(tokenizer, prompt.text)[0]
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0, len(ids) :].tolist()
        rollout = rollouts[f"{prompt.id}#0"]
        assert rollout.text == tokenizer.decode(out, skip_special_tokens=True)
        assert rollout.tokens == len(out)
        assert rollout.finish == (Finish.STOP if out[-1] == tokenizer.eos_token_id else Finish.LENGTH)
        ended += rollout.finish is Finish.STOP
    assert backend._load()[0].sharing is (name in SHARING)


@pytest.mark.robust
@pytest.mark.parametrize("name", SHARING)
def test_sharing_changes_nothing(model_of, name):
    """Texts are longer than the first capacity, and the batch is small, so places are refilled and repacked often."""
    backend = LocalBackend(model_of(name), device="cpu", batch=13)
    prompts = step_prefixes(n=5)
    shared = rolled(backend, prompts, max_tokens=40, seed=SEED + 3)
    assert_same(shared, rolled(dataclasses.replace(backend, sharing=False), prompts, max_tokens=40, seed=SEED + 3))
    lengths = [r.tokens for r in shared.values()]
    assert min(lengths) < 8 and max(lengths) > 16
    assert {r.finish for r in shared.values()} == {Finish.STOP, Finish.LENGTH}


def counted(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The list of the numbers of rows in each decoding pass from now on."""
    backend._load()  # loading decodes too
    computed: list[int] = []
    whole = Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda *args: computed.append(len(logits := whole(*args))) or logits)
    return computed


@pytest.mark.robust
@pytest.mark.parametrize("batch", [0, 50])
@pytest.mark.parametrize(("temperature", "choices"), [(0.1, ()), (0.1, ("3", "7"))])
def test_rollouts_with_the_same_beginning_are_computed_once(model_of, monkeypatch, batch, temperature, choices):
    path, prompts = model_of("llama_grouped"), step_prefixes(n=30)
    params = {"temperature": temperature, "max_tokens": 40, "seed": SEED + 2, "stop": (" =",) if choices else ()}
    backend = LocalBackend(path, device="cpu", batch=batch)
    computed = counted(backend, monkeypatch)
    shared = rolled(backend, prompts, choices=choices, **params)
    drawn = sum(r.tokens for r in shared.values())
    assert 0 < sum(computed) < 0.7 * drawn
    assert len({r.text for r in shared.values()}) > 2 * len(prompts)  # and yet they differ
    plain = rolled(dataclasses.replace(backend, sharing=False), prompts, choices=choices, **params)
    assert_same(*({k: dataclasses.replace(r, choices=()) for k, r in group.items()} for group in (shared, plain)))
    assert any(r.choices for r in shared.values()) is bool(choices)
    for k, r in shared.items():
        if r.text == plain[k].text:
            assert r.choices == pytest.approx(plain[k].choices, abs=1e-3)


def test_greedy_rollouts_cost_one_row(model_of, monkeypatch):
    backend = LocalBackend(model_of("llama"), device="cpu")
    computed = counted(backend, monkeypatch)
    rollouts = rolled(backend, [Prompt("p", CONTEXTS[0], n=50)], temperature=0, max_tokens=20)
    assert len({(r.text, r.logprob) for r in rollouts.values()}) == 1
    assert computed == [1] * (rollouts["p#0"].tokens - 1)


@pytest.mark.robust
def test_batch_size_order_and_other_prompts_change_nothing(model_of):
    path = model_of("llama_grouped")
    prompts = step_prefixes(n=4)
    usual = rolled(LocalBackend(path, device="cpu"), prompts, max_tokens=30)
    assert len({r.text for r in usual.values()}) > len(usual) // 2
    for batch in (1, 4, 7):
        assert_same(usual, rolled(LocalBackend(path, device="cpu", batch=batch), prompts[::-1], max_tokens=30))
    alone = rolled(LocalBackend(path, device="cpu"), prompts[5:6], max_tokens=30)
    assert_same({k: usual[k] for k in alone}, alone)


@pytest.mark.robust
def test_more_can_be_asked_for_later(model_of):
    backend = LocalBackend(model_of("llama"), device="cpu")
    whole = rolled(backend, [Prompt("p", CONTEXTS[0], n=9)], max_tokens=12)
    first = rolled(backend, [Prompt("p", CONTEXTS[0], n=4)], max_tokens=12)
    rest = rolled(backend, [Prompt("p", CONTEXTS[0], n=5, first=4)], max_tokens=12)
    assert_same(whole, first | rest)
    assert len({r.text for r in whole.values()}) > 4
    assert rolled(backend, [Prompt("p", CONTEXTS[0], n=0)]) == {}
    other = rolled(backend, [Prompt("p", CONTEXTS[0], n=9)], max_tokens=12, seed=1)
    assert {r.text for r in other.values()} != {r.text for r in whole.values()}


@pytest.mark.robust
@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize(("temperature", "top_p", "batch"), [(0.0, 1.0, 60), (0.7, 0.9, 13), (1.0, 1.0, 5)])
def test_logprob_is_the_models_own(model_of, name, temperature, top_p, batch):
    """Recomputes every rollout with one plain forward pass, at temperature 1 for any sampling temperature.

    It also shows that no row reads another row's cache after places were freed, refilled and repacked."""
    path = model_of(name)
    model, tokenizer = load_model(path, device="cpu", attention=None), load_tokenizer(path)
    prompts = [token_ids(tokenizer, p.text)[0] for p in step_prefixes()]
    rows, trunks = [], []
    for longest, members in group([tuple(ids) for ids in prompts]):
        part = [(i, index) for i in members for index in range(4)]
        streams = [
            Stream(len(rows) + r, len(prompts[i]), key(SEED, str(i), index), 36) for r, (i, index) in enumerate(part)
        ]
        trunks.append(Trunk(tuple(prompts[longest]), tuple(streams)))
        rows += part
    assert len(trunks) == len(CONTEXTS)
    ends = np.arange(len(tokenizer)) == tokenizer.eos_token_id
    draws = Draws(temperature, top_p, ends, np.zeros_like(ends), lambda name, ids: False)
    done = list(Engine(model, batch).run(trunks, draws))
    assert sorted(d.name for d in done) == list(range(len(rows)))
    for d in done:
        before = prompts[rows[d.name][0]]
        with torch.inference_mode():
            logits = reference(path)(torch.tensor([[*before, *d.ids]])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(before) + t - 1, token]) for t, token in enumerate(d.ids))
        assert d.logprob == pytest.approx(expected, abs=2e-3)
        assert d.stopped == (d.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in d.ids[:-1]
    assert len({len(d.ids) for d in done}) > (4 if temperature else 2)


@lru_cache
def reference(path: str) -> torch.nn.Module:
    return load_model(path, device="cpu", attention=None)


def chi_square(counts: Counter[int], expected: torch.Tensor, n: int) -> tuple[float, int]:
    """The statistic over cells with an expected count of at least five, with the others pooled, and its degrees of
    freedom."""
    p = expected.double()
    big = [i for i in range(len(p)) if p[i] * n >= 5]
    cells = [(counts[i], float(p[i]) * n) for i in big]
    rest = n - sum(e for _, e in cells)
    if rest > 1:
        cells.append((n - sum(c for c, _ in cells), rest))
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


@pytest.mark.robust
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (1.5, 0.9)])
def test_draws_follow_the_distribution(temperature, top_p):
    n = 20_000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(SEED + 1)) * 1.2
    keys = np.array([key(SEED, "p", i) for i in range(n)], dtype=np.uint64)
    u = torch.from_numpy(uniforms(keys, np.zeros(n, dtype=np.int64)))
    rows = logits.expand(100, -1).clone()  # 200 draws from each row
    ids, logprobs = (x.ravel() for x in draw(rows, u.reshape(100, -1), temperature, top_p))
    p = (logits.double() / temperature).softmax(0)
    # By hand: the most probable tokens until their mass reaches top_p.
    kept, mass = [], 0.0
    for i in p.argsort(descending=True).tolist():
        if mass < top_p:
            kept.append(i)
        mass += float(p[i])
    allowed = torch.zeros_like(p)
    allowed[kept] = p[kept] / p[kept].sum()
    assert set(ids.tolist()) <= set(kept)
    statistic, dof = chi_square(Counter(ids.tolist()), allowed, n)
    assert dof >= 5
    assert statistic < dof + 4 * math.sqrt(2 * dof)
    assert torch.allclose(logprobs, logits.log_softmax(0)[ids], atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([0.6, 1.0]))
def test_draws_in_chunks_of_rows_are_the_same(rows, chunk, temperature, top_p):
    random = torch.Generator().manual_seed(rows)
    logits, u = torch.randn(rows, 12, generator=random), torch.rand(rows, 3, generator=random, dtype=torch.float64)
    whole = draw(logits, u if temperature else None, temperature, top_p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "CHUNK", chunk)
        parts = draw(logits, u if temperature else None, temperature, top_p)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.robust
def test_rollouts_follow_the_models_distribution(model_of):
    """Tests the second token, given the first, since it uses the shared cache."""
    path = model_of("llama_grouped")
    n = 6000
    backend = LocalBackend(path, device="cpu", batch=3000)
    rollouts = list(
        backend.sample([Prompt("p", CONTEXTS[1], LINES[0], n=n)], SamplingParams(max_tokens=2, seed=SEED + 5))
    )
    model, tokenizer = load_model(path, device="cpu", attention=None), load_tokenizer(path)
    ids = token_ids(tokenizer, CONTEXTS[1] + LINES[0])[0]
    # The log-probability identifies the tokens, since it differs for every pair.
    with torch.inference_mode():
        first = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        top = int(first.argmax())
        second = model(torch.tensor([[*ids, top]])).logits[0, -1].log_softmax(-1)
    pairs = {round(float(first[top] + second[t]), 3): t for t in range(len(second))}
    seen = Counter(pairs[round(r.logprob, 3)] for r in rollouts if r.tokens == 2 and round(r.logprob, 3) in pairs)
    total = sum(seen.values())
    assert total == pytest.approx(n * float(first[top].exp()), rel=0.2)
    likely = {t: float(second[t].exp()) for t in second.argsort(descending=True)[:3].tolist()}
    for t, p in likely.items():
        assert abs(seen[t] / total - p) < 4 * math.sqrt(p * (1 - p) / total) + 0.01


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_text_ends_before_its_first_stop_string(model_of, data):
    """Any substring of a text without stop strings, within or across tokens, ends the text there as a stop string."""
    path = model_of("llama")
    backend = LocalBackend(path, device="cpu")
    prompt = Prompt("p", data.draw(st.sampled_from(CONTEXTS)))
    seed = data.draw(st.integers(0, 3))
    free = rolled(backend, [prompt], max_tokens=30, seed=seed)["p#0"].text
    start = data.draw(st.integers(0, max(0, len(free) - 1)))
    stop = free[start : start + data.draw(st.integers(1, 6))]
    if not stop or "\ufffd" in stop:
        return
    rollout = rolled(backend, [prompt], max_tokens=30, seed=seed, stop=(stop, "never said"))["p#0"]
    assert rollout.text == free[: free.index(stop)]
    assert rollout.finish is Finish.STOP
    budgets = [m for m in (rollout.tokens - 1, rollout.tokens) if m]
    texts = [rolled(backend, [prompt], max_tokens=m, seed=seed)["p#0"].text for m in budgets]
    assert stop in texts[-1]
    assert rollout.tokens == 1 or stop not in texts[0]


def test_budget_and_positions(model_of):
    path = model_of("llama")
    backend = LocalBackend(path, device="cpu")
    for rollout in rolled(backend, step_prefixes(n=3), max_tokens=1).values():
        assert rollout.tokens == 1
    tokenizer = load_tokenizer(path)
    tight = Prompt("tight", "7\n" * 78)
    room = 160 - len(token_ids(tokenizer, tight.text)[0])
    assert 0 < room < 10
    rollouts = rolled(backend, [tight, Prompt("long", "7\n" * 400, n=2), Prompt("short", "7\n")], max_tokens=30)
    assert rollouts["tight#0"].tokens <= room
    for i in range(2):
        assert rollouts[f"long#{i}"] == Rollout("long", i, "", Finish.LENGTH, 0)
    assert rollouts["short#0"].tokens > 0


def test_special_tokens_in_a_prompt_are_plain_text(model_of):
    path = model_of("llama")
    tokenizer = load_tokenizer(path)
    backend = LocalBackend(path, device="cpu")
    rollout = rolled(backend, [Prompt("p", "say <eos> now")], temperature=0, max_tokens=8)["p#0"]
    ids = tokenizer("say <eos> now", split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids
    out = load_model(path, device="cpu", attention=None).generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=8
    )[0, len(ids) :]
    assert rollout.text == tokenizer.decode(out, skip_special_tokens=True)


def test_chat_template(model_of, tmp_path):
    path = model_of("qwen2")
    tokenizer = load_tokenizer(path)
    with pytest.raises(BackendError, match="chat_template"):
        list(LocalBackend(path, device="cpu", chat_template=True).sample([Prompt("p", "x")], SamplingParams()))
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    try:
        backend = LocalBackend(path, device="cpu", chat_template=True)
        rollout = rolled(backend, [Prompt("p", "Hi?", "Well, ")], temperature=0, max_tokens=8)["p#0"]
        ids = [tokenizer.bos_token_id, *tokenizer("user: Hi?\nassistant: Well, ")["input_ids"]]
    finally:
        tokenizer.chat_template = None
    out = load_model(path, device="cpu", attention=None).generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=8
    )[0, len(ids) :]
    assert rollout.text == tokenizer.decode(out, skip_special_tokens=True)


def test_special_tokens_of_the_user_are_text_in_a_chat(model_of):
    from stepmark.models.encoding import prompt_ids

    tokenizer = load_tokenizer(model_of("qwen2"))
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    try:
        ids = prompt_ids(tokenizer, Prompt("p", "a<eos>b <bos>c", "so <eos>"), chat=True)
    finally:
        tokenizer.chat_template = None
    assert ids[0] == tokenizer.bos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:])
    assert tokenizer.decode(ids[1:]) == "user: a<eos>b <bos>c\nassistant: so <eos>"


@pytest.mark.robust
def test_bfloat16_stays_close(model_of):
    """To plain decoding in bfloat16, within the precision of the format."""
    narrow = LocalBackend(model_of("llama"), device="cpu", dtype="bfloat16")
    assert narrow._load()[0].sharing
    prompts = step_prefixes(n=4)
    a = rolled(narrow, prompts, max_tokens=1)
    b = rolled(dataclasses.replace(narrow, sharing=False), prompts, max_tokens=1)
    equal = [k for k in a if a[k].text == b[k].text]
    assert len(equal) > 0.8 * len(a)
    assert np.mean([abs(a[k].logprob - b[k].logprob) for k in equal]) < 0.1


@pytest.mark.robust
def test_choice_probabilities(model_of):
    path = model_of("llama_grouped")
    model, tokenizer = load_model(path, device="cpu", attention=None), load_tokenizer(path)
    texts, choices = ["Ann has", "Ann has 7 apples.\nIs it so? "], ["Y", "N", " apples. Ben"]
    probabilities = LocalBackend(path, device="cpu").choice_probs(texts, choices)
    for text, row in zip(texts, probabilities, strict=True):
        sums = []
        for choice in choices:
            ids, choice_ids = (token_ids(tokenizer, t)[0] for t in (text, choice))
            with torch.inference_mode():
                logprobs = model(torch.tensor([ids + choice_ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logprobs[len(ids) + t - 1, token]) for t, token in enumerate(choice_ids)))
        assert row == pytest.approx(torch.tensor(sums).softmax(0).tolist(), abs=1e-4)
        assert sum(row) == pytest.approx(1)
    with pytest.raises(ConfigError, match="at least one token"):
        LocalBackend(path, device="cpu").choice_probs(texts, ["Y", ""])


@pytest.mark.parametrize(
    "name", (pytest.param("llama", marks=pytest.mark.robust), "llama_one_kv_head", "gpt2", "gemma2")
)
def test_rollouts_have_the_choices_after_a_stop_string(model_of, name):
    """The rollouts are the same as without choices, and the probabilities are those of `choice_probs`."""
    path, stop, choices = model_of(name), "e", ("a", " ")
    backend = LocalBackend(path, device="cpu", batch=7)
    prompts = [Prompt(f"{c}", context, n=80) for c, context in enumerate(CONTEXTS)]
    params = {"max_tokens": 24, "stop": (stop,)}
    plain, with_choices = rolled(backend, prompts, **params), rolled(backend, prompts, **params, choices=choices)
    assert_same(plain, {k: dataclasses.replace(r, choices=()) for k, r in with_choices.items()})
    alone = rolled(LocalBackend(path, device="cpu", sharing=False), prompts, **params, choices=choices)
    both = [k for k in with_choices if with_choices[k].text == alone[k].text and with_choices[k].choices]
    assert len(both) >= 8
    assert all(with_choices[k].choices == pytest.approx(alone[k].choices, abs=1e-4) for k in both)
    tokenizer = load_tokenizer(path)
    compared = 0
    for r in with_choices.values():
        if r.finish is Finish.LENGTH or not r.choices:
            continue
        assert sum(r.choices) == pytest.approx(1.0)
        before = CONTEXTS[int(r.prompt_id)]
        text = before + r.text + stop
        # Compares rollouts whose text encodes to the drawn tokens.
        if len(token_ids(tokenizer, text)[0]) == len(token_ids(tokenizer, before)[0]) + r.tokens:
            assert r.choices == pytest.approx(backend.choice_probs([text], choices)[0], abs=1e-4)
            compared += 1
    assert compared or name != "llama"  # random models seldom draw tokens that their text encodes to
    assert not any(r.choices for r in rolled(backend, prompts, max_tokens=24, choices=choices).values())
    # Rollouts have no probabilities for choices of several tokens.
    longer = rolled(backend, prompts, **params, choices=("a", "zqx"))
    assert not any(r.choices for r in longer.values())


@pytest.mark.robust
def test_the_model_can_be_used_between_rollouts(model_of):
    backend = LocalBackend(model_of("llama"), device="cpu", batch=4)
    usual = rolled(backend, step_prefixes(), max_tokens=20)
    rollouts = {}
    for rollout in backend.sample(step_prefixes(), SamplingParams(max_tokens=20)):
        rollouts[rollout.key] = rollout
        backend.choice_probs(["Ann"], ["Y", "N"])
    assert_same(usual, rollouts)


def test_a_checkpoint_that_is_written_again_is_loaded_again(model_of, tmp_path):
    for name in ("llama", "qwen2"):
        directory = tmp_path / "here"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(model_of(name), directory)
        for file in directory.glob("*.safetensors"):
            file.touch()
        a, b = (
            rolled(LocalBackend(p, device="cpu"), step_prefixes(), max_tokens=9)
            for p in (str(directory), model_of(name))
        )
        assert_same(a, b)


def test_all_invalid_settings_are_reported_at_once(model_of, tmp_path):
    with pytest.raises(ConfigError, match="batch"):
        LocalBackend("x", batch=-1)
    backend = LocalBackend(model_of("llama"), device="cpu")
    with pytest.raises(ConfigError) as caught:
        list(backend.sample([], SamplingParams(max_tokens=0, temperature=-1, top_p=0)))
    assert len(caught.value.faults) == 3
    with pytest.raises(CheckpointError, match="no checkpoint"):
        list(LocalBackend(str(tmp_path / "none")).sample([Prompt("p", "x")], SamplingParams()))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), max_size=14))
def test_groups_cover_each_sequence_once_by_a_trunk_that_it_begins(sequences):
    trunks = group(sequences)
    assert sorted(i for _, members in trunks for i in members) == list(range(len(sequences)))
    for longest, members in trunks:
        assert all(sequences[longest][: len(sequences[i])] == sequences[i] for i in members)
    tops = [sequences[longest] for longest, _ in trunks]
    for i, a in enumerate(tops):
        assert not any(b[: len(a)] == a for j, b in enumerate(tops) if i != j)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 5000)), min_size=1, max_size=20))
def test_uniforms_depend_on_their_own_counter_only(pairs):
    keys = np.array([k for k, _ in pairs], dtype=np.uint64)
    t = np.array([t for _, t in pairs])
    together = uniforms(keys, t)
    assert ((together >= 0) & (together < 1)).all()
    assert together.tolist() == [float(uniforms(keys[i : i + 1], t[i : i + 1])[0]) for i in range(len(pairs))]


def test_uniforms_are_uniform_and_keys_differ():
    keys = np.array([key(0, f"p{i}", j) for i in range(100) for j in range(100)], dtype=np.uint64)
    assert len(set(keys.tolist())) == len(keys)
    for u in (uniforms(keys, np.zeros(len(keys), int)), uniforms(keys[:1].repeat(10_000), np.arange(10_000))):
        counts = np.histogram(u, bins=50, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 49 + 4 * math.sqrt(2 * 49)
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.04
