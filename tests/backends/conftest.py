"""A server for the tests of backends."""

import importlib.util
import sys
from pathlib import Path

import pytest

from stepmark.backends.local import LocalBackend
from stepmark.types import Prompt, SamplingParams


@pytest.fixture(scope="session")
def fault_server():
    """The module beside this file: its Server, Said, FAULTS."""
    spec = importlib.util.spec_from_file_location("fault_server", Path(__file__).parent / "fault_server.py")
    module = sys.modules["fault_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server_of_llama(fault_server, model_of):
    """A server without faults that returns rollouts of the backend `local`."""
    local = LocalBackend(model_of("llama"), device="cpu")

    def say(body, text, n):
        stop = tuple(body.get("stop", ()))
        params = SamplingParams(body["max_tokens"], body["temperature"], body["top_p"], stop, body.get("seed", 0))
        for r in local.sample([Prompt("", text, n=n)], params):
            yield fault_server.Said(r.text, r.finish.value, (r.logprob / r.tokens,) * r.tokens)

    with fault_server.Server(say) as server:
        yield server
