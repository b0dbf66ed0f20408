"""The routes.

Knows: which route does what, with whom. Does not know: a rule of the policy, vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from server import __version__
from server.api import errors, sse
from server.api.errors import ApiError, as_api_error
from server.api.middleware import Envelope
from server.api.protocol import (
    ChatRequest,
    CompletionRequest,
    Generation,
    NudgingOptions,
    TemplateRequest,
)
from server.api.render import ChatRenderer, CompletionRenderer, Json, Renderer
from server.core import (
    AnswerRequest,
    EngineUnavailable,
    Finished,
    Message,
    NudgingConfig,
    Piece,
    joined,
)
from server.metrics import collector
from server.orchestrator import Writer, stream
from server.registry import Registry, Served

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
Event = Piece | Finished


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
    _add_status_routes(app, registry)
    _add_generation_routes(app, registry)
    return app


def _add_status_routes(app: FastAPI, registry: Registry) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Readiness: every engine is loaded and alive."""
        try:
            await registry.check_health()
        except EngineUnavailable as error:
            status = "loading" if error.loading else "engine_unavailable"
            return JSONResponse({"status": status}, 503, {"Retry-After": errors.RETRY_AFTER_S})
        return JSONResponse({"status": "ready"})

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    metrics = collector(registry)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(name, registry) for name in registry.names()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        registry.resolve(model)
        return _card(model, registry)


def _card(name: str, registry: Registry) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": registry.created, "owned_by": "nudge"}


def _add_generation_routes(app: FastAPI, registry: Registry) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_body_schema(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions; ``nudging`` in the body says how."""
        body = await read(request, ChatRequest)
        served = registry.resolve(body.model)
        nudging = _nudging(served, body)
        prompt = registry.prompts(served, body.conversation(), body.chat_template_kwargs)
        answer = body.answer_request(served.sampling)
        writer = registry.writer(served, prompt, answer, nudging)
        return await _respond(request, body, answer, writer, ChatRenderer)

    @app.post("/v1/completions", openapi_extra=_body_schema(CompletionRequest))
    async def completions(request: Request) -> Response:
        """OpenAI's completions: the raw prompt continued by ``NAME:base`` or ``NAME:aligned``;
        for ``NAME`` the prompt is the user's only message."""
        body = await read(request, CompletionRequest)
        served = registry.resolve(body.model)
        nudging = _nudging(served, body)
        answer = body.answer_request(served.sampling)
        prompt = body.one_prompt
        if served.role != "nudged":
            writer = registry.continuation(served, prompt, answer)
        elif isinstance(prompt, str):
            pair = registry.prompts(served, [Message("user", prompt)])
            writer = registry.writer(served, pair, answer, nudging)
        else:
            raise ApiError(
                400,
                f"token ids mean different text to the two models of {served.name!r}; send text, "
                f"or ask {served.name}:base or {served.name}:aligned",
                param="prompt",
            )
        return await _respond(request, body, answer, writer, CompletionRenderer)

    @app.post("/apply-template", openapi_extra=_body_schema(TemplateRequest))
    async def apply_template(request: Request) -> dict[str, str]:
        """The text that each model reads for a conversation."""
        body = await read(request, TemplateRequest)
        served = registry.resolve(body.model)
        messages = [message.message() for message in body.messages]
        pair = registry.prompts(served, messages, body.chat_template_kwargs)
        return {"base": joined(pair.base), "aligned": joined(pair.aligned)}


def _nudging(served: Served, body: Generation) -> NudgingConfig:
    """The policy's settings for one answer. Raises `ApiError` for what would have no effect."""
    options = body.nudging or NudgingOptions()
    if served.role != "nudged":
        for field in sorted(options.settings):
            raise ApiError(
                400,
                f"nudging.{field} has no effect on one model alone; ask {served.name!r}",
                param=f"nudging.{field}",
            )
        return served.nudging
    config = options.over(served.nudging)
    if config.policy == "reference":
        for field in sorted(body.beyond_reference()):
            raise ApiError(
                400,
                f"{field} has no effect on the policy 'reference', which is the authors' greedy "
                "procedure",
                param=field,
            )
    return config


async def read(request: Request, model: type[Body]) -> Body:
    """The request's body, checked.

    Raises `ApiError`, ``ValidationError``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(400, "the body must be JSON, with Content-Type: application/json")
    limit = int(request.app.state.registry.settings.server.max_body_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")
    return model.model_validate_json(bytes(body))


async def _respond(
    request: Request,
    body: Generation,
    answer: AnswerRequest,
    writer: Writer,
    kind: type[Renderer],
) -> Response:
    renderer = kind(
        body.model,
        trace=body.trace,
        include_usage=body.include_usage,
        rewrites=writer.rewrites,
        top=answer.top_logprobs,
    )
    events = stream(writer, answer.stop)
    if not body.stream:
        whole = await _unless_left(request, _whole(events, renderer))
        return Response(status_code=499) if whole is None else JSONResponse(whole)
    # The first event is awaited before the response begins: what fails early has its status.
    first = await _unless_left(request, _first(events))
    if first is None:
        return Response(status_code=499)  # nobody is there to read it
    settings = request.app.state.registry.settings.server
    return sse.EventStream(_events(first, events, renderer), keep_alive_s=settings.keep_alive_s)


async def _first(events: AsyncGenerator[Event]) -> Event:
    return await anext(events)


async def _whole(events: AsyncGenerator[Event], renderer: Renderer) -> Json:
    pieces: list[Piece] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                return renderer.whole(pieces, event)
            pieces.append(event)
    raise RuntimeError("the answer ended without saying how")


async def _events(
    first: Event, rest: AsyncGenerator[Event], renderer: Renderer
) -> AsyncGenerator[bytes]:
    """The stream's bytes: chunks, or one lone error where the answer failed, then DONE."""
    async with aclosing(rest):
        try:
            for chunk in renderer.first_chunks():
                yield sse.event(chunk)
            event = first
            while isinstance(event, Piece):
                for chunk in renderer.chunks(event):
                    yield sse.event(chunk)
                event = await anext(rest)
            for chunk in renderer.last_chunks(event):
                yield sse.event(chunk)
        except Exception as error:
            # The status is out already, so the stream itself must say it.
            yield sse.event(as_api_error(error).body)
        yield sse.DONE


async def _unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The work's result; None if the client left first, and then the work is cancelled."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(sse.left(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that `read` reads."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
