"""An event stream's messages: what comes at once goes out at once, and whoever leaves ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.api.sse import AT_ONCE, EventStream


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


async def streamed(events: AsyncGenerator[bytes], client: Client) -> list[bytes]:
    async with asyncio.timeout(5):
        await EventStream(events, keep_alive_s=60)({"type": "http"}, client.receive, client.send)
    return client.bodies


async def bursts(*sizes: int) -> AsyncGenerator[bytes]:
    number = 0
    for size in sizes:
        for _ in range(size):
            yield f"{number},".encode()
            number += 1
        await asyncio.sleep(0.002)


async def endless(cleaned: list[str]) -> AsyncGenerator[bytes]:
    """Its cleaning up takes a while."""
    try:
        while True:
            yield b"x"
            await asyncio.sleep(0.003)
    finally:
        await asyncio.sleep(0.001)
        cleaned.append("up")


@pytest.mark.parametrize("pace_s", [0.0, 0.005])
async def test_events_that_come_at_once_go_out_in_one_piece(pace_s: float):
    assert await streamed(bursts(3, 1, 2), Client(pace_s=pace_s)) == [
        b"0,1,2,",
        b"3,",
        b"4,5,",
        b"",
    ]


async def test_a_burst_without_an_end_is_cut():
    bodies = await streamed(bursts(2 * AT_ONCE + 1), Client())
    assert [body.count(b",") for body in bodies] == [AT_ONCE, AT_ONCE, 1, 0]


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
async def test_whoever_leaves_closes_the_generator_which_may_clean_up(after: int, pace_s: float):
    cleaned: list[str] = []

    await streamed(endless(cleaned), Client(leaves_after=after, pace_s=pace_s))
    assert cleaned == ["up"]


async def test_a_reader_that_fails_closes_the_generator():
    cleaned: list[str] = []

    class Broken(Client):
        async def send(self, message) -> None:
            await super().send(message)
            if len(self.bodies) == 2:
                raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await streamed(endless(cleaned), Broken())
    assert cleaned == ["up"]
