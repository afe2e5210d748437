"""The errors that Stepmark raises.

    StepmarkError
    +-- ConfigError          a setting is wrong; the message lists all faults at once
    |   +-- UnknownName      no such task, grader, backend, ...; lists the allowed names and suggests one
    |   '-- ConfigChanged    a run or a file holds results of another configuration; has the diff
    +-- DataError            a file or a row can't be used; names the file and the line
    +-- CheckpointError      a model directory is incomplete or can't be trusted
    +-- EncodingError        text and token ids don't match (tags, truncation, special tokens)
    +-- BackendError         a backend failed as a whole, not only for one rollout
    '-- StageError           a stage can't go on; says what is kept and how to resume
        '-- BudgetReached    the budget of the run is spent; everything paid for is kept

Messages have three parts: the value that was given, the values that are allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class StepmarkError(Exception):
    """The base class of all errors. `exit_code` is the exit status of the command line."""

    exit_code = 1


class ConfigError(StepmarkError):
    """A setting is wrong. `faults` holds every fault, not only the first."""

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are sent between processes; by default, unpickling calls a subclass with only the message.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[ConfigError], args: tuple[object, ...], fields: dict[str, object]) -> ConfigError:
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


class UnknownName(ConfigError):
    """An unknown name. The message lists the `allowed` names and suggests a similar one."""

    def __init__(self, what: str, got: str, allowed: Iterable[str], hint: str = "") -> None:
        names = sorted(allowed)
        similar = difflib.get_close_matches(got, names, n=1)
        suggestion = f" Did you mean {similar[0]!r}?" if similar else ""
        choices = f"There are: {', '.join(names) or 'none'}."
        super().__init__(" ".join(filter(None, (f"no {what} named {got!r}.{suggestion}", choices, hint))))


class ConfigChanged(ConfigError):
    """The place holds results of another configuration. `diff` is a unified diff, old to new; `way` says what to do."""

    def __init__(self, place: str, diff: str, way: str = "") -> None:
        self.diff = diff
        way = way or "To go on, give the old settings. To start again, give another directory, or delete this one."
        super().__init__(
            f"{place} holds results of another configuration; results of two must not be mixed.\n{diff}\n{way}"
        )


class DataError(StepmarkError):
    """A file or a row can't be used."""


class CheckpointError(StepmarkError):
    """A model directory can't be loaded or written."""


class EncodingError(StepmarkError):
    """Text and token ids don't match."""


class BackendError(StepmarkError):
    """A backend failed as a whole."""


class StageError(StepmarkError):
    """A stage can't go on."""


class BudgetReached(StageError):
    """The budget of a run is spent. This is no failure: everything paid for is kept, and a run with a larger budget
    goes on from there."""

    exit_code = 4
