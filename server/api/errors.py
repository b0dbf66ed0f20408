"""The error contract: every failure with its status.

Knows: which status, kind, code and headers each error has. Does not know: who raises it, and as
what object it is shown (`server.api.dialects`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.core import EngineUnavailable, InvalidRequest
from server.serving.catalog import UnknownModel

log = logging.getLogger("nudge")

RETRY_AFTER_S = "5"


class ApiError(Exception):
    """A failure as it is answered.

    kind: OpenAI's ``type``. param: the field of the request that is wrong. code: which failure of
    this status it is. request_id: of the request, where it is known.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.request_id: str | None = None


def no_key() -> ApiError:
    """It does not say whether a key was sent, and repeats none."""
    return ApiError(
        401,
        "this server needs an API key that it knows, as 'Authorization: Bearer KEY' or "
        "'x-api-key: KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")


def too_nested(limit: int) -> ApiError:
    return ApiError(
        413, f"the body holds more than {limit} lists and objects", code="request_too_large"
    )


def unsupported_encoding(encoding: str) -> ApiError:
    return ApiError(
        415,
        f"the body has the Content-Encoding {_short(encoding, 60)!r}, which this server doesn't "
        "read; send it as it is",
        code="unsupported_content_encoding",
        headers={"Accept-Encoding": "identity"},
    )


def unreadable(status: int) -> ApiError:
    """What came is no request that could be given to anybody."""
    messages = {
        408: "the request's headers took too long",
        431: "the request's headers are too long",
    }
    codes = {408: "request_timeout", 431: "headers_too_large"}
    return ApiError(
        status,
        messages.get(status, "this is no request of HTTP/1.1, or of a kind that isn't read here"),
        kind="server_error" if status >= 500 else "invalid_request_error",
        code=codes.get(status, "invalid_http"),
    )


def too_many(message: str, code: str) -> ApiError:
    """OpenAI's SDKs raise RateLimitError for it, once they have tried again in vain."""
    return ApiError(
        429, message, kind="rate_limit_error", code=code, headers={"Retry-After": RETRY_AFTER_S}
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "the server is shutting down",
        kind="server_error",
        code="shutting_down",
        headers={"Retry-After": RETRY_AFTER_S},
    )


def timed_out(limit_s: float) -> ApiError:
    """OpenAI's SDKs try 5xx again by themselves; this one would take as long again."""
    return ApiError(
        504,
        f"the answer was not finished within {limit_s:g} s; ask for fewer tokens, or stream",
        kind="server_error",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def as_api_error(error: Exception) -> ApiError:
    """How any exception is answered. What nobody foresaw is a 500 that says nothing of it."""
    match error:
        case ApiError():
            return error
        case ValidationError():
            return _validation_error(error.errors(include_url=False, include_context=True))
        case InvalidRequest():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case UnknownModel():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case EngineUnavailable():
            return ApiError(
                503,
                str(error),
                kind="server_error",
                code="engine_loading" if error.loading else "engine_unavailable",
                headers={"Retry-After": RETRY_AFTER_S},
            )
        case HTTPException():
            return _http_error(error)
        case ClientDisconnect():
            return ApiError(499, "the client left before it had asked")  # nobody reads it
        case _:
            log.exception("internal error", exc_info=error)
            return ApiError(
                500, "the server failed to answer", kind="server_error", code="internal_error"
            )


def _http_error(error: HTTPException) -> ApiError:
    codes = {404: "not_found", 405: "method_not_allowed"}
    messages = {404: "there is no such route", 405: "this route has no such method"}
    return ApiError(
        error.status_code,
        messages.get(error.status_code, str(error.detail)),
        code=codes.get(error.status_code),
        headers=error.headers,
    )


def _validation_error(errors: Sequence[Any]) -> ApiError:
    """The first thing that is wrong, with the name of its field and no echo of its value."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}"[:300])
    context = first.get("ctx", {})
    if "param" in context:
        return ApiError(400, first["msg"], param=context["param"])
    # Of a union ("a string or a list of parts") each alternative fails: the one that got
    # furthest into the value knows best what is wrong with it.
    path = _path(first)
    for each in errors[1:]:
        other = _path(each)
        if len(other) > len(path) and other[: len(path)] == path:
            first, path = each, other
    param = ".".join(path) or None
    message = _short(first["msg"].removeprefix("Value error, "), 300)
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


def _path(error: Any) -> list[str]:
    """Where in the body, without the names that pydantic gives to a union's alternatives."""
    where = list(error["loc"])
    if where[:1] == ["response_format"]:
        del where[1:2]  # which of the formats: pydantic's name for it, no key of the body
    return [
        _short(str(part), 60)  # it may be a key that the body made up
        for part in where
        if isinstance(part, int) or not (part in ("str", "int") or "[" in part)
    ]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
