"""Bytes on a socket: what clients may do with HTTP/1.1, and what isn't HTTP."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.test_streams import running
from tests.conftest import Server

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fox", "messages": ASK, "max_tokens": 2},
    "/v1/completions": {"model": "fox:base", "prompt": "Once", "max_tokens": 2},
    "/tokenize": {"model": "fox", "prompt": "Once"},
    "/detokenize": {"model": "fox", "tokens": [5, 6]},
    "/apply-template": {"model": "fox", "messages": ASK},
}
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA")
UPGRADES = {
    "h2c": H2C,  # as JDK's client sends it with every request, and curl --http2
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket"),
    "tls": ("connection: upgrade", "upgrade: TLS/1.0"),
}


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.file = connection.makefile("rb")

    def send(self, *parts: bytes) -> None:
        """Each in a packet of its own."""
        for number, part in enumerate(parts):
            if number:
                time.sleep(0.05)
            self.connection.sendall(part)

    def head(self) -> tuple[int, dict[str, str]]:
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def response(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = self.head()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))


@contextmanager
def connected(server: Server) -> Iterator[Client]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        yield Client(connection)


def head(path: str, *lines: str, method: str = "POST", version: str = "1.1") -> bytes:
    first = [f"{method} {path} HTTP/{version}", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def request(path: str, *lines: str, body: Any = None, version: str = "1.1") -> bytes:
    data = json.dumps(BODIES[path] if body is None else body).encode()
    return head(path, *lines, f"Content-Length: {len(data)}", version=version) + data


def chunked(path: str, *lines: str) -> list[bytes]:
    data = json.dumps(BODIES[path]).encode()
    parts = [data[:7], data[7:]]
    framed = [b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts]
    return [head(path, *lines, "Transfer-Encoding: chunked"), *framed, b"0\r\n\r\n"]


# -- an upgrade that is offered --------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_request_that_offers_an_upgrade_is_answered_as_it_is(
    scripted: Server, path: str, upgrade: str
):
    lines = UPGRADES[upgrade]
    whole = request(path, *lines)
    at = whole.index(b"\r\n\r\n") + 4
    with connected(scripted) as client:
        for parts in ([whole], [whole[:at], whole[at:]], [whole[: at + 5], whole[at + 5 :]]):
            client.send(*parts)
            assert client.response()[0] == 200
        client.send(*chunked(path, *lines))
        assert client.response()[0] == 200
        client.send(head("/health", *lines, method="GET"))
        assert client.response()[0] == 200
    assert "pgrade" not in scripted.output, "every client of this kind would fill the log"


@pytest.mark.parametrize("extra", [b"", b"\r\n"])
@pytest.mark.parametrize("lines", [(), H2C])
def test_and_whoever_leaves_its_answer_frees_the_engines(
    scripted: Server, lines: tuple[str, ...], extra: bytes
):
    with connected(scripted) as client:
        endless = {"model": "endless", "messages": ASK, "stream": True}
        client.send(request(CHAT, *lines, body=endless) + extra)
        assert client.head()[0] == 200
        assert client.file.readline()
        assert running(scripted) == 1
        client.connection.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 2
    while running(scripted) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(scripted) == 0


# -- HTTP/1.1, as far as clients use it ------------------------------------------------------------


def test_a_client_of_http_1_0_sees_no_chunks_and_the_end_ends_it(scripted: Server):
    body = BODIES[CHAT] | {"stream": True}
    with connected(scripted) as client:
        client.send(request(CHAT, "Connection: keep-alive", body=body, version="1.0"))
        status, headers = client.head()
        stream = client.file.read()
    assert status == 200
    assert "transfer-encoding" not in headers
    assert headers["connection"].lower() == "close"
    lines = [line for line in stream.decode().split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_a_client_that_waits_to_be_told_to_send_is_told(scripted: Server):
    whole = request(CHAT, "Expect: 100-continue")
    at = whole.index(b"\r\n\r\n") + 4
    with connected(scripted) as client:
        client.send(whole[:at])
        assert client.response()[0] == 100
        client.send(whole[at:])
        assert client.response()[0] == 200


def test_requests_that_are_sent_together_are_answered_in_turn(scripted: Server):
    with connected(scripted) as client:
        health = head("/health", method="GET")
        client.send(request(CHAT) + health + request("/tokenize") + request(CHAT) + health)
        bodies = [client.response()[2] for _ in range(5)]
    found = [next(iter(json.loads(body))) for body in bodies]
    assert found == ["id", "status", "count", "id", "status"]


def test_a_connection_is_kept_and_a_line_break_behind_a_body_is_nothing(scripted: Server):
    with connected(scripted) as client:
        for extra in (b"", b"\r\n", b"\n", b"\r\n\r\n"):
            client.send(request(CHAT) + extra)
            assert client.response()[0] == 200
        client.send(b"\r\n" + head("/health", "Connection: close", method="GET"))
        assert client.response()[0] == 200
        assert client.file.read() == b""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://elsewhere:1/health", 200),
        ("HTTP://x//health/?a=/b", 200),
        ("http://x?a", 200),
        ("http://x/nowhere", 404),
        ("*", 404),
        ("/health?" + "x" * 9000, 200),
    ],
)
def test_a_target_may_be_written_as_to_a_proxy(scripted: Server, target: str, status: int):
    with connected(scripted) as client:
        client.send(head(target, method="GET"))
        assert client.response()[0] == status


def test_headers_may_be_as_long_as_proxies_make_them(scripted: Server):
    with connected(scripted) as client:
        whole = head("/health", *(f"X-{n}: {'y' * 1000}" for n in range(40)), method="GET")
        client.send(whole[:20_000], whole[20_000:])
        assert client.response()[0] == 200


# -- what isn't HTTP -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 300, 400, "invalid_http"),
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "invalid_http"),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "invalid_http"),
        ("GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400, "invalid_http"),
        (b"PRI * HTTP/2.0\r\nHost: x\r\n\r\nSM\r\n\r\n", 505, "invalid_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "invalid_http"),
        (head(CHAT, "Content-Length: x"), 400, "invalid_http"),
        (head(CHAT, "Content-Length: -1"), 400, "invalid_http"),
        (head(CHAT, "Content-Length: +1"), 400, "invalid_http"),
        (head(CHAT, "Content-Length: 1_0"), 400, "invalid_http"),
        (head(CHAT, "Content-Length: 2", "Content-Length: 3"), 400, "invalid_http"),
        (head(CHAT, "Content-Length: " + "9" * 30), 400, "invalid_http"),
        (head(CHAT, "Content-Length: 5", "Transfer-Encoding: chunked"), 400, "invalid_http"),
        (head(CHAT, "Transfer-Encoding: gzip, chunked"), 501, "invalid_http"),
        (head(CHAT, "Transfer-Encoding: chunked") + b"-1\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, 431, "headers_too_large"),
    ],
    ids=range(17),
)
def test_what_is_not_http_is_refused_in_the_contracts_shape(
    scripted: Server, sent: bytes, status: int, code: str
):
    with connected(scripted) as client:
        client.send(sent)
        answered, headers, body = client.response()
        assert client.file.read() == b""
    assert answered == status
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]
    found = json.loads(body)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert found["code"] == code
    assert found["type"] == ("server_error" if status > 500 else "invalid_request_error")
    assert httpx.get(f"{scripted.url}/health").status_code == 200
    assert "Traceback" not in scripted.output


def test_a_length_that_is_said_twice_alike_is_one(scripted: Server):
    data = json.dumps(BODIES[CHAT]).encode()
    length = f"Content-Length: {len(data)}"
    with connected(scripted) as client:
        for lines in (
            [length, length],
            [f"{length}, {len(data)}"],
            [f"{length[:16]}00{len(data)}"],
        ):
            client.send(head(CHAT, *lines) + data)
            assert client.response()[0] == 200
