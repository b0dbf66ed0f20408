"""The OpenAPI document: one of everything that the routes answer.

Knows: how a route's answers and failures are described, and that the document says nothing else.
Does not know: the shape of any answer but a failure's, how one is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from server.api.openai.errors import ErrorBody

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"


def sometimes(description: str | None = None) -> Any:
    """A key that is left out where it says nothing; it is never null."""
    return Field(default_factory=lambda: None, description=description)


_FAILURES = {
    400: "The request can't be served as it is; `param` names what is wrong.",
    401: "No key, or a wrong one.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "Too many requests at once.",
    500: "A bug of the server.",
    503: "The engines are loading, one of them died, or the server is ending.",
    504: "The answer took too long.",
    529: "What is a 503 elsewhere.",
}

_REQUEST_ID = {
    "description": "The request's own, where it sent one that is usable; otherwise a new one.",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
_RETRY_AFTER = {
    "description": "Seconds after which to try again.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    415: {"Accept-Encoding": {"required": True, "schema": {"const": "identity"}}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
    504: {"x-should-retry": {"required": True, "schema": {"const": "false"}}},
    529: {"Retry-After": _RETRY_AFTER},
}


def responses(
    answer: type[BaseModel] | None,
    *failures: int,
    events: type[BaseModel] | None = None,
    ends: str = "",
    failure: type[BaseModel] = ErrorBody,
    not_ready: type[BaseModel] | None = None,
) -> dict[int | str, Json]:
    """The ``responses`` of a route.

    Args:
        answer: what it answers with 200; None: no JSON.
        failures: the statuses of its failures; a 500 is always one.
        events: what each event holds where it can answer with a stream. ends: how that ends.
        failure: what a failure holds, in a stream too.
        not_ready: what its 503 holds, where that says a state and is no failure.
    """
    content = {} if answer is None else _json(answer)
    if events is not None:
        content["text/event-stream"] = {"itemSchema": _event(ends, events, failure)}
    described: dict[int | str, Json] = {
        200: {"content": content, "headers": {"X-Request-Id": _REQUEST_ID}}
    }
    for status in sorted({*failures, 500} | ({503} if not_ready else set())):
        described[status] = {
            "content": _json((status == 503 and not_ready) or failure),
            "description": _FAILURES[status],
            "headers": {"X-Request-Id": _REQUEST_ID, **_HEADERS.get(status, {})},
        }
    return described


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": _named(model)}}


def _event(ends: str, *contents: type[BaseModel]) -> Json:
    """A server-sent event, as FastAPI describes its own."""
    return {
        "type": "object",
        "description": ends,
        "required": ["data"],
        "properties": {
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [_named(each) for each in contents]},
            }
        },
    }


def _named(model: type[BaseModel]) -> Json:
    """A reference to a model's schema, and with it what it refers to."""
    schema = model.model_json_schema(ref_template=_REF, mode="serialization")
    return {
        "$ref": _REF.format(model=model.__name__),
        "$defs": schema.pop("$defs", {}) | {model.__name__: schema},
    }


# -- the document ---------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Make the app's OpenAPI document complete: what is described here, and nothing else."""
    described = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = described()
            _without_422(document)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in list(_hoisted(document)):
                if schemas.setdefault(name, schema) != schema:
                    raise RuntimeError(f"two schemas are named {name}")
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
            # Of these one will do: without keys in the configuration, none is asked for.
            document["security"] = [{"key": []}, {"x-api-key": []}, {}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _without_422(document: Json) -> None:
    """FastAPI describes its own validation, which has no part in what is answered here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def _hoisted(node: Any) -> Iterator[tuple[str, Json]]:
    """The ``$defs`` of every schema in a document, which are taken out there."""
    if isinstance(node, dict):
        yield from node.pop("$defs", {}).items()
        for value in node.values():
            yield from _hoisted(value)
    elif isinstance(node, list):
        for value in node:
            yield from _hoisted(value)
