"""Recipes: all faults are reported together with suggestions, changes by key=value, and a complete configuration."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stepmark.errors import ConfigError
from stepmark.models.checkpoints import Shape
from stepmark.run import recipe, schema
from stepmark.stages.train import TrainSettings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def faults(*changes, path=DEMO):
    with pytest.raises(ConfigError) as caught:
        recipe.load(path, changes)
    return caught.value.faults


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_stepmark_is_valid_and_named_after_its_file(path):
    assert recipe.load(path).name == path.stem


def test_all_faults_are_reported_together_with_suggestions():
    reported = faults(
        "smaple=1",
        "sample.train.split=",
        "sample.trian=1",
        "generator.init.layer=3",
        "verifiers.prm.train.lrr=3",
        "verifiers.orm.train.lr=-1",
        "label.options.rolouts=3",
        "task.name=arithmatic",
        "evaluate.aggregates=[min, max]",
        "prompt=no place for it",
    )
    text = "\n".join(reported)
    assert len(reported) == 9
    for part in (
        "'smaple'. Did you mean 'sample'?",
        "'sample.trian'. Did you mean 'train'?",
        "'generator.init.layer'. Did you mean 'layers'?",
        "'verifiers.prm.train.lrr'. Did you mean 'lr'?",
        "lr must be above 0, got -1",
        "'rolouts'. Did you mean 'rollouts'?",
        "'arithmatic'. Did you mean 'arithmetic'?",
        "aggregates has max",
        "needs exactly one",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sample.test.split=train"], "verifiers can't be tested on them"),
        (["evaluate.n=[1, 128]", "sample.test.n=64"], "sample.test.n is 64"),
        (["generator=null"], "needs a task and a generator"),
        (["generator.path=x"], "not both"),
        (["generator.train=null"], "before it is trained"),
        (["sample.test={file: x}"], "go together"),
        (["task=null", "sample.train={file: x, format: genrm_release}"], "give a grader, or a task"),
        (["verifiers.prm.options.path=x"], "filled in by the run"),
        (["verifiers={a/b: {kind: orm}}"], "should match pattern"),
        (["seed=x"], "seed"),
        (["noequals"], "is not key=value"),
        (["a..b=1"], "is not key=value"),
        (["label.name=./nowhere.py"], "no file"),
        (["steps=lines"], "steps: no way to split steps named 'lines'. Did you mean 'line'?"),
        (["sample.out_of_distribution.split=train"], "train and out_of_distribution are both the split 'train'"),
        (["sample.out_of_distribution.split=test"], "the two tests need different problems"),
        (["sample.out_of_distribution.n=64"], "out_of_distribution needs split, a split of the task, or file"),
        (["sample.out_of_distribution={split: dev, n: 8}"], "sample.out_of_distribution.n is 8"),
        (["sample.train.split=all"], "the split 'all' has those of every other split"),
        (["generator.split=all"], "generator.split is 'all'"),
    ],
)
def test_settings_that_do_not_fit_together_are_reported(changes, message):
    assert message in "\n".join(faults(*changes))


@pytest.mark.parametrize(
    ("change", "suggestion"),
    [
        ("sample.train.max_tokens=5", "'sample.max_tokens'"),
        ("max_tokens=5", "'sample.max_tokens'"),
        ("verifiers.prm.lr=1", "'verifiers.prm.train.lr'"),
        ("lr=1", "'generator.train.lr' or 'verifiers.orm.train.lr' or 'verifiers.prm.train.lr'"),
        ("learning_rate=1", "'generator.train.lr' or 'verifiers.orm.train.lr' or 'verifiers.prm.train.lr'"),
        ("verifiers.prm.epochs=1", "'verifiers.prm.train.epochs'"),
        ("verifiers.prm.train.batch_size=8", "'batch_tokens'"),
        ("generator.batch=8", "'generator.backend.options.batch' or 'generator.train.batch_tokens'"),
        ("temperature=0.7", "'sample.temperature'"),
        ("generator.temperature=0.7", "'sample.temperature'"),
        ("sample.seed=1", "'seed'"),
        ("task.seed=1", "'task.options.seed'"),
        ("label.workers=1", "'workers'"),
        ("model=x", "'generator.path'"),
        ("generator.model=x", "'path'"),
        ("verifiers.prm.model=x", "'verifiers.prm.base.path'"),
        ("verifiers.prm.path=x", "'verifiers.prm.base.path'"),
        ("generator.dtype=bfloat16", "'generator.backend.options.dtype'"),
        ("chat_template=true", "'generator.backend.options.chat_template'"),
        ("n=3", "'evaluate.n' or 'sample.train.n' or 'sample.test.n'"),
        ("sample.n=3", "'sample.train.n' or 'sample.test.n' or 'sample.out_of_distribution.n'"),
        ("rollouts=3", "'label.options.rollouts'"),
        ("generator.few_shot=4", "'sample.few_shot'"),
        ("evaluate.aggregate=min", "'aggregates'"),
        ("verifier={}", "'verifiers'"),
        ("dataset=x", "'task'"),
        ("evaluate.stop=[x]", "'sample.stop'"),
        ("label.rollouts=4", "'label.options.rollouts'"),
        ("verifiers.prm.tag=x", "'verifiers.prm.options.tag'"),
        ("reinforce={policies: {p: {reward: gold, kl: 1}}}", "'reinforce.policies.p.settings.kl'"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_the_right_one(change, suggestion):
    assert f"Did you mean {suggestion}?" in "\n".join(faults(change))


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["prm", "local", "jsonl", "a b", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["name", "kind", "options", "train", "path", "n", "backend"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.sampled_from(["generator", "label", "verifiers", "sample", "task", "evaluate", "reinforce"]), junk, junk)
def test_whatever_else_is_wrong_a_key_in_the_wrong_place_is_reported(section, value, other):
    raw = {"name": "x", "task": "arithmetic", "generator": {"path": "m"}, "verifiers": {"prm": other}} | {
        section: value
    }
    for key in ("lr", "dtype", "n", "model", "batch"):
        with pytest.raises(ConfigError) as e:
            recipe.parse(raw | {key: 1}, "test")
        assert any(f"there is no setting {key!r}" in fault for fault in e.value.faults)


def test_an_option_of_the_command_is_told_so():
    assert "It is an option of the command: --out." in "\n".join(faults("output_dir=x"))


SMALL = {"task": "arithmetic", "generator": {"path": "model"}, "verifiers": {}}


def small(*changes):
    return recipe.parse(recipe.changed({"name": "small", **SMALL}, changes), "small")


def test_the_default_of_evaluate_n_is_cut_to_the_candidates_there_are_with_a_note():
    cut = small("sample.test.n=2")
    assert cut.evaluate.n == (1, 2) and cut.resolved()["evaluate"]["n"] == [1, 2]
    (note,) = cut.notes
    assert "evaluate.n is [1, 2]" in note and "sample.test.n is 2" in note
    assert cut.with_seed(3).notes == cut.notes
    again = recipe.parse(cut.resolved(), "config.json")
    assert again.resolved() == cut.resolved() and again.notes == ()
    assert small("sample.test.n=20").evaluate.n == (1, 4, 16, 20)
    assert small("sample.test.n=1").evaluate.n == (1,)
    assert small("sample.out_of_distribution={split: dev, n: 4}").evaluate.n == (1, 4)
    assert "sample.out_of_distribution.n is 4" in small("sample.out_of_distribution={split: dev, n: 4}").notes[0]
    assert small("sample.test.n=20", "evaluate.aggregates=[mean]").evaluate.aggregates == ("mean",)


def test_evaluate_n_stays_where_it_fits_or_was_set():
    for changes in ((), ("sample.test.n=100",), ("sample.test.n=2", "evaluate.n=[1, 2]")):
        assert small(*changes).notes == ()
    assert small().evaluate.n == small("sample.test.n=100").evaluate.n == (1, 4, 16, 64)
    with pytest.raises(ConfigError, match=r"evaluate\.n has 64, but sample\.test\.n is 2"):
        small("sample.test.n=2", "evaluate.n=[1, 4, 16, 64]")


def test_train_and_test_may_not_share_imported_questions():
    both = "{file: x, format: genrm_release, share: [%s, %s]}"
    apart = [f"sample.train={both % (0.1, 1)}", f"sample.test={both % (0, 0.1)}", "label=null", "evaluate.n=[1]"]
    recipe.load(DEMO, apart)
    assert "overlap" in "\n".join(faults(*apart, f"sample.test={both % (0, 0.2)}"))


def test_the_resolved_configuration_gives_the_same_recipe_again():
    first = recipe.load(DEMO, ["verifiers.prm.train.lr=0.5", "sample.stop=[a, b]", "workers=7"])
    again = recipe.parse(yaml.safe_load(yaml.safe_dump(first.resolved())), "again")
    assert again.resolved() == first.resolved()
    assert again.verifiers["prm"].train == first.verifiers["prm"].train
    assert again.verifiers["prm"].train.lr == 0.5
    assert first.workers == 7
    assert "workers" not in first.resolved()


def test_a_plug_in_by_name_alone_can_still_get_options():
    assert recipe.load(DEMO, ["label=monte_carlo", "label.options.rollouts=3"]).label.load().rollouts == 3


def test_a_change_is_read_by_the_type_of_its_setting():
    changes = ["verifiers.prm.options.bad=-", "verifiers.prm.options.tag=no", "verifiers.prm.options.good=1e5"]
    assert recipe.load(DEMO, changes).verifiers["prm"].options == {
        **recipe.load(DEMO).verifiers["prm"].options,
        **{"bad": "-", "tag": "no", "good": "1e5"},
    }
    assert recipe.load(DEMO, ["sample.stop=null"]).sample.stop == ("null",)
    assert recipe.load(DEMO, ["sample.stop=[no, 1e5]"]).sample.stop == ("no", "1e5")
    assert recipe.load(DEMO, ["generator.problems=null", "label.options.rollouts=2"]).generator.problems is None


def test_options_are_read_by_the_plug_in_that_the_changes_name():
    judge = ["judge.path=x", "label.options.stop=[no, null]", "label.options.temperature=1e-1", "label={name: judge}"]
    assert recipe.load(DEMO, [judge[0], *judge[:0:-1]]).label.options == {"stop": ["no", "null"], "temperature": 0.1}
    named = recipe.load(DEMO, ["verifiers.mine={kind: prm, options: {bad: 1, good: no, tag: null}}"]).verifiers["mine"]
    assert named.options == {"bad": "1", "good": "no", "tag": "null"}
    backend = ["generator.train=null", "generator.init=null", "generator.path=x"]
    options = recipe.load(DEMO, [*backend, "generator.backend.options.batch=8"]).generator.backend.options
    assert options == {"batch": 8}


@given(st.text())
def test_any_text_can_be_a_change(text):
    changes = [f"verifiers.prm.options.good={text}", f"sample.train.split={text}"]
    out = recipe.changed({"verifiers": {"prm": {"kind": "prm"}}}, changes)
    assert out["verifiers"] == {"prm": {"kind": "prm", "options": {"good": text}}}
    assert out["sample"] == {"train": {"split": text}}


@given(
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4),
    st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), st.lists(st.integers())),
)
def test_a_change_sets_exactly_its_key(path, value):
    raw = {"x": {"y": 1}, "z": [1]}
    out = recipe.changed(
        raw, [f"{'.'.join(path)}={yaml.safe_dump(value, default_flow_style=True).split('...')[0].strip()}"]
    )
    at = out
    for part in path:
        at = at[part]
    assert at == value
    assert raw == {"x": {"y": 1}, "z": [1]}
    assert (out["x"], out["z"]) == (raw["x"], raw["z"])


def test_settings_from_changes_alone():
    assert recipe.settings(Shape, ["hidden=32", "digits=true"], "--shape") == Shape(hidden=32, digits=True)
    with pytest.raises(ConfigError, match="Did you mean 'hidden'"):
        recipe.settings(Shape, ["hiden=32"], "--shape")
    with pytest.raises(ConfigError, match="lr must be above 0"):
        recipe.settings(TrainSettings, ["lr=0"], "--set")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff\xfe", ""])
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert str(path) in "\n".join(faults(path=path))


def test_the_error_for_a_missing_recipe_suggests_the_nearest_file():
    assert "demo.yaml" in faults(path=DEMO.with_name("dmo.yaml"))[0]


def test_settings_that_a_part_of_the_sample_leaves_out_get_defaults():
    raw = {"name": "x", "task": "arithmetic", "generator": {"path": "m"}}
    assert recipe.parse(raw, "test").sample == schema.Sample()
    sample = recipe.parse(recipe.changed(raw, ["sample.test.n=128", "sample.train.problems=5"]), "test").sample
    assert (sample.test.split, sample.test.n) == ("test", 128)
    assert (sample.train.split, sample.train.problems, sample.train.n) == ("train", 5, 4)
    assert (sample.parts, sample.tests) == (("train", "test"), ("test",))
    far = recipe.parse(recipe.changed(raw, ["sample.test.n=128", "sample.out_of_distribution.split=dev"]), "test")
    assert far.sample.source("out_of_distribution").n == 128
    assert far.sample.parts == ("train", "test", "out_of_distribution")


def test_unused_optional_settings_are_not_in_the_configuration_so_older_runs_go_on():
    resolved = recipe.load(DEMO).resolved()
    assert "out_of_distribution" not in resolved["sample"]
    assert "words" not in resolved["generator"]["init"]
    changes = ["sample.out_of_distribution.split=dev", "generator.init.words=true", "verifiers.prm.base.init={}"]
    changed = recipe.load(DEMO, changes)
    assert changed.resolved()["generator"]["init"]["words"] is True
    assert "words" not in changed.resolved()["verifiers"]["prm"]["base"]["init"]
    assert recipe.parse(changed.resolved(), "again") == changed
