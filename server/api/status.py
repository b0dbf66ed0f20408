"""The routes that say how the server is, and what it serves.

Knows: the registry's state. Does not know: how an answer is written.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server import __version__
from server.api import errors
from server.core import EngineUnavailable
from server.metrics import collector
from server.registry import Registry


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()
    metrics = collector(registry)

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> Response:
        """Readiness: every engine is loaded and alive."""
        try:
            await registry.check_health()
        except EngineUnavailable as error:
            status = "loading" if error.loading else "engine_unavailable"
            return JSONResponse({"status": status}, 503, {"Retry-After": errors.RETRY_AFTER_S})
        return JSONResponse({"status": "ready"})

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    @router.get("/metrics")
    async def prometheus() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every served name, also while the engines load."""
        return {"object": "list", "data": [_card(name, registry) for name in registry.names()]}

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """One served name."""
        registry.resolve(model)
        return _card(model, registry)

    return router


def _card(name: str, registry: Registry) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": registry.created, "owned_by": "nudge"}
