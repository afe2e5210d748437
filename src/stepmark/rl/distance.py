"""The KL divergence of a policy from its reference, estimated on the policy's own attempts. The measure is the same for
every training method.

divergence("policy/", "generator/", problems, ReinforceSettings(max_tokens=120))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepmark.backends.local.engine import Engine
from stepmark.models import checkpoints, optimization
from stepmark.rl import losses
from stepmark.rl.episodes import episodes
from stepmark.rl.learner import Learner
from stepmark.rl.policy import encoded
from stepmark.rl.settings import ReinforceSettings
from stepmark.text.prompts import Template
from stepmark.types import Place, Problem, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = 4  # attempts at each problem


def divergence(
    policy: Place,
    reference: Place,
    problems: Sequence[Problem],
    settings: ReinforceSettings,
    *,
    template: Template | None = None,
    steps: str = "line",
    chat: bool = False,
) -> float:
    """KL(policy || reference) of two checkpoints in nats per token, at the settings' temperature."""
    device = checkpoints.resolve_device(settings.device)
    learner = Learner(policy, settings, device, reference=reference)
    engine = Engine(learner.policy.model)
    return divergence_on(
        problems, learner, engine, checkpoints.load_tokenizer(policy), template or Template(), steps, chat
    )


def divergence_on(
    problems: Sequence[Problem],
    learner: Learner,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    steps: str,
    chat: bool = False,
) -> float:
    """The same as `divergence`, for models that are already loaded."""
    s = learner.settings
    params = SamplingParams(max_tokens=s.max_tokens, temperature=s.temperature, stop=s.stop, seed=s.seed)
    with optimization.autocast(s.precision, learner.device):
        attempts = episodes(
            engine, tokenizer, problems, samples=SAMPLES, params=params, template=template, steps=steps, chat=chat
        )
    engine.use(engine.plain_attention)
    sequences = [encoded(e) for e in attempts]
    if not sequences:
        return 0.0
    policy_logprobs, _ = learner.read(learner.policy, sequences)
    reference_logprobs, _ = learner.read(learner.reference, sequences)
    return losses.nats_a_token(policy_logprobs, reference_logprobs)
