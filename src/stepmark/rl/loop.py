"""A policy learns from what its own attempts earn: PPO step by step, or GRPO, with guards (Math-Shepherd, section 3.5).

Each update draws attempts with the weights as they are, asks the reward source, and learns for a few passes. Every few
updates, and before the first, the policy answers held-out problems greedily: true accuracy stands in the log beside the
reward, and where the one falls while the other rises, the policy goes back to its best or stops (guards.py). What is
handed on is the best policy seen, the one it started from included. Killed at any moment, the same call goes on from
the last checkpoint (weights, value head, optimiser, guards) and ends with the weights of an undisturbed run: what an
update draws is a function of the seed, its number and the weights.

    OUT/                    a Hugging Face checkpoint when it is over, and then reinforced.json
    OUT/reinforce.jsonl     one line per update
    OUT/.training/          the newest checkpoint, while it lasts
    OUT/.best/              the best policy so far, while it lasts

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
from stepmark.rl.identity import described, digest
from stepmark.rl.learner import Learner
from stepmark.rl.rewards import RecentRewards
from stepmark.rl.settings import Look, Reinforced, ReinforceSettings
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import Template
from stepmark.types import Place, Problem, Progress, Reward, SamplingParams

KEPT, BEST = ".training", ".best"
SPACING = 20  # a checkpoint is written after so many times what the last one took, at the least


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
    """Reinforces the checkpoint `policy`, which is the reference too, on attempts at `problems`; or goes on with it,
    or returns at once when `out` holds the finished result of the same call.

    `template` is "{question}\\n" unless given; with `chat_template` what it gives is the user's turn. Raises
    CheckpointError, ConfigChanged when `out` holds another call's, ConfigError for problems that are both held out and
    learned from or share an id, StageError when too many attempts have no reward."""
    settings = settings or ReinforceSettings()
    template = template or Template("{question}\n")
    out = Path(out)
    checkpoints.check(policy)
    if not problems:
        raise DataError("there are no problems to learn from.")
    for part in (problems, held_out):
        if len({p.id for p in part}) < len(part):
            raise ConfigError("several problems have the same id; each needs one of its own.")
    if settings.guard != "off" and not held_out:
        raise ConfigError("the guard needs held-out problems; give some, or guard=off.")
    if both := {p.question for p in problems} & {p.question for p in held_out}:
        raise ConfigError(
            f"{len(both)} problems are both learned from and held out, e.g. {min(both)!r}: the guard would see nothing."
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
    }
    training_log.claim(out, identity)
    if (out / "reinforced.json").exists():
        _clear(out)
        return _read(out)
    try:
        drawing = {"template": template, "steps": steps, "chat": chat_template}
        loop = _Loop(policy, problems, held_out, source, grader, out, settings, drawing, trust_remote_code, progress)
        return loop.run()
    except BaseException:
        if not (out / KEPT).exists():  # nothing was computed that another call could spoil
            (out / "training.json").unlink(missing_ok=True)
        raise


def _clear(out: Path) -> None:
    for kept in [*out.glob(KEPT + "*"), out / BEST]:
        shutil.rmtree(kept, ignore_errors=True)


def _read(out: Path) -> Reinforced:
    found = json.loads((out / "reinforced.json").read_text())
    found["looks"] = tuple(Look(**look) for look in found["looks"])
    return Reinforced(**found | {name: tuple(found[name]) for name in ("rewards", "rollbacks")})


class _Loop:
    """The state of one reinforcement."""

    def __init__(
        self,
        path: Place,
        problems: Sequence[Problem],
        held_out: Sequence[Problem],
        source: RewardSource,
        grader: Grader,
        out: Path,
        settings: ReinforceSettings,
        drawing: Mapping[str, Any],  # how attempts are drawn, for `episodes`
        trust_remote_code: bool,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.problems, self.held_out, self.source, self.grader = problems, held_out, source, grader
        self.out, self.settings, self.drawing, self.progress = out, settings, drawing, progress
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
        self.told: list[Look] = []
        self.worse, self.stopped = 0, ""
        self.lately = RecentRewards(settings.most_lost)
        self.written = 0.0  # seconds that the last checkpoint took
        self.clock: dict[str, float] = {}

    # ---- the whole ----

    def run(self) -> Reinforced:
        self._resume()
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        before = self.update if self.looks or self.update else -1  # the line of update 0 comes with the first look
        with training_log.writer(self.out, "reinforce.jsonl", before, self.settings.tensorboard) as write:
            if not self.looks and self.held_out:
                self._look()
                self._tell(write, {})
                self._checkpoint()
            while self.update < self.settings.updates and not self.stopped:
                figures = self._update()
                self.update += 1
                if self.update % self.settings.evaluate_every == 0 or self.update == self.settings.updates:
                    self._look()
                    self._guard()
                self.seconds = time.monotonic() - began
                self._tell(write, figures)
                spacing = SPACING * self.written if self.settings.checkpoint_seconds else 0.0
                if time.monotonic() - saved > max(spacing, self.settings.checkpoint_seconds):
                    self._checkpoint()
                    saved = time.monotonic()
        return self._finish()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.clock[what] = self.clock.get(what, 0.0) + time.perf_counter() - began

    # ---- one update ----

    def _update(self) -> dict[str, float]:
        self.clock = {}
        with self._timed("rollouts"):
            drawn = self._draw()
        with self._timed("rewards"):
            paid = self._paid(drawn)
        self.lately.add(r for e, r in zip(drawn, paid, strict=True) if not e.truncated)
        kept = [(e, r) for e, r in zip(drawn, paid, strict=True) if not r.lost]
        if not kept:
            why = next((r.lost for r in paid if r.lost), "no attempt fits into the model's positions")
            raise DataError(f"update {self.update}: none of {len(drawn)} attempts has a reward: {why}")
        self.tokens += sum(len(e.ids) for e in drawn)
        self.rewards.append(mean(r.total for _, r in kept))
        self.engine.use(self.engine.plain_attention)
        with self._timed("passes"):
            figures = self.learner.learn(
                [e for e, _ in kept], [r for _, r in kept], self.update, self.weight, self._by_step(paid)
            )
        self.kl = figures["kl"]
        if self.settings.kl_target is not None:
            self.weight = losses.adapted(self.weight, self.kl, self.settings.kl_target)
        count = len(drawn)
        return {
            "reward": self.rewards[-1],
            "tokens_per_attempt": sum(len(e.ids) for e in drawn) / count,
            "steps_per_attempt": sum(len(e.ends) for e in drawn) / count,
            "truncated": sum(e.truncated for e in drawn) / count,
            "left_out": 1 - len(kept) / (self.settings.prompts * self.settings.samples),
            **figures,
        }

    def _draw(self) -> list[Episode]:
        """The attempts of this update: each epoch takes the problems in an order of its own."""
        s, size = self.settings, len(self.problems)
        places = range(self.update * s.prompts, (self.update + 1) * s.prompts)
        orders = {
            epoch: np.random.default_rng([s.seed, epoch]).permutation(size)
            for epoch in {place // size for place in places}
        }
        chosen = [self.problems[int(orders[place // size][place % size])] for place in places]
        with optimization.autocast(s.precision, self.device):
            return episodes(
                self.engine,
                self.tokenizer,
                chosen,
                samples=s.samples,
                params=replace(self.params, seed=s.seed),
                name=f"{self.update}/",
                **self.drawing,
            )

    def _by_step(self, paid: Sequence[Reward]) -> bool:
        return bool(getattr(self.source, "by_step", any(x for r in paid for x in r.steps)))

    def _paid(self, drawn: Sequence[Episode]) -> list[Reward]:
        """What each attempt earns. One that ran out of tokens is not shown to the reward source."""
        ended = [e for e in drawn if not e.truncated]
        earned = iter(self.source.reward([(e.problem, e.solution) for e in ended]))
        cut = "ran out of tokens" if self.settings.truncated == "mask" else ""
        return [
            Reward(e.solution.id, (0.0,) * len(e.ends), self.settings.penalty, cut) if e.truncated else next(earned)
            for e in drawn
        ]

    # ---- looks and guards ----

    def _look(self) -> None:
        """Answers the held-out problems greedily."""
        if not self.held_out:
            return
        with self._timed("looks"):
            with optimization.autocast(self.settings.precision, self.device):
                greedy = replace(self.params, temperature=0.0)
                answers = episodes(self.engine, self.tokenizer, self.held_out, samples=1, params=greedy, **self.drawing)
            paid = {e.problem.id: r for e, r in zip(answers, self._paid(answers), strict=True)}
            right = {e.problem.id for e in answers if grade_solution(e.solution, e.problem, self.grader).correct}
        known = {name: None if r.lost else r.total for name, r in paid.items()}
        self.looks.append(
            guards.Held(
                self.update,
                tuple(p.id in right for p in self.held_out),
                tuple(known.get(p.id) for p in self.held_out),
            )
        )
        now = self.looks[-1]
        self.told.append(Look(self.update, now.accuracy, now.reward, self.kl))
        if guards.best_of(self.looks) is now:
            with store.replacing(self._best(self.update)) as place:
                torch.save(self.policy.state_dict(), place / "state.pt")

    def _guard(self) -> None:
        if self.settings.guard == "off" or not self.looks:
            return
        looks = math.ceil(self.settings.updates / self.settings.evaluate_every)
        found = guards.fall(guards.best_of(self.looks), self.looks[-1], looks)
        self.worse = self.worse + 1 if found else 0
        if self.worse < self.settings.patience or self.update == self.settings.updates:
            return
        self.worse = 0
        if self.settings.guard == "stop" or len(self.rollbacks) == self.settings.rollbacks:
            self.stopped = found
            return
        self.rollbacks.append(self.update)
        self.weight = 2 * self.weight or 0.01  # no weight at all would do the same again
        self._to_best()
        self.learner.forget()

    def _best(self, update: int) -> Path:
        """Where the policy after an update is kept, in case none gets better. By number: an undisturbed run and one
        that goes on from an older checkpoint must go back to the same one."""
        return self.out / BEST / str(update)

    def _to_best(self) -> None:
        place = store.settled(self._best(guards.best_of(self.looks).update)) / "state.pt"
        self.policy.load_state_dict(torch.load(place, map_location=self.device, weights_only=True))

    def _tell(self, write: training_log.Write, figures: dict[str, float]) -> None:
        look = self.told[-1] if self.told and self.told[-1].update == self.update else None
        if look is not None:
            figures |= {"held_out_accuracy": look.accuracy, "held_out_reward": look.reward}
        more = {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "split": {k: round(v, 4) for k, v in self.clock.items()},
            "rollbacks": len(self.rollbacks),
        }
        write(self.update, figures, more)
        if self.progress is not None:
            note = f"reward {figures['reward']:.3f}, kl {figures['kl']:.3f}, " if "reward" in figures else ""
            if self.told:
                note += f"held-out accuracy {100 * self.told[-1].accuracy:.1f}%"
            self.progress(
                Progress(f"reinforce {self.out.name}", self.update, self.settings.updates, self.seconds, note)
            )

    # ---- what survives a kill ----

    def _checkpoint(self) -> None:
        """There is always a whole one, the old or the new."""
        began = time.monotonic()
        place = {k: getattr(self, k) for k in _STATE} | {
            "looks": [astuple(look) for look in self.looks],
            "told": [asdict(look) for look in self.told],
        }
        state = {"policy": self.policy.state_dict(), "optimizer": self.learner.optimizer.state_dict()}
        with store.replacing(self.out / KEPT) as new:
            torch.save(state, new / "state.pt")
            write_json(new / "place.json", place)
        if self.looks:
            best = self._best(guards.best_of(self.looks).update)
            for old in best.parent.iterdir():
                if old != best:
                    shutil.rmtree(old, ignore_errors=True)
        self.written = time.monotonic() - began

    def _resume(self) -> None:
        kept = store.settled(self.out / KEPT)
        if not (kept / "place.json").exists():
            return
        state = torch.load(kept / "state.pt", map_location=self.device, weights_only=True)
        self.policy.load_state_dict(state["policy"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        place = json.loads((kept / "place.json").read_text())
        for name in _STATE:
            setattr(self, name, place[name])
        self.looks = [guards.Held(u, tuple(right), tuple(paid)) for u, right, paid in place["looks"]]
        self.told = [Look(**look) for look in place["told"]]

    def _finish(self) -> Reinforced:
        best = self.update
        if self.looks and (self.settings.best or self.stopped):
            best = guards.best_of(self.looks).update
            self._to_best()
        problems = self.held_out or self.problems[: self.settings.prompts]
        kl = divergence_on(problems, self.learner, self.engine, self.tokenizer, **self.drawing)
        checkpoints.save(self.out, self.policy.model, self.tokenizer)
        result = Reinforced(
            path=str(self.out),
            updates=self.update,
            best=best,
            stopped=self.stopped,
            looks=tuple(self.told),
            rollbacks=tuple(self.rollbacks),
            rewards=tuple(self.rewards),
            tokens=self.tokens,
            kl=kl,
            seconds=round(self.seconds, 2),
        )
        write_json(self.out / "reinforced.json", asdict(result))
        _clear(self.out)
        return result


_STATE = ("update", "tokens", "seconds", "rollbacks", "weight", "kl", "rewards", "worse", "stopped")
