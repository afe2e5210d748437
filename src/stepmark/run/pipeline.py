"""A whole run: the stages in order, on one run directory that survives being killed.

    RUN/config.json                every setting that can change a result
    RUN/problems/{train,test}      .jsonl, as are all records; all that is said of test here is also there for
                                   out_of_distribution, a second test, where the recipe has it
    RUN/bases/NAME/                models made from scratch, before they learn
    RUN/generator/                 checkpoint
    RUN/judge/                     checkpoint, where the recipe trains one
    RUN/solutions/{train,test}, RUN/grades/{train,test}, RUN/labels/train, RUN/rationales/train
    RUN/rationales/NAME/train      what that verifier, and no other, learns from
    RUN/rollouts/                  what completers and judges said, and what it cost; with a budget or a paid model
                                   the drawn solutions too
    RUN/verifiers/NAME/, RUN/scores/NAME, RUN/scores/out_of_distribution/NAME
    RUN/policies/, RUN/refreshed/, RUN/after/ and more, where the recipe reinforces (run/reinforcement.py)
    RUN/metrics.json, RUN/report.html
    RUN/by_problem.json            how every way of choosing did on each test problem, for several runs together
    RUN/quarantine.jsonl           rows left out, with file, line and reason
    RUN/log.jsonl                  what was done when; RUN/seconds.json adds up the sittings

The same call on the same directory goes on from wherever the last one stopped; each stage asks only for what is
missing. Other settings on the same directory are refused with a diff.

    stepmark run recipes/demo.yaml
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepmark.data import outcome_counts, work_units
from stepmark.data.ledger import Budget, Ledger, need_price
from stepmark.data.store import Records, RunDir, StoredRecord, replacing
from stepmark.errors import DataError
from stepmark.evaluation.evaluate import Metrics, evaluate
from stepmark.models import checkpoints
from stepmark.plugins import verifier_card
from stepmark.protocols import Tools
from stepmark.run.context import RunContext
from stepmark.run.log import RunLog
from stepmark.run.recipe import Recipe
from stepmark.run.reinforcement import Reinforcing
from stepmark.run.report_data import write_report
from stepmark.run.schema import Base, Labeler, SolutionSource
from stepmark.run.schema import Verifier as VerifierSettings
from stepmark.run.training_data import Example, TrainingData
from stepmark.stages.grade import grade
from stepmark.stages.label import ROLES, label, ledgers, references_among
from stepmark.stages.sample import sample
from stepmark.stages.score import score
from stepmark.stages.train import Generator as GeneratorTrainee
from stepmark.stages.train import Trained, TrainSettings, train
from stepmark.text.hashing import hash_fraction
from stepmark.text.prompts import Template
from stepmark.types import (
    Imported,
    LabelledSolution,
    Place,
    Progress,
    Quarantined,
    Solution,
)

Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Job:
    """A verifier to train."""

    name: str
    verifier: str  # whose settings it has; its name, unless it is trained anew
    trainee: Any
    place: Path  # its directory
    settings: TrainSettings
    more: list[Example]  # besides what all learn from
    own: list[Example] | None = None  # instead of what all learn from


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    path: Path  # the run directory
    metrics: Mapping[str, Any]  # as in metrics.json
    quarantined: int  # rows left out, listed in quarantine.jsonl
    failed: tuple[work_units.Failed, ...]  # items that stages could not work on; the same command tries them again

    @property
    def exit_code(self) -> int:
        """3 when everything that could be used was used, but something could not."""
        return 3 if self.quarantined or self.failed else 0


def run(
    recipe: Recipe, path: Place, progress: Show | None = None, command: str = "", budget: Budget | None = None
) -> RunResult:
    """Runs the stages that are not done yet. Raises ConfigChanged for a directory of other settings, BudgetReached
    when what the ledgers of the run came to, over all sittings, reaches the budget. A sitting without a budget keeps a
    ledger of solutions only for paid models."""
    with RunDir(path).open(recipe.resolved()) as directory:
        return Run(recipe, directory, progress, command, budget).finish()


class Run:
    """One recipe on one open run directory. Each stage is a method; each can be called alone, in order."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDir,
        progress: Show | None = None,
        command: str = "",
        budget: Budget | None = None,
    ) -> None:
        self.recipe, self.directory, self.command = recipe, directory, command
        self.budget = budget
        self.on = RunContext(recipe, directory)
        self.lessons = TrainingData(recipe, self.on)
        self.journal = RunLog(directory, progress)
        self.reinforcing: Reinforcing | None = None
        if recipe.reinforce is not None:
            work = recipe, directory, self.on, self.lessons, self.journal
            self.reinforcing = Reinforcing(*work, self.train_anew, budget)

    def finish(self) -> RunResult:
        """All stages."""
        self.need_price()
        parts = self.recipe.sample.parts
        for part in parts:
            self.problems(part)
        if self.reinforcing is not None:
            self.reinforcing.problems()
        if self._samples:
            self.generator()
        for part in parts:
            self.sample(part)
            self.grade(part)
        self.judge()
        self.label()
        self.train()
        self.score()
        self.reinforce()
        metrics = self.evaluate()
        self.report()
        return RunResult(self.directory.path, metrics, len(self.on.quarantine), tuple(self.journal.failed))

    def need_price(self) -> None:
        """Raises ConfigError for a limit on money where no model of the recipe has a price."""
        roles = ("generator", "completer", "judge")
        need_price(self.budget, (self.on.backend(name) for name in roles if self.on.role(name) is not None))

    # ---- stages ----

    def problems(self, part: str) -> None:
        """Loads the task's problems, or imports problems and solutions."""
        drawn = self.recipe.sample.source(part)
        with self.journal.stage("problems"):
            if drawn.file is not None:
                self._import(part, drawn)
                return
            assert self.on.task is not None and drawn.split is not None
            loaded = self.on.task.load(drawn.split, drawn.problems)
            self._set_aside(loaded.quarantined)
            self._add(self.on.problems(part), loaded.problems)
            if not loaded.problems:
                raise DataError(
                    f"the split {drawn.split!r} of the task has no usable problem; {self._set_aside_note()}"
                )

    def generator(self) -> None:
        """Teaches the generator, and a completer of its own, where the recipe says so."""
        for name, settings in (("generator", self.recipe.generator), ("completer", self.recipe.completer)):
            if settings is None or settings.train is None or _trained(self.directory.path / name):
                continue
            with self.journal.stage(f"train {name}"):
                assert self.on.task is not None
                loaded = self.on.task.load(settings.split, settings.problems)
                self._set_aside(loaded.quarantined)
                context = Template(self.recipe.prompt)
                texts = [context(p) + (p.demonstration or p.reference) for p in loaded.problems]
                base = self._base(name, settings, texts)
                trainee = GeneratorTrainee(base, self.recipe.prompt, settings.question_weight)
                train(
                    trainee,
                    loaded.problems,
                    self.directory.path / name,
                    self.on.settings(settings.train),
                    self.journal.tell,
                )

    def sample(self, part: str) -> None:
        """Draws solutions; imported ones are there already."""
        drawn = self.recipe.sample.source(part)
        if drawn.file is not None:
            return
        assert self.on.task is not None
        with self.journal.stage(f"sample {part}"):
            generator = self.on.backend("generator")
            ledger = Ledger.of(self._rollouts / f"solutions-{part}.jsonl", generator)
            # Also where an earlier sitting kept one: what it paid for may not be among the solutions yet.
            paid = self.budget is not None or getattr(generator, "remote", False) or ledger.path.exists()
            done = sample(
                list(self.on.problems(part)),
                generator,
                self.on.solutions(part),
                n=drawn.n,
                context=Template(self.recipe.prompt),
                params=self.recipe.params,
                steps=self.on.steps,
                ledger=ledger if paid else None,
                budget=self.budget,
                limits=self.recipe.limits,
                executor=self.on.executor,
                progress=self.journal.tell,
            )
            self.journal.note(asdict(done), done.failed)

    def grade(self, part: str) -> None:
        """Grades solutions, imported ones only where their file doesn't."""
        with self.journal.stage(f"grade {part}"):
            grades = self.on.grades(part)
            if self.recipe.sample.source(part).file is not None and len(grades) == len(self.on.solutions(part)):
                return
            problems = list(self.on.problems(part))
            done = grade(
                self.on.solutions(part),
                problems,
                self.on.grader,
                grades,
                limits=self.recipe.limits,
                executor=self.on.executor,
                progress=self.journal.tell,
            )
            self.journal.note(asdict(done), done.failed)

    def judge(self) -> None:
        """Teaches the judge, where the recipe says so."""
        settings = self.recipe.judge
        if settings is None or settings.train is None or _trained(self.directory.path / "judge"):
            return
        with self.journal.stage("train judge"):
            lessons = self.lessons.of_judge(settings)
            given = settings.path is None and settings.init is None
            texts = [p.question + p.demonstration for p in lessons]
            path = self.on.model_path("generator") if given else self._base("judge", settings, texts)
            trainee = GeneratorTrainee(path, "{question}", settings.question_weight)
            place = self.directory.path / "judge"
            trained = train(trainee, lessons, place, self.on.settings(settings.train), self.journal.tell)
            self.journal.note(asdict(trained))

    def label(self) -> None:
        """Labels the steps of the training solutions, and has verifications of them written."""
        if self.recipe.label is not None:
            self._label("label", self.recipe.label, self.on.labels, ledgers(self._rollouts, self.on.tools))
        for name, labeler in self.recipe.writers.items():
            paid = rationale_ledgers(self._rollouts, self.on.tools, name)
            self._label(f"rationales {name}".rstrip(), labeler, self.on.rationales(name), paid)

    def _label(self, stage: str, labeler: Labeler, out: Records[LabelledSolution], paid: Mapping[str, Ledger]) -> None:
        with self.journal.stage(stage):
            grades = {g.solution_id: g.grade for g in self.on.grades("train")}
            pairs = self.lessons.pairs(labeler)
            done = label(
                pairs,
                labeler.load(),
                self.on.tools,
                out,
                references=references_among(pairs, lambda _, s: grades.get(s.id)),
                ledgers=paid,
                budget=self.budget,
                limits=self.recipe.limits,
                executor=self.on.executor,
                progress=self.journal.tell,
            )
            written = outcome_counts.of_rationales(out)
            self.journal.note(asdict(done) | ({"rationales": written} if written else {}), done.failed)

    def train(self) -> None:
        """Trains the verifiers, as many at a time as there are workers."""
        verifiers = self.directory.path / "verifiers"
        todo = [(name, v) for name, v in self.recipe.verifiers.items() if v.learns and not _trained(verifiers / name)]
        if not todo:
            return
        with self.journal.stage("train verifiers"):
            examples = self.lessons.examples()
            for later in (False, True):  # those that build on others come after them
                self._teach([self._job(name, v, examples) for name, v in todo if bool(v.below) == later], examples)

    def train_anew(self, verifier: str, name: str, examples: list[Example]) -> None:
        """Trains one of the verifiers again, under another name, on other examples."""
        with self.journal.stage("train verifiers"):
            self._teach([self._job(verifier, self.recipe.verifiers[verifier], examples, name)], examples)

    def reinforce(self) -> None:
        """Has policies learn from the verifiers, and tries them, where the recipe says so."""
        if self.reinforcing is not None:
            self.reinforcing.finish()

    def score(self) -> None:
        """Scores the test solutions with every verifier."""
        for part in self.recipe.sample.tests:
            problems = list(self.on.problems(part))
            for name in self.recipe.verifiers:
                with self.journal.stage(f"score {name}" if part == "test" else f"score {name} {part}"):
                    done = score(
                        self.on.verifier(name),
                        problems,
                        self.on.solutions(part),
                        self.on.scores(name, part),
                        limits=self.recipe.verifiers[name].limits or self.recipe.limits,
                        executor=self.on.executor,
                        progress=self.journal.tell,
                    )
                    self.journal.note({"verifier": name, "part": part, **asdict(done)}, done.failed)

    def evaluate(self) -> dict[str, Any]:
        """Measures; writes metrics.json: what the test came to, and with a second test both under their names too."""
        tests = self.recipe.sample.tests
        with self.journal.stage("evaluate"):
            measured = {part: self._measured(part) for part in tests}
        ways = {part: [asdict(way) for way in found.ways] for part, found in measured.items()}
        self.directory.write_text("by_problem.json", json.dumps(ways, allow_nan=False) + "\n")
        found = {part: metrics.to_json() for part, metrics in measured.items()}
        policies = self.reinforcing.evaluate() if self.reinforcing is not None else {}
        about = {"name": self.recipe.name, "seconds": self.journal.seconds}
        plain: dict[str, Any] = found["test"] | policies | about
        if "out_of_distribution" in tests:
            plain |= {"in_distribution": found["test"], "out_of_distribution": found["out_of_distribution"]}
        self.directory.write_json("metrics.json", plain)
        return plain

    def _measured(self, part: str) -> Metrics:
        labelled = self.recipe.label is not None and part == "test"  # labels and rationales are of train: judged once
        return evaluate(
            list(self.on.problems(part)),
            self._whole(part),
            self.on.grades(part),
            {name: list(self.on.scores(name, part)) for name in self.recipe.verifiers},
            ns=self.recipe.evaluate.n,
            aggregates=self.recipe.evaluate.aggregates,
            seed=self.recipe.seed,
            labels=list(self.on.labels) if labelled else (),
            labelled_problems=list(self.on.problems("train")),
            rationales=self._written if part == "test" else (),
            oracle=getattr(self.on.task, "judge_steps", None),
            kind_of=getattr(self.on.task, "error_kind", None),
            votes=self.recipe.evaluate.votes,
            progress=self.journal.tell,
        )

    def report(self) -> Path:
        """Writes report.html."""
        return write_report(self.directory, self.command)

    # ---- pieces of stages ----

    def _import(self, part: str, drawn: SolutionSource) -> None:
        assert drawn.file is not None and drawn.format is not None
        batch: list[Imported] = []
        count = 0
        low, high = drawn.share
        for entry in drawn.format.load().read(drawn.file):
            if isinstance(entry, Quarantined):
                self._set_aside([entry])
            elif low <= hash_fraction(entry.problem.question) < high:
                batch.append(entry)
                count += 1
                if len(batch) == 256:
                    self._keep(part, batch, drawn.n)
                    batch = []
                if count == drawn.problems:
                    break
        self._keep(part, batch, drawn.n)
        if not count:
            raise DataError(f"{drawn.file} has no usable question in the share {list(drawn.share)}.")

    def _keep(self, part: str, batch: Sequence[Imported], n: int) -> None:
        self._add(self.on.solutions(part), [s for entry in batch for s in entry.solutions[:n]])
        self._add(self.on.grades(part), [g for entry in batch for g in entry.grades[:n]])
        self._add(self.on.problems(part), [entry.problem for entry in batch])
        if part == "train":
            kept = {s.id for entry in batch for s in entry.solutions[:n]}
            brought = [x for entry in batch for x in getattr(entry, "rationales", ()) if x.key in kept]
            if brought:
                self._add(self.on.rationales(), brought)

    def _teach(self, jobs: Sequence[_Job], examples: list[Example]) -> None:
        verifiers = {job.name: job.verifier for job in jobs}
        with self.journal.watch([job.place for job in jobs]):
            for name, trained in self.on.executor.map(partial(_train, examples=examples), jobs):
                place = self.directory.path / "verifiers" / name
                settings = self.recipe.verifiers[verifiers[name]]
                if not (place / verifier_card.CARD).exists():
                    options = {**settings.options, **self.on.template_option(settings.kind)}
                    verifier_card.write_card(place, settings.kind, options, {}, Template(self.recipe.prompt).hash)
                self.journal.note({"verifier": name, **asdict(trained)})

    def _job(self, name: str, settings: VerifierSettings, examples: list[Example], anew: str = "") -> _Job:
        base = settings.base
        writer = self.recipe.writer(name)
        own = self.lessons.told(examples, writer) if writer else None
        path = ""
        if base.path is None and base.init is None and not settings.starts_from_model:
            pass  # it learns from nothing but the examples
        elif base.path is None and base.init is None:
            assert self.recipe.generator is not None
            path = self.on.model_path("generator")
        else:
            path = self._base(name, base, self.lessons.texts(own or examples))
        place = self.directory.path / "verifiers" / (anew or name)
        return _Job(
            anew or name,
            name,
            self.on.trainee(name, path),
            place,
            self.on.settings(settings.train),
            [*self.lessons.references(settings), *self.lessons.replay(settings)],
            own,
        )

    def _base(self, name: str, base: Base, texts: Sequence[str]) -> str:
        """The path of the checkpoint to start from, made where it has to be made: with words from `texts`."""
        if base.init is None:
            assert base.path is not None
            return base.path
        path = self.directory.path / "bases" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as place:
                checkpoints.create(place, [*texts, *self.lessons.vocabulary()], base.init, self.recipe.seed)
        return str(path)

    def _whole(self, part: str) -> list[Solution]:
        """The test solutions that every stage got through; the others are in `failed`, and tried again next time."""
        there = [self.on.grades(part).keys(), *(self.on.scores(n, part).keys() for n in self.recipe.verifiers)]
        return [s for s in self.on.solutions(part) if all(s.id in keys for keys in there)]

    # ---- what there is ----

    @property
    def _samples(self) -> bool:
        return any(self.recipe.sample.source(part).file is None for part in self.recipe.sample.parts)

    @property
    def _written(self) -> list[LabelledSolution]:
        """All written verifications."""
        return [x for name in {"": None} | self.recipe.writers for x in self.on.rationales(name)]

    @property
    def _rollouts(self) -> Path:
        return self.directory.path / "rollouts"

    def _add(self, records: Records[Any], found: Sequence[StoredRecord]) -> None:
        there = records.keys()
        records.append(r for r in found if r.key not in there)

    def _set_aside(self, rows: Sequence[Quarantined]) -> None:
        self._add(self.on.quarantine, rows)

    def _set_aside_note(self) -> str:
        return f"{len(self.on.quarantine)} rows were set aside, see {self.on.quarantine.path}."


def rationale_ledgers(directory: Path, tools: Tools, writer: str = "") -> dict[str, Ledger]:
    """As label.ledgers, for those who write verifications: they may ask the same models for other things."""
    asker = f"rationales-{writer}-" if writer else "rationales-"
    return {
        role: Ledger.of(directory / f"{asker}{role}.jsonl", backend)
        for role in ROLES
        if (backend := getattr(tools, role)) is not None
    }


def _trained(path: Path) -> bool:
    """Whether a training is over. It stays as it is even where labels that failed before have come since."""
    return (path / "trained.json").exists()


def _train(job: _Job, *, examples: list[Example]) -> tuple[str, Trained]:
    given = examples if job.own is None else job.own
    return job.name, train(job.trainee, [*given, *job.more], job.place, job.settings)
