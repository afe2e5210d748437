"""Records and run directories: the files after kills, torn lines, bad lines and changed settings."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepmark.data.store import Records, RunDir, replacing, settled, write_text
from stepmark.errors import ConfigChanged, ConfigError, DataError, StageError
from stepmark.types import (
    Candidate,
    Finish,
    Grade,
    LabelledSolution,
    Outcome,
    Problem,
    Solution,
    StepLabel,
    Verdict,
    Verification,
)


def solution(i: int, text: str = "a\nb") -> Solution:
    return Solution(f"p#{i}", "p", i, text, ((0, 2), (2, len(text))), Finish.LENGTH, 7, -1.5)


def joined(text: str) -> str:
    """`text` with each surrogate pair joined to one character, as JSON does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


any_text = st.text(st.characters(exclude_categories=()) | st.sampled_from('\0\n\r\u2028\x85\ud800\udfff"\\{}'))


@settings(deadline=None)
@given(st.lists(any_text, max_size=5), any_text)
@example(["\0", "\ud800", "\udfff", "\u2028\r\n", '"\\'], "\udc80#0")
def test_any_text_comes_back(tmp_path_factory, texts, name):
    path = tmp_path_factory.mktemp("r") / "r.jsonl"
    written = [Problem(f"{name}-{i}", text, "1", "t") for i, text in enumerate(texts)]
    with Records(path, Problem) as records:
        assert records.append(written) == len(written)
    expected = [dataclasses.replace(p, id=joined(p.id), question=joined(p.question)) for p in written]
    read = Records(path, Problem)
    assert list(read) == expected
    assert read.keys() == {p.id for p in expected}
    assert len(read) == len(expected)


@pytest.mark.parametrize(
    "record",
    [
        LabelledSolution(solution(1), Grade(Verdict.UNGRADABLE, "why", None), (StepLabel(1, 2, 3, 4), StepLabel(0, 8))),
        Verification("p#1", (0.25, 1.0), 0.25, "min", Outcome.TRUNCATED, "cut", ("a", "b")),
    ],
)
def test_nested_records_come_back_equal_and_of_the_same_types(tmp_path, record):
    with Records(tmp_path / "r.jsonl", type(record)) as records:
        records.append([record])
        (back,) = records
    assert back == record
    assert repr(back) == repr(record)  # 1.0 is not 1, a StrEnum is not a str, a tuple is not a list


def test_whole_numbers_in_a_float_field_come_back_as_floats(tmp_path):
    with Records(tmp_path / "r.jsonl", Verification) as records:
        records.append([Verification("p#1", (1, 0), 1, "min")])
    assert repr(next(iter(records)).scores) == "(1.0, 0.0)"


