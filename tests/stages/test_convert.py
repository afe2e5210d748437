"""Files become files of another format: what is recognised, reported, set aside and left alone."""

import json
from collections import Counter
from pathlib import Path

import foreign
import pytest
from typer.testing import CliRunner

from stepmark.cli import app
from stepmark.data.encode import write_rows
from stepmark.data.store import Records
from stepmark.errors import ConfigError, DataError
from stepmark.plugins import registry
from stepmark.stages.convert import convert, encoded, recognised
from stepmark.types import Quarantined

STEPWISE = {"prompt": "2 + 2?", "completions": ["Step 1: Add.", "Step 2: So 4."], "labels": [1.0, 0.25]}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_summary_counts_what_is_not_carried_over(tmp_path):
    source, out = write(tmp_path / "in.jsonl", STEPWISE | {"source": "x"}, STEPWISE), tmp_path / "out.jsonl"
    shown = run(source, "--to", "math_shepherd", out).stdout
    assert "stepwise to math_shepherd: 2 rows read, 2 written" in shown
    assert "2  shares of step labels" in shown
    assert "1  field 'source' of the source" in shown
    told = json.loads(run(source, "--to", "math_shepherd", out, "--json").stdout)
    assert (told["rows"], told["written"], told["quarantined"]) == (2, 2, 0)
    assert told["lost"] == {"shares of step labels (written as right or wrong)": 2, "field 'source' of the source": 1}
    assert lines(out)[0] == {
        "input": "2 + 2? Step 1: Add. ки\nStep 2: So 4. ки",
        "label": "2 + 2? Step 1: Add. +\nStep 2: So 4. +",
        "task": None,
    }
    run(out, "--to", "stepwise", tmp_path / "back.jsonl")
    assert lines(tmp_path / "back.jsonl")[0] == STEPWISE | {"labels": [True, True]}


def test_bad_rows_are_set_aside_in_a_file_of_their_own(tmp_path):
    bad = STEPWISE | {"labels": [True]}
    source, out = write(tmp_path / "in.jsonl", "{broken", STEPWISE, bad, bad), tmp_path / "out.jsonl"
    aside = tmp_path / "out.jsonl.quarantine.jsonl"
    done = run(source, "--to", "openrlhf", out, code=3)
    assert "set aside: 3 rows, 2 as line 3: 1 labels for 2 steps" in done.stdout.replace("field 'labels': ", "")
    assert f"{source}, line 1: broken JSON" in done.stderr
    assert [(x.file, x.line) for x in Records(aside, Quarantined)] == [(str(source), n) for n in (1, 3, 4)]
    assert lines(out)[0]["value"] == [1.0, 0.25]
    run(write(tmp_path / "in.jsonl", STEPWISE), "--to", "openrlhf", out)
    assert not aside.exists()


def test_a_file_without_a_usable_row_leaves_the_old_one(tmp_path):
    source, out = write(tmp_path / "in.jsonl", *[STEPWISE | {"labels": [True]}] * 3), tmp_path / "out.jsonl"
    out.write_text("old")
    assert "no usable row. 3 were set aside, 3 as line 1" in run(source, "--to", "openrlhf", out, code=1).stderr
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    before = source.read_text()
    assert "is the source itself" in run(source, "--to", "stepwise", source, code=1).stderr
    assert source.read_text() == before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "score": 1}, "is in no format that is known. The fields of its first rows are: text, score."),
        (
            {"question": "2?", "answer": "#### 2", "completions": ["2"]},
            "fits several formats: completions, gsm8k",
        ),
    ],
)
def test_what_is_not_recognised_is_asked_for(tmp_path, row, said):
    done = run(write(tmp_path / "in.jsonl", row), "--to", "stepwise", tmp_path / "out.jsonl", code=2)
    assert said in done.stderr
    assert "--from" in done.stderr


def test_a_bad_first_row_does_not_mislead(tmp_path):
    assert recognised(write(tmp_path / "in.jsonl", "{broken", {"a": 1}, STEPWISE, STEPWISE)) == "stepwise"
    with pytest.raises(DataError, match="nowhere"):
        recognised(tmp_path / "nowhere.jsonl")


