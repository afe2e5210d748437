"""Plug-ins by name and by path: how they are found, made and refused."""

import pickle
from pathlib import Path

import pytest

from stepmark.errors import ConfigError, UnknownName
from stepmark.plugins import registry

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal, Sequence

from stepmark.errors import ConfigError

@dataclass(frozen=True)
class Mine:
    path: str
    rate: float = 0.5
    count: int | None = None
    flag: bool = False
    how: Literal["a", "b"] = "a"
    words: Sequence[str] = ()

    def __post_init__(self):
        if len(self.words) > 3:
            raise ConfigError("at most three words")

    def verify(self, question, solutions):
        return []

class _Hidden:
    def verify(self, question, solutions):
        return []
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return str(path)


@pytest.mark.parametrize("role", registry.ROLES)
def test_every_name_is_a_class_with_the_roles_method(role):
    names = registry.names(role)
    assert names == sorted(names)
    for name in names:
        kind = registry.find(role, name)
        assert any(callable(getattr(kind, method, None)) for method in registry.ROLES[role][1])
        with pytest.raises(UnknownName):
            registry.load(role, name + "_")


def test_a_users_file_is_loaded_once_and_its_objects_can_be_sent(mine):
    verifier = registry.load("verifier", mine, path="x", rate=1)
    assert type(verifier) is registry.find("verifier", mine)
    assert pickle.loads(pickle.dumps(verifier)) == verifier  # noqa: S301
    assert mine in registry.user_files()
    assert registry.options("verifier", mine)["rate"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": "0.5"}, "rate takes float, got '0.5' (str)"),
        ({"rate": True}, "rate takes float, got True"),
        ({"count": 2.5}, "count takes int or NoneType, got 2.5"),
        ({"flag": "yes"}, "flag takes bool"),
        ({"flag": 1}, "flag takes bool"),
        ({"how": "c"}, "how takes 'a' or 'b', got 'c'"),
        ({"path": 3}, "path takes str, got 3"),
        ({"words": 3}, "can't be made with"),
        ({"words": "abcd"}, "at most three words"),
        ({"rat": 1.0}, "Did you mean 'rate'?"),
    ],
)
def test_a_wrong_option_is_a_config_error_that_names_it(mine, options, message):
    with pytest.raises(ConfigError) as e:
        registry.load("verifier", mine, **{"path": "x", **options})
    assert message in str(e.value)


def test_options_that_fit_are_taken(mine):
    v = registry.load("verifier", mine, path=Path("a/b"), rate=2, count=None, flag=True, how="b", words=["x"])
    assert (v.path, v.rate, v.count, v.flag, v.how, v.words) == ("a/b", 2, None, True, "b", ["x"])


def test_all_faults_come_at_once(mine):
    with pytest.raises(ConfigError) as e:
        registry.load("verifier", mine, rate="x", nope=1)
    assert len(e.value.faults) == 3
    assert any("needs the option 'path'" in f for f in e.value.faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "found none"),
        ("class A:\n def verify(self): ...\nclass B:\n def verify(self): ...", "found A, B"),
        ("from stepmark.verifiers.prm import ProcessVerifier", "found none"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_plug_in_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        registry.load("verifier", str(path))


def test_a_missing_file_and_an_unknown_name_say_what_there_is():
    with pytest.raises(ConfigError, match="working directory"):
        registry.find("task", "./nowhere.py")
    with pytest.raises(UnknownName, match=r"Did you mean 'prm'.*\./my_verifier\.py"):
        registry.find("verifier", "pmr")
