"""Formats of a user's file: what each gives, which rows are bad and why, and that the rows after a bad one come."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from stepmark.data.rows import Row, read
from stepmark.errors import DataError
from stepmark.types import Quarantined

# The second row has no answer.
ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": 'What is "2",\n+ 2?', "answer": 4},
    {"id": "b", "question": "Half of 10?", "answer": None},
    {"id": "c", "question": "π?", "answer": 3.5},
]


def table(rows: list[dict[str, Any]], separator: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")


def as_json_lines(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, ROWS)))


def as_csv(path: Path) -> None:
    path.write_text(table(ROWS), encoding="utf-8-sig")  # as spreadsheets write it


def as_tsv(path: Path) -> None:
    path.write_text(table(ROWS, "\t"), encoding="utf-8")


def as_packed_csv(path: Path) -> None:
    path.write_bytes(gzip.compress(table(ROWS).encode()))


def as_packed_json(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))


def as_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def as_saved(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def as_saved_splits(path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)


FORMATS = {
    "mine.json": (as_json, 2),
    "lines.json": (as_json_lines, 2),
    "mine.json.gz": (as_packed_json, 2),
    "mine.csv": (as_csv, 3),  # the heading is row 1
    "mine.CSV": (as_csv, 3),
    "mine.csv.gz": (as_packed_csv, 3),
    "mine.tsv": (as_tsv, 3),
    "mine.parquet": (as_parquet, 2),
    "saved": (as_saved, 2),
    "saved_splits": (as_saved_splits, 2),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_rows_and_sets_the_same_row_aside(tmp_path: Path, name: str) -> None:
    make, bad_row = FORMATS[name]
    path = tmp_path / name
    make(path)
    first, bad, last = read(path)
    assert isinstance(first, Row) and isinstance(last, Row)
    assert [dict(row.text) for row in (first, last)] == [
        {"id": "a", "question": 'What is "2",\n+ 2?', "answer": "4"},
        {"id": "c", "question": "π?", "answer": "3.5"},
    ]
    assert isinstance(bad, Quarantined) and (bad.file, bad.line) == (str(path), bad_row)
    assert "field 'answer'" in bad.reason


def test_a_directory_may_have_a_file_of_any_format_for_each_split(tmp_path: Path) -> None:
    as_csv(tmp_path / "train.csv")
    as_parquet(tmp_path / "test.parquet")
    for split, line in (("train", 3), ("test", 2)):
        assert [row.line for row in read(tmp_path, split=split) if isinstance(row, Quarantined)] == [line]
    as_json(tmp_path / "test.json")
    with pytest.raises(DataError, match="2 files for the split 'test'"):
        read(tmp_path, split="test")
    with pytest.raises(DataError, match=r"no file or directory 'data/nothing\.parquet'"):
        read("data/nothing.parquet")  # not the name of a data set on the hub


def reasons(path: Path) -> list[tuple[int, str]]:
    return [(row.line, "" if isinstance(row, Row) else row.reason) for row in read(path)]


def test_a_bad_row_of_a_csv_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = [b"question,answer", b"q,1", b"q,1,2", b"q", b"caf\xe9,1", b"", b'"a"b,1', b"last,1", b""]
    path.write_bytes(b"\r\n".join(rows))
    found = reasons(path)
    assert [line for line, _ in found] == [2, 3, 4, 5, 7, 8]
    for (_, reason), part in zip(
        found,
        ("", "3 columns; the heading has 2", "1 columns", "not UTF-8", "broken CSV", ""),
        strict=True,
    ):
        assert part in reason and bool(part) == bool(reason)


@pytest.mark.parametrize(
    ("text", "message"),
    [("question,answer,answer\nq,1,2\n", "two columns 'answer'"), ('"question"x,answer\nq,1\n', "no readable heading")],
)
def test_a_csv_without_a_usable_heading_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read(path))


@pytest.mark.parametrize(
    ("text", "lines", "reason"),
    [
        (b"[]", [], ""),
        (b" \n[ ]", [], ""),
        (b'\xef\xbb\xbf[{"question": "q", "answer": 1}]', [1], ""),
        (b'[{"question": "q", "answer": 1}, 7, {"question": "r", "answer": 1}]', [1, 2, 3], "not a JSON object"),
        (b'[{"question": "q", "answer": 1}', [1, 2], "a comma or ]"),
        (b'[{"question": "q", "answer": 1} {"question": "r", "answer": 1}]', [1, 2], "a comma or ]"),
        (b'[{"question": "q", "answer": 1},]', [1, 2], "broken JSON"),
        (b'[{"question": "caf\xe9", "answer": 1}]', [1], "not UTF-8"),
        (b"[" * 100_000, [1], "broken JSON"),
    ],
)
def test_a_json_array_is_read_as_far_as_it_is_whole(tmp_path: Path, text: bytes, lines: list[int], reason: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text)
    found = reasons(path)
    assert [line for line, _ in found] == lines
    assert [said for _, said in found if said and reason not in said] == []
    assert any(said for _, said in found) == bool(reason)


def test_parquet_that_is_none_and_text_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"mine\.parquet can't be read as Parquet"):
        read(path)
    raw = pyarrow.array([b"q", b"caf\xe9", b"r"]).view(pyarrow.utf8())
    parquet.write_table(pyarrow.table({"question": raw, "answer": ["1", "2", "3"]}), path)
    assert [(line, said.split(":")[0]) for line, said in reasons(path)] == [(1, ""), (2, "not UTF-8"), (3, "")]


def test_a_missing_library_is_named_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path / "mine.parquet")
    as_saved(tmp_path / "saved")
    for name in ("pyarrow.parquet", "datasets"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(DataError, match=r"pip install 'stepmark\[parquet\]'"):
        read(tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"saved is a data set.*pip install datasets"):
        read(tmp_path / "saved")


def test_a_saved_data_set_without_the_split_and_a_broken_one_are_errors(tmp_path: Path) -> None:
    as_saved_splits(tmp_path / "saved")
    with pytest.raises(DataError, match="no split 'test'; it has: train"):
        read(tmp_path / "saved", split="test")
    as_saved(tmp_path / "broken")
    (tmp_path / "broken" / "state.json").write_text("{")
    with pytest.raises(DataError, match="broken can't be read"):
        read(tmp_path / "broken")


@given(st.binary(max_size=80).map(lambda b: b.replace(b'"', b"'").replace(b"\n", b" ").replace(b"\r", b" ")))
def test_no_bytes_without_a_quotation_mark_stop_the_row_of_a_csv_after_them(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("decode") / "mine.csv"
    path.write_bytes(b"question,answer\n" + junk + b"\nlast,1\n")
    *before, last = read(path)
    assert isinstance(last, Row) and (last.line, last.text["question"]) == (3, "last")
    assert len(before) <= 1


_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(
    str.strip
)


@given(st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("decode") / "mine.csv"
    path.write_bytes(table([{"question": q, "answer": a} for q, a in cells]).encode())
    found = [(row.text["question"], row.text["answer"]) for row in read(path) if isinstance(row, Row)]
    assert found == cells


@given(st.lists(st.tuples(_CELL, _CELL), max_size=4), st.integers(0, 400))
def test_a_json_array_cut_anywhere_gives_a_prefix_of_its_rows(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("decode") / "mine.json"
    text = json.dumps([{"question": q, "answer": a} for q, a in cells])
    path.write_text(text[: cut + 1])
    found = list(read(path))
    good = [(row.text["question"], row.text["answer"]) for row in found if isinstance(row, Row)]
    assert good == cells[: len(good)]
    assert len(found) - len(good) == (cut + 1 < len(text))  # the damage is one row, told at the end
