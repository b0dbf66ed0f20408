"""The application: its routes put together, and what starts and ends with it.

Knows: which parts there are. Does not know: what any of them does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server import __version__
from server.api import dialects, openapi, playground, routes, status, tokens
from server.api.access import Access, Keys
from server.api.admission import Gate
from server.api.anthropic import count
from server.api.middleware import BodyLimit, Envelope, Failures
from server.api.responses import stored
from server.api.store import Store
from server.api.watch import Watching
from server.serving.registry import Registry
from server.telemetry import tracing
from server.telemetry.metrics import Metrics

EXPOSED = (
    "X-Request-Id",
    "Request-Id",
    "Retry-After",
    "X-Nudge-Degraded",
    "X-Nudge-Tools",
    "X-Nudge-Passed-Over",
)
"""Headers of responses that pages of other origins may read."""


def create_app(registry: Registry, *, start: Callable[[], Coroutine[Any, Any, None]]) -> FastAPI:
    """The application.

    Args:
        registry: what it serves.
        start: starts the registry; runs beside the server, which answers (with 503 where it
            must) while it does.

    Its ``state`` has ``registry``, ``gate``, ``store`` and ``metrics``. Raises `ConfigError` for
    wrong API keys, and where traces are to be sent and can't be.
    """
    settings = registry.settings.server
    keys = Keys.load(settings)
    traces = tracing.start(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await registry.aclose()
            if traces is not None:
                await traces.aclose()

    app = FastAPI(
        title="Nudging server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `Envelope` sees to slashes
    )
    app.state.registry = registry
    app.state.metrics = Metrics(registry)
    app.state.gate = Gate(settings)
    app.state.store = Store[Any](settings.stored_responses, int(settings.stored_bytes))
    dialects.install(app)
    # From the inside out.
    if keys:
        app.add_middleware(Access, keys=keys)
    app.add_middleware(Failures)
    app.add_middleware(BodyLimit, most=int(settings.max_body_bytes))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    app.add_middleware(Watching, metrics=app.state.metrics, tracing=traces)
    app.add_middleware(Envelope)
    for each in (status, routes, stored, tokens, count, playground):
        app.include_router(each.routes(registry))
    openapi.install(app)
    return app
