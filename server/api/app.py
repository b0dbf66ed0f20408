"""The application: its routes put together, and what starts and ends with it.

Knows: which parts there are. Does not know: what any of them does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from server import __version__
from server.api import errors, generation, status, tokens
from server.api.middleware import Envelope
from server.registry import Registry


def create_app(registry: Registry, *, start: Callable[[], Coroutine[Any, Any, None]]) -> FastAPI:
    """The application.

    Args:
        registry: what it serves.
        start: starts the registry; runs beside the server, which answers (with 503 where it
            must) while it does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await registry.aclose()

    app = FastAPI(
        title="Nudging server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.registry = registry
    errors.install(app)
    app.add_middleware(Envelope)
    for each in (status, generation, tokens):
        app.include_router(each.routes(registry))
    return app
