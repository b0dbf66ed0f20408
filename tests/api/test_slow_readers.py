"""Clients that read late, or never: what they asked for is theirs as long as they take it, and the
places that it took are others' as soon as it is written or its time is up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Server, serve
from tests.thorough import first

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]

TIGHT = {
    "NUDGE_SERVER__MAX_RUNNING": "8",
    "NUDGE_SERVER__REQUEST_TIMEOUT_S": "4",
    "NUDGE_SERVER__SEND_TIMEOUT_S": "1",
}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An engine that writes long answers at once, for eight at a time."""
    folder = tmp_path_factory.mktemp("tight")
    models = "/".join([*__file__.split("/")[:-3], "models", "demo", "aligned"])
    scripts = {
        name: json.dumps([["".join(f"{number} " for number in range(count)), 0.9]])
        for name, count in (("long", 1500), ("short", 60))
    }
    (folder / "tight.yaml").write_text(
        f"""
engines:
  long: {{backend: scripted, model: {models}, args: {{script: {scripts["long"]}}}}}
  short: {{backend: scripted, model: {models}, args: {{script: {scripts["short"]}}}}}
models:
  long: {{sampling: {{temperature: 0}}, base: long, aligned: long}}
  short: {{sampling: {{temperature: 0}}, base: short, aligned: short}}
"""
    )
    server = serve("--config", str(folder / "tight.yaml"), env=TIGHT)
    assert server.url, server.output
    yield server
    server.stop()


def connected(server: Server, body: Json) -> socket.socket:
    """A client that has asked, and reads nothing yet. Its own buffer is small."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    data = json.dumps({"model": "long", "messages": HI} | body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


LONG = {"max_tokens": 1500, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("readers", "n"), first(1, [(8, 1), (2, 4), (16, 1)]))
def test_readers_that_stop_keep_nobody_waiting(tight: Server, readers: int, n: int, stream: bool):
    body = LONG | {"n": n, "stream": stream}
    stalled = [connected(tight, body) for _ in range(readers)]
    try:
        began = time.monotonic()
        answer = httpx.post(
            tight.url + CHAT,
            json={"model": "long", "messages": HI, "max_tokens": 5},
            timeout=30,
        )
        while answer.status_code == 504 and time.monotonic() - began < 20:
            answer = httpx.post(
                tight.url + CHAT,
                json={"model": "long", "messages": HI, "max_tokens": 5},
                timeout=30,
            )
        assert answer.status_code == 200
    finally:
        for client in stalled:
            client.close()


def test_a_connection_that_nobody_reads_is_closed(tight: Server):
    client = connected(tight, LONG | {"stream": True, "n": 4})
    try:
        client.settimeout(20)
        time.sleep(6)  # its time is up, and the time to send it too
        taken = 0
        while data := _received(client):
            taken += len(data)
        assert taken < 4 * 2**20
    finally:
        client.close()


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(2**16)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("n", [1, 4])
def test_whoever_reads_late_but_in_time_gets_everything(tight: Server, n: int):
    """Nothing is cut, however much had to wait."""
    body = LONG | {"model": "short", "n": n, "stream": True}
    client = connected(tight, body)
    try:
        client.settimeout(20)
        time.sleep(0.7)
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n") and (data := _received(client)):
            received += data
    finally:
        client.close()
    events = [line for line in received.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1].strip() == b"data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert not [chunk for chunk in chunks if "error" in chunk]
    for index in range(n):
        text = "".join(
            choice["delta"].get("content", "")
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["index"] == index
        )
        assert text.strip().endswith("57 58 59")
        assert len(text) > 150
