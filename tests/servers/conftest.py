"""A real OpenAI-compatible server: vLLM on this machine's CPU, with a model that is trained here. The model is
generator and verifier in one, because a server takes longer to start than all its tests to run.

If there is no vLLM (tests/conftest.py), the tests skip and give the reason. If there is vLLM and no server comes up,
they fail and show its log. All workers of a test run share the server. keep.py ends it when the last worker is gone.
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

UP_WITHIN = 300  # seconds; imports take about 20 in each of three processes, on a core that others use too
PROBLEM = Problem("p", "Ann has 2. Ben has 3 more. How many in all?", "7", "made")
# Solutions that the generator learns, and how often: two steps, each of which may go wrong, and a lucky recovery.
SOLUTIONS = {
    "Ben has 2 + 3 = 5.\nIn all 2 + 5 = 7.\nThe answer is 7.": 10,
    "Ben has 2 + 3 = 5.\nIn all 2 + 5 = 8.\nThe answer is 8.": 4,
    "Ben has 2 + 3 = 6.\nIn all 2 + 6 = 8.\nThe answer is 8.": 5,
    "Ben has 2 + 3 = 6.\nIn all 2 + 6 = 8.\nNo, that is wrong. The answer is 7.": 1,
}
# First lines of the solutions that it learns to verify, and the verdicts on each.
TONES = {"It is 5.": (YES, YES), "Maybe 5.": (NO, NO), "5? So be it.": (YES, NO)}
QUESTIONS = ("2 + 3?", "4 + 3?")


@dataclass(frozen=True)
class Server:
    """A server that answers requests."""

    url: str  # ends in /v1
    model: str  # its name on the server
    path: str  # its checkpoint
    max_length: int  # positions


@pytest.fixture(scope="session")
def server(vllm, tmp_path_factory, worker_id):
    """The server that this test run shares. The first test that needs it starts it."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "vllm"
    place.mkdir(exist_ok=True)
    users = place / "users"
    with users.open("a") as using:
        fcntl.flock(using, fcntl.LOCK_SH)
        with (place / "starting").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            record = place / "server.json"
            running = Server(**json.loads(record.read_text())) if record.exists() else None
            if running is None or not _answers(running):
                record.unlink(missing_ok=True)
                running = _start(vllm, place)
                record.write_text(json.dumps(asdict(running)))
        yield running


def _start(vllm, place: Path) -> Server:
    log = place / "server.log"
    if (place / "failed").exists():
        pytest.fail(f"the server did not come up for another worker. The end of its log:\n{_tail(log)}")
    checkpoint = _model(place / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Server(f"http://127.0.0.1:{port}/v1", "tiny", checkpoint, 128)
    command = [
        *("nice", "-n", "10", vllm.python, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"),
        *("--model", checkpoint, "--served-model-name", started.model, "--dtype", "float32", "--block-size", "32"),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(started.max_length)),
    ]
    keep = [sys.executable, str(Path(__file__).with_name("keep.py")), str(place / "users"), str(log), *command]
    keeper = subprocess.Popen(keep, env=vllm.environment, cwd=place, start_new_session=True)  # no Ctrl-C reaches it
    deadline = time.monotonic() + UP_WITHIN
    while keeper.poll() is None and time.monotonic() < deadline:
        if _answers(started):
            return started
        time.sleep(0.5)
    outcome = "ended" if keeper.poll() is not None else f"was not up after {UP_WITHIN} s"
    (place / "failed").touch()
    return pytest.fail(f"the server {outcome}. The end of its log:\n{_tail(log)}")


def _answers(server: Server) -> bool:
    """Whether it continues a text. Some models load and then break the engine at the first request."""
    with contextlib.suppress(httpx.TransportError), httpx.Client(timeout=60, trust_env=False) as client:
        if client.get(f"{server.url}/models").status_code == 200:
            body = {"model": server.model, "prompt": "Ann", "max_tokens": 1, "logprobs": 0}
            return client.post(f"{server.url}/completions", json=body).status_code == 200
    return False


def _model(path: Path) -> str:
    """Path of a trained generator of one problem's solutions, right and wrong. It also verifies solutions of other
    problems, and has a verifier's card. Heads are 32 wide, the smallest width that vLLM supports on a CPU."""
    shape = checkpoints.Shape(hidden=64, heads=2, kv_heads=1, layers=2, vocab=400, max_length=128)
    direct, reasoning = (registry.load("verifier", "genrm", path="", mode=mode) for mode in ("direct", "cot"))
    solved = [(f"{PROBLEM.question}\n", text) for text, times in SOLUTIONS.items() for _ in range(times)]
    verified = []
    for p, x in verifications():
        rationale = x.rationales[0].text
        verified.append((reasoning.ask(p.question, x.solution.text), rationale))
        verified.append((direct.ask(p.question, x.solution.text), rationale.rpartition(VERDICT)[2]))
    corpus = [*map("".join, solved + verified), *direct.corpus() * 50]
    model_path = str(checkpoints.create(path.with_name("base"), corpus, shape))
    settings = TrainSettings(batch_tokens=512, tensorboard=False, device="cpu")
    # Solving first: learning both at once takes longer, because it learns late how the lines of a solution depend on
    # each other.
    for name, pairs, epochs, lr in (("solver", solved, 80, 1e-2), ("both", solved + verified, 50, 6e-3)):
        problems = [Problem(f"{i}", prompt, "", "made", demonstration=text) for i, (prompt, text) in enumerate(pairs)]
        out = path.with_name(name)
        train(Generator(model_path, template="{question}"), problems, out, replace(settings, epochs=epochs, lr=lr))
        model_path = str(out)
    verifier = registry.load("verifier", "genrm", path=model_path, mode="cot", device="cpu")
    train(verifier, verifications(), path, replace(settings, epochs=1, lr=1e-4))
    return str(path)


def verifications() -> list[tuple[Problem, LabelledSolution]]:
    """Two examples for each solution. The first line determines the verdict, except one that has both verdicts."""
    examples = []
    for question in QUESTIONS:
        problem = Problem(question, question, "5", "made")
        for tone, verdicts in TONES.items():
            for i, verdict in enumerate(verdicts):
                text = f"{tone}\nThe answer is 5."
                rationale = f"It {'is sure' if verdict is YES else 'says maybe'}.\n{VERDICT}{verdict}"
                grade = Grade(Verdict.CORRECT if verdict is YES else Verdict.INCORRECT, "made", "5")
                solution = Solution(f"{question}{tone}#{i}", question, i, text, split(text))
                labels = (StepLabel(0, 0, source="none"),) * 2
                examples.append(
                    (problem, LabelledSolution(solution, grade, labels, (Rationale(rationale, "", "oracle"),)))
                )
    return examples


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else "(no log)"
