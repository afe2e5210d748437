"""Reward functions for other trainers, called as the trainers call them. test_rewards_trl.py runs TRL itself."""

import asyncio
import copy
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import CheckpointError, ConfigError, StageError
from stepmark.integrations import rewards
from stepmark.integrations.rewards import Completion, CompletionReward
from stepmark.plugins import registry
from stepmark.rl.rewards import Gold, Mixture, Verified
from stepmark.types import Outcome, Reward, Verification

RIGHT, WRONG = "1 + 2 = 3\n3 + 3 = 6\nThe answer is 6.", "1 + 2 = 4\n4 + 3 = 7\nThe answer is 7."


@dataclass
class Sums:
    """A verifier with the score 0.1 for a step with a wrong sum and 0.9 for any other step; a solution with "?" fails.
    It records the questions and solutions."""

    seen: list = field(default_factory=list)

    def verify(self, question, solutions):
        self.seen.append((question, [s.text for s in solutions]))
        return [self._verify(s) for s in solutions]

    def _verify(self, solution):
        if "?" in solution.text:
            return Verification(solution.id, (), 0.0, "min", Outcome.FAILED, "a question mark")
        scores = tuple(self._score(step) for step in solution.steps)
        return Verification(solution.id, scores, min(scores), "min")

    def _score(self, step):
        left, equals, right = step.partition(" = ")
        return 0.1 if equals and sum(map(int, left.split(" + "))) != int(right) else 0.9


def chat(role, content):
    return [{"role": role, "content": content}]


# ---- TRL ----


def test_trl_gives_a_reward_for_each_completion_and_none_for_a_lost_one():
    reward = rewards.trl(Sums())
    assert reward(prompts=["1 + 2 + 3?"] * 3, completions=[RIGHT, WRONG, "?"]) == [0.9, 0.1, None]
    assert reward(prompts=[], completions=[]) == []
    assert reward.__name__ == "stepmark"
    assert rewards.trl(Sums(), name="prm").__name__ == "prm"


def test_trl_questions_come_from_the_column_the_template_or_the_prompt():
    def question(prompt, template="", **columns):
        sums = Sums()
        rewards.trl(sums, template=template)(prompts=[prompt], completions=[RIGHT], **columns)
        return sums.seen[0][0]

    assert question("Q: 1 + 2?\nA:", question=["1 + 2?"]) == "1 + 2?"
    assert question("Q: 1 + 2?\nA:", template="Q: {question}\nA:") == "1 + 2?"
    assert question("1 + 2?\n") == "1 + 2?"
    assert question([*chat("system", "Solve."), *chat("user", "1 + 2?")]) == "1 + 2?"
    assert question(chat("user", "Q: 1 + 2?"), template="Q: {question}") == "1 + 2?"
    assert question(chat("user", [{"type": "text", "text": "1 + 2?"}])) == "1 + 2?"
    with pytest.raises(ConfigError, match=r"no question in the prompt 'Q: 1\?' by the template .* column 'question'"):
        question("Q: 1?", template="Q: {question}\nA:")
    with pytest.raises(ConfigError, match="no question in the prompt"):
        question(chat("system", "Solve."))


def test_trl_takes_conversations_and_plain_text_alike():
    reward = rewards.trl(Sums())
    chat_rewards = reward(
        prompts=[chat("user", "q")] * 2, completions=[chat("assistant", RIGHT), chat("assistant", WRONG)]
    )
    assert chat_rewards == reward(prompts=["q"] * 2, completions=[RIGHT, WRONG]) == [0.9, 0.1]
    assert reward(prompts=[chat("user", "q")], completions=[chat("assistant", None)]) == [0.0]


@pytest.mark.parametrize("column", ["answer", "reference", "gold"])
def test_trl_gold_answers_come_from_a_column(column):
    gold = Gold(registry.load("grader", "numeric"))
    options = {"answer": column} if column == "gold" else {}
    reward = rewards.trl(gold, **options)
    assert reward(prompts=["q"] * 2, completions=[RIGHT, WRONG], **{column: ["6", 6]}) == [1.0, 0.0]
    assert reward(prompts=["q"], completions=[RIGHT]) == [None]  # nothing to compare with


