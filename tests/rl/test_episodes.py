"""Attempts as token ids: the ends of the steps, and a forward pass that reads exactly the sampled tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepmark.backends.local.engine import Engine
from stepmark.models import checkpoints
from stepmark.rl.episodes import episodes, last_tokens
from stepmark.rl.policy import Policy, batches, encoded
from stepmark.text import steps
from stepmark.text.prompts import Template
from stepmark.types import SamplingParams


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return checkpoints.load_tokenizer(tiny)


@pytest.fixture(scope="module")
def model(tiny):
    return checkpoints.load_model(tiny, device="cpu")


@pytest.fixture(scope="module")
def draw(tiny, tokenizer, problems):
    engine = Engine(checkpoints.load_model(tiny, device="cpu"))
    params = SamplingParams(max_tokens=40, seed=3)

    def make(name=""):
        return episodes(
            engine, tokenizer, problems[:6], samples=4, params=params, template=Template(), steps="line", name=name
        )

    return make


@pytest.fixture(scope="module")
def drawn(draw):
    return draw()


class TestStepEnds:
    @given(st.lists(st.text(st.sampled_from("ab é€😀\n .1"), max_size=12), min_size=1, max_size=5).map("\n".join))
    @example("é\n€€\n😀")
    @settings(max_examples=200)
    def test_the_token_that_completes_a_step(self, tokenizer, text):
        """The ids up to and including that token decode to the whole step; without that token they do not."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spans = steps.split(text, "line")
        last_indices = last_tokens(tokenizer, (), ids, text, spans)
        assert len(last_indices) == len(spans)
        for (start, end), t in zip(spans, last_indices, strict=True):
            upto = text[: start + len(text[start:end].rstrip())]
            assert tokenizer.decode(ids[: t + 1]).startswith(upto)
            assert not tokenizer.decode(ids[:t]).startswith(upto)

    def test_text_cut_before_a_stop_string(self, tokenizer):
        ids = tokenizer("1 + 1 = 2.\nso 2. Stop here", add_special_tokens=False)["input_ids"]
        text = "1 + 1 = 2.\nso 2. "
        last_indices = last_tokens(tokenizer, (), ids, text, steps.split(text, "line"))
        assert tokenizer.decode(ids[: last_indices[-1] + 1]) == "1 + 1 = 2.\nso 2."

    def test_every_step_of_a_drawn_attempt_ends_within_it(self, drawn):
        for e in drawn:
            assert len(e.ends) == len(e.solution.spans)
            assert list(e.ends) == sorted(e.ends)
            assert all(0 <= t < len(e.ids) for t in e.ends)


class TestDrawing:
    def test_all_attempts_come_in_order(self, drawn, problems):
        assert [e.solution.id for e in drawn] == [f"{p.id}#{i}" for p in problems[:6] for i in range(4)]

    def test_an_end_token_is_the_last_there_is(self, drawn, tokenizer):
        assert any(e.truncated for e in drawn)
        for e in drawn:
            assert e.truncated == (e.ids[-1] != tokenizer.eos_token_id)
            assert tokenizer.eos_token_id not in e.ids[:-1]

    def test_another_name_draws_others(self, draw, drawn):
        assert [e.ids for e in draw()] == [e.ids for e in drawn]
        assert [e.ids for e in draw("1/")] != [e.ids for e in drawn]


class TestPasses:
    def test_a_pass_reads_the_own_tokens_and_no_others(self, model, drawn, tokenizer):
        """Packed with other attempts, in any order, each attempt gets the same outputs as alone in the plain model."""
        policy = Policy(model, temperature=1.0)
        torch.nn.init.normal_(policy.value.weight)
        sequences = [encoded(e) for e in drawn]
        order = np.random.default_rng(0).permutation(len(sequences)).tolist()
        seen = 0
        for b, members in batches(sequences, order, checkpoints.pad_id(tokenizer), "cpu", 128, 512):
            with torch.no_grad():
                outputs = policy(b)
            cuts = np.cumsum([len(drawn[i].ids) for i in members])[:-1]
            parts = zip(
                *(np.split(x.numpy(), cuts) for x in (outputs.logprobs, outputs.values, outputs.entropies)), strict=True
            )
            for i, (logs, values, entropies) in zip(members, parts, strict=True):
                e = drawn[i]
                ids = torch.tensor([[*e.prompt, *e.ids]])
                with torch.no_grad():
                    out = model(input_ids=ids, output_hidden_states=True)
                    expected = out.logits[0, len(e.prompt) - 1 : -1].log_softmax(-1)
                    states = policy.value(out.hidden_states[-1][0, len(e.prompt) - 1 : -1])[:, 0]
                assert logs == pytest.approx(expected[range(len(e.ids)), list(e.ids)].numpy(), abs=1e-4)
                assert values == pytest.approx(states.numpy(), abs=1e-3)
                assert entropies == pytest.approx(-(expected.exp() * expected).sum(-1).numpy(), abs=1e-3)
                assert logs.sum() == pytest.approx(e.solution.logprob, abs=1e-3)
                seen += 1
        assert seen == len(drawn)

    def test_a_temperature_is_that_of_the_attempts(self, model, drawn, tokenizer):
        sequences = [encoded(drawn[0])]
        b, _ = next(iter(batches(sequences, [0], checkpoints.pad_id(tokenizer), "cpu", 128, 512)))
        with torch.no_grad():
            e = drawn[0]
            logits = model(input_ids=torch.tensor([[*e.prompt, *e.ids]])).logits[0, len(e.prompt) - 1 : -1]
            logprobs = Policy(model, temperature=0.5, values=False)(b).logprobs
        expected = (logits / 0.5).log_softmax(-1)[range(len(e.ids)), list(e.ids)]
        assert logprobs.numpy() == pytest.approx(expected.numpy(), abs=1e-4)

    def test_batches_hold_every_attempt_once_and_no_more_than_they_may(self, drawn, tokenizer):
        sequences = [encoded(e) for e in drawn]
        members = []
        for b, own in batches(sequences, range(len(sequences)), checkpoints.pad_id(tokenizer), "cpu", 100, 300):
            assert b.ids.numel() <= 300 or b.ids.shape[0] == 1
            assert int((b.weights > 0).sum()) == sum(len(drawn[i].ids) for i in own)
            members += own
        assert sorted(members) == list(range(len(sequences)))
