"""Reward functions for other trainers: TRL, verl, OpenRLHF.

    from stepmark.integrations import rewards
    reward = rewards.trl("runs/demo/verifiers/prm", grader="numeric")            # GRPOTrainer(reward_funcs=reward)
    compute_score = rewards.verl("runs/demo/verifiers/prm", grader="numeric")    # in the file that verl loads
    reward_func = rewards.openrlhf("runs/demo/verifiers/prm", eos="<|im_end|>")  # --reward.remote_url file.py

All take a verifier, a verifier's directory, or any reward source (rl/rewards.py). Texts become solutions with steps as
in a run. With `grader` the log also has the accuracy of the answers. The grader does not change the reward: if the
reward rises while the accuracy falls, the policy over-optimises the verifier.

An unknown reward is lost, not low. TRL leaves out an attempt whose reward is None. verl and OpenRLHF need a number for
every attempt: a lost one gets the mean of the latest known rewards, and is marked as lost. If too many are lost, an
error says why.

Written for TRL 1.16.0 (GRPOTrainer._calculate_rewards); verl at 1dda039 (experimental/reward_loop,
trainer/ppo/reward.py); OpenRLHF at 3c3be62 (utils/agent.py, SingleTurnAgentExecutor).
docs/howto/rewards.md has a whole example for each, and says what each does with step rewards.
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
from stepmark.errors import ConfigError
from stepmark.models.encoding import boundaries
from stepmark.plugins.loading import load_grader, load_verifier
from stepmark.protocols import Grader, RewardSource, Verifier
from stepmark.rl.rewards import Credit, RecentRewards, Verified
from stepmark.text import steps as splitting
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import Template
from stepmark.text.thoughts import answer_of
from stepmark.types import Finish, Grade, Place, Problem, Reward, Solution, Verdict

Score = dict[str, float | str]

RENAMED = {"Written": "Completion", "Earned": "CompletionReward"}  # names before this release


class RewardOptions(TypedDict, total=False):
    """The options of all reward functions."""

    credit: Credit  # how a verifier's scores become step rewards (rl/rewards.py); default "outcome"
    steps: str  # the step splitter (text/steps.py): the one that the verifier was trained with; default "line"
    grader: Grader | str | None  # grades the answers, only for the log; default None
    truncated: float | None  # the whole reward of an attempt that ran out of tokens; None: it is lost; default 0
    most_lost: float  # an error is raised if a larger share of the latest rewards is lost; default 0.2


@dataclass(frozen=True, slots=True)
class Completion:
    """An attempt as a trainer passes it."""

    question: str
    text: str  # the attempt without the prompt and special tokens
    answer: str = ""  # reference answer; needed for gold rewards and graders
    ended: bool = True  # False if it ran out of tokens; one that ends inside a thought did, too
    lost: str = ""  # why the attempt can't be read; "" if it can
    spans: tuple[tuple[int, int], ...] | None = None  # its steps, where they are known; None: they are split


@dataclass(frozen=True, slots=True)
class CompletionReward:
    """The reward of an attempt, with the positions of its steps."""

    reward: Reward
    ends: tuple[int, ...]  # character offset of each step's end in the text, without white space after the step
    grade: Grade | None  # None without a grader

    @property
    def total(self) -> float | None:
        """The total reward; None if it is lost."""
        return None if self.reward.lost else self.reward.total

    def on_tokens(self, offsets: Sequence[tuple[int, int]]) -> list[float]:
        """The reward of each token, [T]. A step's reward falls on the token with the step's last character, the
        attempt's reward on the last token. `offsets` [T] are the tokens' character spans as tokenizers return them,
        without padding. A token without characters, such as EOS, never gets a step's reward."""
        rewards = [0.0] * len(offsets)
        if rewards:
            for place, step_reward in zip(step_tokens(offsets, self.ends), self.reward.steps, strict=True):
                rewards[place] += step_reward
            rewards[-1] += self.reward.end
        return rewards


