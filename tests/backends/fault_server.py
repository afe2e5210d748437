"""An OpenAI-compatible server on loopback. Its settings make it limited or faulty.

    with Server(say) as server:
        OpenAIBackend("tiny", server.url)

`say` gives the continuations of a request. Faults come in order from `server.faults`, or at random from the kinds in
`chance_of`. `server.log` records the answers: "served" only for choices that a client could use.
"""

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

# Faults in place of a good answer.
FAULTS = (
    "429",
    "500",
    "503",
    "slow",
    "reset",
    "hangup",
    "truncated",
    "html",
    "shape",
    "empty",
    "fewer",
    "more",
    "null",
)


@dataclass(frozen=True)
class Said:
    text: str
    finish: str | None = "stop"
    logprobs: tuple[float, ...] | None = None  # None gives one per word


@dataclass(frozen=True)
class Entry:
    what: str  # served, a fault, or a status
    text: str  # the prompt's
    choices: int  # that a client could use
    at: float  # seconds
    headers: dict


@dataclass
class Server:
    say: object  # (body, text, n) -> a sequence of Said
    models: tuple | None = ("tiny",)  # None: it has no list of models
    key: str = ""
    chance_of: tuple = ()
    rate: float = 0.0  # share of requests with a random fault
    seed: int = 0
    delay: float = 0.0  # seconds before any answer
    slow: float = 5.0  # seconds before a slow one
    headers_429: dict = field(default_factory=lambda: {"Retry-After": "0"})
    honours_n: bool = True
    logprobs: bool = True
    usage: bool = True
    continues: bool = True  # it can continue an assistant's turn
    refuses: tuple = ()  # parameters that it refuses, or pairs of a parameter and a value: ("top_k", -1)
    refusal: tuple = (400, "Unrecognized request argument: {}")
    status: tuple = ()  # (status, body, headers) for every completion
    context: int = 10**6  # tokens
    faults: list = field(default_factory=list)  # for the next completions: a fault, "" for none
    log: list = field(default_factory=list)
    bodies: list = field(default_factory=list)  # of the completion requests
    open: int = 0  # running requests
    peak: int = 0
    dropped: int = 0  # requests whose client went away
    deck: list = field(default_factory=list)

    def __enter__(self):
        self.rng = random.Random(self.seed)
        self.loop, started = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), name="fault-server", daemon=True)
        self.thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def _run(self, started):
        """The life of the loop, in its own thread: a test in a browser may have left one running in the main thread."""
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    @property
    def served(self):
        """The number of usable choices sent, without those of the probe."""
        return sum(e.choices for e in self.log if e.text not in ("Hello", "Count.") and "apple" not in e.text)

    @property
    def counts(self):
        return Counter(e.what for e in self.log)

    # ---- HTTP ----

    async def _serve(self, reader, writer):
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            work = asyncio.ensure_future(self._answer(method, path, headers, data, writer))
            while not (await asyncio.wait([work], timeout=0.02))[0]:
                if reader.at_eof() or reader.exception():
                    work.cancel()
                    self.dropped += 1
                    return False
            return work.result()
        finally:
            self.open -= 1

    async def _answer(self, method, path, headers, data, writer):
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            error = {"error": {"message": f"Incorrect API key: {headers.get('authorization')}"}}
            return await self._send(writer, 401, json.dumps(error))
        if path == "/v1/models" and self.models is not None:
            return await self._send(writer, 200, json.dumps({"data": [{"id": m} for m in self.models]}))
        if method != "POST" or path not in ("/v1/completions", "/v1/chat/completions"):
            return await self._send(writer, 404, '{"detail": "Not Found"}')
        body = json.loads(data)
        self.bodies.append(body)
        chat = "chat" in path
        text = "".join(m["content"] for m in body["messages"]) if chat else body["prompt"]

        def note(what, choices=0):
            self.log.append(Entry(str(what), text, choices, time.monotonic(), headers))

        if self.faults:
            fault = self.faults.pop(0)
        else:
            fault = self._by_chance() if self.rng.random() < self.rate else ""
        await asyncio.sleep(self.delay)
        status, reply = self._reply(body, text, chat, fault)
        if status[0] != 200:
            note(status[0])
            return await self._send(writer, status[0], reply, status[1])
        if fault in ("429", "500", "503"):
            note(fault)
            extra_headers = self.headers_429 if fault == "429" else {}
            return await self._send(writer, int(fault), '{"error": {"message": "try later"}}', extra_headers)
        if fault == "slow":
            note(fault)
            await asyncio.sleep(self.slow)
            return False
        if fault == "reset":
            note(fault)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault == "hangup":  # in the middle of the body
            note(fault)
            await self._send(writer, 200, reply[: len(reply) // 2], {"Content-Length": str(len(reply))})
            return False
        if fault == "truncated":
            note(fault)
            return await self._send(writer, 200, reply[: len(reply) // 2])
        if fault in ("html", "shape", "empty"):
            note(fault)
            wrong = {
                "html": "<html>Bad gateway</html>",
                "shape": '{"choices": [{"txt": "7"}]}',
                "empty": '{"choices": []}',
            }
            return await self._send(writer, 200, wrong[fault])
        usable = sum(c["finish_reason"] in ("stop", "length") for c in json.loads(reply)["choices"])
        note(fault or "served", min(usable, body.get("n", 1)))
        return await self._send(writer, 200, reply)

    async def _send(self, writer, status, text, headers=None):
        data = text.encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        head = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        writer.write(f"HTTP/1.1 {status} So\r\n{head}\r\n".encode() + data)
        await writer.drain()
        return True

    def _by_chance(self):
        if not self.deck:  # all kinds come once before any kind repeats
            self.deck = self.rng.sample(self.chance_of, len(self.chance_of))
        return self.deck.pop()

    # ---- replies ----

    def _reply(self, body, text, chat, fault):
        for p in self.refuses:
            name, value = p if isinstance(p, tuple) else (p, body.get(p))
            if name in body and body[name] == value:
                hint = ". Use 'max_completion_tokens' instead." * (name == "max_tokens")
                outputs = self.refusal[1].format(name) + hint
                return (self.refusal[0], {}), json.dumps({"error": {"message": outputs}})
        if self.models and len(self.models) > 1 and body["model"] not in self.models:
            return (404, {}), json.dumps({"error": {"message": f"The model `{body['model']}` does not exist"}})
        if self.status:
            return (self.status[0], self.status[2]), self.status[1]
        prompt = self._prompt_tokens(body, text, chat)
        if prompt + body["max_tokens" if "max_tokens" in body else "max_completion_tokens"] > self.context:
            outputs = f"This model's maximum context length is {self.context} tokens, and your prompt has at least 1."
            return (400, {}), json.dumps({"error": {"message": outputs}})
        n = body.get("n", 1) if self.honours_n else 1
        if fault == "fewer":
            n -= 1
        if fault == "more":
            n += 1
        outputs = list(self.say(body, text, n)) if n else []
        if fault == "null" and outputs:
            outputs[0] = Said("", None)
        choices = [self._choice(i, s, chat, body.get("logprobs")) for i, s in enumerate(outputs)]
        whole = {"object": "completion", "choices": choices}
        if self.usage:
            whole["usage"] = {"prompt_tokens": prompt, "completion_tokens": sum(_count(s) for s in outputs)}
        return (200, {}), json.dumps(whole)

    def _prompt_tokens(self, body, text, chat):
        words = len(text.split())
        if not chat:
            return words
        begun = body["messages"][-1]["role"] == "assistant"
        return words + 4 + (0 if self.continues else 5) * begun

    def _choice(self, index, output, chat, wants_logprobs):
        choice = {"index": index, "finish_reason": output.finish}
        choice |= {"message": {"role": "assistant", "content": output.text}} if chat else {"text": output.text}
        if wants_logprobs and self.logprobs:
            values = output.logprobs if output.logprobs is not None else (-0.5,) * _count(output)
            pairs = [{"token": "?", "logprob": x} for x in values]
            choice["logprobs"] = (
                {"content": pairs} if chat else {"tokens": list("?" * len(values)), "token_logprobs": values}
            )
        return choice


def _count(output):
    return len(output.logprobs) if output.logprobs is not None else max(1, len(output.text.split()))
