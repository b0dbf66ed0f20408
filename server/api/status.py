"""The routes that say how the server is, and what it serves.

Knows: the registry's state. Does not know: how an answer is written.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import RootModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from server import __version__
from server.api import errors
from server.api.anthropic import models as anthropic
from server.api.openapi import responses
from server.api.schemas import (
    Health,
    ModelCard,
    ModelList,
    ModelSampling,
    NotReady,
    Ready,
    Version,
)
from server.policies import PolicySpec
from server.serving.catalog import Served
from server.serving.registry import Registry
from server.telemetry.metrics import Metrics


class AnyModel(RootModel[ModelCard | anthropic.MessagesModel]):
    """As OpenAI shows it, or as Anthropic does."""


class AnyModelList(RootModel[ModelList | anthropic.MessagesModelList]):
    """As OpenAI lists them, or as Anthropic does."""


class Readable(APIRoute):
    """A GET that answers HEAD too, as monitors ask: the same, whose body uvicorn leaves out. With
    HEAD among its methods, OpenAPI would describe it twice under one id; like this, the router
    finds it as it finds what to answer with a 405."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        await self.app(scope, receive, send)


def routes(registry: Registry) -> APIRouter:
    router = APIRouter(route_class=Readable)

    @router.get("/health", response_model=None, responses=responses(Health))
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @router.get("/ready", responses=responses(Ready, not_ready=NotReady))
    async def ready(request: Request) -> Response:
        """Readiness: every model can answer, if need be by its aligned engine alone, and new
        requests are let in."""
        if request.app.state.gate.draining:
            refused = errors.shutting_down()
            return JSONResponse({"status": "shutting_down"}, refused.status, refused.headers)
        state = registry.state
        if state in ("ready", "degraded"):
            return JSONResponse({"status": state})
        return JSONResponse({"status": state}, 503, {"Retry-After": errors.RETRY_AFTER_S})

    @router.get("/version", response_model=None, responses=responses(Version))
    async def version() -> dict[str, str]:
        """The server's version."""
        return {"version": __version__}

    @router.get("/metrics", response_class=PlainTextResponse, responses=responses(None))
    async def prometheus(request: Request) -> Response:
        """Prometheus metrics."""
        metrics: Metrics = request.app.state.metrics
        return Response(generate_latest(metrics.collected), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models", response_model=None, responses=responses(AnyModelList, 401))
    async def models(request: Request) -> dict[str, Any]:
        """Every served name, also while the engines load; with a header ``anthropic-version`` in
        Anthropic's shape."""
        if anthropic.speaks(request.headers):
            return anthropic.cards(registry)
        return {"object": "list", "data": [_card(name, registry) for name in registry.names()]}

    @router.get(
        "/v1/models/{model:path}", response_model=None, responses=responses(AnyModel, 401, 404)
    )
    async def model(model: str, request: Request) -> dict[str, Any]:
        """One served name."""
        if anthropic.speaks(request.headers):
            return anthropic.card(model, registry)
        return _card(model, registry)

    return router


def _card(name: str, registry: Registry) -> dict[str, Any]:
    """OpenAI's object, and what a request starts from that doesn't say otherwise."""
    served = registry.resolve(name)
    card: dict[str, Any] = {"id": name, "object": "model", "created": registry.created}
    card |= {"owned_by": "nudge", "root": registry.root(served)}
    card |= {"max_model_len": registry.context_length(served), "sampling": _sampling(served)}
    if served.role != "nudged":
        return card
    policies = {policy.name: _policy(policy) for policy in served.policies}
    return card | {"nudging": asdict(served.nudging), "policies": policies}


def _policy(policy: PolicySpec) -> dict[str, Any]:
    """What a client has to know of a policy that it may ask for."""
    threshold = None if policy.threshold is None else policy.threshold.setting
    return {"settings": list(policy.settings), "threshold": threshold, "trace": policy.trace}


def _sampling(served: Served) -> dict[str, float]:
    sampling = served.sampling
    return {name: getattr(sampling, name) for name in ModelSampling.model_fields}
