"""Real OpenAI-compatible servers, vLLM on this machine's CPU, with a generator and a verifier that were trained here.

Where there is no vLLM (tests/conftest.py) the tests skip and say why; where it is there and no server comes up, they
fail and show its log. All workers of a test run share them; keep.py ends each when the last worker is gone.
"""

import contextlib
import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import pytest

from stepmark import checkpoints, plugins
from stepmark.prompts import NO, VERDICT, YES
from stepmark.steps import split
from stepmark.train import Generator, TrainSettings, train
from stepmark.types import Grade, LabelledSolution, Problem, Rationale, Solution, StepLabel, Verdict

UP_WITHIN = 300  # seconds: about 20 of imports in each of three processes, on a core that others use too
PROBLEM = Problem("p", "Ann has 2. Ben has 3 more. How many in all?", "7", "made")
# What the generator learns to say, and how often: two steps, each of which may go wrong, and a lucky recovery.
SAID = {
    "Ben has 2 + 3 = 5.\nIn all 2 + 5 = 7.\nThe answer is 7.": 10,
    "Ben has 2 + 3 = 5.\nIn all 2 + 5 = 8.\nThe answer is 8.": 4,
    "Ben has 2 + 3 = 6.\nIn all 2 + 6 = 8.\nThe answer is 8.": 5,
    "Ben has 2 + 3 = 6.\nIn all 2 + 6 = 8.\nNo, that is wrong. The answer is 7.": 1,
}


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str  # ends in /v1
    model: str  # its name there
    path: str  # its checkpoint
    max_length: int  # positions


@pytest.fixture(scope="session")
def server(vllm, tmp_path_factory, worker_id):
    """A server with a generator."""
    with _shared(vllm, tmp_path_factory, worker_id, "vllm", _generator) as found:
        yield found


@pytest.fixture(scope="session")
def verifying(vllm, tmp_path_factory, worker_id):
    """Another one with a generative verifier."""
    with _shared(vllm, tmp_path_factory, worker_id, "vllm-verifying", _verifier) as found:
        yield found


@contextlib.contextmanager
def _shared(vllm, tmp_path_factory, worker_id, name: str, make: Callable[[Path], str]) -> Iterator[Server]:
    """The server of a checkpoint that `make` makes, which this test run shares, begun by whoever needs it first."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / name
    place.mkdir(exist_ok=True)
    users = place / "users"
    with users.open("a") as using:
        fcntl.flock(using, fcntl.LOCK_SH)
        with (place / "starting").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            there = place / "server.json"
            found = Server(**json.loads(there.read_text())) if there.exists() else None
            if found is None or not _answers(found):
                there.unlink(missing_ok=True)
                found = _start(vllm, place, make)
                there.write_text(json.dumps(asdict(found)))
        yield found


def _start(vllm, place: Path, make: Callable[[Path], str]) -> Server:
    log = place / "server.log"
    if (place / "failed").exists():
        pytest.fail(f"the server did not come up, as another worker found:\n{_tail(log)}")
    checkpoint = make(place / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}/v1", "tiny", checkpoint, 128)
    command = [
        *("nice", "-n", "10", vllm.python, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"),
        *("--model", checkpoint, "--served-model-name", found.model, "--dtype", "float32", "--block-size", "32"),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(found.max_length)),
    ]
    keep = [sys.executable, str(Path(__file__).with_name("keep.py")), str(place / "users"), str(log), *command]
    keeper = subprocess.Popen(keep, env=vllm.environment, cwd=place, start_new_session=True)  # no Ctrl-C reaches it
    deadline = time.monotonic() + UP_WITHIN
    while keeper.poll() is None and time.monotonic() < deadline:
        if _answers(found):
            return found
        time.sleep(0.5)
    what = "ended" if keeper.poll() is not None else f"was not up after {UP_WITHIN} s"
    (place / "failed").touch()
    return pytest.fail(f"the server {what}. The end of its log:\n{_tail(log)}")


def _answers(server: Server) -> bool:
    """Whether it continues a text: some models pass the start and break the engine at their first request."""
    with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60, trust_env=False) as client:
        if client.get(f"{server.url}/models").status_code == 200:
            body = {"model": server.model, "prompt": "Ann", "max_tokens": 1, "logprobs": 0}
            return client.post(f"{server.url}/completions", json=body).status_code == 200
    return False


def _generator(path: Path) -> str:
    """A generator of one problem's solutions, right and wrong. Heads are 32 wide: vLLM on a CPU knows none narrower."""
    shape = checkpoints.Shape(hidden=64, heads=2, kv_heads=1, layers=2, vocab=400, max_length=128)
    told = [
        Problem(f"{i}", PROBLEM.question, PROBLEM.answer, "made", demonstration=text)
        for i, text in enumerate(text for text, times in SAID.items() for _ in range(times))
    ]
    base = checkpoints.create(path.with_name("base"), [f"{PROBLEM.question}\n{p.demonstration}" for p in told], shape)
    settings = TrainSettings(epochs=80, lr=1e-2, batch_tokens=512, tensorboard=False)
    train(Generator(str(base)), told, path, settings)
    return str(path)


def _verifier(path: Path) -> str:
    """A verifier, which learned to say so at once and then to reason first: what is sure is right."""
    shape = checkpoints.Shape(hidden=64, heads=2, kv_heads=1, layers=2, vocab=400, max_length=128)
    examples = [verification(f"{a} + 3?", sure) for a in range(2, 6) for sure in (True, False)]
    direct = plugins.load("verifier", "genrm", path=str(path.with_name("base")), device="cpu")
    texts = [direct.ask(p.question, x.solution.text) + x.rationales[0].text for p, x in examples]
    checkpoints.create(path.with_name("base"), [*texts, *direct.corpus() * 50], shape)
    settings = TrainSettings(epochs=60, lr=1e-2, batch_tokens=512, row_tokens=512, tensorboard=False)
    train(direct, examples, path.with_name("direct"), settings)
    reasoning = plugins.load("verifier", "genrm", path=str(path.with_name("direct")), mode="cot", device="cpu")
    train(reasoning, examples, path, settings)
    return str(path)


def verification(question: str, sure: bool) -> tuple[Problem, LabelledSolution]:
    """A solution that is sure of itself or not, and a verification that takes it by its tone."""
    problem = Problem(question, question, "5", "made")
    text = "It is 5.\nThe answer is 5." if sure else "Maybe 5.\nThe answer is 5."
    rationale = Rationale(f"It {'is sure' if sure else 'says maybe'}.\n{VERDICT}{YES if sure else NO}", "", "oracle")
    grade = Grade(Verdict.CORRECT if sure else Verdict.INCORRECT, "made", "5")
    solution = Solution(f"{question}#{sure:d}", question, int(sure), text, split(text))
    return problem, LabelledSolution(solution, grade, (StepLabel(0, 0, source="none"),) * 2, (rationale,))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else "(no log)"
