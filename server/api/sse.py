"""Server-sent events: framing, keep-alive comments, and what happens when the reader leaves.

Knows: bytes, time and ASGI. Does not know: what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

# Line separators in a string's text: legal in JSON, but many clients cut the stream there.
_SEPARATORS = {each.encode(): b"\\u%04x" % ord(each) for each in ("\x85", "\u2028", "\u2029")}


def event(value: Any, name: str | None = None) -> bytes:
    """One event with a JSON value. JSON has no raw line breaks, so it is one ``data:`` line.
    ``name``: in front of it, an ``event:`` line."""
    data = to_json(value, inf_nan_mode="constants")
    if not data.isascii():
        for separator, escaped in _SEPARATORS.items():
            data = data.replace(separator, escaped)
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + data + b"\n\n"


class Source(Protocol):
    """Where a stream's bytes come from."""

    async def next(self) -> bytes:
        """What there is to send, whole events; nothing where that was all."""

    async def aclose(self) -> None:
        """Nobody wants more."""


class EventStream(Response):
    """Sends events as they come, those that are there together in one piece. When the client
    leaves, the source is closed at once.

    One task writes, a second one watches for the client's leaving, a third one for silence. A slow
    reader stops the first (uvicorn's ``send`` waits), and nobody else. How long it may is the
    connection's to say (`server.api.connection`).
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: Source,
        *,
        keep_alive_s: float,
        keep_alive: bytes = KEEP_ALIVE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
            | dict(headers or {})
        )
        del self.headers["content-length"]
        self._source = source
        self._keep_alive_s = keep_alive_s
        self._silence = {"type": "http.response.body", "body": keep_alive, "more_body": True}
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            writing = asyncio.create_task(self._write(send))
            tasks += [writing, asyncio.create_task(left(receive))]
            tasks.append(asyncio.create_task(self._keep_alive(send)))
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, self._source.aclose(), return_exceptions=True)
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        while data := await self._source.next():
            self._last_sent = clock()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        while True:
            silent = clock() - self._last_sent
            if silent >= self._keep_alive_s:
                self._last_sent = clock()
                await send(self._silence)
            else:
                await asyncio.sleep(self._keep_alive_s - silent)


async def left(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
