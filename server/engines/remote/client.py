"""One server: requests to it, and how they fail.

Knows: HTTP, its connections, and which failure means what for whoever asks. Does not know: which
other servers there are, turns, sessions.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import httpx

from server.core import ConfigError
from server.engines.remote import protocol
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.protocol import Asked, Chunk, Events, Malformed, Way
from server.engines.silence import Watch

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of every turn

Kind = Literal[
    "lost",  # nobody is there, or the connection broke
    "failed",  # the server says that it failed, or what it says is nothing
    "busy",  # it can take no more now
    "hung",  # it says nothing at all
    "wrong",  # it is there, and not what it should be: key, model
    "refused",  # it won't do this, and nobody like it will
]

_PATIENCE_S = 30.0
"""For what isn't streamed and is no turn: a question at the start, a look at its health."""


_IDLE_S = 2.0
"""How long an idle connection is kept: less than servers do (uvicorn, and so vLLM, 5 s)."""


class Failed(Exception):
    """A request that came to nothing.

    after_s: how long the server wants to be left alone, where it says so.
    """

    def __init__(self, kind: Kind, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.after_s = after_s


def connections(settings: RemoteSettings) -> httpx.AsyncClient:
    """Of one engine, to all of its servers. Raises `ConfigError`."""
    verify: ssl.SSLContext | bool = settings.tls_verify
    if settings.ca_file is not None:
        try:
            verify = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise ConfigError(f"ca_file {settings.ca_file} can't be read: {error}") from error
    return httpx.AsyncClient(
        verify=verify,
        trust_env=False,  # a proxy of the environment is for the world outside
        headers={"Accept-Encoding": "identity", **settings.all_headers()},
        timeout=httpx.Timeout(None, connect=settings.connect_timeout_s, write=_PATIENCE_S),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_S
        ),
    )


