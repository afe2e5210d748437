"""The log of a run: the stage that is running, its start, its progress, and the items that failed.

RUN/log.jsonl        one line for each start, end, summary and note of a stage, and where it is done anew
RUN/seconds.json     the time each stage took, over all sittings

stepmark run recipes/demo.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepmark.data import notes, work_units
from stepmark.data.store import RunDir
from stepmark.data.timed_batch import every
from stepmark.types import Progress


class RunLog:
    """The log of one run directory, and the progress of its stages."""

    def __init__(self, directory: RunDir, show: Callable[[Progress], None] | None = None) -> None:
        self.directory = directory
        self.failed: list[work_units.Failed] = []  # items that failed in a stage
        self.seconds: dict[str, float] = {}  # stage -> time it took so far
        if (directory.path / "seconds.json").exists():
            self.seconds = directory.read_json("seconds.json")
        self.notes = _notes(directory.path / "log.jsonl")  # stage -> what was said in it so far, each note once
        self._show = show or (lambda _: None)
        self._stage, self._began = "recipe", time.monotonic()  # before the first stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the time of a stage and adds it to that of earlier sittings."""
        self._stage, self._before, self._began = name, self.seconds.get(name, 0.0), time.monotonic()
        self._saved = self._began
        self._write({"stage": name, "event": "start"})
        try:
            with notes.heard(lambda _, note: self.note(note, show=False)):  # standard error has it already
                yield
        finally:
            self.save_seconds()
            self._write({"stage": name, "event": "end", "seconds": self.seconds[name]})

    def progress(self, progress: Progress) -> None:
        """Shows the progress of the stage."""
        if time.monotonic() - self._saved > 5:  # so that a kill loses little of the count
            self.save_seconds()
        self._show(replace(progress, stage=self._stage))

    def note(self, note: str, show: bool = True) -> None:
        """Logs a note for the user, and shows it with the progress."""
        if show:
            self._show(Progress(self._stage, 1, 1, self.elapsed, note))
        self._write({"stage": self._stage, "event": "note", "note": note})
        _add(self.notes, self._stage, note)

    def anew(self, stages: Iterable[str]) -> None:
        """Takes note that these stages are done anew: what was said in them holds no longer."""
        for stage in stages:
            self._write({"stage": stage, "event": "anew"})
            self.notes.pop(stage, None)

    @contextmanager
    def follow_trainings(self, places: Sequence[Path]) -> Iterator[None]:
        """Shows the progress of trainings in other processes, read from the logs in their directories."""

        def show() -> None:
            lines = {place.name: _last_line(place / "train.jsonl", place / "reinforce.jsonl") for place in places}
            values = [(name, key, line.get(key)) for name, line in lines.items() for key in ("loss", "reward")]
            note = ", ".join(f"{name} {key} {value:.3f}" for name, key, value in values if value is not None)
            self.progress(Progress("", sum(line.get("update", 0) for line in lines.values()), 0, self.elapsed, note))

        with every(2, show):
            yield

    def summary(self, summary: Mapping[str, Any], failed: Sequence[work_units.Failed] = ()) -> None:
        """Logs the summary of a stage, and its failed items."""
        self.failed += failed
        self._write({"stage": self._stage, "event": "done", **summary})

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began, in this sitting."""
        return time.monotonic() - self._began

    def save_seconds(self) -> None:
        """Writes the time that the stage took so far."""
        self.seconds[self._stage] = round(self._before + self.elapsed, 3)
        self.directory.write_json("seconds.json", self.seconds)
        self._saved = time.monotonic()

    def _write(self, event: Mapping[str, Any]) -> None:
        line = {"time": time.strftime("%FT%TZ", time.gmtime()), **event}
        with (self.directory.path / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line, ensure_ascii=False) + "\n")


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """The notes of all stages in metrics.json, each with its stages before it."""
    stages: dict[str, list[str]] = {}
    for stage, of_stage in metrics.get("stage_notes", {}).items():
        for note in of_stage:
            stages.setdefault(note, []).append(stage)
    return [f"{', '.join(of_note)}: {note}" for note, of_note in stages.items()]


def merged(stage_notes: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The notes of several runs, each once for each stage."""
    said: dict[str, list[str]] = {}
    for of_run in stage_notes:
        for stage, of_stage in of_run.items():
            for note in of_stage:
                _add(said, stage, note)
    return said


def _notes(log: Path) -> dict[str, list[str]]:
    """What the log of earlier sittings says."""
    said: dict[str, list[str]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if event["event"] == "note":
            _add(said, event["stage"], event["note"])
        elif event["event"] == "anew":
            said.pop(event["stage"], None)
    return said


def _add(said: dict[str, list[str]], stage: str, note: str) -> None:
    of_stage = said.setdefault(stage, [])
    if note not in of_stage:
        of_stage.append(note)


def _last_line(*logs: Path) -> dict[str, Any]:
    """The last line of the first of these training logs that exists; empty while there is none."""
    log = next((log for log in logs if log.exists()), None)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log is not None else []
    whole = [line for line in lines if line.endswith("\n")]
    return dict(json.loads(whole[-1])) if whole else {}
