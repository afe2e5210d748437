"""Rows come back from every container as they were written; a file is there whole or not at all."""

import gzip
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepmark.data import rows
from stepmark.data.encode import write_rows
from stepmark.errors import DataError

ENDINGS = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".json.gz", ".parquet", ""]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
ROW = st.fixed_dictionaries({"a": TEXT, "steps": st.lists(TEXT, min_size=1, max_size=3), "soft": st.floats(0, 1)})


def back(path):
    return [dict(row.values) for row in rows.read(path, (), id_field=None)]


def plain(row, ending):
    """A row as a table has it: everything is text."""
    if not ending.startswith((".csv", ".tsv")):
        return row
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in row.items()}


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e])
@settings(max_examples=30, deadline=None)
@given(listed=st.lists(ROW, min_size=1, max_size=5))
def test_rows_come_back(tmp_path_factory, ending, listed):
    path = tmp_path_factory.mktemp("encode") / f"rows{ending}"
    assert write_rows(path, iter(listed)) == len(listed)
    assert back(path) == [plain(row, ending) for row in listed]


def test_a_data_set_on_disk(tmp_path):
    pytest.importorskip("datasets")
    listed = [{"prompt": f"п {i}", "completions": ["a", "b"], "labels": [0.5, 1.0]} for i in range(3000)]
    assert write_rows(tmp_path / "set", listed) == 3000
    assert back(tmp_path / "set") == listed
    assert write_rows(tmp_path / "set", listed[:2]) == 2
    assert back(tmp_path / "set") == listed[:2]


@pytest.mark.skipif(find_spec("zstandard") is None, reason="the package zstandard is not installed")
def test_zstandard(tmp_path):
    listed = [{"a": f"п {i}"} for i in range(1000)]
    write_rows(tmp_path / "rows.jsonl.zst", listed)
    assert back(tmp_path / "rows.jsonl.zst") == listed
    whole = (tmp_path / "rows.jsonl.zst").read_bytes()
    assert whole.startswith(b"\x28\xb5\x2f\xfd")
    (tmp_path / "rows.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    *_, last = rows.read(tmp_path / "rows.jsonl.zst", (), id_field=None)
    assert "damaged" in last.reason
    (tmp_path / "rows.jsonl.zst").write_bytes(whole + whole)  # two frames, as of two files put together
    assert back(tmp_path / "rows.jsonl.zst") == listed + listed
    (tmp_path / "rows.jsonl.zst").write_bytes(whole[:4] + b"junk" * 20)
    [last] = rows.read(tmp_path / "rows.jsonl.zst", (), id_field=None)
    assert "damaged" in last.reason


def test_without_a_package_the_error_names_it(tmp_path):
    script = """
import sys
sys.modules["zstandard"] = sys.modules["pyarrow"] = sys.modules["datasets"] = None
from pathlib import Path
from stepmark.data.encode import write_rows
from stepmark.data import rows
place = Path(sys.argv[1])
(place / "in.jsonl.zst").write_bytes(b"\\x28\\xb5\\x2f\\xfd")
for do in [lambda e=e: write_rows(place / f"x{e}", []) for e in (".jsonl.zst", ".parquet", "")] + [
    lambda: list(rows.read(place / "in.jsonl.zst"))
]:
    try:
        do()
    except Exception as e:
        print(type(e).__name__, e)
"""
    said = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True).stdout
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == ["DataError"] * 4
    for line, package in zip(lines, ("zstandard", "stepmark[parquet]", "datasets", "zstandard"), strict=True):
        assert f"pip install {package}" in line.replace("'", "")


def test_empty_files_are_whole(tmp_path):
    for ending in (".jsonl", ".json", ".jsonl.gz", ".parquet"):
        assert write_rows(tmp_path / f"rows{ending}", []) == 0
        assert back(tmp_path / f"rows{ending}") == []


def test_equal_rows_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl.gz", [{"x": 1}])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b'{"x": 1}\n'


@pytest.mark.parametrize(
    ("ending", "listed", "said"),
    [
        (".csv", [{"a": "1"}, {"b": "2"}], "row 3: its fields are b; the first row has a"),
        (".parquet", [{"a": [True]}] * 20_000 + [{"a": [0.5]}], "estimate=soft"),
        (".txt", [], "'.txt' is none that is known"),
    ],
    ids=["fields", "types", "ending"],
)
def test_what_can_not_be_written_leaves_the_old_file(tmp_path, ending, listed, said):
    path = tmp_path / f"rows{ending}"
    path.write_text("old")
    with pytest.raises(DataError, match=said):
        write_rows(path, listed)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_column_that_begins_empty_is_text(tmp_path):
    listed = [{"a": None}] * 30_000 + [{"a": "x"}]
    write_rows(tmp_path / "rows.parquet", listed)
    assert back(tmp_path / "rows.parquet") == listed
