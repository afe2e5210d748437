"""Errors: their messages and fields, and that they can be sent between processes."""

import pickle

import pytest

from stepmark import errors
from stepmark.errors import ConfigChanged, ConfigError, StepmarkError, UnknownName

MADE = [
    ConfigError("one"),
    ConfigError(["one", "two"]),
    UnknownName("task", "arithmetik", ["arithmetic", "jsonl"], "Hint."),
    ConfigChanged("runs/x", "-a\n+b"),
    *(kind("what was got") for kind in (errors.DataError, errors.CheckpointError, errors.EncodingError)),
    *(kind("what was got") for kind in (errors.BackendError, errors.StageError, errors.BudgetReached)),
]


@pytest.mark.parametrize("error", MADE, ids=lambda e: type(e).__name__)
def test_errors_survive_the_way_between_processes(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_every_error_is_in_the_tree_of_the_docstring():
    kinds = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, StepmarkError)]
    assert {type(e) for e in MADE} == set(kinds) - {StepmarkError}
    assert all(c.__name__ in errors.__doc__ for c in kinds)
    assert {c.exit_code for c in kinds if issubclass(c, ConfigError)} == {2}


def test_all_faults_are_kept():
    assert ConfigError(["one", "two"]).faults == ("one", "two")
    assert str(ConfigError(["one", "two"])) == "one\ntwo"
    assert ConfigError("one").faults == ("one",)


def test_a_near_miss_is_named():
    assert str(UnknownName("task", "arithmetik", ["jsonl", "arithmetic"], "Hint.")) == (
        "no task named 'arithmetik'. Did you mean 'arithmetic'? There are: arithmetic, jsonl. Hint."
    )
    assert "Did you mean" not in str(UnknownName("task", "zzz", ["arithmetic"]))
    assert "There are: none." in str(UnknownName("task", "zzz", []))


def test_a_changed_configuration_shows_its_diff():
    error = ConfigChanged("runs/x", "-n: 4\n+n: 8")
    assert error.diff == "-n: 4\n+n: 8"
    assert "runs/x" in str(error) and error.diff in str(error)
