"""Traces as a collector gets them: the requests of an application on scripted engines."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from server import config
from server.api.app import create_app
from server.core import ConfigError
from server.serving.registry import Registry
from server.telemetry import tracing
from tests.conftest import ROOT

CHAT = "/v1/chat/completions"
BODY = {"model": "fox", "messages": [{"role": "user", "content": "Zanzibar?"}], "temperature": 0}


class Collector:
    """A collector's receiver, over HTTP."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.raw = b""
        self.paths: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                collector.raw += body
                collector.paths.add(self.path)
                collector.requests.append(
                    trace_service_pb2.ExportTraceServiceRequest.FromString(body)
                )
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[Sent]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL", raising=False)
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    yield collector
    collector.close()


def attributes(span: Sent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        if kind == "array_value":
            value = [one.string_value for one in value.values]
        found[each.key] = value
    return found


@asynccontextmanager
async def application(**server: Any) -> AsyncIterator[Any]:
    """The application, from its start to its end."""
    flags = {f"server__{name}": value for name, value in server.items()}
    registry = Registry(config.load(ROOT / "tests" / "scripted.yaml", **flags))
    ready = asyncio.Event()

    async def start() -> None:
        await registry.start()
        ready.set()

    app = create_app(registry, start=start)
    async with app.router.lifespan_context(app):
        await ready.wait()
        yield app


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_request_is_a_span_and_its_turns_are_under_it(collector: Collector):
    before = time.time_ns()
    async with application() as app, client(app) as http:
        response = await http.post(
            CHAT, json=BODY | {"max_tokens": 50, "seed": 7}, headers={"X-Request-Id": "mine"}
        )
    after = time.time_ns()
    answer = response.json()
    usage, nudging = answer["usage"], answer["usage"]["nudging"]
    assert collector.paths == {"/v1/traces"}
    (request,) = (span for span in collector.spans if not span.parent_span_id)
    assert request.name == "chat fox"
    assert request.kind == Sent.SPAN_KIND_SERVER
    assert request.status.code == Status.STATUS_CODE_UNSET
    shown = attributes(request)
    assert shown.pop("gen_ai.latency.time_to_first_token") >= 0.02
    assert shown.pop("nudge.nudged_share") == pytest.approx(nudging["nudged_share"], abs=1e-4)
    assert shown.pop("nudge.turns") == len(collector.spans) - 1
    assert shown == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "nudge",
        "gen_ai.request.id": "mine",
        "gen_ai.request.model": "fox",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "fox",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "nudge.stop_reasons": ["aligned_end"],
        "nudge.rounds": nudging["rounds"],
        "nudge.discarded_tokens": nudging["discarded_tokens"],
    }

    turns = [span for span in collector.spans if span.parent_span_id]
    assert {span.parent_span_id for span in turns} == {request.span_id}
    assert {span.trace_id for span in turns} == {request.trace_id}
    turns.sort(key=lambda span: span.start_time_unix_nano)
    tokens = {"base": 0, "aligned": 0}
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        of = attributes(turn)
        assert turn.name == f"{of['nudge.speaker']} turn"
        assert turn.start_time_unix_nano <= turn.end_time_unix_nano
        tokens[of["nudge.speaker"]] += of["nudge.tokens"]
        if following is None:
            assert of["nudge.ended"] == "aligned_end"
        else:
            # They take turns, without a gap, and each says why it gave way.
            assert turn.end_time_unix_nano == following.start_time_unix_nano
            uncertain = of["nudge.speaker"] == "base"
            assert of["nudge.ended"] == ("uncertain" if uncertain else "base_is_certain")
            assert attributes(following)["nudge.speaker"] != of["nudge.speaker"]
    assert tokens == {"base": nudging["base_tokens"], "aligned": nudging["nudged_tokens"]}
    assert before < request.start_time_unix_nano < turns[0].start_time_unix_nano
    assert turns[-1].end_time_unix_nano <= request.end_time_unix_nano < after
    assert {attributes(turn)["nudge.answer"] for turn in turns} == {0}


async def test_no_prompt_answer_or_header_is_sent(collector: Collector):
    async with application() as app, client(app) as http:
        for stream in (True, False):
            await http.post(
                CHAT,
                json=BODY | {"stream": stream, "user": "userzanzibar", "stop": ["stopzanzibar"]},
                headers={"Authorization": "Bearer keyzanzibar"},
            )
        await http.post(CHAT, json={"model": "modelzanzibar", "messages": BODY["messages"]})
        await http.get("/pathzanzibar", params={"query": "queryzanzibar"})
    assert len([span for span in collector.spans if not span.parent_span_id]) == 4
    assert b"zanzibar" not in collector.raw.lower()
    assert b"fox" in collector.raw
    for word in (b"Once", b"upon", b"time", b"there", b"She"):  # of the answer
        assert word not in collector.raw.replace(b"time_to_first", b"")


