"""Notes to the user: what goes otherwise than expected, why, and what it costs.

A note is a warning of Python's `logging`, from any module or plug-in of one's own, in any process: workers send theirs
to the process that started them (executors/processes.py). A run hears them and keeps them under the stage in which they
were said: in RUN/log.jsonl, in metrics.json (`stage_notes`) and in the report. Outside a run they go to standard error.

    notes.say(log, "MODEL is loaded in float32: ... That takes 1.6 to 4 times as long.")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_said: set[str] = set()  # by `say`, since the innermost `heard` began


def say(log: logging.Logger, note: str) -> None:
    """Warns once: where it says the same again, nothing happens until the next stage. So a backend may say at every
    call what holds for the model that it loaded long ago."""
    if note not in _said:
        _said.add(note)
        log.warning("%s", note)


@contextmanager
def heard(hear: Callable[[str, str], None], show: bool = True) -> Iterator[None]:
    """Calls `hear` with the logger's name and the text of each note within the block, once for each text. With `show`
    it goes to standard error too, unless the user's own handlers take care of that."""
    _said.clear()
    logger = logging.getLogger("stepmark")
    show = show and not any(isinstance(outer, _Handler) for outer in logger.handlers)  # which hears it too
    handler = _Handler(hear, show)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, hear: Callable[[str, str], None], show: bool) -> None:
        super().__init__(logging.WARNING)
        self.hear, self.show, self.texts = hear, show, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text in self.texts:
            return
        self.texts.add(text)
        self.hear(record.name, text)
        # A logger without any handler prints its warnings; with this one it has one.
        if self.show and not logging.root.handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)
