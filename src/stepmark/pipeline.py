"""A whole run: the stages in order, on one run directory that survives being killed.

    RUN/config.json                every setting that can change a result
    RUN/problems/{train,test}      .jsonl, as are all records
    RUN/bases/NAME/                models made from scratch, before they learn
    RUN/generator/                 checkpoint
    RUN/solutions/{train,test}, RUN/grades/{train,test}, RUN/labels/train
    RUN/verifiers/NAME/, RUN/scores/NAME
    RUN/metrics.json, RUN/report.html
    RUN/quarantine.jsonl           rows left out, with file, line and reason
    RUN/log.jsonl                  what was done when; RUN/seconds.json adds up the sittings

The same call on the same directory goes on from wherever the last one stopped; each stage asks only for what is
missing. Other settings on the same directory are refused with a diff.

    stepmark run recipes/demo.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

from stepmark import checkpoints, plugins, scoring, units
from stepmark.errors import DataError
from stepmark.evaluate import evaluate
from stepmark.grade import grade
from stepmark.label import distinct, label
from stepmark.loading import load_executor, load_verifier
from stepmark.prompts import Template
from stepmark.protocols import Backend, Executor, Grader, Task, Tools, Verifier
from stepmark.recipe import Base, Drawn, Generator, Recipe
from stepmark.recipe import Verifier as VerifierSettings
from stepmark.reporting import write_report
from stepmark.rows import share
from stepmark.sample import sample
from stepmark.score import score
from stepmark.store import Keyed, Records, RunDir, replacing
from stepmark.train import Generator as GeneratorTrainee
from stepmark.train import Trained, TrainSettings, train
from stepmark.types import (
    GradedSolution,
    Imported,
    LabelledSolution,
    Place,
    Problem,
    Progress,
    Quarantined,
    Solution,
    StepLabel,
    Verification,
)

PARTS = ("train", "test")
Pair = tuple[Problem, Solution]
Show = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run came to."""

    path: Path  # the run directory
    metrics: Mapping[str, Any]  # as in metrics.json
    quarantined: int  # rows left out, listed in quarantine.jsonl
    failed: tuple[units.Failed, ...]  # items that stages could not work on; the same command tries them again

    @property
    def exit_code(self) -> int:
        """3 when everything that could be used was used, but something could not."""
        return 3 if self.quarantined or self.failed else 0


def run(recipe: Recipe, path: Place, progress: Show | None = None, command: str = "") -> Finished:
    """Runs the stages that are not done yet. Raises ConfigChanged for a directory of other settings."""
    with RunDir(path).open(recipe.resolved()) as directory:
        return Run(recipe, directory, progress, command).finish()


