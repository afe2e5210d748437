"""Rows of user data: which rows are read, which are set aside and why, and that a bad row does not stop the others."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepmark.data.rows import ANSWER, MAX_LINE, QUESTION, Field, Row, need_problems, problems, read, texts
from stepmark.errors import DataError
from stepmark.text.hashing import hash_fraction
from stepmark.types import Problem, ProblemSet, Quarantined

GOOD = {"question": "What is 2 + 2?", "answer": "4"}


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def write(folder: Path, *lines: bytes, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


BAD = {
    "missing field": (b'{"question": "Why?"}', "field 'answer': missing"),
    "null": (line(answer=None), "field 'answer': missing"),
    "wrong type of question": (line(question=["a"]), "field 'question': wrong type: a list"),
    "number as question": (line(question=7), "field 'question': wrong type: a number"),
    "wrong type of answer": (line(answer={"value": 4}), "field 'answer': wrong type: an object"),
    "bool as answer": (line(answer=True), "field 'answer': wrong type: true or false"),
    "not a number": (b'{"question": "q", "answer": NaN}', "not a finite number"),
    "broken JSON": (b'{"question": "q", "answer": ', "broken JSON"),
    "two objects": (line() + line(), "broken JSON"),
    "endless digits": (b'{"question": "q", "answer": ' + b"1" * 5000 + b"}", "broken JSON"),
    "deep nesting": (b"[" * 100_000, "broken JSON"),
    "a list": (b"[1, 2]", "not a JSON object but a list"),
    "JSON null": (b"null", "not a JSON object but null"),
    "1 MB answer": (line(answer="9" * 2**20), "field 'answer': 1,048,576 characters; at most 10,000"),
    "long question": (line(question="q" * 100_001), "field 'question': 100,001 characters; at most 100,000"),
    "empty question": (line(question=""), "field 'question': empty"),
    "blank question": (line(question=" \n\t"), "field 'question': empty"),
    "empty answer": (line(answer=""), "field 'answer': empty"),
    "NUL bytes": (b'{"question": "a\0b", "answer": "4"}', "NUL"),
    "escaped NUL": (b'{"question": "a\\u0000b", "answer": "4"}', "NUL"),
    "all NUL": (b"\0" * 100, "NUL"),
    "invalid UTF-8": (b'{"question": "caf\xe9", "answer": "4"}', "not UTF-8"),
    "lone surrogate": (b'{"question": "a\\ud800b", "answer": "4"}', "lone surrogate"),
    "duplicate id": (line(id="first"), "duplicate id 'first', first on line 1"),
    "wrong type of id": (line(id=[1]), "field 'id': wrong type"),
    "id with a line break": (line(id="a\nb"), "control characters"),
    "two faults": (
        b'{"answer": true}',
        "field 'question': missing (the row has: 'answer'); field 'answer': wrong type",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_set_aside_with_file_line_and_reason_and_the_rest_goes_on(
    tmp_path: Path, kind: str, packed: bool
) -> None:
    bad, reason = BAD[kind]
    # The first bytes decide about the compression, not the name.
    path = write(tmp_path, line(id="first"), bad, line(id="last"))
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    first, middle, last = read(path)
    assert isinstance(first, Row) and isinstance(last, Row)
    assert (first.id, last.id, last.line) == ("first", "last", 3)
    assert isinstance(middle, Quarantined)
    assert (middle.file, middle.line) == (str(path), 2)
    assert reason in middle.reason


def test_every_bad_row_at_once_leaves_exactly_the_good_ones(tmp_path: Path) -> None:
    lines = [line(id="first"), *(bad for bad, _ in BAD.values()), line(id="last")]
    rows = list(read(write(tmp_path, *lines)))
    assert [r.id for r in rows if isinstance(r, Row)] == ["first", "last"]
    assert [r.line for r in rows] == list(range(1, len(lines) + 1))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("5", "5"),
        ("5.0", "5"),
        ("-0.0", "0"),
        ("0.1", "0.1"),
        ("1e-7", "0.0000001"),
        ("1e21", "1" + "0" * 21),
        ("-3", "-3"),
    ],
)
def test_a_number_is_an_answer_in_plain_digits(tmp_path: Path, number: str, text: str) -> None:
    (row,) = read(write(tmp_path, f'{{"question": "q", "answer": {number}}}'.encode()))
    assert isinstance(row, Row)
    assert row.text["answer"] == text


def test_rows_keep_their_ids_and_others_take_their_line_number(tmp_path: Path) -> None:
    rows = list(read(write(tmp_path, line(id="a"), b"", line(), line(id=7), line(id=""), line(id="3"))))
    assert [(r.id, r.line) for r in rows if isinstance(r, Row)] == [("a", 1), ("3", 3), ("7", 4), ("5", 5)]
    (clash,) = [r for r in rows if isinstance(r, Quarantined)]
    assert (clash.line, clash.reason) == (6, "duplicate id '3', first on line 3")


def test_a_set_aside_row_does_not_reserve_its_id(tmp_path: Path) -> None:
    bad, good = read(write(tmp_path, line(id="a", question=""), line(id="a")))
    assert isinstance(bad, Quarantined) and isinstance(good, Row)


def test_fields_by_name_optional_ones_and_the_whole_row(tmp_path: Path) -> None:
    fields = (Field("problem"), Field("work", required=False), Field("n", number=True, limit=3))
    path = write(
        tmp_path,
        b'{"problem": "p", "n": 12, "level": 5}',
        b'{"problem": "p", "n": 1234}',
        b'{"problem": "p", "n": 1, "work": 3}',
    )
    good, long, typed = read(path, fields)
    assert isinstance(good, Row)
    assert dict(good.text) == {"problem": "p", "work": "", "n": "12", "id": ""}
    assert good.values["level"] == 5
    assert isinstance(long, Quarantined) and "4 characters; at most 3" in long.reason
    assert isinstance(typed, Quarantined) and "field 'work': wrong type" in typed.reason


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line() + b"\r\n\r\n" + line())
    assert [(type(r), r.line) for r in read(path)] == [(Row, 1), (Row, 3)]


def test_a_line_too_long_to_hold_is_skipped_whole(tmp_path: Path) -> None:
    path = write(tmp_path, line(id="a"), line(answer="9" * 5000), line(id="b"))
    a, long, b = read(path, max_line=1000)
    assert isinstance(long, Quarantined) and long.line == 2 and "more than 1,000 bytes" in long.reason
    assert isinstance(a, Row) and isinstance(b, Row) and (a.id, b.id, b.line) == ("a", "b", 3)
    assert MAX_LINE > 2**20  # so that a 1 MB answer gets a reason of its own


def test_a_line_exactly_as_long_as_allowed_is_read(tmp_path: Path) -> None:
    one = line()
    kinds = {
        size: [type(r) for r in read(write(tmp_path, one, one), max_line=size)] for size in (len(one), len(one) + 1)
    }
    assert kinds == {len(one): [Quarantined, Quarantined], len(one) + 1: [Row, Row]}  # the line end counts


def test_a_torn_gzip_file_gives_the_rows_before_the_damage(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(line(id=str(i), noise=str(hash_fraction(str(i)))) + b"\n" for i in range(3000)))
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    *rows, last = read(path)
    assert len(rows) > 100
    assert all(isinstance(r, Row) for r in rows)
    assert isinstance(last, Quarantined) and "gzip file is damaged" in last.reason


def test_a_missing_file_is_named_before_any_row_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or directory .*nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"no file or directory 'data/nothing\.jsonl'"):
        read("data/nothing.jsonl")  # looks like owner/name, but has the ending of a file


def test_a_directory_gives_the_file_named_after_the_split(tmp_path: Path) -> None:
    write(tmp_path, line(id="a"), name="train.jsonl")
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(line(id="b")))
    assert [r.id for split in ("train", "test") for r in read(tmp_path, split=split) if isinstance(r, Row)] == [
        "a",
        "b",
    ]
    with pytest.raises(DataError, match=r"0 files for the split 'dev'; it holds: test\.jsonl\.gz, train\.jsonl"):
        read(tmp_path, split="dev")
    write(tmp_path, line(), name="test.jsonl")
    with pytest.raises(DataError, match="2 files for the split 'test'"):
        read(tmp_path, split="test")


def test_a_hub_data_set_goes_through_the_same_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = []

    def load_dataset(name: str, config: str | None, split: str) -> list[object]:
        requests.append((name, config, split))
        return [{"question": "q", "answer": 4.0}, {"question": "", "answer": "4"}]

    monkeypatch.setitem(__import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.chdir(tmp_path)
    good, bad = read("owner/name", split="test", config="main")
    assert requests == [("owner/name", "main", "test")]
    assert isinstance(good, Row) and good.text["answer"] == "4"
    assert bad == Quarantined("owner/name", 2, "field 'question': empty")
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner", line(id="local"), name="name")
    (row,) = read("owner/name")
    assert isinstance(row, Row) and row.id == "local"  # a local path has priority


def test_without_the_hub_library_or_the_hub_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"no file or directory 'owner/name'.*pip install datasets.*path of a JSONL file"
    ):
        read("owner/name")

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setitem(__import__("sys").modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"ConnectionError: offline\. Give the path of a local JSONL file"):
        read("owner/name")


def test_problems_stop_at_the_limit_and_carry_what_was_set_aside(tmp_path: Path) -> None:
    path = write(tmp_path, b"{", line(id="a"), line(id="skip"), line(id="bad"), line(id="b"), b"}", line(id="c"))

    def make(row: Row) -> Problem | Quarantined | None:
        if row.id == "bad":
            return Quarantined(row.file, row.line, "unwanted")
        return None if row.id == "skip" else Problem(row.id, row.text["question"], row.text["answer"], "test")

    two = problems(read(path), make, 2)
    assert [p.id for p in two.problems] == ["a", "b"]
    assert [q.line for q in two.quarantined] == [1, 4]
    every = problems(read(path), make)
    assert [p.id for p in every.problems] == ["a", "b", "c"]
    assert [q.line for q in every.quarantined] == [1, 4, 6]
    assert problems(read(path), make, 0).problems == ()


def test_a_split_without_problems_is_an_error_with_its_most_frequent_reason(tmp_path: Path) -> None:
    long = [line(question="q" * n) for n in (100_001, 100_002, 100_003)]
    loaded = problems(read(write(tmp_path, b"{", *long)), lambda row: None)
    with pytest.raises(DataError) as e:
        need_problems("mine", "dev", loaded)
    text = str(e.value)
    assert "the split 'dev' of the task mine has no usable problem; 4 rows were set aside, 3 for this reason" in text
    assert "(here of line 2): field 'question': 100,001 characters" in text
    with pytest.raises(DataError, match=r"no usable problem\. Look there\."):
        need_problems("mine", "dev", ProblemSet((), note="Look there."))


def test_two_problems_with_one_id_are_an_error_that_names_the_task_the_split_and_the_id() -> None:
    first, second = Problem("p7", "Why?", "1", "mine"), Problem("p7", "Why not?", "2", "mine")
    need_problems("mine", "test", ProblemSet((first, Problem("p8", "Why?", "1", "mine"))))
    with pytest.raises(DataError, match=r"split 'test' of the task mine has two .* id 'p7': 'Why\?' and 'Why not\?'"):
        need_problems("mine", "test", ProblemSet((first, second)))


def test_share_is_even_stable_and_blind_to_white_space_and_case() -> None:
    shares = [hash_fraction(f"question {i}") for i in range(2000)]
    assert all(0 <= x < 1 for x in shares)
    assert 0.15 < sum(x < 0.2 for x in shares) / len(shares) < 0.25
    assert hash_fraction("What is  2?\n") == hash_fraction("what is 2?") != hash_fraction("what is 3?")
    assert hash_fraction("stable") == pytest.approx(0.95108, abs=1e-4)  # changing this moves every user's test set


@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"")), max_size=8))
def test_no_bytes_whatever_stop_the_good_row_after_them(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes]
) -> None:
    path = write(tmp_path_factory.mktemp("rows"), b'{"junk":', *junk, line(id="the last one"))
    *before, last = read(path)
    assert isinstance(last, Row) and last.id == "the last one" and last.line == len(junk) + 2
    assert all(r.line < last.line for r in before)


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50).filter(
    str.strip
)


@given(
    st.lists(
        st.tuples(_TEXT, st.one_of(_TEXT, st.integers(-(10**9), 10**9)), _TEXT | st.none()), min_size=1, max_size=6
    )
)
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | int, str | None]]
) -> None:
    path = write(
        tmp_path_factory.mktemp("rows"),
        *(json.dumps({"question": q, "answer": a, "why": w}).encode() for q, a, w in rows),
    )
    back = list(read(path, (QUESTION, ANSWER, Field("why", required=False))))
    assert [(r.text["question"], r.text["answer"], r.text["why"]) for r in back if isinstance(r, Row)] == [
        (q, str(a), w or "") for q, a, w in rows
    ]
    assert len(back) == len(rows)


@given(st.text(string.printable, max_size=30))
def test_any_odd_source_is_a_data_error_that_names_it(source: str) -> None:
    if Path(source).exists():
        return
    with pytest.raises(DataError):
        read(f"no-such-place-{source}.jsonl")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)


@given(st.dictionaries(st.sampled_from(["solutions", "completions", "solution", "more"]), ANY_JSON, max_size=3))
def test_texts_of_any_row_are_exactly_its_texts_or_it_is_set_aside(values: dict[str, object]) -> None:
    names = ("solutions", "completions", "solution")
    got = texts(Row("mine.jsonl", 3, "3", {}, values), names)
    given = [values[name] for name in names if values.get(name) is not None]
    listed = given[0] if given and isinstance(given[0], list) else given[:1]
    if isinstance(got, Quarantined):
        odd = [x for x in listed if not isinstance(x, str) or "\0" in x or any("\ud800" <= c <= "\udfff" for c in x)]
        assert len(given) != 1 or odd
        assert (got.file, got.line) == ("mine.jsonl", 3)
        assert got.reason
    else:
        assert len(given) == 1
        assert got == tuple(listed)
        assert all(isinstance(x, str) and "\0" not in x for x in got)
