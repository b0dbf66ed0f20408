"""The server's log: a line a request, in either format, and nothing that is nobody's business."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from server import config
from server.api.app import create_app
from server.serving.registry import Registry
from server.telemetry import logs
from tests.conftest import ROOT, serve

CHAT = "/v1/chat/completions"
BODY = {"model": "fox", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}

Logged = Callable[..., io.StringIO]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Log into a string, with these settings; afterwards all is as before."""
    root, ours = logging.getLogger(), logging.getLogger("nudge")
    before = (root.handlers[:], root.level, ours.level)

    def configure(stream: io.StringIO | None = None, **settings: Any) -> io.StringIO:
        stream = io.StringIO() if stream is None else stream
        logs.configure(config.ServerSettings(**settings), stream)
        return stream

    yield configure
    logging.captureWarnings(False)
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)


@pytest.fixture(scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    registry = Registry(config.load(ROOT / "tests" / "scripted.yaml"))
    ready = asyncio.Event()

    async def start() -> None:
        await registry.start()
        ready.set()

    app = create_app(registry, start=start)

    @app.get("/bug")
    async def bug() -> None:
        raise LookupError("nobody foresaw this")

    async with app.router.lifespan_context(app):
        await ready.wait()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def test_a_request_is_a_line_of_json(http: httpx.AsyncClient, logged: Logged):
    pytest.importorskip("vllm.logger")  # it adds to every record of the process
    out = logged(log_format="json")
    answer = (await http.post(CHAT, json=BODY, headers={"X-Request-Id": "mine"})).json()
    usage = answer["usage"]
    (line,) = out.getvalue().splitlines()
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", entry.pop("time"))
    assert 0.02 < entry.pop("duration_s") < 60
    assert entry.pop("message").startswith("POST /v1/chat/completions 200 ")
    assert entry == {
        "level": "INFO",
        "logger": "nudge.request",
        "request_id": "mine",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "model": "fox",
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "nudged_share": usage["nudging"]["nudged_share"],
        "finish_reasons": ["stop"],
    }


async def test_a_request_is_a_line_of_text(http: httpx.AsyncClient, logged: Logged):
    out = logged()
    usage = (await http.post(CHAT, json=BODY, headers={"X-Request-Id": "mine"})).json()["usage"]
    share = usage["nudging"]["nudged_share"]
    tokens = f"{usage['prompt_tokens']} \\+ {usage['completion_tokens']} tokens"
    expected = (
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO nudge\.request \[mine\] "
        rf"POST /v1/chat/completions 200 \d+\.\d\d s, fox, {tokens}, {share:.0%} aligned, stop\n"
    )
    assert re.fullmatch(expected, out.getvalue())


async def test_at_a_terminal_a_line_is_short(http: httpx.AsyncClient, logged: Logged):
    out = logged(Terminal())
    await http.post(CHAT, json=BODY | {"model": "fox:base", "n": 2, "max_tokens": 1})
    expected = (
        r"\d\d:\d\d:\d\d INFO    POST /v1/chat/completions 200 \d+\.\d\d s, fox:base, "
        r"\d+ \+ 2 tokens, 0% aligned, length length\n"
    )
    assert re.fullmatch(expected, out.getvalue())


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("debug", ["GET /health 200", "GET /v1/models 200", "POST /v1/chat/completions 503"]),
        ("info", ["GET /v1/models 200", "POST /v1/chat/completions 503"]),
        ("warning", ["POST /v1/chat/completions 503"]),
        ("error", []),
    ],
)
async def test_levels(http: httpx.AsyncClient, logged: Logged, level: str, lines: list[str]):
    out = logged(log_level=level)
    await http.get("/health")
    await http.get("/v1/models")
    await http.post(CHAT, json=BODY | {"model": "dead:aligned"})
    logging.getLogger("library").info("chatter")
    found = [re.sub(r".*\] (\S+ \S+ \d+) .*", r"\1", line) for line in out.getvalue().splitlines()]
    assert found == lines


async def test_a_failure_in_mid_stream_is_said(http: httpx.AsyncClient, logged: Logged):
    out = logged(log_format="json")
    await http.post(CHAT, json=BODY | {"model": "broken:aligned", "stream": True})
    entry = json.loads(out.getvalue().splitlines()[-1])
    assert entry["level"] == "WARNING"
    assert entry["status"] == 200
    assert entry["error"] == "engine_unavailable"
    assert entry["finish_reasons"] == ["unfinished"]
    assert entry["completion_tokens"] > 0


