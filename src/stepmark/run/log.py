"""What a run says about itself while it works: which stage, since when, how far, and what failed.

RUN/log.jsonl        what was done when
RUN/seconds.json     the time each stage took, over all sittings

stepmark run recipes/demo.yaml
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stepmark.data import work_units
from stepmark.data.store import RunDir
from stepmark.types import Progress


class RunLog:
    """The log of one open run directory, and its progress as shown to somebody."""

    def __init__(self, directory: RunDir, show: Callable[[Progress], None] | None = None) -> None:
        self.directory = directory
        self.failed: list[work_units.Failed] = []  # items that stages could not work on
        self.seconds: dict[str, float] = {}  # stage -> time it took so far
        if (directory.path / "seconds.json").exists():
            self.seconds = directory.read_json("seconds.json")
        self._show = show or (lambda _: None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds up the time that a stage takes, over all sittings."""
        self._stage, self._before, self._began = name, self.seconds.get(name, 0.0), time.monotonic()
        self._saved = self._began
        self._write({"stage": name, "event": "start"})
        try:
            yield
        finally:
            self._clock()
            self._write({"stage": name, "event": "end", "seconds": self.seconds[name]})

    def tell(self, progress: Progress) -> None:
        """Shows how far the stage is."""
        if time.monotonic() - self._saved > 5:  # so that a kill loses little of the count
            self._clock()
        self._show(replace(progress, stage=self._stage))

    @contextmanager
    def watch(self, places: Sequence[Path]) -> Iterator[None]:
        """Tells how trainings in other processes get on, from their logs."""

        def tell() -> None:
            logs = {place.name: _last_line(place / "train.jsonl", place / "reinforce.jsonl") for place in places}
            said = [(name, what, line.get(what)) for name, line in logs.items() for what in ("loss", "reward")]
            note = ", ".join(f"{name} {what} {value:.3f}" for name, what, value in said if value is not None)
            self.tell(Progress("", sum(line.get("update", 0) for line in logs.values()), 0, self.elapsed, note))

        with every(2, tell):
            yield

    def note(self, summary: Mapping[str, Any], failed: Sequence[work_units.Failed] = ()) -> None:
        """What a stage came to."""
        self.failed += failed
        self._write({"stage": self._stage, "event": "done", **summary})

    def _clock(self) -> None:
        self.seconds[self._stage] = round(self._before + self.elapsed, 3)
        self.directory.write_json("seconds.json", self.seconds)
        self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began, in this sitting."""
        return time.monotonic() - self._began

    def _write(self, line: Mapping[str, Any]) -> None:
        said = {"time": time.strftime("%FT%TZ", time.gmtime()), **line}
        with (self.directory.path / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(said, ensure_ascii=False) + "\n")


@contextmanager
def every(seconds: float, tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` now and then, in a thread of its own, until the block ends."""
    over = Event()

    def go_on() -> None:
        while not over.wait(seconds):
            tell()

    thread = Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _last_line(*logs: Path) -> dict[str, Any]:
    """The newest line of the training log that there is; empty while there is none."""
    log = next((log for log in logs if log.exists()), None)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log is not None else []
    whole = [line for line in lines if line.endswith("\n")]
    return dict(json.loads(whole[-1])) if whole else {}
