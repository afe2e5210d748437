"""Format `stepmark`: our own labelled solutions with their problems. It holds all that Stepmark knows of them.

    {"problem": {...}, "labelled": {"solution": {...}, "grade": {...}, "labels": [...], "rationales": [...]}}

A row is one solution; a problem without solutions has a row with `labelled: null`. Files of `stepmark label` are read
too, and those of a run, RUN/labels/train.jsonl. Their rows have no problem: it comes from RUN/problems, or from the
file that `problems` names.

    stepmark convert runs/demo/labels/train.jsonl --to stepwise rows.jsonl
    stepmark convert math-shepherd.jsonl --to stepmark labels.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stepmark.data import exchange, rows
from stepmark.data.store import Records, decoder, plain
from stepmark.errors import DataError
from stepmark.types import GradedSolution, Imported, LabelledSolution, Place, Problem, Quarantined

ROW = ("problem", "labelled", "extra")


@dataclass(frozen=True)
class Stepmark:
    """Reads and writes the format."""

    problems: str = ""  # file of the problems, for rows without them; "" is that of the run that the file is in

    holds: ClassVar[frozenset[str]] = exchange.EVERYTHING

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"problem", "labelled"} <= set(row) or {"key", "solution", "grade", "labels"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem and one labelled solution."""
        return exchange.each(path, (), partial(self._make, problems=_Problems(self.problems, Path(path))))

    def _make(self, row: rows.Row, problems: _Problems) -> exchange.Made:
        try:
            if "problem" in row.values:
                problem: Problem | None = decoder(Problem)(row.values["problem"])
                fields: Any = row.values.get("labelled")
            else:
                fields = {k: v for k, v in row.values.items() if k != "key"}
                problem = None
            labelled: LabelledSolution | None = None if fields is None else decoder(LabelledSolution)(fields)
        except (TypeError, ValueError, KeyError, AttributeError) as e:
            return f"not a labelled solution: {e}"
        if problem is None:
            assert labelled is not None
            problem = problems.get(labelled.solution.problem_id)
            if problem is None:
                return f"no problem {labelled.solution.problem_id!r} {problems.where()}"
        extra = row.values.get("extra") or {}
        if not isinstance(extra, Mapping):
            return f"field 'extra': an object is needed, got {extra!r:.40}"
        if labelled is None:
            return Imported(problem, (), extra=extra)
        s = labelled.solution
        if len(labelled.labels) != len(s.spans):
            return f"{len(s.spans)} steps and {len(labelled.labels)} labels"
        ends = [0, *(end for _, end in s.spans)]
        if [start for start, _ in s.spans] != ends[:-1] or ends[-1] != len(s.text) or sorted(set(ends)) != ends:
            return f"the spans of solution {s.id!r} do not divide its text"
        said = labelled.grade != exchange.UNSAID
        return Imported(
            problem,
            (s,),
            (GradedSolution(s.id, s.problem_id, labelled.grade),) if said else (),
            (labelled,) if labelled.rationales else (),
            (labelled,) if any(x.known for x in labelled.labels) else (),
            extra,
        )

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution, or for the problem alone."""
        problem = plain(imported.problem)
        for labelled in exchange.labelled(imported) or (None,):
            row = {"problem": problem, "labelled": None if labelled is None else plain(labelled)}
            yield row | {"extra": dict(imported.extra) or None}


class _Problems:
    """The problems of a file, read when the first is asked for."""

    def __init__(self, named: str, path: Path) -> None:
        self.named, self.path = named, path
        self._known: dict[str, Problem] | None = None

    def get(self, id: str) -> Problem | None:
        if self._known is None:
            place = self._place()
            if self.named and (place is None or not place.is_file()):
                raise DataError(
                    f"no file {self.named} of problems. Give the JSONL file of a run: RUN/problems/PART.jsonl."
                )
            self._known = {} if place is None else {p.id: p for p in Records(place, Problem)}
        return self._known.get(id)

    def where(self) -> str:
        place = self._place()
        return f"in {place}" if place is not None else "since the file is in no run; name their file: problems=FILE"

    def _place(self) -> Path | None:
        if self.named:
            return Path(self.named)
        for run in self.path.resolve().parents[1:3]:  # rationales/NAME/train.jsonl is one folder deeper
            if (run / "config.json").is_file() and (run / "problems" / self.path.name).is_file():
                return run / "problems" / self.path.name
        return None
