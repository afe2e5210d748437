"""Reward functions for those who train elsewhere: TRL, verl, OpenRLHF.

    from stepmark import rewards
    reward = rewards.trl("runs/demo/verifiers/prm", grader="numeric")            # GRPOTrainer(reward_funcs=reward)
    compute_score = rewards.verl("runs/demo/verifiers/prm", grader="numeric")    # in the file that verl is given
    reward_func = rewards.openrlhf("runs/demo/verifiers/prm", eos="<|im_end|>")  # --reward.remote_url file.py

All take a verifier, a verifier's directory, or any source of rewards (rl/rewards.py); texts become solutions with steps
as in a run. With `grader` they also tell, for the log alone, how many answers are truly right: a reward that climbs
while that number falls is being cheated.

What can't be known is never a low reward. TRL leaves such an attempt out (None). verl and OpenRLHF need a number for
every attempt: it gets the mean of what others earned lately, and is marked. Where too much is lost, an error says so.

What was read: TRL 1.16.0 (GRPOTrainer._calculate_rewards); verl at 1dda039 (experimental/reward_loop,
trainer/ppo/reward.py); OpenRLHF at 3c3be62 (utils/agent.py, SingleTurnAgentExecutor).
docs/rewards.md has a whole example of each, and what becomes of step rewards there.
"""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from stepmark.data.batching import ThreadBatcher
from stepmark.errors import ConfigError, UnknownName
from stepmark.models.encoding import boundaries
from stepmark.plugins.loading import load_grader, load_verifier
from stepmark.protocols import Grader, RewardSource, Verifier
from stepmark.rl.rewards import Credit, RecentRewards, Verified
from stepmark.text import steps as splitting
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import Template
from stepmark.types import Finish, Grade, Place, Problem, Reward, Solution, Verdict

Score = dict[str, float | str]

RENAMED = {"Written": "Completion", "Earned": "CompletionReward"}  # names before this release


class RewardOptions(TypedDict, total=False):
    """What all reward functions can be told."""

    credit: Credit  # how steps share a verifier's scores (rl/rewards.py); "outcome" unless told otherwise
    steps: str  # how texts divide into steps (text/steps.py): as those that the verifier learned from; "line"
    grader: Grader | str | None  # grades the answers, for the log alone
    truncated: float | None  # all that an attempt earns which ran out of tokens; None: as if lost; 0
    most_lost: float  # largest share of lost rewards, of the latest attempts, before it is an error; 0.2


@dataclass(frozen=True, slots=True)
class Completion:
    """An attempt as trainers know it."""

    question: str
    text: str  # the attempt alone, without special tokens
    answer: str = ""  # reference answer; needed for gold rewards and graders
    ended: bool = True  # False where it ran out of tokens
    lost: str = ""  # why it can't be looked at