def test_mappings_of_scores_come_back(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Row:
        key: str
        candidate: Candidate

    row = Row("k", Candidate("p#1", None, False, {"prm": (0.5, 0.25)}))
    with Records(tmp_path / "r.jsonl", Row) as records:
        records.append([row])
    assert list(records) == [row]
    assert records.keys() == {"k"}


def test_nothing_there_reads_as_nothing_and_is_not_made(tmp_path):
    records = Records(tmp_path / "deep" / "r.jsonl", Problem)
    assert (list(records), records.keys(), len(records), records.append([])) == ([], set(), 0, 0)
    assert not (tmp_path / "deep").exists()


@settings(max_examples=20, deadline=None)
@given(st.lists(any_text, min_size=1, max_size=4), st.data())
def test_cut_off_at_any_byte_the_whole_lines_stay_and_the_rest_is_redone(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("r") / "r.jsonl"
    wanted = [Problem(f"p{i}", joined(t), "1", "t") for i, t in enumerate(texts)]
    with Records(path, Problem) as records:
        records.append(wanted)
    whole = path.read_bytes()
    ends = [0] + [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in {*ends, *(e - 1 for e in ends[1:]), *data.draw(st.lists(st.integers(0, len(whole)), max_size=20))}:
        path.write_bytes(whole[:size])
        kept = sum(0 < e <= size for e in ends)
        with Records(path, Problem) as records:
            assert list(records) == wanted[:kept]
            done = records.keys()
            assert path.stat().st_size == size, "reading must not change the file: another process may be writing it"
            records.append(p for p in wanted if p.key not in done)
        assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_read_block_is_dropped(tmp_path):
    path = tmp_path / "r.jsonl"
    with Records(path, Problem) as records:
        records.append([Problem("p0", "q", "1", "t")])
    good = path.read_bytes()
    path.write_bytes(good + b'{"key":"p1","question":"' + b"x" * 200_000)
    with Records(path, Problem) as records:
        records.append([Problem("p1", "q", "1", "t")])
        assert [p.id for p in records] == ["p0", "p1"]
    path.write_bytes(b"x" * 200_000)
    with Records(path, Problem) as records:
        records.append([Problem("p1", "q", "1", "t")])
        assert [p.id for p in records] == ["p1"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"key":"p1","id":"p1","question":"q","answer":"1"\n', "delimiter"),
        ('{"key":"p1","id":"p1","question":"q","answer":"1"}\n', "task"),
        ('{"key":"p1","id":"p1","question":7,"answer":"1","task":"t"}\n', "question: expected str, got 7"),
        ('{"key":"p1","id":"p1","question":"q","answer":"1","task":"t","more":1}\n', "no field 'more'"),
        ('{"key":"p1","id":"p2","question":"q","answer":"1","task":"t"}\n', "its fields say 'p2'"),
        ("[1]\n", "TypeError"),
        ("\0\0\0\0\n", "JSON"),
        ("\n", "JSON"),
    ],
)
def test_a_bad_line_in_the_middle_is_named_by_file_and_line(tmp_path, line, why):
    path = tmp_path / "r.jsonl"
    with Records(path, Problem) as records:
        records.append([Problem("p0", "q", "1", "t")])
    path.write_text(path.read_text() + line + path.read_text().replace("p0", "p9"))
    with pytest.raises(DataError, match=r"r\.jsonl, line 2") as caught:
        list(Records(path, Problem))
    assert why in str(caught.value)


def test_keys_refuse_a_broken_line_and_a_key_there_twice(tmp_path):
    path = tmp_path / "r.jsonl"
    with Records(path, Problem) as records:
        records.append([Problem("p0", "q", "1", "t")])
    good = path.read_text()
    path.write_text(good + good)
    with pytest.raises(DataError, match=r"line 2.*before"):
        Records(path, Problem).keys()
    path.write_text(good + good[:20] + "\n" + good.replace("p0", "p1"))
    with pytest.raises(DataError, match="line 2"):
        Records(path, Problem).append([Problem("p2", "q", "1", "t")])


def test_a_key_that_is_there_is_refused_and_nothing_of_the_batch_written(tmp_path):
    with Records(tmp_path / "r.jsonl", Solution) as records:
        records.append([solution(0)])
        for batch in ([solution(1), solution(0)], [solution(1), solution(1)]):
            with pytest.raises(DataError, match=r"p#[01]"):
                records.append(batch)
        records.append([solution(1)])
        assert [s.sample for s in records] == [0, 1]
    with Records(tmp_path / "r.jsonl", Solution) as again, pytest.raises(DataError, match="p#1"):
        again.append([solution(1)])


def test_a_full_disk_leaves_whole_records_and_says_so(tmp_path):
    script = """
import resource, signal, sys
from stepmark.errors import StageError
from stepmark.data.store import Records
from stepmark.types import Problem
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
records = Records(sys.argv[1], Problem)
records.append([Problem("p0", "q", "1", "t")])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    records.append([Problem("p1", "q" * 5000, "1", "t")])
except StageError as e:
    print(e)
records.append([Problem("p2", "q", "1", "t")])
"""
    path = tmp_path / "r.jsonl"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "1 records in it are kept" in done.stdout
    assert Records(path, Problem).keys() == {"p0", "p2"}


def test_a_second_writer_is_told_and_a_reader_is_not_in_the_way(tmp_path):
    path = tmp_path / "r.jsonl"
    first = Records(path, Solution)
    first.append([solution(0)])
    second = Records(path, Solution)
    assert second.keys() == {"p#0"}
    with pytest.raises(StageError, match="another"):
        second.append([solution(1)])
    first.close()
    second.append([solution(1)])
    second.close()
    assert first.keys() == {"p#0", "p#1"}


APPENDER = """
import random, sys
from stepmark.data.store import RunDir
from stepmark.types import Solution
seed, total = int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
run = RunDir(sys.argv[1]).open({"n": total})
out = run.records("solutions", Solution)
done = out.keys()
print("ready", flush=True)
todo = [i for i in range(total) if f"p#{i}" not in done]
while todo:
    batch, todo = todo[: (k := rng.randint(1, 50))], todo[k:]
    out.append(Solution(f"p#{i}", "p", i, "x" * rng.randint(0, 3000), ()) for i in batch)
run.close()
"""


def test_killed_at_twenty_random_moments_and_resumed_no_record_is_lost_or_twice(tmp_path):
    total, rng, kills = 60_000, random.Random(0), 0
    for attempt in range(60):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, tmp_path, str(attempt), str(total)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            if kills < 20:
                time.sleep(rng.uniform(0, 0.015))
                process.send_signal(signal.SIGKILL)
            process.wait(60)
        if process.returncode == 0:
            break
        kills += process.returncode == -signal.SIGKILL
    assert process.returncode == 0
    assert kills == 20, "the job ended before it could be killed often enough"
    samples = [s.sample for s in RunDir(tmp_path).records("solutions", Solution)]
    assert sorted(samples) == list(range(total))


def test_the_same_configuration_opens_again_in_any_order_of_keys(tmp_path):
    RunDir(tmp_path / "run").open({"a": 1, "b": {"c": [1, "é"]}}).close()
    RunDir(tmp_path / "run").open({"b": {"c": (1, "é")}, "a": 1}).close()
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"a": 1, "b": {"c": [1, "é"]}}


def test_a_changed_configuration_is_refused_with_a_diff_and_releases_the_directory(tmp_path):
    RunDir(tmp_path).open({"n": 4, "seed": 0}).close()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigChanged) as caught:
        RunDir(tmp_path).open({"n": 8, "seed": 0})
    assert '-  "n": 4' in caught.value.diff
    assert '+  "n": 8' in caught.value.diff
    assert (tmp_path / "config.json").read_bytes() == before
    RunDir(tmp_path).open({"n": 4, "seed": 0}).close()