def step_tokens(offsets: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[int]:
    """For each step, the index of the token with its last character; `offsets` [T] as in `CompletionReward.on_tokens`,
    `ends` [S] as there."""
    visible = [i for i, (start, end) in enumerate(offsets) if end > start]
    counts = boundaries([offsets[i] for i in visible], ends)
    return [visible[count - 1] if count else 0 for count in counts]


class Rewarder:
    """Attempts -> rewards. Calls from several threads are batched. The functions below are built on it, and your own
    can be.

    Raises ConfigError for settings that can't be combined, StageError when too many rewards are lost."""

    def __init__(
        self,
        source: RewardSource | Verifier | Place,
        credit: Credit | None = None,
        steps: str = "line",
        grader: Grader | str | None = None,
        truncated: float | None = 0.0,
        most_lost: float = 0.2,
    ) -> None:
        splitting.splitter(steps)  # raises an error for a rule that there is not
        self.source, self.steps, self.truncated = _source(source, credit), steps, truncated
        self.grader = load_grader(grader) if isinstance(grader, str) else grader
        self._recent = RecentRewards(most_lost)
        self._batcher = ThreadBatcher(self._reward)

    def __call__(self, attempts: Sequence[Completion]) -> list[CompletionReward]:
        """The rewards of the attempts, in order."""
        return self._batcher(attempts)

    @property
    def mean(self) -> float:
        """The mean of the latest known rewards; 0 if there are none."""
        return self._recent.mean

    def _reward(self, attempts: Sequence[Completion]) -> list[CompletionReward]:
        ids: dict[tuple[str, str], str] = {}
        pairs = []
        ended = [attempt.ended and answer_of(attempt.text) is not None for attempt in attempts]
        for i, attempt in enumerate(attempts):
            problem = Problem(
                ids.setdefault((attempt.question, attempt.answer), str(len(ids))), attempt.question, attempt.answer, ""
            )
            finish = Finish.STOP if ended[i] else Finish.LENGTH
            spans = splitting.split(attempt.text, self.steps) if attempt.spans is None else attempt.spans
            pairs.append((problem, Solution(f"{problem.id}#{i}", problem.id, i, attempt.text, spans, finish)))
        can_be_verified = [e and not attempt.lost for e, attempt in zip(ended, attempts, strict=True)]
        verifiable = [pair for pair, can in zip(pairs, can_be_verified, strict=True) if can]
        rewards = iter(self.source.reward(verifiable) if verifiable else ())
        results = []
        for (problem, solution), attempt, can in zip(pairs, attempts, can_be_verified, strict=True):
            reward = next(rewards) if can else self._unverified(solution, attempt.lost)
            ends = tuple(a + len(attempt.text[a:b].rstrip()) for a, b in solution.spans)
            grade = None if self.grader is None or attempt.lost else grade_solution(solution, problem, self.grader)
            results.append(CompletionReward(reward, ends, grade))
        self._recent.add([e.reward for e, attempt_ended in zip(results, ended, strict=True) if attempt_ended])
        return results

    def _unverified(self, solution: Solution, lost: str) -> Reward:
        zeros = (0.0,) * len(solution.spans)
        if lost or self.truncated is None:
            return Reward(solution.id, zeros, lost=lost or "the attempt ran out of tokens")
        return Reward(solution.id, zeros, self.truncated)


def trl(
    source: RewardSource | Verifier | Place,
    *,
    question: str = "question",
    answer: str = "answer",
    template: str = "",
    eos_ids: int | Sequence[int] = (),
    name: str = "stepmark",
    **options: Unpack[RewardOptions],
) -> TRL:
    """A reward function for TRL's GRPOTrainer, `reward_funcs=`. See TRL.__call__."""
    ids = (eos_ids,) if isinstance(eos_ids, int) else tuple(eos_ids)
    return TRL(Rewarder(source, **options), question, answer, Template(template) if template else None, ids, name)


class TRL:
    """A callable that TRL calls with prompts and completions. It can be pickled if the source can.

    `question` and `answer` are names of columns of the data set. Without a question column, the question is read from
    the prompt (in a conversation, from the last user turn): with `template` if there is one, else it is the whole text.
    Without an answer column, the column `reference` is used. `eos_ids`: a completion whose last token is none of these
    ran out of tokens. Without `eos_ids` all completions count as ended; GRPOConfig.mask_truncated_completions can then
    leave out truncated ones."""

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
        self.latest: list[CompletionReward] = []  # of the latest call, for integrations/trl_steps.py

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """A reward for each completion; None if it is lost. Raises ConfigError when a prompt has no question."""
        questions = columns.get(self.question) or [self._question(prompt) for prompt in prompts]
        answers = columns.get(self.answer) or columns.get("reference") or [""] * len(prompts)
        if self.eos_ids and completion_ids is not None:
            ended = [len(ids) > 0 and ids[-1] in self.eos_ids for ids in completion_ids]
        else:
            ended = [True] * len(prompts)
        attempts = [
            Completion(str(q), text_of(completion, "assistant"), str(a), completed)
            for q, completion, a, completed in zip(questions, completions, answers, ended, strict=True)
        ]
        results = self.latest = self.rewarder(attempts)
        figures_of = [_log_figures(result, completed) for result, completed in zip(results, ended, strict=True)]
        if log_metric is not None:
            for key in figures_of[0] if figures_of else ():
                log_metric(
                    f"{self.__name__}/{key}", math.fsum(figures[key] for figures in figures_of) / len(figures_of)
                )
        if log_extra is not None:
            log_extra(f"{self.__name__}_steps", [_as_json(result.reward.steps) for result in results])
        return [result.total for result in results]

    def _question(self, prompt: Any) -> str:
        text = text_of(prompt, "user")
        question = text.strip() if self.template is None else self.template.read(text)
        if not question:
            raise ConfigError(
                f"rewards: no question in the prompt {text[:200]!r}"
                + (f" by the template {self.template.text!r}" if self.template else "")
                + f". Add a column {self.question!r} to the data set, or pass the template of the prompts."
            )
        return question


def verl(
    source: RewardSource | Verifier | Place,
    *,
    question: str | None = "question",
    lost: float | None = None,
    asynchronous: bool = False,
    **options: Unpack[RewardOptions],
) -> Callable[..., Score] | Callable[..., Coroutine[Any, Any, Score]]:
    """A `compute_score` for verl, `reward.custom_reward_function.path=file.py`; a coroutine if `asynchronous`.

    verl passes no prompt to a reward function, so the question is read from `extra_info`, under the key `question`.
    question=None is for sources that need no question. `lost` is the score of an attempt whose reward is lost; None
    means the mean of the latest known rewards."""
    rewarder = Rewarder(source, **options)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> Score:
        """`score`, and figures for the log. The keys are always the same and the values are numbers or texts, because
        verl makes arrays of them."""
        asked = "" if question is None else str((extra_info or {}).get(question) or "")
        if question is not None and not asked:
            raise ConfigError(
                f"rewards: no {question!r} in verl's extra_info, which has {sorted(extra_info or {})}. Store the "
                "question there when you prepare the data, name its key, or pass question=None if none is needed."
            )
        [result] = rewarder([Completion(asked, solution_str, "" if ground_truth is None else str(ground_truth))])
        score = _reward_number(result, lost, rewarder)
        figures = _log_figures(result)
        if "accuracy" in figures:
            figures["acc"] = figures.pop("accuracy")  # verl's key for the accuracy
        return {
            "score": score,
            **figures,
            "step_rewards": _as_json(result.reward.steps),
            "step_ends": json.dumps(result.ends),
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
    **options: Unpack[RewardOptions],
) -> Callable[..., dict[str, Any]]:
    """A `reward_func` for OpenRLHF, `--reward.remote_url file.py`. Its labels are the reference answers.

    `eos` lists the end tokens as the tokenizer writes them. Queries contain special tokens, and a query that ends with
    none of these ran out of tokens. `template` is the template of the prompts, with chat turns; without it the whole
    prompt is the question. `lost` is the same as for verl. OpenRLHF only logs an error of a reward function, and stops
    later because a reward is missing."""
    rewarder = Rewarder(source, **options)
    ends = (eos,) if isinstance(eos, str) else tuple(eos)
    if not ends or not all(ends):
        raise ConfigError(f"rewards: eos needs at least one token that ends a text, e.g. '</s>', got {eos!r}.")
    prompt_template = Template(template) if template else None

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any) -> dict[str, Any]:
        """{"rewards": [n], "scores": [n], "extra_logs": {name: [n]}}, tensors on the CPU."""
        import torch

        attempts = []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            question = prompt.strip() if prompt_template is None else prompt_template.read(prompt)
            if not question:
                raise ConfigError(
                    f"rewards: no question in the prompt {prompt[:200]!r} by the template {template!r}. "
                    "Pass the template of the prompts."
                )
            attempts.append(_response(query, prompt, question, "" if label is None else str(label), ends))
        results = rewarder(attempts)
        scores = torch.tensor([_reward_number(result, lost, rewarder) for result in results], dtype=torch.float32)
        figures_of = [_log_figures(result, attempt.ended) for result, attempt in zip(results, attempts, strict=True)]
        logs = {
            key: torch.tensor([figures[key] for figures in figures_of]) for key in (figures_of[0] if figures_of else ())
        }
        return {"rewards": scores, "scores": scores.clone(), "extra_logs": logs}

    return reward_func