async def test_the_callers_trace_goes_on(collector: Collector):
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with application() as app, client(app) as http:
        for flags, name in (("01", "sampled"), ("00", "not-sampled")):
            headers = {"traceparent": f"00-{trace}-{caller}-{flags}", "X-Request-Id": name}
            await http.get("/v1/models", headers=headers)
    # The caller decides whether its trace is recorded (W3C Trace Context, trace-flags).
    (span,) = collector.spans
    assert attributes(span)["gen_ai.request.id"] == "sampled"
    assert span.trace_id.hex() == trace
    assert span.parent_span_id.hex() == caller
    assert span.name == "GET /v1/models"


async def test_failures_are_marked_and_probes_are_not_traced(collector: Collector):
    async with application() as app, client(app) as http:
        for probe in ("/health", "/ready", "/metrics"):
            await http.get(probe)
        await http.post(CHAT, json=BODY | {"model": "dead:aligned"})
        await http.post(CHAT, json=BODY | {"model": "broken:aligned", "stream": True})
        await http.post(CHAT, json=BODY | {"model": "nobody"})
    requests = [span for span in collector.spans if not span.parent_span_id]
    early, late, asked_wrong = requests
    assert early.status.code == late.status.code == Status.STATUS_CODE_ERROR
    assert attributes(early)["error.type"] == "engine_unavailable"
    assert attributes(late)["http.response.status_code"] == 200
    assert attributes(late)["error.type"] == "engine_unavailable"
    (turn,) = (span for span in collector.spans if span.parent_span_id == late.span_id)
    assert attributes(turn)["nudge.ended"] == "error"
    assert asked_wrong.status.code == Status.STATUS_CODE_UNSET
    assert attributes(asked_wrong)["http.response.status_code"] == 404
    assert "gen_ai.request.model" not in attributes(asked_wrong)


async def test_a_client_that_leaves_is_a_span_too(collector: Collector):
    async with application() as app:
        sent = asyncio.Event()
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        body = json.dumps(BODY | {"model": "endless", "stream": True}).encode()
        incoming = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await sent.wait()
            return {"type": "http.disconnect"}

        chunks = 0

        async def send(message: Any) -> None:
            nonlocal chunks
            chunks += b'"content":"' in message.get("body", b"")
            if chunks > 5:
                sent.set()

        await app(scope, receive, send)
    (request,) = (span for span in collector.spans if not span.parent_span_id)
    assert attributes(request)["http.response.status_code"] == 499
    turns = [span for span in collector.spans if span.parent_span_id]
    assert attributes(turns[-1])["nudge.ended"] == "abort"
    assert sum(attributes(turn)["nudge.pieces"] for turn in turns) >= 5


async def test_the_setting_is_the_base_url_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    collector = Collector()
    async with application(otlp_endpoint=collector.url) as app, client(app) as http:
        await http.get("/version")
    collector.close()
    assert collector.paths == {"/v1/traces"}
    assert [span.name for span in collector.spans] == ["GET /version"]
    resource = collector.requests[0].resource_spans[0].resource
    named = {each.key: each.value.string_value for each in resource.attributes}
    assert named["service.name"] == "ours"
    assert named["service.version"]


async def test_grpc(monkeypatch: pytest.MonkeyPatch):
    got: list[trace_service_pb2.ExportTraceServiceRequest] = []

    class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            got.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    receiver = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    async with application(otlp_endpoint=f"http://127.0.0.1:{port}") as app, client(app) as http:
        await http.get("/version")
    receiver.stop(None)
    resource = got[0].resource_spans[0]
    assert resource.scope_spans[0].spans[0].name == "GET /version"
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "nudge"


async def test_a_collector_that_hangs_does_not_keep_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tracing, "FLUSH_S", 0.3)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds; then it gives up by itself
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        settings = config.ServerSettings(otlp_endpoint=endpoint)
        running = tracing.start(settings)
        assert running is not None
        now = time.time_ns()
        running.record({}, tracing.Span("a", now, now), [])
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "nudge"):
            await running.aclose()
        assert 0.3 <= time.monotonic() - began < 1
        for thread in set(threading.enumerate()) - threads:
            thread.join(30)
            assert not thread.is_alive()
    assert "the last traces were not sent within 0.3 s" in caplog.text


def test_without_an_endpoint_nothing_of_it_is_imported():
    code = (
        "import sys; from server import config; from server.telemetry import tracing\n"
        "import server.api.app\n"
        "assert tracing.start(config.ServerSettings()) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_cannot_work_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch):
    settings = config.ServerSettings(otlp_endpoint="http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier/pigeon")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL: 'carrier/pigeon'"):
        tracing.start(settings)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    for missing in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        monkeypatch.setattr(tracing, "find_spec", lambda name, gone=missing: name != gone or None)
        with pytest.raises(ConfigError, match=r"pip install 'nudging-server\[otel\]'"):
            tracing.start(settings)