def test_options_belong_to_one_format_or_both(tmp_path):
    source = write(tmp_path / "in.jsonl", STEPWISE)
    out = tmp_path / "out.jsonl"
    run(source, "--to", "openrlhf", out, "--option", "to.tag=<t>", "--option", "estimate=hard")
    assert lines(out) == [{"input": "2 + 2? Step 1: Add. <t>\nStep 2: So 4. <t>", "value": ["+", "+"]}]
    run(out, "--to", "openrlhf", tmp_path / "other.jsonl", "--option", "from.tag=<t>")
    assert "ки" in lines(tmp_path / "other.jsonl")[0]["input"]
    assert (
        "neither stepwise nor openrlhf has this option"
        in run(source, "--to", "openrlhf", out, "--option", "neutral=wrong", code=2).stderr
    )
    assert "can be read, but not written" in run(source, "--to", "lm_eval", out, code=2).stderr
    assert "Did you mean 'stepwise'" in run(source, "--to", "stepwis", out, code=2).stderr


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("name", ["stepwise", "math_shepherd", "rlhflow", "prm800k", "stepmark"])
def test_every_container(tmp_path, ending, name):
    records = foreign.records(40, tag="ки")
    plain = tmp_path / "plain.jsonl"
    options = {"estimate": "soft"} if name == "stepwise" else {}  # in Parquet a column has one type
    write_rows(plain, encoded(records, registry.load("format", name, **options), Counter()))
    if (name, ending) in (("prm800k", ".csv"), ("stepmark", ".csv")):  # rows of objects are no table
        return
    option = ["--option", "estimate=soft"] if options else []
    for source, out in ((plain, tmp_path / f"other{ending}"), (tmp_path / f"other{ending}", tmp_path / "again.jsonl")):
        done = json.loads(run(source, "--from", name, "--to", name, out, *option, "--json").stdout)
        assert (done["rows"], done["written"]) == (len(lines(plain)), len(lines(plain)))
    assert (tmp_path / "again.jsonl").read_text() == plain.read_text() or ending == ".parquet"


def test_solutions_of_one_problem_come_together(tmp_path):
    rows = [
        {"prompt": "2?", "completion": "2", "label": True},
        {"prompt": "2?", "completion": "3", "label": False},
        {"prompt": "3?", "completion": "3", "label": True},
    ]
    out = tmp_path / "out.jsonl"
    run(write(tmp_path / "in.jsonl", *rows), "--to", "genrm_release", out)
    assert [[s["correct"] for s in row["solutions"]] for row in lines(out)] == [[True, False], [True]]
    run(tmp_path / "in.jsonl", "--to", "trl_preference", out)
    assert lines(out) == [{"prompt": "2?", "chosen": "2", "rejected": "3"}]


def test_a_format_of_ones_own(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "class Mine:\n"
        "    holds = frozenset({'labels'})\n"
        "    def encode(self, imported, lost):\n"
        "        for x in imported.labels:\n"
        "            yield {'q': imported.problem.question, 'n': len(x.labels)}\n"
    )
    out = tmp_path / "out.jsonl"
    shown = run(write(tmp_path / "in.jsonl", STEPWISE), "--to", mine, out).stdout
    assert lines(out) == [{"q": "2 + 2?", "n": 2}]
    assert "1  shares of step labels" in shown
    with pytest.raises(ConfigError):
        registry.load("format", str(tmp_path / "none.py"))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """The readers and writers of steps hold one row at a time: what is held is counted, not measured."""
    import gc

    from stepmark.types import Imported

    most = 0

    class Watched:
        holds = registry.find("format", "stepwise").holds

        def encode(self, imported, lost):
            nonlocal most
            if number[0] % 100 == 0:
                most = max(most, sum(type(x) is Imported for x in gc.get_objects()))
            number[0] += 1
            yield from registry.load("format", "stepwise").encode(imported, lost)

    number = [0]
    source = write(tmp_path / "in.jsonl", *[STEPWISE | {"prompt": f"{i}?"} for i in range(500)])
    gc.collect()
    before = sum(type(x) is Imported for x in gc.get_objects())
    convert(source, tmp_path / "out.jsonl", registry.load("format", "stepwise"), Watched())
    assert most - before < 10
    assert Path(tmp_path / "out.jsonl").read_text().count("\n") == 500


def test_workers_change_no_result(tmp_path):
    rows = []
    for i in range(400):
        rows.append(STEPWISE | {"prompt": f"п {i}?", "source": "x"})
        rows += ["{broken"] * (i % 50 == 7) + [STEPWISE | {"labels": [i]}] * (i % 90 == 3) + [""] * (i % 70 == 5)
    source = write(tmp_path / "in.jsonl", *rows)
    reader, writer = registry.load("format", "stepwise"), registry.load("format", "stepmark")
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    whole = convert(source, one, reader, writer)
    for size in (1, 700, 10**6):
        divided = convert(source, many, reader, writer, executor=registry.load("executor", "serial"), size=size)
        assert divided == whole
        assert many.read_bytes() == one.read_bytes()
        assert (tmp_path / "many.jsonl.quarantine.jsonl").read_bytes() == (
            tmp_path / "one.jsonl.quarantine.jsonl"
        ).read_bytes()
    assert whole.quarantined == 8 + 5
    run(source, "--to", "stepmark", many, "--workers", 2, code=3)
    assert many.read_bytes() == one.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("in.jsonl", "many.jsonl", "many.jsonl.quarantine.jsonl", "one.jsonl", "one.jsonl.quarantine.jsonl")
    ]
    with pytest.raises(DataError, match="no usable row"):
        convert(write(source, "{broken"), many, reader, writer, executor=registry.load("executor", "serial"))
    assert many.read_bytes() == one.read_bytes()
