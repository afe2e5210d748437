"""TRL's own GRPOTrainer learns from a Stepmark verifier, on CPU. No other test imports TRL."""

import copy
import importlib.util

import pytest

from seeds import SEED
from stepmark.integrations import rewards
from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.rl.rewards import Gold, Mixture, Verified
from stepmark.types import Reward, Verification

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "datasets", "accelerate")),
    reason="TRL isn't installed: pip install 'trl>=1.16,<2'",
)

GROUP, UPDATES = 4, 2


@pytest.fixture
def policy(tiny):
    model = checkpoints.load_model(tiny, "CausalLM", dtype="float32", device="cpu")
    tokenizer = copy.deepcopy(checkpoints.load_tokenizer(tiny))
    tokenizer.padding_side = "left"
    return copy.deepcopy(model), tokenizer


def grpo(policy, reward, rows, out, trainer=None, **options):
    """A trainer after its updates."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = policy
    config = GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=2 * GROUP,
        num_generations=GROUP,
        max_completion_length=24,
        max_steps=UPDATES,
        logging_steps=1,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        seed=SEED,
        **options,
    )
    trainer = (trainer or GRPOTrainer)(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def logged(trainer, key):
    return [line[key] for line in trainer.state.log_history if key in line]


@pytest.mark.robust
def test_grpo_learns_from_a_verifier_and_logs_true_accuracy(policy, tiny, problems, tmp_path):
    import torch

    prm = registry.load("verifier", "prm", path=tiny, device="cpu")
    prm.save(prm.build(), tmp_path / "prm")
    gold = Gold(registry.load("grader", "numeric"))
    mixed = Mixture(((1.0, gold), (1.0, Verified(prm, "min", temperature=0.1))))
    by_steps = rewards.trl(tmp_path / "prm", credit="sum", grader="numeric", template="{question}\n", name="steps")
    before = [p.detach().clone() for p in policy[0].parameters()]
    rows = [{"prompt": f"{p.question}\n", "answer": p.answer} for p in problems[:4]]
    trainer = grpo(policy, [by_steps, rewards.trl(mixed, name="mixed")], rows, tmp_path / "out")
    assert trainer.state.global_step == UPDATES
    for name in ("steps", "mixed"):
        assert len(logged(trainer, f"rewards/{name}/mean")) == UPDATES
        assert all(x > 0 for x in logged(trainer, f"rewards/{name}/std"))
    assert logged(trainer, "steps/lost") == [0.0] * UPDATES
    assert all(0 <= x <= 1 for x in logged(trainer, "steps/accuracy"))
    assert all(x >= 1 for x in logged(trainer, "steps/steps"))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.robust
def test_grpo_learns_nothing_from_lost_rewards(policy, problems, tmp_path):
    import torch

    class Half:
        """All known rewards are equal, so the weights change only if a lost reward counts as a low one."""

        def reward(self, attempts):
            return [
                Reward(s.id, (0.0,) * len(s.spans), 1.0, "the server is down" if i % 2 else "")
                for i, (_, s) in enumerate(attempts)
            ]

    before = [p.detach().clone() for p in policy[0].parameters()]
    rows = [{"prompt": f"{p.question}\n"} for p in problems[:4]]
    trainer = grpo(policy, rewards.trl(Half(), most_lost=1.0), rows, tmp_path, weight_decay=0.0)
    assert logged(trainer, "stepmark/lost") == [0.5] * UPDATES
    assert logged(trainer, "reward") == [1.0] * UPDATES
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.robust
def test_grpo_tells_which_completions_ran_out_of_tokens(policy, problems, tmp_path):
    import torch

    model, tokenizer = policy
    eos, seen = tokenizer.eos_token_id, []
    # About half of the texts end in time.
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size), requires_grad=False)
    model.lm_head.bias[eos] = 2.6
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"

    class Ones:
        def reward(self, attempts):
            return [Reward(s.id, (0.0,) * len(s.spans), 1.0) for _, s in attempts]

    class Watched(rewards.TRL):
        def __call__(self, prompts, completions, completion_ids=None, **columns):
            completion_rewards = super().__call__(prompts, completions, completion_ids, **columns)
            seen.extend(zip((ids[-1] == eos for ids in completion_ids), completion_rewards, strict=True))
            return completion_rewards

    reward = rewards.trl(Ones(), eos_ids=eos, truncated=-0.5)
    watched = Watched(reward.rewarder, "question", "answer", None, reward.eos_ids, "watched")
    rows = [{"prompt": [{"role": "user", "content": p.question}]} for p in problems[:4]]
    trainer = grpo(policy, watched, rows, tmp_path)
    assert len(seen) == UPDATES * 2 * GROUP
    assert set(seen) == {(True, 1.0), (False, -0.5)}
    clipped = logged(trainer, "completions/clipped_ratio")
    assert sum(clipped) / UPDATES == pytest.approx(sum(not ended for ended, _ in seen) / len(seen))


@pytest.mark.robust
def test_a_steps_reward_reaches_its_own_tokens(policy, problems, tmp_path):
    """The first step of an attempt is rewarded, the others are not: only its tokens may differ from those after it."""
    import torch

    from stepmark.integrations.trl_steps import StepGRPOTrainer

    class FirstStep:
        """Scores an attempt's first step by its length and all others 0."""

        per_step = True

        def verify(self, question, solutions):
            return [
                Verification(s.id, tuple(0.0 if i else (b % 7) / 7 for i, (_, b) in enumerate(s.spans)), 0.0, "min")
                for s in solutions
            ]

    seen = []

    class Watched(StepGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            seen.append((output, self._placed))
            return output

    reward = rewards.trl(FirstStep(), credit="sum", steps="sentence", template="{question}\n")
    rows = [{"prompt": f"{p.question}\n"} for p in problems[:4]]
    before = [p.detach().clone() for p in policy[0].parameters()]
    trainer = grpo(policy, [reward, lambda prompts, **_: [0.25] * len(prompts)], rows, tmp_path, trainer=Watched)
    assert trainer.state.global_step == UPDATES
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    for output, placed in seen:
        advantages = output["advantages"]
        assert advantages.shape == output["completion_ids"].shape
        assert bool((advantages[output["completion_mask"] == 0] == 0).all())
        for row, (earned, ends, length) in zip(advantages.tolist(), placed, strict=True):
            assert earned.end == pytest.approx(0.25) and len(earned.steps) == len(ends) and length <= len(row)
            changes = [t for t in range(length - 1) if row[t] != pytest.approx(row[t + 1], abs=1e-6)]
            assert set(changes) <= set(ends)  # an advantage changes only where a step ends
        group = list(zip(advantages.tolist(), placed, strict=True))[:GROUP]
        steps = [x for _, (earned, _, _) in group for x in earned.steps]
        mean, spread = (
            sum(steps) / len(steps),
            (sum(x * x for x in steps) / len(steps) - (sum(steps) / len(steps)) ** 2),
        )
        for row, (earned, _, _) in group:
            if earned.steps and spread > 1e-9:
                expected = sum((x - mean) / (spread**0.5 + 1e-6) for x in earned.steps)
                assert row[0] == pytest.approx(expected, abs=1e-3)


def test_step_rewards_need_a_score_for_each_step(policy, problems, tmp_path):
    from stepmark.errors import ConfigError
    from stepmark.integrations.trl_steps import StepGRPOTrainer

    rows = [{"prompt": f"{problems[0].question}\n"}]
    gold = Gold(registry.load("grader", "numeric"))
    with pytest.raises(ConfigError, match="credit='sum'"):
        grpo(policy, rewards.trl(Verified(object(), "min")), rows, tmp_path, trainer=StepGRPOTrainer)
    with pytest.raises(ConfigError, match="got 2"):
        grpo(policy, [rewards.trl(gold), rewards.trl(gold)], rows, tmp_path, trainer=StepGRPOTrainer)