def test_trl_truncated_completions_earn_what_was_said_and_are_not_verified():
    call = {"prompts": ["q"] * 3, "completions": [RIGHT] * 3, "completion_ids": [[5, 2], [5, 5], []]}
    sums = Sums()
    assert rewards.trl(sums, eos_ids=2)(**call) == [0.9, 0.0, 0.0]
    assert sums.seen == [("q", [RIGHT])]
    assert rewards.trl(Sums(), eos_ids=[2, 7], truncated=-1.0)(**call) == [0.9, -1.0, -1.0]
    assert rewards.trl(Sums(), eos_ids=2, truncated=None)(**call) == [0.9, None, None]
    assert rewards.trl(Sums())(**call) == [0.9] * 3


def test_trl_logs_true_accuracy_beside_the_reward():
    logged, columns = {}, {}
    rewards.trl(Sums(), grader="numeric", credit="sum", eos_ids=2)(
        prompts=["q"] * 4,
        completions=[RIGHT, WRONG, "?", RIGHT],
        completion_ids=[[2], [2], [2], [1]],
        answer=["6"] * 4,
        log_metric=logged.__setitem__,
        log_extra=columns.__setitem__,
        trainer_state=None,
    )
    assert logged == {
        "stepmark/lost": 0.25,
        "stepmark/truncated": 0.25,
        "stepmark/steps": 2.5,
        "stepmark/accuracy": 0.25,
        "stepmark/ungradable": 0.25,
    }
    assert columns == {"stepmark_steps": ["[0.9, 0.9, 0.9]", "[0.1, 0.9, 0.9]", "[0.0]", "[0.0, 0.0, 0.0]"]}


def test_trl_functions_can_be_sent_to_another_process():
    sent = copy.deepcopy(rewards.trl(Sums(), grader="numeric"))  # copied as pickle does it
    assert sent(prompts=["q"], completions=[WRONG]) == [0.1]


# ---- verl ----


class Verl:
    """Calls a compute_score as verl's naive reward manager does (RewardLoopWorker, verl at 1dda039)."""

    def __init__(self, compute_score, **reward_kwargs):
        kind = inspect.iscoroutinefunction(compute_score)
        call = self._call_async if kind else self._call
        self.compute_score = partial(call, compute_score, reward_kwargs)
        self.is_async = inspect.iscoroutinefunction(self.compute_score)

    def _call(self, raw, extra, **kwargs):
        return raw(**{**kwargs, **extra})

    async def _call_async(self, raw, extra, **kwargs):
        return await raw(**{**kwargs, **extra})

    async def run_single(self, text, ground_truth, extra_info):
        info = {**extra_info, "num_turns": 1, "rollout_reward_scores": {}}
        kwargs = {"data_source": "d", "solution_str": text, "ground_truth": ground_truth, "extra_info": info}
        if self.is_async:
            result = await self.compute_score(**kwargs)
        else:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(None, lambda: self.compute_score(**kwargs))
        return {"reward_score": result["score"], "reward_extra_info": dict(result)}

    def batch(self, rows):
        """The scores as a tensor, and the figures for the log as arrays, as verl makes them."""
        import numpy as np
        import torch

        async def all_of_them():
            return await asyncio.gather(*(self.run_single(*row) for row in rows))

        outputs = asyncio.run(all_of_them())
        infos = [output["reward_extra_info"] for output in outputs]
        logged = {key: np.array([info[key] for info in infos]) for key in infos[0]}
        return torch.tensor([output["reward_score"] for output in outputs], dtype=torch.float32), logged


