"""Server-sent events: framing, keep-alive comments, and what happens when the reader leaves.

Knows: bytes, time and ASGI. Does not know: what the events say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

AT_ONCE = 64
"""Events that are sent in one piece at most."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

# Line separators in a string's text: legal in JSON, but many clients cut the stream there.
_SEPARATORS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def event(value: Any) -> bytes:
    """One event with a JSON value. JSON has no raw line breaks, so it is one ``data:`` line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_SEPARATORS)
    return b"data: " + text.encode() + b"\n\n"


class _Unhurried(Generic[T]):
    """Awaits some work; where that has to wait for something, ``before`` is awaited first."""

    def __init__(self, work: Awaitable[T], before: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._before = before

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        sent: Any = None
        raised: BaseException | None = None
        try:
            waiting = next(steps)
            try:
                yield from self._before().__await__()
                sent = yield waiting
            except BaseException as error:  # the work's to deal with: it may have to clean up
                raised = error
            while True:
                waiting = steps.send(sent) if raised is None else steps.throw(raised)
                raised = None
                try:
                    sent = yield waiting
                except BaseException as error:
                    raised = error
        except StopIteration as done:
            result: T = done.value
            return result


class EventStream(Response):
    """Sends events as they come, those that come at once in one piece. When the client leaves,
    the generator is closed at once.

    One task writes, however many events there are; a second one watches for the client's
    leaving, a third one for silence. A slow reader stops the writer (uvicorn's ``send`` waits),
    and with it the generator: nothing piles up.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        keep_alive_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
            | dict(headers or {})
        )
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writing = asyncio.create_task(self._write(send))
        watching = asyncio.create_task(left(receive))
        keeping = asyncio.create_task(self._keep_alive(send))
        tasks = {writing, watching, keeping}
        try:
            await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        ready: list[bytes] = []

        async def flush() -> None:
            if ready:
                data = b"".join(ready)
                ready.clear()
                self._last_sent = clock()
                await send({"type": "http.response.body", "body": data, "more_body": True})

        async with aclosing(self._events) as events:
            while True:
                try:
                    ready.append(await _Unhurried(anext(events), flush))
                except StopAsyncIteration:
                    break
                except Exception:
                    await flush()
                    raise
                if len(ready) >= AT_ONCE:
                    await flush()
        await flush()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._last_sent = clock()
        while True:
            silent = clock() - self._last_sent
            if silent >= self._keep_alive_s:
                self._last_sent = clock()
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            else:
                await asyncio.sleep(self._keep_alive_s - silent)


async def left(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
