"""OpenTelemetry traces, sent with OTLP where an endpoint is set.

Knows: OpenTelemetry, and how a span with a known beginning and end becomes one of its. Does not
know: requests, answers, what a span is about. Without an endpoint nothing of OpenTelemetry is
imported.

The environment's standard variables hold (``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``,
``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_BSP_…`` …):
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from server import __version__
from server.config import ServerSettings
from server.core import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("nudge")

FLUSH_S = 5.0
"""How long the last spans may take to be sent when the server ends."""

Value = str | bool | int | float | list[str]
Protocol = Literal["http/protobuf", "grpc"]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while. Times: nanoseconds since the epoch.

    error: why it failed, in a word; None: it didn't.
    """

    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None


class Tracing:
    """Sends spans, in the background and in batches."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("nudge", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, headers: Mapping[str, str], request: Span, parts: Iterable[Span]) -> None:
        """A request as it was, and its parts: spans under its span. The request's is under the
        span that its ``traceparent`` names; who is recorded is the sampler's choice."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        caller = self._propagator.extract(headers)
        span = self._tracer.start_span(
            request.name,
            context=caller,
            kind=SpanKind.SERVER,
            attributes=request.attributes,
            start_time=request.start_ns,
        )
        if span.is_recording():
            here = set_span_in_context(span)
            for part in parts:
                child = self._tracer.start_span(
                    part.name,
                    context=here,
                    attributes=part.attributes,
                    start_time=part.start_ns,
                )
                child.end(part.end_ns)
            if request.error is not None:
                span.set_status(Status(StatusCode.ERROR, request.error))
        span.end(request.end_ns)

    async def aclose(self) -> None:
        """Send what is left, within `FLUSH_S` seconds. Later spans are lost."""
        # A thread of its own, and a daemon: a collector that hangs must not keep the server.
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        try:
            async with asyncio.timeout(FLUSH_S):
                while flushing.is_alive():  # noqa: ASYNC110 (a thread tells no event)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("the last traces were not sent within %g s", FLUSH_S)


def start(settings: ServerSettings) -> Tracing | None:
    """None where no endpoint is set. Raises `ConfigError` as `check` does."""
    if not check(settings):
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The environment may name the service.
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "nudge"}))
    resource = resource.merge(Resource({"service.version": __version__}))
    # Not made the process' global one: vLLM sets that, and its spans are its own affair.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings.otlp_endpoint)))
    return Tracing(provider)


def check(settings: ServerSettings) -> bool:
    """Whether traces are to be sent. Raises `ConfigError` if they are and can't be."""
    wanted = settings.otlp_endpoint or any(
        os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_")
    )
    if not wanted:
        return False
    package = "http" if _protocol() == "http/protobuf" else "grpc"
    try:
        found = find_spec(f"opentelemetry.exporter.otlp.proto.{package}") and find_spec(
            "opentelemetry.sdk.trace"
        )
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            "an OTLP endpoint is set, and OpenTelemetry is not installed; "
            "pip install 'nudging-server[otel]', or unset server.otlp_endpoint and "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return True


def _protocol() -> Protocol:
    """The specification's variables, and its default."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        match os.environ.get(name, ""):
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case other:
                raise ConfigError(f"{name}: {other[:80]!r} is neither grpc nor http/protobuf")
    return "http/protobuf"


def _exporter(endpoint: str | None) -> SpanExporter:
    """``endpoint`` is what OTEL_EXPORTER_OTLP_ENDPOINT would be: for HTTP without the path."""
    if _protocol() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    if endpoint is not None and not endpoint.endswith("/v1/traces"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    return HttpExporter(endpoint=endpoint)