class Client:
    """name: its url, and which of its ranks. watch: on whether the server has fallen silent.

    rank: where it is several engines behind one port (``--data-parallel-size``), that of which this
        is one.
    """

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        settings: RemoteSettings,
        rank: int | None = None,
    ) -> None:
        self.url = url
        self.name = url if rank is None else f"{url} rank {rank}"
        self._http = http
        self._rank = rank
        self._session_header = settings.session_header
        self.watch = Watch(settings.silence_s)
        self._waiting: set[asyncio.Timeout] = set()

    async def get(self, path: str) -> httpx.Response:
        """Raises `Failed`."""
        with self._failures():
            async with asyncio.timeout(_PATIENCE_S):
                async with aclosing(await self._send("GET", path)) as response:
                    await response.aread()
        if response.status_code != 200:
            raise self._refusal(response, response.content)
        return response

    async def models(self) -> list[dict[str, Any]]:
        """The models that it serves. Raises `Failed`."""
        with self._failures():
            content = protocol.parsed((await self.get("/v1/models")).content)
            data = content.get("data")
            if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
                raise Malformed("no list of models")
            return data

    async def complete(
        self,
        body: Mapping[str, Any],
        *,
        session: str | None = None,
        path: str = protocol.COMPLETIONS.path,
    ) -> dict[str, Any]:
        """An answer that isn't streamed. Raises `Failed`."""
        key = object()
        self.watch.reading[key] = _length(body)
        try:
            with self._failures():
                sent = self._send("POST", path, body, session)
                async with aclosing(await self._heard(sent)) as response:
                    content = await self._heard(response.aread())
                if response.status_code != 200:
                    raise self._refusal(response, content)
                return protocol.parsed(content)
        finally:
            self.watch.reading.pop(key, None)

    async def stream(self, way: Way, asked: Asked, session: str) -> AsyncGenerator[Chunk]:
        """The chunks of a turn, of which the last has a ``finish``. Raises `Failed`.

        To close it before its end is to abort the answer: the connection is closed, on which the
        server stops. One that is read to its end leaves the connection for the next.
        """
        key = object()
        self.watch.reading[key] = len(asked.ids)
        try:
            with self._failures():
                sent = self._send("POST", way.path, way.turn(asked), session)
                response = await self._heard(sent)
                events, finished = Events(), False
                chunks: Any = response.aiter_raw()
                async with aclosing(response), aclosing(chunks) as raw:
                    if response.status_code != 200:
                        raise self._refusal(response, await self._heard(response.aread()))
                    while (data := await self._heard(anext(raw, None))) is not None:
                        self.watch.reading.pop(key, None)
                        for event in events.push(data):
                            if "error" in event:
                                raise Failed("failed", f"{self.url}: {_message(event)}")
                            chunk = way.chunk(event, asked.params.reported)
                            if chunk.finish not in (None, "stop", "length"):
                                raise Failed("failed", f"{self.url} ended with {chunk.finish!r}")
                            if not finished and (chunk.positions or chunk.finish):
                                finished = chunk.finish is not None
                                yield chunk
                if not finished:
                    raise Failed("lost", f"{self.url} broke a turn off")
        finally:
            self.watch.reading.pop(key, None)

    async def _send(
        self, method: str, path: str, body: Any = None, session: str | None = None
    ) -> httpx.Response:
        """The head of its answer, to be closed by the caller.

        A server may close an idle connection just as it is used again, which looks like the
        server's end. So what breaks before anything is said is sent once more, which changes
        nothing there; where the server is gone, that breaks as well.
        """
        request = self._http.build_request(
            method, self.url + path, json=body, headers=self._headers(session)
        )
        try:
            return await self._http.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return await self._http.send(request, stream=True)

    def hang_up(self) -> None:
        """Let all that wait for it wait no longer: they fail as ``hung``."""
        now = asyncio.get_running_loop().time()
        for each in self._waiting:
            each.reschedule(now)

    async def _heard(self, awaited: Any) -> Any:
        """What the server says next, as long as it may still say something."""
        async with asyncio.timeout(None) as waiting:
            self._waiting.add(waiting)
            try:
                with self.watch.waits():
                    got = await awaited
            finally:
                self._waiting.discard(waiting)
        self.watch.heard += 1
        return got

    def _headers(self, session: str | None) -> dict[str, str]:
        headers = {self._session_header: session} if session and self._session_header else {}
        if self._rank is not None:
            headers["X-data-parallel-rank"] = str(self._rank)
        return headers

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Every failure as `Failed`."""
        try:
            yield
        except Malformed as error:
            raise Failed("failed", f"{self.url} said what isn't understood: {error}") from error
        except TimeoutError:
            raise Failed("hung", f"{self.url} says nothing") from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            told = f"{self.url} can't be reached: {why}"
            if "CERTIFICATE_VERIFY_FAILED" in why:  # httpx tells of it by its text alone
                ca = "; set the engine's ca_file to the certificate that vouches for it"
                raise Failed("wrong", f"{told}{ca}") from error
            raise Failed("lost", told) from error

    def _refusal(self, response: httpx.Response, content: bytes) -> Failed:
        status = response.status_code
        try:
            said = _message(protocol.parsed(content))
        except Malformed:
            said = content[:200].decode("utf-8", "replace").strip()
        text = f"{self.url} answered {status}" + (f": {said}" if said else "")
        match status:
            case 401 | 403:
                return Failed("wrong", f"{text}; set the engine's api_key to its --api-key")
            case 404 | 405:
                return Failed("wrong", text)
            case 408 | 425 | 429 | 503:
                return Failed("busy", text, _seconds(response.headers.get("Retry-After")))
            case _ if 400 <= status < 500:
                return Failed("refused", text)
        return Failed("failed", text)


def _length(body: Mapping[str, Any]) -> int:
    return len(body["token_ids"] if "token_ids" in body else body["prompt"])


def _message(content: Mapping[str, Any]) -> str:
    error = content.get("error", content)
    said = error.get("message", error) if isinstance(error, dict) else error
    return str(said)[:300]


def _seconds(value: str | None) -> float | None:
    """Of Retry-After, in which a date is as good as nothing said."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
