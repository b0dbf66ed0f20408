"""``POST /v1/messages/count_tokens``: how long a prompt would be.

Knows: prompts and tokenizers. Does not know: how an answer is written.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.anthropic.errors import MessagesErrorBody
from server.api.anthropic.messages import FAILURES
from server.api.anthropic.requests import Prompt
from server.api.anthropic.schemas import CountedTokens
from server.api.body import body_schema, read
from server.api.openapi import responses
from server.api.prompts import rendered
from server.decoding.handover import read_before
from server.serving.registry import Registry


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/messages/count_tokens",
        openapi_extra=body_schema(Prompt),
        responses=responses(CountedTokens, *FAILURES, failure=MessagesErrorBody),
    )
    async def count_tokens(request: Request) -> Response:
        """What ``usage.input_tokens`` of the same messages would be: of ``NAME`` the base
        model's."""
        body = await read(request, Prompt)
        served = registry.resolve(body.model)
        served = registry.stand_in(served, served.nudging)
        alone = served.role == "aligned" or served.degraded
        role: Literal["base", "aligned"] = "aligned" if alone else "base"
        info = registry.info(served, role)

        def respond() -> Response:
            pair = rendered(registry, served, body.chat())
            read = read_before(info.tokenizer, getattr(pair, role))
            return JSONResponse({"input_tokens": len(read)})

        return await asyncio.to_thread(respond)  # a body may be megabytes of text

    return router