@dataclass(frozen=True, slots=True)
class CompletionReward:
    """What an attempt earns, and where."""

    reward: Reward
    ends: tuple[int, ...]  # per step, the characters of the text up to its end, white space after it left out
    grade: Grade | None  # with a grader

    @property
    def total(self) -> float | None:
        """None where it isn't known."""
        return None if self.reward.lost else self.reward.total

    def on_tokens(self, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """What each token of the text earns: a step's reward is at the token with its last character, the attempt's at
        the very last token. `offsets` [T]: the characters of each, as tokenizers give them, no padding; one without
        characters, such as EOS, earns nothing of a step."""
        found = [0.0] * len(offsets)
        visible = [i for i, (start, end) in enumerate(offsets) if end > start]
        counts = boundaries([offsets[i] for i in visible], self.ends)
        for count, amount in zip(counts, self.reward.steps, strict=True):
            if count:
                found[visible[count - 1]] += amount
        if found:
            found[-1] += self.reward.end
        return found


class Rewarder:
    """Attempts -> what they earn; from many threads, in batches. The heart of the functions below, and of your own.

    Raises ConfigError for settings that don't go together, StageError when too much is lost."""

    def __init__(
        self,
        source: RewardSource | Verifier | Place,
        credit: Credit | None = None,
        steps: str = "line",
        grader: Grader | str | None = None,
        truncated: float | None = 0.0,
        most_lost: float = 0.2,
    ) -> None:
        if steps not in splitting.SPLITTERS:
            raise UnknownName("way to split steps", steps, splitting.SPLITTERS)
        self.source, self.steps, self.truncated = _source(source, credit), steps, truncated
        self.grader = load_grader(grader) if isinstance(grader, str) else grader
        self._lately = RecentRewards(most_lost)
        self._together = ThreadBatcher(self._earn)

    def __call__(self, attempts: Sequence[Completion]) -> list[CompletionReward]:
        """One of each, in order."""
        return self._together(attempts)

    @property
    def mean(self) -> float:
        """Of the known rewards among the latest; 0 before there is any."""
        return self._lately.mean

    def _earn(self, attempts: Sequence[Completion]) -> list[CompletionReward]:
        ids: dict[tuple[str, str], str] = {}
        made = []
        for i, x in enumerate(attempts):
            problem = Problem(ids.setdefault((x.question, x.answer), str(len(ids))), x.question, x.answer, "")
            finish = Finish.STOP if x.ended else Finish.LENGTH
            spans = splitting.split(x.text, self.steps)
            made.append((problem, Solution(f"{problem.id}#{i}", problem.id, i, x.text, spans, finish)))
        seen = [pair for pair, x in zip(made, attempts, strict=True) if x.ended and not x.lost]
        rewards = iter(self.source.reward(seen) if seen else ())
        found = []
        for (problem, solution), x in zip(made, attempts, strict=True):
            known = x.ended and not x.lost
            reward = next(rewards) if known else self._unseen(solution, x.lost)
            ends = tuple(a + len(x.text[a:b].rstrip()) for a, b in solution.spans)
            grade = None if self.grader is None or x.lost else grade_solution(solution, problem, self.grader)
            found.append(CompletionReward(reward, ends, grade))
        self._lately.add([e.reward for e, x in zip(found, attempts, strict=True) if x.ended])
        return found

    def _unseen(self, solution: Solution, lost: str) -> Reward:
        none = (0.0,) * len(solution.spans)
        if lost or self.truncated is None:
            return Reward(solution.id, none, lost=lost or "the attempt ran out of tokens")
        return Reward(solution.id, none, self.truncated)


def trl(
    source: RewardSource | Verifier | Place,
    *,
    question: str = "question",
    answer: str = "answer",
    template: str = "",
    eos_ids: int | Sequence[int] = (),
    name: str = "stepmark",
    **how: Unpack[RewardOptions],
) -> TRL:
    """A reward function for TRL's GRPOTrainer, `reward_funcs=`. See TRL.__call__."""
    ids = (eos_ids,) if isinstance(eos_ids, int) else tuple(eos_ids)
    return TRL(Rewarder(source, **how), question, answer, Template(template) if template else None, ids, name)


class TRL:
    """Prompts and completions -> rewards, as TRL calls it; it can be pickled if the source can.

    `question` and `answer` are columns of the data set. Without the first, the question is read out of the prompt (a
    conversation's last user turn): by `template` where there is one, else all of it. For the second, `reference` serves
    too. `eos_ids`: a completion whose last token is none of them ran out of tokens; with none given, all have ended
    (and GRPOConfig.mask_truncated_completions can leave out what hasn't)."""

    def __init__(
        self,
        rewarder: Rewarder,
        question: str,
        answer: str,
        template: Template | None,
        eos_ids: tuple[int, ...],
        name: str,
    ) -> None:
        self.rewarder, self.question, self.answer = rewarder, question, answer
        self.template, self.eos_ids, self.__name__ = template, eos_ids, name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """A reward for each completion; None where it isn't known. Raises ConfigError where no question is found."""
        questions = columns.get(self.question) or [self._question(prompt) for prompt in prompts]
        answers = columns.get(self.answer) or columns.get("reference") or [""] * len(prompts)
        if self.eos_ids and completion_ids is not None:
            ended = [len(ids) > 0 and ids[-1] in self.eos_ids for ids in completion_ids]
        else:
            ended = [True] * len(prompts)
        attempts = [
            Completion(str(q), _said(completion, "assistant"), str(a), e)
            for q, completion, a, e in zip(questions, completions, answers, ended, strict=True)
        ]
        earned = self.rewarder(attempts)
        abouts = [_about(each, e) for each, e in zip(earned, ended, strict=True)]
        if log_metric is not None:
            for key in abouts[0] if abouts else ():
                log_metric(f"{self.__name__}/{key}", math.fsum(about[key] for about in abouts) / len(abouts))
        if log_extra is not None:
            log_extra(f"{self.__name__}_steps", [_listed(e.reward.steps) for e in earned])
        return [e.total for e in earned]

    def _question(self, prompt: Any) -> str:
        text = _said(prompt, "user")
        found = text.strip() if self.template is None else self.template.read(text)
        if not found:
            raise ConfigError(
                f"rewards: no question in the prompt {text[:200]!r}"
                + (f" by the template {self.template.text!r}" if self.template else "")
                + f". Give the data set a column {self.question!r}, or give the template that made the prompts."
            )
        return found


def verl(
    source: RewardSource | Verifier | Place,
    *,
    question: str | None = "question",
    lost: float | None = None,
    asynchronous: bool = False,
    **how: Unpack[RewardOptions],
) -> Callable[..., Score] | Callable[..., Coroutine[Any, Any, Score]]:
    """A `compute_score` for verl, `reward.custom_reward_function.path=file.py`; a coroutine if `asynchronous`.

    verl gives a reward function no prompt: the question is taken from `extra_info`, under the name `question`; None is
    for sources that need none. `lost` is given to an attempt whose reward isn't known; None: the latest ones' mean."""
    rewarder = Rewarder(source, **how)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> Score:
        """`score`, and for the log: the same keys each time, numbers and texts alone, as verl makes arrays of them."""
        asked = "" if question is None else str((extra_info or {}).get(question) or "")
        if question is not None and not asked:
            raise ConfigError(
                f"rewards: no {question!r} in verl's extra_info, which has {sorted(extra_info or {})}. Put the "
                "question there when the data is made, name its key, or give question=None if none is needed."
            )
        [earned] = rewarder([Completion(asked, solution_str, "" if ground_truth is None else str(ground_truth))])
        score = _number(earned, lost, rewarder)
        about = _about(earned)
        if "accuracy" in about:
            about["acc"] = about.pop("accuracy")  # verl's own name for it
        return {
            "score": score,
            **about,
            "step_rewards": _listed(earned.reward.steps),
            "step_ends": json.dumps(earned.ends),
        }

    async def later(*args: Any, **kwargs: Any) -> Score:
        return await asyncio.to_thread(compute_score, *args, **kwargs)

    return later if asynchronous else compute_score


def openrlhf(
    source: RewardSource | Verifier | Place,
    *,
    eos: str | Sequence[str],
    template: str = "",
    lost: float | None = None,
    **how: Unpack[RewardOptions],
) -> Callable[..., dict[str, Any]]:
    """A `reward_func` for OpenRLHF, `--reward.remote_url file.py`; its labels are the reference answers.

    `eos`: the tokens that end a text, as the tokenizer writes them: queries come with special tokens, and one without
    any of these ran out of tokens. `template` made the prompts, chat turns included; without it all of a prompt is the
    question. `lost` as for verl. OpenRLHF logs what a reward function raises, and stops only later, for want of a
    reward."""
    rewarder = Rewarder(source, **how)
    ends = (eos,) if isinstance(eos, str) else tuple(eos)
    if not ends or not all(ends):
        raise ConfigError("rewards: eos needs at least one token that ends a text, e.g. '</s>'.")
    asked = Template(template) if template else None

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
        """{"rewards": [n], "scores": [n], "extra_logs": {name: [n]}}, tensors on the CPU."""
        import torch

        attempts = []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            question = prompt.strip() if asked is None else asked.read(prompt)
            if not question:
                raise ConfigError(f"rewards: no question in the prompt {prompt[:200]!r} by the template {template!r}.")
            attempts.append(_response(query, prompt, question, "" if label is None else str(label), ends))
        earned = rewarder(attempts)
        scores = torch.tensor([_number(e, lost, rewarder) for e in earned], dtype=torch.float32)
        abouts = [_about(e, x.ended) for e, x in zip(earned, attempts, strict=True)]
        logs = {key: torch.tensor([about[key] for about in abouts]) for key in (abouts[0] if abouts else ())}
        return {"rewards": scores, "scores": scores.clone(), "extra_logs": logs}

    return reward_func


def __getattr__(name: str) -> Any:
    """The names of before, for one release."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"rewards.{name} is now rewards.{RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]


def _source(given: RewardSource | Verifier | Place, credit: Credit | None) -> RewardSource:
    if isinstance(given, RewardSource):
        if credit is not None:
            raise ConfigError(f"rewards: {type(given).__name__} has its own credit; credit={credit} is for verifiers.")
        return given
    return Verified(given if isinstance(given, Verifier) else load_verifier(given), credit or "outcome")


def _response(query: str, prompt: str, question: str, answer: str, ends: tuple[str, ...]) -> Completion:
    """What follows the prompt, without the token that ends it. Such a token amid the text is the policy's own words:
    cutting there would let it hide what follows."""
    at = query.find(prompt)  # a tokenizer may put its first token before
    if at < 0:
        return Completion(question, "", answer, lost="the prompt is not in the query: it was cut, or decodes otherwise")
    text = query[at + len(prompt) :]
    end = next((end for end in ends if text.endswith(end)), "")
    return Completion(question, text.removesuffix(end), answer, ended=bool(end))


def _said(turns: Any, role: str) -> str:
    """A text, or in a conversation the last thing that `role` said."""
    if isinstance(turns, str):
        return turns
    content = next((turn["content"] for turn in reversed(turns) if turn["role"] == role), "") or ""
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text", "")) for block in content)


def _number(earned: CompletionReward, lost: float | None, rewarder: Rewarder) -> float:
    if earned.total is not None:
        return earned.total
    return rewarder.mean if lost is None else lost


def _about(earned: CompletionReward, ended: bool | None = None) -> dict[str, float]:
    """For the log. An answer that could not be graded is not right, and is told apart."""
    found = {"lost": float(bool(earned.reward.lost)), "steps": float(len(earned.ends))}
    if ended is not None:
        found["truncated"] = float(not ended)
    if earned.grade is not None:
        found["accuracy"] = float(earned.grade.correct)
        found["ungradable"] = float(earned.grade.verdict is Verdict.UNGRADABLE)
    return found


def _listed(numbers: Sequence[float]) -> str:
    return json.dumps([round(x, 6) for x in numbers])