def test_a_configuration_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path):
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(ConfigError, match="plain values"):
            RunDir(tmp_path / "run").open(bad)
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_open_one_run(tmp_path):
    with RunDir(tmp_path).open({}):
        script = f"from stepmark.data.store import RunDir; RunDir({str(tmp_path)!r}).open({{}})"
        second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert second.returncode != 0
        assert f"in use by another run (process {os.getpid()})" in second.stderr
    RunDir(tmp_path).open({}).close()


def test_records_of_a_run_are_one_object_of_one_kind(tmp_path):
    with RunDir(tmp_path).open({}) as run:
        records = run.records("deep/solutions", Solution)
        records.append([solution(0)])
        run.records("deep/solutions", Solution).append([solution(1)])
        assert len(records) == 2
        assert (tmp_path / "deep" / "solutions.jsonl").exists()
        with pytest.raises(DataError, match="Solution records, not Problem"):
            run.records("deep/solutions", Problem)
    with RunDir(tmp_path).open({}) as run:
        assert run.records("deep/solutions", Solution).keys() == {"p#0", "p#1"}


def test_json_files_are_written_whole_with_dataclasses_inside(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("metrics.json", {"label": StepLabel(1, 2)})
    assert run.read_json("metrics.json")["label"]["correct"] == 1
    with pytest.raises(ValueError, match="nan"):
        run.write_json("metrics.json", {"x": float("nan")})
    assert run.read_json("metrics.json")["label"]["gradable"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(DataError, match=r"none\.json"):
        run.read_json("none.json")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        run.read_json("metrics.json")


def test_text_with_a_lone_surrogate_can_be_written(tmp_path):
    place = write_text(tmp_path / "deep" / "report.html", "a\ud800\né")
    assert place.read_bytes() == b"a\\ud800\n\xc3\xa9"


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    place = tmp_path / "model"
    with replacing(place) as new:
        (new / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing(place) as new:
        (new / "b").write_text("2")
        raise RuntimeError
    assert names(place) == {"a"}
    with replacing(place) as new:
        (new / "c").write_text("3")
    assert names(place) == {"c"}
    assert names(tmp_path) == {"model"}


def test_a_kill_between_the_two_renames_is_put_right(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "a").write_text("1")
    place.rename(tmp_path / "model.old")
    (tmp_path / "model.new").mkdir()
    assert names(settled(place)) == {"a"}
    (tmp_path / "model.old").mkdir()
    assert names(settled(place)) == {"a"}
    with replacing(place) as new:
        (new / "b").write_text("1")
    assert names(tmp_path) == {"model"}
