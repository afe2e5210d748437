"""The client of one server: retries requests if that can help, and raises an error that names the cause if not.

Retried: 408, 409, 425, 429, 5xx, broken connections, time-outs, unreadable answers. The pause doubles after each
attempt, with jitter, unless the server asks for another pause (Retry-After). Not retried: requests that would be
refused again, such as a 5xx with a message about an unsupported feature.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

import httpx

from stepmark.backends.openai import replies
from stepmark.backends.openai.replies import Malformed
from stepmark.errors import BackendError

T = TypeVar("T")

PASSING = {408, 409, 425, 429}  # temporary, like all from 500
FATAL = {401, 402, 403, 404, 405, 410}  # wrong for all requests alike, as redirects are
LONGEST_PAUSE = 60.0  # seconds, unless the server asks for more
HERE = {"localhost", "127.0.0.1", "::1"}


class Refused(Exception):
    """The server refused this request, and would refuse it again."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        super().__init__(f"the server answered {status}: {replies.message(body)}")


class Unusable(BackendError):
    """All requests fail for one reason: the address, the key or the model."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status  # of the answer
        super().__init__(message)


class Unanswered(Exception):
    """No usable answer within the allowed attempts and time."""


class Client:
    """A connection pool to one server, for one event loop: `async with Client(...)`."""

    def __init__(
        self,
        url: str,
        key_env: str,
        *,
        connections: int,
        retries: int,
        pause: float,
        timeout: float,
        deadline: float,
    ) -> None:
        self.url, self._key_env = url.rstrip("/"), key_env
        self._retries, self._pause, self._timeout, self._deadline = retries, pause, timeout, deadline
        self._key = os.environ.get(key_env, "").strip() if key_env else ""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            self._http = httpx.AsyncClient(
                headers=headers,
                verify=_tls(),
                timeout=None,  # `ask` limits the whole request; httpx limits each read
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                trust_env=httpx.URL(self.url).host not in HERE,  # a proxy can't reach a server of this machine
            )
        except (httpx.InvalidURL, UnicodeError) as e:
            raise Unusable(f"{self.url!r}, or the key in ${key_env}, can't be used in a request: {e}") from None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, path: str, body: Mapping[str, object] | None, read: Callable[[bytes], T]) -> T:
        """The result of `read` on the answer to a POST of `body`, or to a GET if `body` is None.

        Raises Refused, Unanswered, Unusable."""
        loop = asyncio.get_running_loop()
        data = None if body is None else json.dumps(body).encode()
        end = loop.time() + self._deadline
        attempts = self._retries + 1
        for attempt in range(1, attempts + 1):
            retry_after = None
            limit = min(self._timeout, end - loop.time())
            try:
                async with asyncio.timeout(limit):
                    answer = await self._http.request("GET" if data is None else "POST", self.url + path, content=data)
                if answer.status_code == 200:
                    return read(answer.content)
                self._raise_for(answer)
                reason = f"the server answered {answer.status_code}: {self._message(answer)}"
                retry_after = replies.retry_after(answer.headers.get("Retry-After"), time.time())
            except TimeoutError:
                reason = f"no answer within {limit:.3g} s"
            except httpx.RequestError as e:
                reason = f"the connection failed ({type(e).__name__}{f': {e}' if str(e) else ''})"
            except Malformed as e:
                reason = f"the answer can't be read: {e}"
            # Jitter, so that requests that failed together are not retried together.
            if retry_after is None:
                pause = min(LONGEST_PAUSE, self._pause * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            else:
                pause = retry_after + random.uniform(0.0, self._pause)
            if attempt < attempts and loop.time() + pause >= end:
                deadline = f"the deadline of {self._deadline:g} s allows no more"
                raise Unanswered(f"{reason}; tried {attempt} times, and {deadline}")
            if attempt < attempts:
                await asyncio.sleep(pause)
        raise Unanswered(f"{reason}; tried {attempts} times")

    def _raise_for(self, answer: httpx.Response) -> None:
        """Raises for an answer that would be the same after a retry."""
        status = answer.status_code
        if 300 <= status < 400:
            target = answer.headers.get("Location", "another address")
            raise Unusable(f"{answer.url} redirects to {target}. Set the backend's url to that.", status)
        if status in FATAL or (status == 429 and replies.names(answer.content, "insufficient_quota")):
            raise Unusable(f"{answer.url} answered {status}: {self._message(answer)} {self._advice(status)}", status)
        if (status < 500 and status not in PASSING) or replies.unsupported(answer.content):
            raise Refused(status, self._without_key(answer.content))

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            problem = f"${self._key_env} holds a key that was not accepted" if self._key else "no key was sent"
            return f"({problem}: put the server's key into the environment variable named by key_env.)"
        if status in (402, 429):
            return "(The account can't pay for more.)"
        return "(Check the backend's url, which usually ends in /v1, its model, and chat.)"

    def _message(self, answer: httpx.Response) -> str:
        return replies.message(self._without_key(answer.content))

    def _without_key(self, body: bytes) -> bytes:
        """The body without the key: messages are stored and shown, and some servers repeat the key in them."""
        return body.replace(self._key.encode(), b"***") if self._key else body


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # cached, since it can take longer than a request