@pytest.mark.parametrize("asynchronous", [False, True])
def test_verl_gets_scores_and_arrays_for_its_log(asynchronous):
    compute_score = rewards.verl(Sums(), credit="sum", grader="numeric", asynchronous=asynchronous)
    info = {"question": "1 + 2 + 3?", "index": 0}
    rows = [(RIGHT, "6", info), (WRONG, 6, info), ("3 + 3 = 6", "6", info), ("", "6", info)]
    scores, logged = Verl(compute_score).batch(rows)
    assert scores.tolist() == pytest.approx([2.7, 1.9, 0.9, 0.0])
    assert logged["acc"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert logged["lost"].tolist() == [0.0] * 4
    assert logged["step_rewards"].tolist() == ["[0.9, 0.9, 0.9]", "[0.1, 0.9, 0.9]", "[0.9]", "[]"]
    assert logged["step_ends"].tolist() == ["[9, 19, 36]", "[9, 19, 36]", "[9]", "[]"]


def test_verl_gives_a_lost_attempt_the_mean_of_late_and_marks_it():
    score = rewards.verl(Sums())
    ask = partial(score, "d", ground_truth="6", extra_info={"question": "q"}, reward_router_address="")
    assert ask(solution_str="?")["score"] == 0.0  # nothing was earned yet
    assert [ask(solution_str=text)["score"] for text in (RIGHT, WRONG)] == [0.9, 0.1]
    lost = ask(solution_str="?")
    assert (lost["score"], lost["lost"]) == (0.5, 1.0)
    score = rewards.verl(Sums(), lost=-1.0)
    assert score("d", "?", "6", {"question": "q"})["score"] == -1.0


def test_verl_without_a_question_is_told_where_it_belongs():
    with pytest.raises(ConfigError, match=r"no 'question' in verl's extra_info, which has \['index'\]"):
        rewards.verl(Sums())("d", RIGHT, "6", {"index": 1})
    with pytest.raises(ConfigError, match="which has \\[\\]"):
        rewards.verl(Sums(), question="problem")("d", RIGHT, "6")
    gold = rewards.verl(Gold(registry.load("grader", "numeric")), question=None)
    assert [gold("d", text, 6)["score"] for text in (RIGHT, WRONG)] == [1.0, 0.0]


# ---- OpenRLHF ----

PROMPT = "<|user|>1 + 2 + 3?<|end|><|assistant|>"
TEMPLATE = "<|user|>{question}<|end|><|assistant|>"


def openrlhf_reads(reward_func, query, prompt, label):
    """Reads the result for one answer as OpenRLHF does: reward, score, extra logs (agent.py and samples_generator.py
    at 3c3be62)."""
    import torch

    info = reward_func([query], [prompt], [label])
    logs = {key: torch.tensor([value.flatten()[0].item()]) for key, value in info["extra_logs"].items()}
    return torch.tensor([info["rewards"]]), torch.tensor([info["scores"]]), logs


def test_openrlhf_gets_tensors_as_its_samples_need_them():
    sums = Sums()
    reward_func = rewards.openrlhf(sums, eos="<|end|>", template=TEMPLATE, grader="numeric")
    reward, score, logs = openrlhf_reads(reward_func, f"<s>{PROMPT}{RIGHT}<|end|>", PROMPT, "6")
    assert reward.shape == score.shape == (1,)
    assert reward.item() == score.item() == pytest.approx(0.9)
    assert {key: value.item() for key, value in logs.items()} == {
        "lost": 0.0,
        "steps": 3.0,
        "truncated": 0.0,
        "accuracy": 1.0,
        "ungradable": 0.0,
    }
    assert sums.seen == [("1 + 2 + 3?", [RIGHT])]


def test_openrlhf_rewards_many_at_once_in_order():
    reward_func = rewards.openrlhf(Sums(), eos=("</s>", "<|end|>"), template=TEMPLATE, truncated=-1.0, lost=-2.0)
    completions = [RIGHT + "</s>", WRONG + "<|end|>", RIGHT, "?<|end|>"]
    result = reward_func(["cut off", *(PROMPT + text for text in completions)], [PROMPT] * 5, [None] * 5)
    assert result["rewards"].tolist() == pytest.approx([-2.0, 0.9, 0.1, -1.0, -2.0])
    assert result["extra_logs"]["lost"].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert result["extra_logs"]["truncated"].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_openrlhf_what_a_policy_writes_after_an_end_token_of_its_own_is_not_hidden():
    sums = Sums()
    reward_func = rewards.openrlhf(sums, eos="<|end|>")
    reward_func([f"q\n{RIGHT}<|end|>\n1 + 1 = 5<|end|>"], ["q"], ["6"])
    assert sums.seen == [("q", [f"\n{RIGHT}<|end|>\n1 + 1 = 5"])]


def test_openrlhf_is_told_what_ends_a_text_and_what_made_the_prompts():
    for eos in ("", (), ("</s>", "")):
        with pytest.raises(ConfigError, match="at least one token that ends a text"):
            rewards.openrlhf(Sums(), eos=eos)
    with pytest.raises(ConfigError, match="no question in the prompt 'q' by the template"):
        rewards.openrlhf(Sums(), eos="</s>", template=TEMPLATE)(["qa</s>"], ["q"], ["6"])


# ---- all of them ----


def test_a_verifier_its_directory_and_a_source_of_rewards_are_taken(request, tiny, problems, tmp_path):
    stranger = rewards.trl(request.path.parents[1] / "strangers" / "verifier.py")
    assert stranger(prompts=["q"] * 2, completions=["1 + 2 = 3", "1 + 2 = 4"]) == [0.9, 0.1]
    mixed = Mixture(((1.0, Gold(registry.load("grader", "numeric"))), (0.5, Verified(Sums(), "min"))))
    assert rewards.trl(mixed)(prompts=["q"], completions=[RIGHT], answer=["6"]) == [1.45]
    prm = registry.load("verifier", "prm", path=tiny, device="cpu")
    prm.save(prm.build(), tmp_path / "prm")
    question, text = problems[0].question, problems[0].reference
    for credit in (None, "min"):
        options = {"credit": credit} if credit else {}
        [reward] = rewards.trl(tmp_path / "prm", **options)(prompts=[question], completions=[text])
        assert reward == rewards.trl(prm)(prompts=[question], completions=[text])[0]
        assert 0 < reward < 1
    with pytest.raises(CheckpointError):
        rewards.trl(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "lines"}, "Did you mean 'line'"),
        ({"credit": "summ"}, "Did you mean 'sum'"),
        ({"grader": "numerik"}, "Did you mean 'numeric'"),
        ({"most_lost": 2}, "share from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_function_is_made(options, message):
    for make in (rewards.trl, rewards.verl, partial(rewards.openrlhf, eos="</s>")):
        with pytest.raises(ConfigError, match=message):
            make(Sums(), **options)
    with pytest.raises(ConfigError, match="Verified has its own credit"):
        rewards.trl(Verified(Sums()), credit="min")


def test_steps_are_split_as_the_task_says():
    assert rewards.trl(Sums(), credit="sum", steps="sentence")(prompts=["q"], completions=["So. Yes."]) == [1.8]


def test_too_many_lost_rewards_are_an_error_and_some_are_not():
    reward = rewards.trl(Sums(), most_lost=0.5)
    assert reward(prompts=["q"] * 99, completions=["?"] * 49 + ["1"] * 50).count(None) == 49
    assert reward(prompts=["q"], completions=["?"]) == [None]
    with pytest.raises(StageError, match=r"51 of the latest 101 attempts have no reward.*a question mark \(51\)"):
        reward(prompts=["q"], completions=["?"])


def test_truncated_attempts_are_not_lost_ones():
    reward = rewards.trl(Sums(), eos_ids=2, truncated=None)
    assert reward(prompts=["q"] * 200, completions=["1"] * 200, completion_ids=[[1]] * 200) == [None] * 200


def test_what_many_threads_ask_is_verified_in_batches():
    started, go = threading.Event(), threading.Event()

    class Slow(Sums):
        def verify(self, question, solutions):
            started.set()
            assert go.wait(30)
            return super().verify(question, solutions)

    reward = rewards.trl(verifier := Slow())
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(reward, ["q"], [RIGHT])
        assert started.wait(30)
        rest = [pool.submit(reward, ["q"], [WRONG]) for _ in range(8)]
        while len(reward.rewarder._batcher._waiting) < 8:
            pass
        go.set()
        assert first.result(30) == [0.9]
        assert [f.result(30) for f in rest] == [[0.1]] * 8
    assert verifier.seen == [("q", [RIGHT]), ("q", [WRONG] * 8)]


# ---- on tokens ----


@given(st.lists(st.text("ab c\n", min_size=1, max_size=5), max_size=12), st.booleans())
def test_rewards_on_tokens_are_all_there_and_each_at_its_steps_last_character(pieces, eos):
    text, cuts = "".join(pieces), list(accumulate(map(len, pieces), initial=0))
    offsets = [*pairwise(cuts), *[(0, 0)] * eos]  # as tokenizers give the offsets of EOS
    source = Verified(Sums(), "sum")
    [earned] = rewards.Rewarder(source)([Completion("q", text)])
    tokens = earned.on_tokens(offsets)
    assert len(tokens) == len(offsets)
    assert sum(tokens) == pytest.approx(earned.reward.total)
    for end in earned.ends:
        [here] = [i for i, (a, b) in enumerate(offsets) if a < end <= b]
        assert tokens[here] > 0
        assert not text[end - 1].isspace()
    assert len(earned.ends) == len(earned.reward.steps)


def test_the_end_is_rewarded_at_the_very_last_token_and_a_step_never_at_one_without_characters():
    earned = CompletionReward(Reward("p#0", (0.25, 0.5), 1.0), (2, 5), None)
    assert earned.on_tokens([(0, 1), (1, 3), (3, 5), (5, 6), (6, 6)]) == [0.0, 0.25, 0.5, 0.0, 1.0]
    assert earned.on_tokens([(0, 6)]) == [1.75]
    assert earned.on_tokens([]) == []


def test_importing_it_loads_no_torch():
    code = "import stepmark.integrations.rewards, sys\n"
    code += "assert not {'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
