"""The routes that show what the models read.

Knows: prompts and tokenizers. Does not know: how an answer is written.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.api.body import body_schema, read
from server.api.protocol import TemplateRequest
from server.core import joined
from server.registry import Registry


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()

    @router.post("/apply-template", openapi_extra=body_schema(TemplateRequest))
    async def apply_template(request: Request) -> dict[str, str]:
        """The text that each model reads for a conversation."""
        body = await read(request, TemplateRequest)
        served = registry.resolve(body.model)
        messages = [message.message() for message in body.messages]
        pair = registry.prompts(served, messages, body.chat_template_kwargs)
        return {"base": joined(pair.base), "aligned": joined(pair.aligned)}

    return router
