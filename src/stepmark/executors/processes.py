"""Executor `processes`: spawned worker processes on this machine, one torch thread each.

There are several processes with one thread each, not one process with several threads. On a machine with other load,
two threads per matrix product were measured at a twentieth of the speed of one.

The work is pickled once and sent to each worker at its start, so a model that the work loads on first use is loaded
once per worker. A worker gets one unit at a time, so at most `workers` units run at once. A result is yielded as soon
as it arrives; a worker sends the results of a unit in progress about once a second. Workers end with the parent, even
when the parent is killed with -9. The parent says the notes of all workers, each once (data/notes.py), and counts the
tokens that they write (data/token_meter.py).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import pickle
import reprlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from stepmark import machine
from stepmark.data import notes, token_meter
from stepmark.data.timed_batch import TimedBatch
from stepmark.errors import ConfigError, StageError, StepmarkError
from stepmark.plugins import registry

Unit = TypeVar("Unit")
Result = TypeVar("Result")

# Numerical libraries read these when they are first imported, so they must be set when a worker starts.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ENVIRONMENT = ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class ProcessesExecutor:
    """Runs units in worker processes."""

    workers: int = 0  # 0 means one per core that this process may use

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 1, or 0 for one per core, got {self.workers}.")

    def map(self, work: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
        """Results as they arrive. When a unit raises, or its worker dies, no new unit starts. Running units are
        finished and yielded first; then it raises the unit's exception, or StageError for a dead worker."""
        return _run(self.workers or machine.cores(), _pickled((work, False)), iter(units))

    def stream(self, work: Callable[[Unit], Iterable[Result]], units: Iterable[Unit]) -> Iterator[Result]:
        """What `work` yields, about a second later. Exceptions as in `map`."""
        return _run(self.workers or machine.cores(), _pickled((work, True)), iter(units))


def _pickled(work: object) -> bytes:
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError) as e:
        raise StageError(
            f"the work can't be sent to worker processes ({e}). Use importable functions and plug-ins that hold "
            "plain settings, or the executor `serial`."
        ) from e


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    unit: object = None  # the unit that it works on
    done: int = 0  # number of finished units


def _run(max_workers: int, payload: bytes, units: Iterator[Any]) -> Iterator[Any]:
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    failure: BaseException | None = None
    # It also runs when the interpreter exits, which would else wait for the workers of an unfinished generator.
    stop = Finalize(None, _stop, args=(idle, busy), exitpriority=10)
    try:
        while True:
            while failure is None and len(busy) < max_workers:
                try:
                    unit = next(units)
                except StopIteration:
                    max_workers = 0
                    break
                worker = idle.pop() if idle else _start(payload)
                worker.unit = unit
                busy.append(worker)
                # A worker that died while idle is found below, when its connection is read.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    worker.connection.send(unit)
            if not busy:
                break
            for ready in wait([w.connection for w in busy]):
                worker = next(w for w in busy if w.connection is ready)
                try:
                    note, tokens, results, error, ended = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    busy.remove(worker)
                    failure = failure or _death(worker)
                    continue
                token_meter.add(tokens)
                if note is not None:
                    notes.say(logging.getLogger(note[0]), note[1])
                if ended:
                    worker.done += 1
                    busy.remove(worker)
                    idle.append(worker)
                failure = failure or error
                yield from results
        if failure is not None:
            raise failure
    finally:
        stop()


def _start(payload: bytes) -> _Worker:
    context = mp.get_context("spawn")
    connection, worker_connection = context.Pipe()
    args = worker_connection, payload, registry.user_files()
    process = context.Process(target=_work, args=args, name="stepmark-worker")
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        worker_connection.close()
    return _Worker(process, connection)


def _stop(idle: list[_Worker], busy: list[_Worker]) -> None:
    for worker in idle + busy:
        worker.connection.close()  # an idle worker then ends by itself
    for worker in busy:
        worker.process.terminate()
    for worker in idle + busy:
        worker.process.join(5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _death(worker: _Worker) -> StageError:
    worker.process.join()
    code = worker.process.exitcode
    reason = f"exit status {code}"
    advice = "Its last messages are above."
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        reason = f"signal {name}"
        if name == "SIGKILL":
            reason += ", which Linux sends when memory runs out"
            advice = "Give it fewer workers, or a smaller batch."
    elif not worker.done:
        advice = "Its last messages are above. A script that starts workers needs `if __name__ == '__main__':`."
    return StageError(
        f"a worker process ended ({reason}) while it worked on {reprlib.repr(worker.unit)}. {advice} "
        "Results that came before are kept; the same command goes on from there."
    )


def _work(connection: Connection, payload: bytes, user_files: tuple[str, ...]) -> None:
    """The main loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal too, and ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sending = threading.Lock()  # notes and results come from different threads
    counted = 0  # tokens that the parent knows of

    def send(
        results: list[Any],
        error: Exception | None = None,
        ended: bool = False,
        note: tuple[str, str] | None = None,  # name of the logger, text
    ) -> None:
        nonlocal counted
        try:
            with sending:
                tokens, counted = token_meter.written() - counted, token_meter.written()
                if results or ended or note or tokens:
                    connection.send((note, tokens, results, error, ended))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)  # nobody waits for the results
        except Exception as e:
            raise StageError(f"a result can't be sent back from a worker process: {e}") from e

    with notes.heard(lambda name, text: send([], note=(name, text)), show=False):
        _serve(connection, payload, user_files, send)


def _serve(connection: Connection, payload: bytes, user_files: tuple[str, ...], send: Callable[..., None]) -> None:
    """Works on units as they come, until the parent closes the connection."""
    work: Callable[[Any], Any] | None = None
    streams = False
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):
            return
        results, error = list[Any](), None
        try:
            if work is None:
                registry.load_user_files(user_files)
                work, streams = pickle.loads(payload)  # noqa: S301 - from our own parent
            if streams:
                with TimedBatch(send) as batch:
                    for result in work(unit):
                        batch.add(result)
            else:
                results = [work(unit)]
        except Exception as e:
            error = _portable(e)
        try:
            send(results, error, ended=True)
        except StageError as e:
            send([], _portable(e), ended=True)


def _exit_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or an exception of its nearest base class that can be pickled."""
    error.__cause__ = error.__context__ = None
    for kind in (None, *(c for c in type(error).__mro__ if issubclass(c, Exception))):
        try:
            candidate = error if kind is None else kind(str(error))
            copied = pickle.loads(pickle.dumps(candidate))  # noqa: S301 - our own pickle
            if isinstance(copied, Exception) and str(copied) == str(candidate):
                return candidate
        except Exception:
            continue
    return StepmarkError(f"{type(error).__name__}: {error}")
