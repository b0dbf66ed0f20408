"""Who may keep a connection to themselves, and for how long; on real sockets, with short times."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.api.connection import HEADERS_S, Connection

SHORT_S = 0.2
GET = b"GET /at-once HTTP/1.1\r\nHost: x\r\n\r\n"


class Hasty(Connection):
    headers_s = SHORT_S


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers ``/at-once`` and refuses to read; elsewhere it echoes the body, slowly."""
    body, more = b"", scope["path"] != "/at-once"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * SHORT_S)
    await send({"type": "http.response.body", "body": body + b"."})


@pytest.fixture(scope="module")
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, http=Hasty, ws="none", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Hasty, config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def trickle(self, data: bytes, again: bool = False) -> None:
        """A byte every 20 ms, until the server has had enough."""
        at = 0
        while (at < len(data) or again) and not self._reader.at_eof():
            try:
                await self.send(data[at % len(data) :][:1])
            except ConnectionError:
                return
            at += 1
            await asyncio.sleep(0.02)

    async def response(self) -> bytes:
        """The next one, whole."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        if found := re.search(rb"content-length: (\d+)", head):
            return head + await self._reader.readexactly(int(found[1]))
        return head + await self._reader.readuntil(b"0\r\n\r\n")

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(20 * SHORT_S):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def refusal(received: bytes, status: int) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), received
    assert b"connection: close" in head.lower()
    assert b"content-type: application/json" in head.lower()
    assert re.search(rb"(?i)\r\nx-request-id: \w+", head)
    assert b"content-length: %d" % len(body) in head.lower()
    assert list(json.loads(body)) == ["error"]
    found: dict[str, Any] = json.loads(body)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def test_headers_have_half_a_minute():
    assert HEADERS_S == Connection.headers_s == 30


async def test_headers_that_trickle_without_an_end_are_a_408(port: int):
    async with connected(port) as client:
        began = time.monotonic()
        trickling = asyncio.create_task(client.trickle(GET[:-2] + b"X: " + b"y" * 1000))
        received = await client.rest()
        seconds = time.monotonic() - began
        await trickling
    assert refusal(received, 408)["code"] == "request_timeout"
    assert SHORT_S * 0.9 < seconds < SHORT_S * 5


async def test_a_connection_that_says_nothing_is_closed_without_a_word(port: int):
    """A response would be taken for that to the first request, were it on its way."""
    async with connected(port) as client:
        assert await client.rest() == b""


async def test_blank_lines_are_not_a_beginning(port: int):
    async with connected(port) as client:
        trickling = asyncio.create_task(client.trickle(b"\r\n", again=True))
        assert await client.rest() == b""
        await trickling


@pytest.mark.parametrize("begun", [GET[:20], b"\r\n"])
async def test_every_request_of_a_connection_has_its_own_time(port: int, begun: bytes):
    async with connected(port) as client:
        for _ in range(3):
            await client.send(GET[:9])
            await asyncio.sleep(SHORT_S * 0.6)
            await client.send(GET[9:])
            assert (await client.response()).startswith(b"HTTP/1.1 200 ")
        await client.send(begun)
        received = await client.rest()
        if begun.strip():
            refusal(received, 408)
        else:
            assert received == b""


async def test_between_two_requests_the_clock_stands_still(port: int):
    async with connected(port) as client:
        for _ in range(2):
            await client.send(GET)
            assert (await client.response()).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(SHORT_S * 2)


async def test_neither_a_body_nor_an_answer_is_headers(port: int):
    async with connected(port) as client:
        await client.send(b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
        await client.trickle(b"12345678901234567890")  # twice the time for headers
        assert b"12345678901234567890." in await client.response()


async def test_what_is_answered_already_is_not_listened_to_for_ever(port: int):
    async with connected(port) as client:
        await client.send(b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
        assert (await client.response()).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        trickling = asyncio.create_task(client.trickle(b"x", again=True))
        assert await client.rest() == b""
        assert time.monotonic() - began < SHORT_S * 5
        await trickling


async def test_but_its_rest_may_come_and_another_request_behind_it(port: int):
    async with connected(port) as client:
        await client.send(b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123")
        assert (await client.response()).startswith(b"HTTP/1.1 200 ")
        await client.send(b"456789" + GET)
        assert (await client.response()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_turns_out_to_be_none_ends_even_an_answered_request(
    port: int, caplog: pytest.LogCaptureFixture
):
    chunked = b"POST /at-once HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with connected(port) as client:
        await client.send(chunked)
        assert (await client.response()).startswith(b"HTTP/1.1 200 ")
        await client.send(b"nonsense\r\n")
        assert await client.rest() == b""
    async with connected(port) as client:
        await client.send(chunked + b"nonsense\r\n")
        assert refusal(await client.rest(), 400)["code"] == "invalid_http"
    assert [each.getMessage() for each in caplog.records] == ["Invalid HTTP request received."] * 2
