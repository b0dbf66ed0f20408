"""Request bodies: bytes to JSON that may be read.

Knows: content types, how OpenAPI describes a body, and that a client may never finish one. Does
not know: any route, how large a body may be (`server.api.middleware.BodyLimit`), what it asks for.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel

from server.api import errors
from server.api.errors import ApiError

MAX_NESTED = 100_000
"""Lists and objects in one body. Each is an object of Python's, made on the event loop."""

Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, model: type[Body]) -> Body:
    """The request's body, checked. Raises `ApiError`, ``ValidationError``."""
    return model.model_validate_json(await json_text(request))


async def json_text(request: Request) -> bytes:
    """The request's body: UTF-8, and no more lists and objects than a body may have. Raises
    `ApiError`."""
    encoding = ", ".join(request.headers.getlist("content-encoding")).lower()
    if any(each.strip() not in ("", "identity") for each in encoding.split(",")):
        raise errors.unsupported_encoding(encoding)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(400, "the body must be JSON, with Content-Type: application/json")
    limit_s = request.app.state.registry.settings.server.request_timeout_s
    try:
        async with asyncio.timeout_at(request.state.arrived + limit_s):
            body = await request.body()
    except TimeoutError:
        raise errors.timed_out(limit_s) from None
    if nested(body) > MAX_NESTED:
        raise errors.too_nested(MAX_NESTED)
    return _text(body)


def nested(body: bytes) -> int:
    """How many lists and objects a JSON text has; at most, where that is `MAX_NESTED` or less."""
    most = body.count(b"[") + body.count(b"{")
    if most <= MAX_NESTED:
        return most
    data = np.frombuffer(body, np.uint8)
    slashes = np.flatnonzero(data == ord("\\"))
    # Of a run of backslashes every second one escapes what follows it.
    first = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)
    lengths = np.diff(first, append=len(slashes))
    escaped = np.zeros(len(data) + 1, bool)
    escaped[slashes[(first + lengths - 1)[lengths % 2 == 1]] + 1] = True
    quotes = (data == ord('"')) & ~escaped[:-1]
    outside = np.cumsum(quotes) % 2 == 0
    return int(np.count_nonzero(outside & ((data == ord("[")) | (data == ord("{")))))


def _text(body: bytes) -> bytes:
    """UTF-8 without a byte order mark, which some clients write. Raises `ApiError`."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise ApiError(400, "the body must be JSON in UTF-8") from None
    return body.removeprefix(codecs.BOM_UTF8)


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that `read` reads.

    The schemas that it refers to come along in ``$defs``; `server.api.openapi` puts them where
    the references say that they are.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