def __getattr__(name: str) -> Any:
    """The old names of renamed classes, for one release."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"rewards.{name} is now rewards.{RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]


def _source(source: RewardSource | Verifier | Place, credit: Credit | None) -> RewardSource:
    if isinstance(source, RewardSource):
        if credit is not None:
            raise ConfigError(f"rewards: {type(source).__name__} has its own credit; credit={credit} is for verifiers.")
        return source
    return Verified(source if isinstance(source, Verifier) else load_verifier(source), credit or "outcome")


def _response(query: str, prompt: str, question: str, answer: str, ends: tuple[str, ...]) -> Completion:
    """The text after the prompt, without its end token. An end token inside the text is kept: cutting there would let a
    policy hide what follows it from the verifier."""
    start = query.find(prompt)  # not always 0: a tokenizer may put a start token before the prompt
    if start < 0:
        return Completion(question, "", answer, lost="the prompt is not in the query: it was cut, or decodes otherwise")
    text = query[start + len(prompt) :]
    end = next((end for end in ends if text.endswith(end)), "")
    return Completion(question, text.removesuffix(end), answer, ended=bool(end))


def text_of(turns: Any, role: str) -> str:
    """A trainer's text itself, or in a conversation the last message of `role`."""
    if isinstance(turns, str):
        return turns
    content = next((turn["content"] for turn in reversed(turns) if turn["role"] == role), "") or ""
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text", "")) for block in content)


def _reward_number(result: CompletionReward, lost: float | None, rewarder: Rewarder) -> float:
    if result.total is not None:
        return result.total
    return rewarder.mean if lost is None else lost


def _log_figures(result: CompletionReward, ended: bool | None = None) -> dict[str, float]:
    """Figures for the log. An ungradable answer counts as not correct, and is counted apart too."""
    figures = {"lost": float(bool(result.reward.lost)), "steps": float(len(result.ends))}
    if ended is not None:
        figures["truncated"] = float(not ended)
    if result.grade is not None:
        figures["accuracy"] = float(result.grade.correct)
        figures["ungradable"] = float(result.grade.verdict is Verdict.UNGRADABLE)
    return figures


def _as_json(numbers: Sequence[float]) -> str:
    return json.dumps([round(x, 6) for x in numbers])
