"""Settings beside an output: what agrees is put together, what differs is refused with the difference."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data import settings
from stepmark.errors import ConfigChanged, DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
trees = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


def kept(path, *given):
    for one in given:
        settings.keep(path, one, "out.jsonl", "Do this.")
    return json.loads(path.read_text())


@given(trees)
def test_the_same_settings_agree_with_themselves(tree):
    assert settings.agreed(tree, tree, "out", "") == tree


@given(trees, trees)
def test_what_agrees_holds_both_and_agrees_with_both(one, other):
    try:
        both = settings.agreed(one, other, "out", "")
    except ConfigChanged as e:
        assert e.diff
        with pytest.raises(ConfigChanged):
            settings.agreed(other, one, "out", "")
        return
    assert settings.agreed(both, one, "out", "") == settings.agreed(both, other, "out", "") == both
    assert settings.agreed(other, one, "out", "") == both


def test_a_key_that_one_side_lacks_is_kept_and_a_problem_may_be_added(tmp_path):
    path = tmp_path / "s.json"
    kept(path, {"a": 1, "problems": {"x": "11"}})
    both = {"a": 1, "b": {"c": 2}, "problems": {"x": "11", "y": "22"}}
    assert kept(path, {"b": {"c": 2}, "problems": {"y": "22"}}) == both
    before = path.stat().st_ino
    assert kept(path, {"a": 1}) == both
    assert path.stat().st_ino == before  # nothing new: not written


def test_another_value_is_refused_with_the_difference_and_nothing_is_written(tmp_path):
    path = tmp_path / "s.json"
    before = kept(path, {"sampling": {"temperature": 1.0, "seed": 0}, "judge": None})
    with pytest.raises(ConfigChanged) as caught:
        kept(path, {"sampling": {"temperature": 0.3, "seed": 0}, "judge": {"path": "j"}, "new": 1})
    for part in ('-    "temperature": 1.0', '+    "temperature": 0.3', '-  "judge": null', "out.jsonl", "Do this."):
        assert part in str(caught.value)
    assert '+  "new"' not in caught.value.diff
    assert json.loads(path.read_text()) == before


def test_what_was_moved_is_the_same_and_what_was_made_anew_is_not(tmp_path):
    path = tmp_path / "s.json"
    model = {"path": "a", "fingerprint": "1"}
    assert kept(path, {"model": model}, {"model": {"path": "b", "fingerprint": "1"}}) == {"model": model}
    assert kept(path, {"model": {"path": "a"}}) == {"model": model}  # unknown for now
    for other in ({"path": "a", "fingerprint": "2"}, {"path": "b"}):
        with pytest.raises(ConfigChanged):
            kept(path, {"model": other})


def test_changed_problems_are_named(tmp_path):
    path = tmp_path / "s.json"
    kept(path, {"problems": {f"p{i}": f"{i}{i}" for i in range(9)}})
    kept(path, {"problems": {"p0": "00ff"}})  # with its answer, which is not stored
    with pytest.raises(ConfigChanged, match=r"another question, answer or solution: 'p0', 'p1', 'p2' and 6 more"):
        kept(path, {"problems": {f"p{i}": "x" for i in range(10)}})


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_file_that_is_no_settings_is_named(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match="Delete it to go on without it"):
        settings.read(tmp_path / "s.json")
