"""How far a policy has gone from its reference, on attempts of its own: one measure for every way of training.

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
    """KL(policy || reference) of two checkpoints in nats a token, at the settings' temperature."""
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
    """The same of models that are loaded."""
    s = learner.settings
    params = SamplingParams(max_tokens=s.max_tokens, temperature=s.temperature, stop=s.stop, seed=s.seed)
    with optimization.autocast(s.precision, learner.device):
        drawn = episodes(
            engine, tokenizer, problems, samples=SAMPLES, params=params, template=template, steps=steps, chat=chat
        )
    engine.use(engine.plain_attention)
    found = [encoded(e) for e in drawn]
    if not found:
        return 0.0
    logs, others = (learner.read(model, found)[0] for model in (learner.policy, learner.reference))
    return losses.nats_a_token(logs, others)
