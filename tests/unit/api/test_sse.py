"""An event stream's messages: each piece of its source, and whoever leaves closes that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.api.anthropic.render import MessageReply
from server.api.sse import EventStream


class Client:
    """Takes what is sent; leaves, fails or dawdles where it is told to."""

    def __init__(self, leaves_after: int | None = None, pace_s: float = 0.0) -> None:
        self.bodies: list[bytes] = []
        self.pace_s = pace_s
        self._leaves_after = leaves_after
        self._left = asyncio.Event()

    async def send(self, message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(self.pace_s)
            self.bodies.append(message["body"])
            if len(self.bodies) == self._leaves_after:
                self._left.set()

    async def receive(self):
        await self._left.wait()
        return {"type": "http.disconnect"}


class Pieces:
    """A source: what a generator yields."""

    def __init__(self, pieces: AsyncGenerator[bytes]) -> None:
        self._pieces = pieces
        self.aclose = pieces.aclose

    async def next(self) -> bytes:
        return await anext(self._pieces, b"")


async def streamed(
    pieces: AsyncGenerator[bytes], client: Client, **how: float | bytes
) -> list[bytes]:
    stream = EventStream(Pieces(pieces), **{"keep_alive_s": 60.0} | how)
    async with asyncio.timeout(5):
        await stream({"type": "http"}, client.receive, client.send)
    return client.bodies


async def endless(cleaned: list[str]) -> AsyncGenerator[bytes]:
    """Its cleaning up takes a while."""
    try:
        while True:
            yield b"x"
            await asyncio.sleep(0.003)
    finally:
        await asyncio.sleep(0.001)
        cleaned.append("up")


@pytest.mark.parametrize("said", [{}, {"keep_alive": MessageReply.keep_alive}])
async def test_silence_is_broken_by_a_comment_or_what_a_dialect_says(said: dict[str, bytes]):
    async def slow() -> AsyncGenerator[bytes]:
        yield b"a"
        await asyncio.sleep(0.05)
        yield b"b"

    bodies = await streamed(slow(), Client(), keep_alive_s=0.02, **said)
    silence = said.get("keep_alive", b": keep-alive\n\n")
    assert [body for body in bodies if body != silence] == [b"a", b"b", b""]
    assert silence in bodies[1:-2]


@pytest.mark.parametrize("pace_s", [0.0, 0.01])
async def test_what_came_before_a_failure_is_sent_and_the_failure_is_told(pace_s: float):
    async def failing() -> AsyncGenerator[bytes]:
        yield b"a"
        await asyncio.sleep(0.001)
        yield b"b"
        raise RuntimeError("broken")

    client = Client(pace_s=pace_s)
    with pytest.raises(RuntimeError, match="broken"):
        await streamed(failing(), client)
    assert client.bodies == [b"a", b"b"]


@pytest.mark.parametrize("pace_s", [0.0, 0.01])
@pytest.mark.parametrize("after", [1, 2])
async def test_whoever_leaves_closes_the_source_which_may_clean_up(after: int, pace_s: float):
    cleaned: list[str] = []

    await streamed(endless(cleaned), Client(leaves_after=after, pace_s=pace_s))
    assert cleaned == ["up"]


async def test_a_reader_that_fails_closes_the_source():
    cleaned: list[str] = []

    class Broken(Client):
        async def send(self, message) -> None:
            await super().send(message)
            if len(self.bodies) == 2:
                raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await streamed(endless(cleaned), Broken())
    assert cleaned == ["up"]
