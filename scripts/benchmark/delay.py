"""A way that takes a while: a relay that hands on what it is given some time later, and counts it.

In a process of its own, so that it is nobody's processor time: ``python -m scripts.benchmark.delay
HOST PORT MS`` prints a port for connections, and another that tells how many bytes there were.
``MS``: there and back. A new connection waits for that long once more, as TCP's does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


class Relay:
    def __init__(self, host: str, port: int, rtt_s: float) -> None:
        self.host, self.port, self.rtt_s = host, port, rtt_s
        self.bytes = 0
        self._running: set[object] = set()  # else nobody holds a task whose connection is lost

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._running.add(task := asyncio.current_task())
        its_reader, its_writer = await asyncio.open_connection(self.host, self.port)
        ways = [
            asyncio.create_task(self._way(reader, its_writer, self.rtt_s)),
            asyncio.create_task(self._way(its_reader, writer, 0.0)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            self._running.discard(task)
            for each in (writer, its_writer):
                with contextlib.suppress(OSError):
                    each.close()

    async def _way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first_s: float
    ) -> None:
        """In one direction; its end is handed on too, as late."""
        loop = asyncio.get_running_loop()
        coming: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        opened = loop.time() + first_s

        async def read() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(1 << 16)
                except ConnectionError:
                    data = b""
                self.bytes += len(data)
                coming.put_nowait((max(loop.time(), opened) + self.rtt_s / 2, data))

        reading = asyncio.create_task(read())
        with contextlib.suppress(OSError):
            while True:
                due, data = await coming.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        reading.cancel()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def counted(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(self.bytes).encode())
        writer.close()


async def main(host: str, port: str, ms: str) -> None:
    relay = Relay(host, int(port), float(ms) / 1e3)
    doors = (relay.connected, relay.counted)
    servers = [await asyncio.start_server(each, "127.0.0.1", 0) for each in doors]
    print(*(each.sockets[0].getsockname()[1] for each in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
