"""The contract of every plug-in in labelers/. The plug-ins are found in the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from typing import Any

import pytest

from stepmark.backends.scripted import ScriptedBackend
from stepmark.data.store import Records
from stepmark.errors import ConfigError
from stepmark.executors.serial import SerialExecutor
from stepmark.graders.numeric import Numeric
from stepmark.plugins import registry
from stepmark.protocols import Labeler, Tools
from stepmark.run.recipe import parse
from stepmark.stages.label import label as stage
from stepmark.text.grading import grade_solution
from stepmark.text.prompts import NO, VERDICT, YES, Template
from stepmark.text.steps import split
from stepmark.types import (
    Finish,
    Grade,
    LabelledSolution,
    Problem,
    SamplingParams,
    Solution,
    Unlabelled,
    Verdict,
)

# The options to test each labeler with.
WAYS: dict[str, list[dict[str, Any]]] = {
    "monte_carlo": [{}, {"early_stop": True}, {"precision": 0.2}],
    "first_error": [{}, {"trust_outcome": False, "wave": 3}],
    "rule": [{}, {"match": "text", "steps": "sentence"}],
    "nli": [{}, {"premise": "prefix"}],
    "judge": [{}, {"votes": 3}, {"format": "first"}, {"prompt": "{question} {steps} {reference}"}],
    "consensus": [{}, {"keep": "step"}, {"labelers": ["rule", "first_error"]}],
    "rationale": [{}, {"source": "oracle"}, {"source": "unguided", "n": 3}],
}
CASES = [(name, options) for name in registry.names("labeler") for options in WAYS.get(name, [{}])]


def answers(text: str) -> list[str | tuple[str, Finish]]:
    """A completer's rollouts after a text: correct, wrong, truncated or ungradable, determined by the text."""
    kinds = ["The answer is 6.", "The answer is 7.", ("The answer", Finish.LENGTH), "The answer is odd?"]
    digest = hashlib.sha256(text.encode()).digest()
    return [kinds[min(b // 90, 1) if b < 200 else 2 + b % 2] for b in digest]


def verdicts(text: str) -> list[str | tuple[str, Finish]]:
    """A judge's answers to a prompt, determined by the prompt."""
    digest = hashlib.sha256(text.encode()).digest()
    each = "\n".join(f"Step {i}: {'in' * (b > 200)}correct" for i, b in enumerate(digest[:8], 1))
    whole = f"{each}\nFirst wrong step: {digest[0] % 3 + 1}\n{VERDICT}{YES if digest[0] % 2 else NO}"
    return [whole, "no idea", (each, Finish.LENGTH)]


@dataclasses.dataclass
class Watched:
    """A backend that records the prompts' ids. All rollouts fail if `down` is set."""

    script: ScriptedBackend
    down: bool = False
    ids: list[str] = dataclasses.field(default_factory=list)

    def sample(self, prompts: Any, params: SamplingParams) -> Any:
        self.ids += [p.id for p in prompts]
        for r in self.script.sample(prompts, params):
            yield dataclasses.replace(r, text="", finish=Finish.FAILED, reason="down") if self.down else r


class Fussy:
    """A grader for which a text that ends in a question mark is ungradable."""

    def grade(self, text: str, problem: Problem) -> Grade:
        return Grade(Verdict.UNGRADABLE, "?") if text.endswith("?") else Numeric().grade(text, problem)


def unit(number: int, text: str, finish: Finish = Finish.STOP, references: bool = True) -> Unlabelled:
    p = Problem(f"p{number}", f"How many are {number}?", "6", "t", "2 + 2 = 4\n4 + 2 = 6\nThe answer is 6.")
    return Unlabelled(
        p, Solution(f"{p.id}#0", p.id, 0, text, split(text), finish), (p.reference, "3 * 2 = 6") if references else ()
    )


UNITS = [
    unit(0, "2 + 2 = 4\n4 + 2 = 6\nThe answer is 6."),
    unit(1, "2 + 2 = 4\n4 + 2 = 7\nThe answer is 7."),
    unit(2, "\n".join(f"{i} + 1 = {i + 1}" for i in range(11)) + "\nThe answer is 11.\n\n"),
    unit(3, "2 + 2 = 4\n4 + 2", Finish.LENGTH),
    unit(4, "2 + 2 = 4\n4 + 2 = 6\nand so?"),
    unit(5, ""),
    unit(6, " \n "),
    unit(7, "", Finish.LENGTH),
    unit(8, "6"),
    unit(9, "2 + 2 = 4\nThe answer is 6.", references=False),
]


@pytest.fixture
def tools() -> Tools:
    return Tools(
        Fussy(),
        Template(),
        SamplingParams(),
        Watched(ScriptedBackend(answers)),
        Watched(ScriptedBackend(verdicts)),
        oracle=lambda problem, solution: f"{problem.question} has {len(solution.spans)} steps. Step 1 is correct.",
    )


@pytest.fixture(params=CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def labeler(request: pytest.FixtureRequest) -> Any:
    name, options = request.param
    path = {"path": request.getfixturevalue("entailer")} if name == "nli" else {}
    return registry.load("labeler", name, **path, **options)


def labels(labeler: Any, units: Any, tools: Tools) -> dict[str, LabelledSolution]:
    labelled = list(labeler.label(units, tools))
    assert len(labelled) == len(units)
    return {x.key: x for x in labelled}


def test_every_labeler_is_tried() -> None:
    assert set(WAYS) == set(registry.names("labeler"))


def test_it_is_a_frozen_labeler_that_travels(labeler: Any, tools: Tools) -> None:
    assert isinstance(labeler, Labeler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(labeler, dataclasses.fields(labeler)[0].name, None)
    fresh = pickle.loads(pickle.dumps(labeler))  # noqa: S301  our own bytes
    assert fresh == labeler
    before = labels(labeler, UNITS, tools)
    assert labels(fresh, UNITS, tools) == before
    assert labels(pickle.loads(pickle.dumps(labeler)), UNITS, tools) == before  # noqa: S301


def test_each_solution_gets_its_grade_and_a_label_for_each_step(labeler: Any, tools: Tools) -> None:
    labelled = labels(labeler, UNITS, tools)
    for u in UNITS:
        x = labelled[u.solution.id]
        assert x.solution == u.solution
        assert x.grade == grade_solution(u.solution, u.problem, tools.grader)
        assert len(x.labels) == len(u.solution.spans)
        for label in x.labels:
            assert 0 <= label.correct <= label.gradable
            assert label.source
    # At least one label or rationale is usable.
    assert any(label.known for x in labelled.values() for label in x.labels) or any(
        r.kept for x in labelled.values() for r in x.rationales
    )


def test_labels_do_not_depend_on_the_company(labeler: Any, tools: Tools) -> None:
    together = labels(labeler, UNITS, tools)
    assert labels(labeler, UNITS[::-1], tools) == together
    assert labels(labeler, UNITS[3:7], tools) == {u.solution.id: together[u.solution.id] for u in UNITS[3:7]}
    for u in UNITS:
        assert labels(labeler, [u], tools) == {u.solution.id: together[u.solution.id]}
    assert labels(labeler, [], tools) == {}


def test_it_uses_what_it_says_and_nothing_else(labeler: Any, tools: Tools) -> None:
    assert labeler.uses <= {"completer", "judge", "references", "oracle"}
    spare = {role: None for role in ("completer", "judge", "oracle") if role not in labeler.uses}
    units = UNITS if "references" in labeler.uses else [dataclasses.replace(u, references=()) for u in UNITS]
    assert labels(labeler, units, dataclasses.replace(tools, **spare)) == labels(labeler, UNITS, tools)
    for role in ("completer", "judge"):
        if role in labeler.uses:
            with pytest.raises(ConfigError, match=f"needs a {role}"):
                list(labeler.label(UNITS, dataclasses.replace(tools, **{role: None})))
            assert getattr(tools, role).ids
    if "oracle" in labeler.uses:
        with pytest.raises(ConfigError, match="`rationale`"):
            list(labeler.label(UNITS, dataclasses.replace(tools, oracle=None)))


def test_rollouts_carry_the_solution_they_are_about(labeler: Any, tools: Tools) -> None:
    labels(labeler, UNITS, tools)
    known = {u.solution.id for u in UNITS}
    for name in (*tools.completer.ids, *tools.judge.ids):  # type: ignore[union-attr]
        solution, _, what = name.rpartition("@")
        assert solution in known
        assert what


def test_no_fault_is_taken_for_a_wrong_answer(labeler: Any, tools: Tools) -> None:
    tools.completer.down = tools.judge.down = True  # type: ignore[union-attr]
    uses = labeler.uses & {"completer", "judge"}
    for x in labels(labeler, UNITS, tools).values():
        drawn = [label for label in x.labels if label.source != "outcome" and not label.inferred]
        if uses:
            assert not any(label.known and not label.correct for label in drawn)
        assert not any(label.source == "inferred:earlier_error" for label in x.labels)
        assert not uses or not any(r.kept or r.lost == "mismatch" for r in x.rationales)


def test_what_was_cut_off_or_could_not_be_graded_has_no_outcome(labeler: Any, tools: Tools) -> None:
    labelled = labels(labeler, UNITS, tools)
    assert not any(label.source == "outcome" for label in labelled["p3#0"].labels)
    last = labelled["p4#0"].labels[-1]
    assert not last.known or last.source != "outcome"
    for empty in ("p5#0", "p6#0", "p7#0"):
        assert labelled[empty].labels == ()


def test_it_runs_in_the_stage_and_in_a_recipe(labeler: Any, tools: Tools, tmp_path: Any) -> None:
    with Records(tmp_path / "labels.jsonl", LabelledSolution) as out:
        done = stage([(u.problem, u.solution) for u in UNITS], labeler, tools, out, executor=SerialExecutor())
        assert len(list(out)) + len(done.failed) == len(UNITS)
        assert not done.failed
    name = type(labeler).__module__.rpartition(".")[2]
    options = {f.name: getattr(labeler, f.name) for f in dataclasses.fields(labeler)}
    task = "last_letter" if "oracle" in labeler.uses else "arithmetic"
    raw = {"name": "r", "task": task, "generator": {"path": "g"}, "judge": {"path": "j"}}
    raw |= {"sample": {"test": {"n": 64}}, "label": {"name": name, "options": options}}
    assert parse(raw, "r").label.load() == labeler  # type: ignore[union-attr]
