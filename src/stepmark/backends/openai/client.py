"""One server: requests that are tried again where that can help, and errors that say whose fault it was.

Tried again: 408, 409, 425, 429, 5xx, broken connections, time-outs, answers that can't be read. The pause doubles
from one try to the next, with jitter, unless the server asks for another (Retry-After). Never tried again: what will
be refused again, a 5xx that speaks of something unsupported among it.
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

PASSING = {408, 409, 425, 429}  # and all from 500 on
FATAL = {401, 402, 403, 404, 405, 410}  # about the whole setup, as redirects are
LONGEST_PAUSE = 60.0  # seconds, unless the server asks for more
HERE = {"localhost", "127.0.0.1", "::1"}


class Refused(Exception):
    """The server does not want this one request, and will not want it later."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        super().__init__(f"the server answered {status}: {replies.message(body)}")


class Unusable(BackendError):
    """Something is wrong with every request alike: the address, the key, the model."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status  # of the answer that said so
        super().__init__(message)


class Unanswered(Exception):
    """No usable answer within the tries and the time that there were."""


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
                timeout=None,  # a limit on the whole is below; httpx's are on each read
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
        """What `read` makes of the answer to a POST of `body`, or to a GET without one.

        Raises Refused, Unanswered, Unusable."""
        loop = asyncio.get_running_loop()
        data = None if body is None else json.dumps(body).encode()
        ends = loop.time() + self._deadline
        tries = self._retries + 1
        for tried in range(1, tries + 1):
            asked = None
            limit = min(self._timeout, ends - loop.time())
            try:
                async with asyncio.timeout(limit):
                    answer = await self._http.request("GET" if data is None else "POST", self.url + path, content=data)
                if answer.status_code == 200:
                    return read(answer.content)
                self._raise_for(answer)
                why = f"the server answered {answer.status_code}: {self._said(answer)}"
                asked = replies.retry_after(answer.headers.get("Retry-After"), time.time())
            except TimeoutError:
                why = f"no answer within {limit:.3g} s"
            except httpx.RequestError as e:
                why = f"the connection failed ({type(e).__name__}{f': {e}' if str(e) else ''})"
            except Malformed as e:
                why = f"the answer can't be read: {e}"
            # Jitter, so that requests that failed together do not come back together.
            own = min(LONGEST_PAUSE, self._pause * 2.0 ** (tried - 1))
            wait = own * random.uniform(0.5, 1.0) if asked is None else asked + random.uniform(0.0, self._pause)
            if tried < tries and loop.time() + wait >= ends:
                raise Unanswered(f"{why}; tried {tried} times, and the deadline of {self._deadline:g} s allows no more")
            if tried < tries:
                await asyncio.sleep(wait)
        raise Unanswered(f"{why}; tried {tries} times")

    def _raise_for(self, answer: httpx.Response) -> None:
        """Raises for an answer that would be the same the next time."""
        status = answer.status_code
        if 300 <= status < 400:
            place = answer.headers.get("Location", "elsewhere")
            raise Unusable(f"{answer.url} is not there but at {place}. Give that as the backend's url.", status)
        if status in FATAL or (status == 429 and replies.names(answer.content, "insufficient_quota")):
            raise Unusable(f"{answer.url} answered {status}: {self._said(answer)} {self._advice(status)}", status)
        if (status < 500 and status not in PASSING) or replies.unsupported(answer.content):
            raise Refused(status, self._without_key(answer.content))

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            got = f"${self._key_env} holds a key that was not accepted" if self._key else "no key was sent"
            return f"({got}: put the server's key into the environment variable named by key_env.)"
        if status in (402, 429):
            return "(The account can't pay for more.)"
        return "(Look at the backend's url, which usually ends in /v1, at its model, and at chat.)"

    def _said(self, answer: httpx.Response) -> str:
        return replies.message(self._without_key(answer.content))

    def _without_key(self, body: bytes) -> bytes:
        """Messages are stored and shown; a key is neither, even where a server repeats it."""
        return body.replace(self._key.encode(), b"***") if self._key else body


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes longer than many a request
