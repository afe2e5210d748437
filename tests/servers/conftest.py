"""A real OpenAI-compatible server, vLLM on this machine's CPU, with a model that was trained here: a generator and a
verifier in one, because a server takes longer to start than all its tests to run.

Where there is no vLLM (tests/conftest.py) the tests skip and say why; where it is there and no server comes up, they
fail and show its log. All workers of a test run share it; keep.py ends it when the last worker is gone.
"""

import contextlib
import fcntl
import json
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import pytest

from stepmark.models import checkpoints
from stepmark.plugins import registry
from stepmark.stages.train import Generator, TrainSettings, train
from stepmark.text.prompts import NO, VERDICT, YES
from stepmark.text.steps import split
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
# How solutions that it learns to verify begin, and what is said of each.
TONES = {"It is 5.": (YES, YES), "Maybe 5.": (NO, NO), "5? So be it.": (YES, NO)}
QUESTIONS = ("2 + 3?", "4 + 3?")


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str  # ends in /v1
    model: str  # its name there
    path: str  # its checkpoint
    max_length: int  # positions


@pytest.fixture(scope="session")
def server(vllm, tmp_path_factory, worker_id):
    """The server that this test run shares, begun by whoever needs it first."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "vllm"
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
                found = _start(vllm, place)
                there.write_text(json.dumps(asdict(found)))
        yield found


def _start(vllm, place: Path) -> Server:
    log = place / "server.log"
    if (place / "failed").exists():
        pytest.fail(f"the server did not come up, as another worker found:\n{_tail(log)}")
    checkpoint = _model(place / "model")
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


def _model(path: Path) -> str:
    """A generator of one problem's solutions, right and wrong, that also verifies solutions of others, and has a
    verifier's card. Heads are 32 wide: vLLM on a CPU knows none narrower."""
    shape = checkpoints.Shape(hidden=64, heads=2, kv_heads=1, layers=2, vocab=400, max_length=128)
    direct, reasoning = (registry.load("verifier", "genrm", path="", mode=mode) for mode in ("direct", "cot"))
    solved = [(f"{PROBLEM.question}\n", text) for text, times in SAID.items() for _ in range(times)]
    verified = []
    for p, x in verifications():
        said = x.rationales[0].text
        verified.append((reasoning.ask(p.question, x.solution.text), said))
        verified.append((direct.ask(p.question, x.solution.text), said.rpartition(VERDICT)[2]))
    known = [*map("".join, solved + verified), *direct.corpus() * 50]
    at = str(checkpoints.create(path.with_name("base"), known, shape))
    settings = TrainSettings(batch_tokens=512, tensorboard=False, device="cpu")
    # Both at once would take longer: that a solution's lines hang together is learned late, and best alone.
    for name, pairs, epochs, lr in (("solver", solved, 80, 1e-2), ("both", solved + verified, 50, 6e-3)):
        told = [Problem(f"{i}", given, "", "made", demonstration=said) for i, (given, said) in enumerate(pairs)]
        out = path.with_name(name)
        train(Generator(at, template="{question}"), told, out, replace(settings, epochs=epochs, lr=lr))
        at = str(out)
    verifier = registry.load("verifier", "genrm", path=at, mode="cot", device="cpu")
    train(verifier, verifications(), path, replace(settings, epochs=1, lr=1e-4))
    return str(path)


def verifications() -> list[tuple[Problem, LabelledSolution]]:
    """Each solution twice: a verification takes it by its tone, and of one tone nobody knows what to think."""
    found = []
    for question in QUESTIONS:
        problem = Problem(question, question, "5", "made")
        for tone, verdicts in TONES.items():
            for i, verdict in enumerate(verdicts):
                text = f"{tone}\nThe answer is 5."
                said = f"It {'is sure' if verdict is YES else 'says maybe'}.\n{VERDICT}{verdict}"
                grade = Grade(Verdict.CORRECT if verdict is YES else Verdict.INCORRECT, "made", "5")
                solution = Solution(f"{question}{tone}#{i}", question, i, text, split(text))
                labels = (StepLabel(0, 0, source="none"),) * 2
                found.append((problem, LabelledSolution(solution, grade, labels, (Rationale(said, "", "oracle"),))))
    return found


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else "(no log)"
