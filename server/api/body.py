"""Request bodies: bytes to a checked value.

Knows: content types, size limits, how OpenAPI describes a body. Does not know: any route.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.api.errors import ApiError

Body = TypeVar("Body", bound=BaseModel)


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


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that `read` reads."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
