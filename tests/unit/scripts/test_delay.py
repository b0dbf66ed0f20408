"""The relay that stands for a long way: what it hands on is whole, in order, counted, and late."""

from __future__ import annotations

import asyncio

from scripts.benchmark.delay import Relay

RTT_S = 0.06


async def test_what_goes_through_is_late_and_whole():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.write(b"end")
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay("127.0.0.1", server.sockets[0].getsockname()[1], RTT_S)
    between = await asyncio.start_server(relay.connected, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*between.sockets[0].getsockname())
    for number, trips in ((0, 2), (1, 1), (2, 1)):  # the first waits for the connection too
        began = loop.time()
        sent = bytes([65 + number]) * 50_000
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        assert loop.time() - began > trips * RTT_S - 0.005
    writer.write_eof()
    assert await reader.read() == b"end"
    assert relay.bytes == 6 * 50_000 + 3
    writer.close()
    for each in (between, server):
        each.close()
