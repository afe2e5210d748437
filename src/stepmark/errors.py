"""Everything Stepmark raises on purpose.

    StepmarkError
    +-- ConfigError          a setting is wrong; all faults found are listed at once
    |   +-- UnknownName      no such task, grader, backend, ...; says what there is and what was meant
    |   '-- ConfigChanged    a run directory holds results of another configuration; carries the diff
    +-- DataError            a file or a row can't be used; names file and line
    +-- CheckpointError      a model directory is missing something or can't be trusted
    +-- EncodingError        text and token ids don't line up (tags, truncation, special tokens)
    +-- BackendError         a generator failed in a way that is not one bad rollout
    '-- StageError           a stage can't go on; says what is kept and how to resume
        '-- BudgetReached    what the run may spend is spent; everything paid for is kept

Messages have three parts: what was got, what is allowed, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class StepmarkError(Exception):
    """Base of all. `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(StepmarkError):
    """A setting is wrong. `faults` holds every fault found, not just the first."""

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross between processes; the default would call a subclass with the message alone.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[ConfigError], args: tuple[object, ...], fields: dict[str, object]) -> ConfigError:
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


class UnknownName(ConfigError):
    """A name that stands for nothing."""

    def __init__(self, what: str, got: str, allowed: Iterable[str], hint: str = "") -> None:
        names = sorted(allowed)
        near = difflib.get_close_matches(got, names, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        there = f"There are: {', '.join(names) or 'none'}."
        super().__init__(" ".join(filter(None, (f"no {what} named {got!r}.{meant}", there, hint))))


class ConfigChanged(ConfigError):
    """The directory holds results of another configuration. `diff` is a unified diff, old to new."""

    def __init__(self, place: str, diff: str) -> None:
        self.diff = diff
        super().__init__(
            f"{place} holds results of another configuration, and mixing the two would spoil both.\n{diff}\n"
            "Give the old settings to go on, another directory to start anew, or delete this one."
        )


class DataError(StepmarkError):
    """A file or a row can't be used."""


class CheckpointError(StepmarkError):
    """A model directory can't be loaded or written."""


class EncodingError(StepmarkError):
    """Text and token ids don't line up."""


class BackendError(StepmarkError):
    """A generator failed as a whole."""


class StageError(StepmarkError):
    """A stage can't go on."""


class BudgetReached(StageError):
    """What a run may spend is spent. Not a failure: everything paid for is kept, and a larger budget goes on."""

    exit_code = 4
