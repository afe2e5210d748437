"""Worker processes: their threads, and the end of workers and parents."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stepmark.data import token_meter
from stepmark.errors import ConfigError, StageError
from stepmark.executors.processes import ProcessesExecutor


def environment(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


def die_at_three(unit: int) -> int:
    if unit == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return unit


def write_and_wait(place: str) -> None:
    Path(place, str(os.getpid())).touch()
    time.sleep(60)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"  # dead, and nobody asked
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc/self").exists()  # not Linux


def wait_until(condition, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_each_worker_has_one_thread_and_this_process_keeps_its_setting(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    results = list(ProcessesExecutor(workers=2).map(environment, range(6)))
    assert {threads for _, threads in results} == {"1"}
    assert os.getpid() not in {pid for pid, _ in results}
    assert 1 <= len({pid for pid, _ in results}) <= 2
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_no_more_workers_than_units():
    assert len({pid for pid, _ in ProcessesExecutor(workers=8).map(environment, range(1))}) == 1
    with pytest.raises(ConfigError, match="workers"):
        ProcessesExecutor(workers=-1)


def test_a_dead_worker_is_named_with_its_unit_and_the_rest_is_kept():
    results = []
    with pytest.raises(StageError, match=r"SIGKILL.*while it worked on 3\b"):
        for result in ProcessesExecutor(workers=2).map(die_at_three, range(50)):
            results.append(result)  # noqa: PERF402 - list(...) would lose the results before the exception
    assert {0, 1, 2} <= set(results)
    assert len(results) <= 5


def write_and_wait_to_be_counted(place):
    token_meter.add(7)
    wait_until(Path(place, "counted").exists)
    yield place


def test_tokens_of_unfinished_units_are_counted_here(tmp_path):
    before = token_meter.written()

    def watch():
        wait_until(lambda: token_meter.written() == before + 14)
        (tmp_path / "counted").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert list(ProcessesExecutor(workers=2).stream(write_and_wait_to_be_counted, [str(tmp_path)] * 2))
    watcher.join()
    assert token_meter.written() == before + 14


def test_work_that_cannot_be_pickled_is_refused():
    with pytest.raises(StageError, match="serial"):
        list(ProcessesExecutor(workers=2).map(lambda unit: unit, [1]))


def test_leaving_half_way_ends_the_workers(tmp_path):
    results = ProcessesExecutor(workers=2).map(environment, range(100))
    pids = {next(results)[0], next(results)[0]}
    results.close()
    assert not any(map(alive, pids))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_however_it_ends(tmp_path, signal_number):
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys\n"
        # A shell that runs the suite in the background ignores SIGINT, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from stepmark.executors.processes import ProcessesExecutor\n"
        "import test_processes\n"
        "if __name__ == '__main__':\n"
        "    list(ProcessesExecutor(workers=2).map(test_processes.write_and_wait, [sys.argv[1]] * 4))\n"
    )
    marks = tmp_path / "pids"
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(marks)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(marks.iterdir())) == 2)
    pids = [int(p.name) for p in marks.iterdir()]
    assert all(map(alive, pids))
    parent.send_signal(signal_number)
    stderr = parent.communicate(timeout=20)[1]
    wait_until(lambda: not any(map(alive, pids)))
    if signal_number is signal.SIGINT:
        assert stderr.rstrip().endswith("KeyboardInterrupt")
        assert stderr.count("Traceback") == 1
