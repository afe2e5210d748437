"""Reinforcement learning on rewards for attempts: step-by-step PPO (Math-Shepherd, section 3.5) or GRPO, with guards.

Each update samples attempts with the current weights, gets their rewards, and makes a few passes over them. Before the
first update and then every few updates, the policy answers held-out problems greedily. The log has this true accuracy
beside the reward. When the accuracy falls, or the policy gives only empty attempts, it goes back to its best weights or
training stops (guards.py). The result is the best policy seen, which may be the one at the start. After a kill the same
call resumes from the last checkpoint (weights, value head, optimiser, guards) and ends with the same weights as an
uninterrupted run, because the attempts of an update depend only on the seed, its number and the weights.

    OUT/                    a Hugging Face checkpoint and reinforced.json, written when training is finished
    OUT/reinforce.jsonl     one line per update
    OUT/.training/          the newest training state, removed at the end
    OUT/.best/              the best policy so far, removed at the end

    stepmark reinforce --task arithmetic --policy generator/ --reward prm/ --out policy/
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from stepmark.backends.local.engine import Engine
from stepmark.data import store
from stepmark.data.store import write_json
from stepmark.errors import ConfigError, DataError
from stepmark.models import checkpoints, optimization, training_log
from stepmark.protocols import Grader, RewardSource
from stepmark.rl import guards, losses
from stepmark.rl.distance import divergence_on
from stepmark.rl.episodes import Episode, episodes
from stepmark.rl.identity import answers, described, digest
from stepmark.rl.learner import Learner
from stepmark.rl.rewards import RecentRewards
from stepmark.rl.settings import Explored, Look, Reinforced, ReinforceSettings
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import Template
from stepmark.types import Place, Problem, Progress, Reward, SamplingParams

KEPT, BEST = ".training", ".best"
SPACING = 20  # the time between two checkpoints is at least this multiple of the time that writing one takes


def reinforce(
    policy: Place,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    source: RewardSource,
    grader: Grader,
    out: Place,
    settings: ReinforceSettings | None = None,
    *,
    template: Template | None = None,
    steps: str = "line",
    chat_template: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Reinforced:
    """Reinforces the checkpoint `policy` on attempts at `problems`. The same checkpoint is the reference. Resumes an
    interrupted call, and returns at once when `out` holds the finished result of the same call.

    `template` is "{question}\\n" by default; with `chat_template` the rendered question becomes the user's turn.
    Raises CheckpointError for a policy that can't be loaded, ConfigChanged when `out` belongs to another call,
    ConfigError for problems with the same id or both in `problems` and `held_out`, DataError without problems or
    rewards, and StageError when too many attempts have no reward."""
    settings = settings or ReinforceSettings()
    template = template or Template("{question}\n")
    out = Path(out)
    checkpoints.check(policy)
    if not problems:
        raise DataError("no problems to learn from; give at least one.")
    for problem_set in (problems, held_out):
        if len({p.id for p in problem_set}) < len(problem_set):
            raise ConfigError("several problems have the same id; each problem needs its own id.")
    if settings.guard != "off" and not held_out:
        raise ConfigError("the guard needs held-out problems; give some, or set guard=off.")
    if settings.collapse == "rollback" and not held_out:
        raise ConfigError(
            "collapse=rollback goes back to the best policy on held-out problems; give some, or set collapse=stop."
        )
    if shared := {p.question for p in problems} & {p.question for p in held_out}:
        raise ConfigError(
            f"{len(shared)} problems are both learned from and held out, e.g. {min(shared)!r}. "
            "Over-optimisation does not show on those; hold out other problems."
        )
    identity = {
        "policy": checkpoints.digest(policy),
        "source": described(source),
        "template": template.hash,
        "steps": steps,
        "chat_template": chat_template,
        "grader": described(grader),
        "settings": asdict(settings),
        "data": digest(problems, held_out),
        training_log.ANSWERS: answers(problems, held_out),
    }
    training_log.claim(out, identity)
    if (out / "reinforced.json").exists():
        _clear(out)
        return _stored_result(out)
    try:
        sampling = {"template": template, "steps": steps, "chat": chat_template}
        loop = _Loop(policy, problems, held_out, source, grader, out, settings, sampling, trust_remote_code, progress)
        return loop.run()
    except BaseException:
        if not (out / KEPT).exists():  # nothing is stored yet, so that another call may use the directory
            (out / "training.json").unlink(missing_ok=True)
        raise


def _clear(out: Path) -> None:
    for directory in [*out.glob(KEPT + "*"), out / BEST]:
        shutil.rmtree(directory, ignore_errors=True)


def _stored_result(out: Path) -> Reinforced:
    stored = json.loads((out / "reinforced.json").read_text())
    stored["looks"] = tuple(Look(**look) for look in stored["looks"])
    stored["explored"] = tuple(Explored(**x) for x in stored.get("explored", ()))
    return Reinforced(**stored | {name: tuple(stored[name]) for name in ("rewards", "rollbacks")})


class _Loop:
    """The state of one reinforcement run."""

    def __init__(
        self,
        path: Place,
        problems: Sequence[Problem],
        held_out: Sequence[Problem],
        source: RewardSource,
        grader: Grader,
        out: Path,
        settings: ReinforceSettings,
        sampling: Mapping[str, Any],  # template, steps and chat, as `episodes` takes them
        trust_remote_code: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.problems, self.held_out, self.source, self.grader = problems, held_out, source, grader
        self.out, self.settings, self.sampling, self.progress = out, settings, sampling, progress
        self.device = checkpoints.resolve_device(settings.device)
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self.tokenizer = checkpoints.load_tokenizer(path, trust_remote_code)
        self.learner = Learner(path, settings, self.device, trust_remote_code)
        self.policy = self.learner.policy
        self.engine = Engine(self.policy.model)
        self.params = SamplingParams(
            max_tokens=settings.max_tokens, temperature=settings.temperature, stop=settings.stop
        )
        self.update, self.tokens, self.seconds = 0, 0, 0.0
        self.rollbacks: list[int] = []
        self.weight = settings.kl
        self.kl = 0.0
        self.rewards: list[float] = []
        self.looks: list[guards.Held] = []
        self.reported: list[Look] = []
        self.explored: list[Explored] = []
        self.worse, self.collapsing, self.stopped = 0, 0, ""  # looks and updates in a row that show it, and the reason
        self.recent = RecentRewards(settings.most_lost)
        self.checkpoint_took = 0.0  # seconds for writing the last checkpoint
        self.clock: dict[str, float] = {}

    # ---- the loop over updates ----

    def run(self) -> Reinforced:
        self._resume()
        started, last_save = time.monotonic() - self.seconds, time.monotonic()
        last_logged = self.update if self.looks or self.update else -1  # -1: the first look writes a line for update 0
        with training_log.writer(self.out, "reinforce.jsonl", last_logged, self.settings.tensorboard) as write:
            if not self.looks and self.held_out:
                self._look()
                self._report(write, {})
                self._checkpoint()
            while self.update < self.settings.updates and not self.stopped:
                figures = self._update()
                self.update += 1
                if self.update % self.settings.evaluate_every == 0 or self.update == self.settings.updates:
                    self._look()
                    self._guard()
                self._guard_attempts(figures)
                self.seconds = time.monotonic() - started
                self._report(write, figures)
                spacing = SPACING * self.checkpoint_took if self.settings.checkpoint_seconds else 0.0
                if time.monotonic() - last_save > max(spacing, self.settings.checkpoint_seconds):
                    self._checkpoint()
                    last_save = time.monotonic()
        return self._finish()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.clock[phase] = self.clock.get(phase, 0.0) + time.perf_counter() - started

    # ---- one update ----

    def _update(self) -> dict[str, float]:
        self.clock = {}
        with self._timed("rollouts"):
            attempts = self._draw()
        with self._timed("rewards"):
            rewards = self._rewards_of(attempts)
        self.recent.add(r for e, r in zip(attempts, rewards, strict=True) if not e.truncated)
        rewarded = [(e, r) for e, r in zip(attempts, rewards, strict=True) if not r.lost]
        if not rewarded:
            reason = next((r.lost for r in rewards if r.lost), "no attempt fits into the model's positions")
            raise DataError(f"update {self.update}: none of {len(attempts)} attempts has a reward: {reason}")
        self.tokens += sum(len(e.ids) for e in attempts)
        self.rewards.append(mean(r.total for _, r in rewarded))
        self.engine.use(self.engine.plain_attention)
        with self._timed("passes"):
            figures = self.learner.learn(
                [e for e, _ in rewarded], [r for _, r in rewarded], self.update, self.weight, self._by_step(rewards)
            )
        self.kl = figures["kl"]
        if self.settings.kl_target is not None:
            self.weight = losses.adapted(self.weight, self.kl, self.settings.kl_target)
        count = len(attempts)
        figures |= guards.explored(attempts, rewards)
        shares = (figures[name] for name in ("same_reward", "empty", "truncated", "entropy"))
        self.explored.append(Explored(self.update + 1, *shares))
        self.collapsing = self.collapsing + 1 if guards.collapsed(figures, self.settings.samples) else 0
        return {
            "reward": self.rewards[-1],
            "tokens_per_attempt": sum(len(e.ids) for e in attempts) / count,
            "steps_per_attempt": sum(len(e.ends) for e in attempts) / count,
            "left_out": 1 - len(rewarded) / (self.settings.prompts * self.settings.samples),
            **figures,
        }

    def _draw(self) -> list[Episode]:
        """The attempts of this update. Each epoch over the problems has its own random order."""
        s, size = self.settings, len(self.problems)
        positions = range(self.update * s.prompts, (self.update + 1) * s.prompts)
        orders = {
            epoch: np.random.default_rng([s.seed, epoch]).permutation(size)
            for epoch in {position // size for position in positions}
        }
        problems = [self.problems[int(orders[position // size][position % size])] for position in positions]
        with optimization.autocast(s.precision, self.device):
            return episodes(
                self.engine,
                self.tokenizer,
                problems,
                samples=s.samples,
                params=replace(self.params, seed=s.seed),
                name=f"{self.update}/",
                **self.sampling,
            )

    def _by_step(self, rewards: Sequence[Reward]) -> bool:
        return bool(getattr(self.source, "by_step", any(x for r in rewards for x in r.steps)))

    def _rewards_of(self, attempts: Sequence[Episode]) -> list[Reward]:
        """The rewards of the attempts. Truncated attempts get the penalty and are not sent to the reward source."""
        finished = [e for e in attempts if not e.truncated]
        earned = iter(self.source.reward([(e.problem, e.solution) for e in finished]))
        lost_reason = "ran out of tokens" if self.settings.truncated == "mask" else ""
        return [
            Reward(e.solution.id, (0.0,) * len(e.ends), self.settings.penalty, lost_reason)
            if e.truncated
            else next(earned)
            for e in attempts
        ]

    # ---- looks and guards ----

    def _look(self) -> None:
        """Answers the held-out problems greedily, and stores the weights if this is the best look so far."""
        if not self.held_out:
            return
        with self._timed("looks"):
            with optimization.autocast(self.settings.precision, self.device):
                greedy = replace(self.params, temperature=0.0)
                answers = episodes(
                    self.engine, self.tokenizer, self.held_out, samples=1, params=greedy, **self.sampling
                )
            rewards = {e.problem.id: r for e, r in zip(answers, self._rewards_of(answers), strict=True)}
            correct = {e.problem.id for e in answers if grade_solution(e.solution, e.problem, self.grader).correct}
        known_rewards = {name: None if r.lost else r.total for name, r in rewards.items()}
        self.looks.append(
            guards.Held(
                self.update,
                tuple(p.id in correct for p in self.held_out),
                tuple(known_rewards.get(p.id) for p in self.held_out),
            )
        )
        look = self.looks[-1]
        self.reported.append(Look(self.update, look.accuracy, look.reward, self.kl))
        if guards.best_of(self.looks) is look:
            with store.replacing(self._best_dir(self.update)) as directory:
                torch.save(self.policy.state_dict(), directory / "state.pt")

    def _guard(self) -> None:
        if self.settings.guard == "off" or not self.looks:
            return
        looks = math.ceil(self.settings.updates / self.settings.evaluate_every)
        fall = guards.fall(guards.best_of(self.looks), self.looks[-1], looks)
        self.worse = self.worse + 1 if fall else 0
        if self.worse < self.settings.patience or self.update == self.settings.updates:
            return
        self._act(self.settings.guard, fall)

    def _guard_attempts(self, figures: Mapping[str, float]) -> None:
        """Acts on a collapse of the attempts. It needs no held-out problems, except to go back."""
        s = self.settings
        if s.collapse != "off" and self.collapsing >= s.collapse_updates and self.update < s.updates:
            self._act(s.collapse, guards.collapse(figures, self.update, s))

    def _act(self, choice: str, reason: str) -> None:
        """Stops, or goes back to the best policy if that is the choice and has not been done too often."""
        self.worse = self.collapsing = 0
        if choice == "stop" or len(self.rollbacks) == self.settings.rollbacks:
            self.stopped = reason
            return
        self.rollbacks.append(self.update)
        self.weight = 2 * self.weight or 0.01  # with weight 0 the next updates would over-optimise again
        self._load_best()
        self.learner.forget()

    def _best_dir(self, update: int) -> Path:
        """The directory of the policy's weights after an update. It has the update's number in its name, so that a
        run that resumes from an older checkpoint goes back to the same weights as an uninterrupted run."""
        return self.out / BEST / str(update)

    def _load_best(self) -> None:
        state_file = store.settled(self._best_dir(guards.best_of(self.looks).update)) / "state.pt"
        self.policy.load_state_dict(torch.load(state_file, map_location=self.device, weights_only=True))

    def _report(self, write: training_log.Write, figures: dict[str, float]) -> None:
        look = self.reported[-1] if self.reported and self.reported[-1].update == self.update else None
        if look is not None:
            figures |= {"held_out_accuracy": look.accuracy, "held_out_reward": look.reward}
        details = {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "split": {k: round(v, 4) for k, v in self.clock.items()},
            "rollbacks": len(self.rollbacks),
        }
        write(self.update, figures, details)
        if self.progress is not None:
            note = f"reward {figures['reward']:.3f}, kl {figures['kl']:.3f}, " if "reward" in figures else ""
            if self.reported:
                note += f"held-out accuracy {100 * self.reported[-1].accuracy:.1f}%"
            self.progress(
                Progress(f"reinforce {self.out.name}", self.update, self.settings.updates, self.seconds, note)
            )

    # ---- saving and resuming ----

    def _checkpoint(self) -> None:
        """Replaces the stored training state. At any moment either the old or the new one is complete."""
        started = time.monotonic()
        progress = {k: getattr(self, k) for k in _STATE} | {
            "looks": [astuple(look) for look in self.looks],
            "told": [asdict(look) for look in self.reported],
            "explored": [asdict(x) for x in self.explored],
        }
        state = {"policy": self.policy.state_dict(), "optimizer": self.learner.optimizer.state_dict()}
        with store.replacing(self.out / KEPT) as new:
            torch.save(state, new / "state.pt")
            write_json(new / "place.json", progress)
        if self.looks:
            best = self._best_dir(guards.best_of(self.looks).update)
            for old in best.parent.iterdir():
                if old != best:
                    shutil.rmtree(old, ignore_errors=True)
        self.checkpoint_took = time.monotonic() - started

    def _resume(self) -> None:
        checkpoint = store.settled(self.out / KEPT)
        if not (checkpoint / "place.json").exists():
            return
        state = torch.load(checkpoint / "state.pt", map_location=self.device, weights_only=True)
        self.policy.load_state_dict(state["policy"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        # What an earlier version did not store comes first.
        progress = {"collapsing": 0, "explored": []} | json.loads((checkpoint / "place.json").read_text())
        for name in _STATE:
            setattr(self, name, progress[name])
        self.looks = [guards.Held(u, tuple(right), tuple(rewards)) for u, right, rewards in progress["looks"]]
        self.reported = [Look(**look) for look in progress["told"]]
        self.explored = [Explored(**x) for x in progress["explored"]]

    def _finish(self) -> Reinforced:
        best = self.update
        if self.looks and (self.settings.best or self.stopped):
            best = guards.best_of(self.looks).update
            self._load_best()
        problems = self.held_out or self.problems[: self.settings.prompts]
        kl = divergence_on(problems, self.learner, self.engine, self.tokenizer, **self.sampling)
        checkpoints.save(self.out, self.policy.model, self.tokenizer)
        result = Reinforced(
            path=str(self.out),
            updates=self.update,
            best=best,
            stopped=self.stopped,
            looks=tuple(self.reported),
            rollbacks=tuple(self.rollbacks),
            rewards=tuple(self.rewards),
            tokens=self.tokens,
            kl=kl,
            seconds=round(self.seconds, 2),
            explored=tuple(self.explored),
        )
        write_json(self.out / "reinforced.json", asdict(result))
        _clear(self.out)
        return result


_STATE = ("update", "tokens", "seconds", "rollbacks", "weight", "kl", "rewards", "worse", "collapsing", "stopped")
