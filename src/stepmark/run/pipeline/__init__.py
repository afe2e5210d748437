"""The stages of a run, in order.

    RUN/config.json                every setting that can change a result
    RUN/inputs.json                what the recipe's checkpoints and data files are (run/inputs.py)
    RUN/problems/PART.jsonl        parts: train and test; maybe out_of_distribution, reinforce, held_out, after
    RUN/bases/NAME/                new models with random weights, before training
    RUN/generator/, RUN/judge/     checkpoints of models that the recipe trains
    RUN/solutions/PART.jsonl, RUN/grades/PART.jsonl, RUN/labels/train.jsonl
    RUN/rationales/train.jsonl, RUN/rationales/NAME/train.jsonl     for all verifiers, and for the verifier NAME
    RUN/rollouts/                  rollouts, one JSON line each, with their token counts and price
    RUN/verifiers/NAME/            checkpoint and verifier.json
    RUN/scores/NAME.jsonl, RUN/scores/out_of_distribution/NAME.jsonl
    RUN/policies/, RUN/refreshed/, RUN/after/                       where the recipe reinforces (run/policies.py)
    RUN/metrics.json, RUN/by_problem.json, RUN/report.html
    RUN/quarantine.jsonl           rows left out, with file, line and reason
    RUN/log.jsonl, RUN/seconds.json
    RUN/archive/DATE/              earlier outputs of stages that were run again

To add a stage, write one file here and put it into the list below. The recipe can name a user's own stage
(run/stage.py).

stepmark run recipes/demo.yaml --dry-run
"""

from __future__ import annotations

from stepmark.errors import ConfigError
from stepmark.run.pipeline.evaluate import Evaluate
from stepmark.run.pipeline.grade import Grade
from stepmark.run.pipeline.label import Label, WriteRationales
from stepmark.run.pipeline.models import TrainJudge, TrainModel
from stepmark.run.pipeline.policies import TrainPolicies
from stepmark.run.pipeline.policy_tests import PolicyTests
from stepmark.run.pipeline.problems import LoadProblems
from stepmark.run.pipeline.refresh import RefreshVerifier
from stepmark.run.pipeline.report import Report
from stepmark.run.pipeline.sample import Sample
from stepmark.run.pipeline.score import Score
from stepmark.run.pipeline.verifiers import TrainVerifiers
from stepmark.run.recipe import Recipe
from stepmark.run.stage import Stage, UserStage, matches


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a run of this recipe, in order.

    Raises ConfigError for a user's stage whose `after` or name does not fit the others."""
    parts, tests = recipe.sample.parts, recipe.sample.tests
    sampled = [part for part in parts if recipe.sample.source(part).file is None]
    listed: list[Stage] = [LoadProblems()]
    writes = bool(sampled) or recipe.label is not None or bool(recipe.writers)  # whether models write texts
    if writes and recipe.generator is not None and recipe.generator.train is not None:
        listed += [TrainModel("generator")]
    if writes and recipe.completer is not None and recipe.completer.train is not None:
        listed += [TrainModel("completer")]
    for part in parts:
        listed += [Sample(part), Grade(part)] if part in sampled else [Grade(part)]
    if recipe.judge is not None and recipe.judge.train is not None:
        listed += [TrainJudge()]
    if recipe.label is not None:
        listed += [Label()]
    listed += [WriteRationales(writer) for writer in recipe.writers]
    listed += [TrainVerifiers()]
    listed += [Score(verifier, part) for part in tests for verifier in recipe.verifiers]
    if recipe.reinforce is not None:
        refresh = recipe.reinforce.refresh
        listed += [TrainPolicies()]
        for round in range(1, len(refresh.made) + 1) if refresh is not None else ():
            assert refresh is not None
            listed += [RefreshVerifier(round)]
            listed += [TrainPolicies(round + 1)] if round < refresh.rounds else []
        listed += [PolicyTests()]
    listed += [Evaluate(), Report()]
    for settings in recipe.stages:
        _insert(listed, UserStage(settings.stage_name, settings.load()))
    return listed


def _insert(listed: list[Stage], stage: UserStage) -> None:
    places = [i for i, other in enumerate(listed) if matches(other, stage.after)]
    if not places:
        names = ", ".join(other.name for other in listed)
        raise ConfigError(
            f"stages: {stage.name} runs after {stage.after!r}, which is not a stage of this run. There are: {names}."
        )
    if any(other.name == stage.name for other in listed):
        raise ConfigError(
            f"stages: another stage has the name {stage.name!r}; give this one another, e.g. "
            f"{{name: FILE, called: {stage.name}_2}}."
        )
    listed.insert(places[-1] + 1, stage)