class Run:
    """One recipe on one open run directory. Each stage is a method; each can be called alone, in order."""

    def __init__(self, recipe: Recipe, directory: RunDir, progress: Show | None = None, command: str = "") -> None:
        self.recipe, self.directory, self.command = recipe, directory, command
        self.failed: list[units.Failed] = []
        self._seconds: dict[str, float] = {}
        if (directory.path / "seconds.json").exists():
            self._seconds = directory.read_json("seconds.json")
        self._show = progress or (lambda _: None)

    def finish(self) -> Finished:
        """All stages."""
        for part in PARTS:
            self.problems(part)
        if self._samples:
            self.generator()
        for part in PARTS:
            self.sample(part)
            self.grade(part)
        self.label()
        self.train()
        self.score()
        metrics = self.evaluate()
        self.report()
        return Finished(self.directory.path, metrics, len(self._quarantine), tuple(self.failed))

    # ---- stages ----

    def problems(self, part: str) -> None:
        """Loads the task's problems, or imports problems and solutions."""
        drawn = self._drawn(part)
        with self._stage("problems"):
            if drawn.file is not None:
                self._import(part, drawn)
                return
            assert self._task is not None and drawn.split is not None
            loaded = self._task.load(drawn.split, drawn.problems)
            self._set_aside(loaded.quarantined)
            self._add(self._problems(part), loaded.problems)
            if not loaded.problems:
                raise DataError(
                    f"the split {drawn.split!r} of the task has no usable problem; {self._set_aside_note()}"
                )

    def generator(self) -> None:
        """Teaches the generator, and a completer of its own, where the recipe says so."""
        for name, settings in (("generator", self.recipe.generator), ("completer", self.recipe.completer)):
            if settings is None or settings.train is None or _trained(self.directory.path / name):
                continue
            with self._stage(f"train {name}"):
                assert self._task is not None
                loaded = self._task.load(settings.split, settings.problems)
                self._set_aside(loaded.quarantined)
                context = Template(self.recipe.prompt)
                texts = [context(p) + (p.demonstration or p.reference) for p in loaded.problems]
                base = self._base(name, settings, texts)
                trainee = GeneratorTrainee(base, self.recipe.prompt, settings.question_weight)
                train(trainee, loaded.problems, self.directory.path / name, self._settings(settings.train), self._tell)

    def sample(self, part: str) -> None:
        """Draws solutions; imported ones are there already."""
        drawn = self._drawn(part)
        if drawn.file is not None:
            return
        assert self.recipe.generator is not None and self._task is not None
        with self._stage(f"sample {part}"):
            done = sample(
                list(self._problems(part)),
                self._backend("generator", self.recipe.generator),
                self._solutions(part),
                n=drawn.n,
                context=Template(self.recipe.prompt),
                params=self.recipe.params,
                steps=self.recipe.steps or self._task.steps,
                executor=self._executor,
                progress=self._tell,
            )
            self._note(asdict(done), done.failed)

    def grade(self, part: str) -> None:
        """Grades solutions, imported ones only where their file doesn't."""
        with self._stage(f"grade {part}"):
            grades = self._grades(part)
            if self._drawn(part).file is not None and len(grades) == len(self._solutions(part)):
                return
            problems = list(self._problems(part))
            done = grade(
                self._solutions(part), problems, self._grader, grades, executor=self._executor, progress=self._tell
            )
            self._note(asdict(done), done.failed)

    def label(self) -> None:
        """Labels the steps of the training solutions."""
        if self.recipe.label is None:
            return
        completer = self.recipe.completer or self.recipe.generator
        assert completer is not None
        with self._stage("label"):
            done = label(
                self._training_pairs,
                self.recipe.label.load(),
                Tools(
                    self._grader,
                    Template(self.recipe.prompt),
                    self.recipe.params,
                    self._backend("completer" if self.recipe.completer else "generator", completer),
                ),
                self._labels,
                executor=self._executor,
                progress=self._tell,
            )
            self._note(asdict(done), done.failed)

    def train(self) -> None:
        """Trains the verifiers, as many at a time as there are workers."""
        verifiers = self.directory.path / "verifiers"
        todo = [(name, v) for name, v in self.recipe.verifiers.items() if v.learns and not _trained(verifiers / name)]
        if not todo:
            return
        with self._stage("train verifiers"):
            examples = self._examples()
            for later in (False, True):  # those that build on others come after them
                jobs = [self._job(name, v, examples) for name, v in todo if (v.builds_on is not None) == later]
                with self._watch([place for _, _, place, _ in jobs]):
                    for name, trained in self._executor.map(partial(_train, examples=examples), jobs):
                        place = verifiers / name
                        settings = self.recipe.verifiers[name]
                        if not (place / scoring.CARD).exists():
                            options = {**settings.options, **self._template_option(settings.kind)}
                            scoring.write_card(place, settings.kind, options, {}, Template(self.recipe.prompt).hash)
                        self._note({"verifier": name, **asdict(trained)})

    def score(self) -> None:
        """Scores the test solutions with every verifier."""
        problems = list(self._problems("test"))
        for name in self.recipe.verifiers:
            with self._stage(f"score {name}"):
                done = score(
                    self._verifier(name),
                    problems,
                    self._solutions("test"),
                    self._scores(name),
                    executor=self._executor,
                    progress=self._tell,
                )
                self._note({"verifier": name, **asdict(done)}, done.failed)

    def evaluate(self) -> dict[str, Any]:
        """Measures; writes metrics.json."""
        with self._stage("evaluate"):
            whole = self._whole_test()
            metrics = evaluate(
                list(self._problems("test")),
                whole,
                self._grades("test"),
                {name: list(self._scores(name)) for name in self.recipe.verifiers},
                ns=self.recipe.evaluate.n,
                aggregates=self.recipe.evaluate.aggregates,
                seed=self.recipe.seed,
                labels=list(self._labels) if self.recipe.label is not None else (),
                labelled_problems=list(self._problems("train")),
                oracle=getattr(self._task, "judge_steps", None),
                kind_of=getattr(self._task, "error_kind", None),
                progress=self._tell,
            )
        plain = metrics.to_json() | {"name": self.recipe.name, "seconds": self._seconds}
        self.directory.write_json("metrics.json", plain)
        return plain

    def report(self) -> Path:
        """Writes report.html."""
        return write_report(self.directory, self.command)

    # ---- pieces of stages ----

    def _import(self, part: str, drawn: Drawn) -> None:
        assert drawn.file is not None and drawn.format is not None
        batch: list[Imported] = []
        count = 0
        low, high = drawn.share
        for entry in drawn.format.load().read(drawn.file):
            if isinstance(entry, Quarantined):
                self._set_aside([entry])
            elif low <= share(entry.problem.question) < high:
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
        self._add(self._solutions(part), [s for entry in batch for s in entry.solutions[:n]])
        self._add(self._grades(part), [g for entry in batch for g in entry.grades[:n]])
        self._add(self._problems(part), [entry.problem for entry in batch])

    def _examples(self) -> list[tuple[Problem, LabelledSolution]]:
        """What verifiers learn from, in an order that no parallel run can change."""
        if self.recipe.label is not None:
            labelled = {found.key: found for found in self._labels}
            return [(p, labelled[s.id]) for p, s in self._training_pairs if s.id in labelled]
        grades = {g.solution_id: g.grade for g in self._grades("train")}
        nothing = StepLabel(0, 0, source="none")
        return [
            (p, LabelledSolution(s, grades[s.id], (nothing,) * len(s.spans)))
            for p, s in self._training_pairs
            if s.id in grades
        ]

    def _job(
        self, name: str, settings: VerifierSettings, examples: Sequence[tuple[Problem, LabelledSolution]]
    ) -> tuple[str, Any, Path, TrainSettings]:
        base = settings.base
        path = ""
        if base.path is None and base.init is None and not settings.starts_from_model:
            pass  # it learns from nothing but the examples
        elif base.path is None and base.init is None:
            assert self.recipe.generator is not None
            path = self._generator_path("generator", self.recipe.generator)
        else:
            context = Template(self.recipe.prompt)
            path = self._base(name, base, [context(p) + labelled.solution.text for p, labelled in examples])
        trainee = plugins.load(
            "verifier",
            settings.kind,
            **({"path": path} if path else {}),
            **({"verifier": str(self.directory.path / "verifiers" / settings.builds_on)} if settings.builds_on else {}),
            **self._template_option(settings.kind),
            **settings.options,
        )
        return name, trainee, self.directory.path / "verifiers" / name, self._settings(settings.train)

    def _base(self, name: str, base: Base, texts: Sequence[str]) -> str:
        """The path of the checkpoint to start from, made where it has to be made."""
        if base.init is None:
            assert base.path is not None
            return base.path
        path = self.directory.path / "bases" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as place:
                checkpoints.create(place, texts, base.init, self.recipe.seed)
        return str(path)

    def _whole_test(self) -> list[Solution]:
        """The test solutions that every stage got through; the others are in `failed`, and tried again next time."""
        there = [self._grades("test").keys(), *(self._scores(name).keys() for name in self.recipe.verifiers)]
        return [s for s in self._solutions("test") if all(s.id in keys for keys in there)]

    # ---- what the recipe names ----

    @property
    def _samples(self) -> bool:
        return any(self._drawn(part).file is None for part in PARTS)

    def _drawn(self, part: str) -> Drawn:
        return cast(Drawn, getattr(self.recipe.sample, part))

    @cached_property
    def _task(self) -> Task | None:
        return None if self.recipe.task is None else cast(Task, self.recipe.task.load(**self._task_seed()))

    def _task_seed(self) -> dict[str, int]:
        """A run of another seed is a run on other problems, unless the recipe pins the task's own seed."""
        assert self.recipe.task is not None
        return {} if "seed" in self.recipe.task.options else {"seed": self.recipe.seed}

    @cached_property
    def _grader(self) -> Grader:
        if self.recipe.grader is not None:
            return cast(Grader, self.recipe.grader.load())
        if self._task is None:
            raise DataError("these solutions come without grades, and the recipe names neither a grader nor a task.")
        return cast(Grader, plugins.load("grader", self._task.grader))

    @cached_property
    def _executor(self) -> Executor:
        if self.recipe.executor is not None:
            return cast(Executor, self.recipe.executor.load(workers=self.recipe.workers))
        return load_executor(self.recipe.workers)

    def _generator_path(self, name: str, settings: Generator) -> str:
        return str(self.directory.path / name) if settings.train is not None else settings.path or ""

    def _backend(self, name: str, settings: Generator) -> Backend:
        return cast(Backend, settings.backend.load(path=self._generator_path(name, settings)))

    def _verifier(self, name: str) -> Verifier:
        settings = self.recipe.verifiers[name]
        if settings.learns:
            return load_verifier(self.directory.path / "verifiers" / name)
        given = self._template_option(settings.kind)
        return cast(Verifier, plugins.load("verifier", settings.kind, **given, **settings.options))

    def _template_option(self, kind: str) -> dict[str, str]:
        return {"template": self.recipe.prompt} if "template" in plugins.options("verifier", kind) else {}

    def _settings(self, settings: TrainSettings) -> TrainSettings:
        """Every training of a run follows the run's seed; a recipe's own `seed` shifts it."""
        return replace(settings, seed=settings.seed + self.recipe.seed)

    # ---- records ----

    def _problems(self, part: str) -> Records[Problem]:
        return self.directory.records(f"problems/{part}", Problem)

    def _solutions(self, part: str) -> Records[Solution]:
        return self.directory.records(f"solutions/{part}", Solution)

    def _grades(self, part: str) -> Records[GradedSolution]:
        return self.directory.records(f"grades/{part}", GradedSolution)

    def _scores(self, name: str) -> Records[Verification]:
        return self.directory.records(f"scores/{name}", Verification)

    @property
    def _labels(self) -> Records[LabelledSolution]:
        return self.directory.records("labels/train", LabelledSolution)

    @property
    def _quarantine(self) -> Records[Quarantined]:
        return self.directory.records("quarantine", Quarantined)

    @property
    def _training_pairs(self) -> list[Pair]:
        pairs = units.pair(list(self._problems("train")), self._solutions("train"))
        return distinct(pairs) if self.recipe.label is None or self.recipe.label.distinct else pairs

    def _add(self, records: Records[Any], found: Sequence[Keyed]) -> None:
        there = records.keys()
        records.append(r for r in found if r.key not in there)

    def _set_aside(self, rows: Sequence[Quarantined]) -> None:
        self._add(self._quarantine, rows)

    def _set_aside_note(self) -> str:
        return f"{len(self._quarantine)} rows were set aside, see {self._quarantine.path}."

    # ---- time and words ----

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Adds up the time that a stage takes, over all sittings."""
        self._stage_name, self._before, self._began = name, self._seconds.get(name, 0.0), time.monotonic()
        self._saved = self._began
        self._write({"stage": name, "event": "start"})
        try:
            yield
        finally:
            self._clock()
            self._write({"stage": name, "event": "end", "seconds": self._seconds[name]})

    def _clock(self) -> None:
        self._seconds[self._stage_name] = round(self._before + self._elapsed(), 3)
        self.directory.write_json("seconds.json", self._seconds)
        self._saved = time.monotonic()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _tell(self, progress: Progress) -> None:
        if time.monotonic() - self._saved > 5:  # so that a kill loses little of the count
            self._clock()
        self._show(replace(progress, stage=self._stage_name))

    @contextmanager
    def _watch(self, places: Sequence[Path]) -> Iterator[None]:
        """Tells how trainings in other processes get on, from their logs."""
        over = Event()

        def tell() -> None:
            while not over.wait(2):
                logs = {place.name: _last_line(place / "train.jsonl") for place in places}
                note = ", ".join(f"{name} loss {line['loss']:.3f}" for name, line in logs.items() if line)
                self._tell(Progress("", sum(line.get("update", 0) for line in logs.values()), 0, self._elapsed(), note))

        thread = Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _note(self, summary: Mapping[str, Any], failed: Sequence[units.Failed] = ()) -> None:
        self.failed += failed
        self._write({"stage": self._stage_name, "event": "done", **summary})

    def _write(self, line: Mapping[str, Any]) -> None:
        said = {"time": time.strftime("%FT%TZ", time.gmtime()), **line}
        with (self.directory.path / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(said, ensure_ascii=False) + "\n")


def _last_line(log: Path) -> dict[str, Any]:
    """The newest line of a training log; empty while there is none."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return dict(json.loads(whole[-1])) if whole else {}


def _trained(path: Path) -> bool:
    """Whether a training is over. It stays as it is even where labels that failed before have come since."""
    return (path / "trained.json").exists()


def _train(
    job: tuple[str, Any, Path, TrainSettings], *, examples: Sequence[tuple[Problem, LabelledSolution]]
) -> tuple[str, Trained]:
    name, trainee, place, settings = job
    return name, train(trainee, examples, place, settings)
