"""Format `inspect_log`: logs of inspect_ai, a `.json` file or a `.eval` archive of such files.

A sample is a question (`input`), a reference answer (`target`) and what the model wrote (`output`); one for each epoch.
A score is a grade where it is the only one, or where `scorer` names it: C or 1 is right, I or 0 is wrong. inspect_ai is
not needed. An archive is read sample by sample.

    stepmark run mine.yaml sample.train.file=logs/2026-11-28_gsm8k.eval sample.train.format=inspect_log
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stepmark.data import exchange, rows
from stepmark.data.decode import opened
from stepmark.data.messages import asked, has_system, text_of
from stepmark.errors import DataError
from stepmark.types import Finish, Grade, Imported, Place, Problem, Quarantined

SCORES = {"C": True, "I": False, "1": True, "0": False, "1.0": True, "0.0": False, "True": True, "False": False}


@dataclass(frozen=True)
class InspectLog:
    """Reads the format."""

    steps: str = "line"  # how solutions divide into steps
    scorer: str = ""  # scorer whose score is the grade; "" is the only one there is

    endings: ClassVar[tuple[str, ...]] = (".eval",)

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"eval", "samples"} <= set(row) or {"input", "target", "output", "epoch"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each sample: a problem and one solution. Samples of a question's epochs have the same problem."""
        rows.need(path)
        for number, sample in enumerate(_samples(Path(path)), 1):
            made = sample if isinstance(sample, str) else self._make(sample)
            yield Quarantined(str(path), number, made) if isinstance(made, str) else made

    def _make(self, sample: Any) -> exchange.Made:
        if not isinstance(sample, Mapping):
            return f"a sample is no object but {sample!r:.40}"
        question, target = asked(sample.get("input")), sample.get("target")
        if isinstance(target, list) and len(target) == 1:
            target = target[0]
        if not isinstance(target, str):
            return f"field 'target': one text is needed, got {target!r:.60}"
        output = sample.get("output")
        choices = output.get("choices") if isinstance(output, Mapping) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            return f"the model wrote nothing: {str(sample.get('error') or output)[:80]}"
        message = choices[0].get("message")
        text = text_of(message.get("content")) if isinstance(message, Mapping) else None
        if fault := exchange.fault_of_steps([question]) or exchange.fault_of_text(text):
            return f"the question or the output: {fault}"
        grade = self._grade(sample.get("scores"), str(text))
        if isinstance(grade, str):
            return grade
        id, epoch = sample.get("id"), sample.get("epoch", 1)
        if not isinstance(epoch, int) or epoch < 1:
            return f"field 'epoch': a number from 1 is needed, got {epoch!r:.40}"
        name = exchange.question_id(str(question)) if id is None else str(id)
        usage = output.get("usage") if isinstance(output, Mapping) else None
        tokens = usage.get("output_tokens") if isinstance(usage, Mapping) else 0
        finish = Finish.LENGTH if choices[0].get("stop_reason") in ("max_tokens", "model_length") else Finish.STOP
        found = exchange.Text(str(text), grade, finish, tokens if isinstance(tokens, int) else 0)
        more: dict[str, object] = {"system message": True} if has_system(sample.get("input")) else {}
        if sample.get("scores") and grade is exchange.UNSAID:
            more["scores"] = sample["scores"]
        return exchange.several(Problem(name, str(question), target, ""), [found], [epoch - 1], self.steps, more)

    def _grade(self, scores: object, text: str) -> Grade | str:
        if not isinstance(scores, Mapping) or not scores:
            return exchange.UNSAID
        if self.scorer and self.scorer not in scores:
            return f"no score of {self.scorer!r}; there are {', '.join(scores)}"
        if not self.scorer and len(scores) != 1:
            return exchange.UNSAID
        score = scores[self.scorer or next(iter(scores))]
        value = score.get("value") if isinstance(score, Mapping) else score
        return exchange.grade_of(text, SCORES.get(str(value)))


def _samples(path: Path) -> Iterator[Any]:
    """The samples of a log; a text is what is wrong with one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith("samples/") and n.endswith(".json"))
            if not names:
                raise DataError(f"{path} is an archive without samples/*.json. Is it a log of inspect_ai that ended?")
            for name in names:
                try:
                    yield json.loads(archive.read(name))
                except (ValueError, RecursionError, NotImplementedError, zipfile.BadZipFile) as e:
                    yield f"{name}: {type(e).__name__}: {e}"
        return
    with opened(path) as file:
        try:
            log = json.loads(file.read())
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path} is no JSON: {e}. Give a log of inspect_ai, .json or .eval.") from e
    samples = log.get("samples") if isinstance(log, dict) else None
    if not isinstance(samples, list):
        raise DataError(f"{path} has no list 'samples'. Give a log of inspect_ai that was written with its samples.")
    yield from samples
