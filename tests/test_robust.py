"""The script behind `make test-robust`: it finds the test that one seed breaks, and the one that a setting breaks."""

import subprocess
import sys
from pathlib import Path

LUCKY = """
import os
import pytest
from seeds import SEED

@pytest.mark.robust
def test_steady():
    pass

@pytest.mark.robust
def test_of_one_seed():
    assert SEED != 2

@pytest.mark.robust
def test_of_one_thread():
    assert os.environ["OMP_NUM_THREADS"] == "1"

@pytest.mark.robust
def test_left_out():
    pytest.skip("not here")

def test_without_the_mark():
    raise AssertionError
"""


def robust(*arguments):
    command = [sys.executable, Path(__file__).with_name("robust.py"), "--settings", "two", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_fails_with_some_seed_or_setting_is_named(tmp_path):
    (tmp_path / "test_lucky.py").write_text(LUCKY)
    done = robust("--seeds", 3, "--few", 1, tmp_path)
    assert done.returncode == 1, done.stderr
    rows = {words[0].rpartition("::")[2]: words[1:] for line in done.stdout.splitlines() if (words := line.split())}
    assert rows["test_steady"] == ["3/3", "1/1"]
    assert rows["test_of_one_seed"] == ["2/3", "1/1", "FAILED"]
    assert rows["test_of_one_thread"] == ["3/3", "0/1", "FAILED"]
    assert rows["test_left_out"] == ["-", "-"] and "test_without_the_mark" not in rows
    assert "assert 2 != 2" in done.stdout and "4 passes, 2 tests failed in some" in done.stdout


def test_only_passes_end_well_and_what_can_not_run_is_said(tmp_path):
    (tmp_path / "test_lucky.py").write_text(LUCKY)
    assert robust("--seeds", 1, "--few", 0, "-k", "steady", tmp_path).returncode == 0
    (tmp_path / "test_lucky.py").write_text("import nothing_of_this_name")
    done = robust("--seeds", 1, "--few", 0, tmp_path)
    assert done.returncode == 1 and "nothing_of_this_name" in done.stdout
    assert "compatible" in robust("--settings", "none", tmp_path).stderr