async def test_an_early_failures_code_is_said_too(http: httpx.AsyncClient, logged: Logged):
    out = logged(log_format="json")
    await http.post(CHAT, json=BODY | {"model": "nobody"})
    await http.post(CHAT, json=BODY | {"temperature": "hot"})
    unknown, invalid = map(json.loads, out.getvalue().splitlines())
    assert (unknown["status"], unknown["error"], unknown["level"]) == (
        404,
        "model_not_found",
        "INFO",
    )
    assert invalid["status"] == 400
    assert "error" not in invalid, "it has no code"


async def test_a_bug_is_logged_with_its_request(http: httpx.AsyncClient, logged: Logged):
    out = logged(log_format="json")
    response = await http.get("/bug", headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert "foresaw" not in response.text
    bug, request = map(json.loads, out.getvalue().splitlines())
    assert bug["level"] == "ERROR"
    assert bug["traceback"].endswith("LookupError: nobody foresaw this")
    assert bug["request_id"] == request["request_id"] == "mine"
    assert (request["status"], request["route"]) == (500, "/bug")


async def test_a_client_can_forge_no_line(http: httpx.AsyncClient, logged: Logged):
    out = logged()
    await http.get("/no%0Asuch%0D%1B[31m")
    await http.post(CHAT, json=BODY | {"model": "fox@0.4\n", "max_tokens": 1})
    await http.get("/health", headers={"X-Request-Id": b"a b\x85c"})
    lost, unknown = out.getvalue().splitlines()
    assert " GET /no%0Asuch%0D%1B%5B31m 404 " in lost
    assert unknown.endswith(" s, model_not_found")
    assert "\x1b" not in out.getvalue()


def test_what_is_of_no_request_names_none(logged: Logged):
    out = logged()
    logging.getLogger("uvicorn.error").error("a")
    assert out.getvalue().endswith(" ERROR uvicorn.error [-] a\n")
    out = logged(log_format="json")
    logging.getLogger("uvicorn.error").error("a")
    entry = json.loads(out.getvalue())
    assert entry.keys() == {"time", "level", "logger", "message"}


def test_everybodys_errors_have_the_same_format(logged: Logged):
    out = logged(log_format="json")
    logging.getLogger("uvicorn.error").error("a\nb")
    logging.getLogger("uvicorn.access").info("GET / 200")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", FutureWarning, stacklevel=1)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["logger"], first["message"]) == ("uvicorn.error", "a\nb")
    assert second["logger"] == "py.warnings"
    assert "FutureWarning: old" in second["message"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_prompt_answer_or_key_is_logged(log_format: str):
    key = "sk-zanzibar"
    server = serve(
        "--config",
        str(ROOT / "tests" / "scripted.yaml"),
        env={
            "NUDGE_SERVER__LOG_LEVEL": "debug",
            "NUDGE_SERVER__LOG_FORMAT": log_format,
            "NUDGE_SERVER__API_KEYS": json.dumps([key]),
        },
    )
    try:
        messages = [{"role": "user", "content": "prompt-zanzibar"}]
        body = {"model": "fox", "messages": messages, "user": "user-zanzibar", "stop": ["zanzibar"]}
        with httpx.Client(base_url=server.url) as client:
            headers = {"Authorization": f"Bearer {key}"}
            assert client.post(CHAT, json=body).status_code == 401
            assert client.post(CHAT, json=body, headers={"Authorization": key}).status_code == 401
            wrong = {"Authorization": "Bearer wrong-zanzibar"}
            assert client.post(CHAT, json=body, headers=wrong).status_code == 401
            client.headers.update(headers)
            for changed, status in (
                ({}, 200),
                ({"stream": True}, 200),
                ({"temperature": "zanzibar"}, 400),
                ({"model": "model-zanzibar"}, 404),
                ({"model": "dead:aligned"}, 503),
                ({"messages": [{"role": "zanzibar", "content": "zanzibar"}]}, 400),
            ):
                assert client.post(CHAT, json=body | changed).status_code == status
            torn = b'{"messages": "zanzibar'
            json_body = {"Content-Type": "application/json"}
            assert client.post(CHAT, content=torn, headers=json_body).status_code == 400
            asked = {"model": "fox:base", "prompt": "zanzibar", "max_tokens": 3, "echo": True}
            assert client.post("/v1/completions", json=asked).status_code == 200
            assert client.get("/v1/models", params={"key": "query-zanzibar"}).status_code == 200
    finally:
        stopped = server.stop()
    assert stopped == 0
    logged = server.output.partition("\ncurl ")[2].partition("\n")[2]
    assert logged.count(CHAT) >= 10
    assert "zanzibar" not in server.output.lower()
    for word in ("Once", "upon", "fox."):  # of the answer
        assert word not in logged
    if log_format == "json":
        entries = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
        assert sum(entry["logger"] == "nudge.request" for entry in entries) >= 12
