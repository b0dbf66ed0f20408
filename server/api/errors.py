"""The error contract: every failure as OpenAI's error object with its status.

Knows: which status, type and code each error has. Does not know: who raises it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from server.core import EngineUnavailable, InvalidRequest
from server.registry import UnknownModel

log = logging.getLogger("nudge")

RETRY_AFTER_S = "5"


class ApiError(Exception):
    """A failure as it is answered."""

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
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


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
        case _:
            log.exception("internal error", exc_info=error)
            return ApiError(
                500, "the server failed to answer", kind="server_error", code="internal_error"
            )


def install(app: FastAPI) -> None:
    """Answer every exception of an app in the contract's shape."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, ValidationError, InvalidRequest, UnknownModel, EngineUnavailable):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(HTTPException, handle)
    app.add_exception_handler(Exception, handle)


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
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


def _path(error: Any) -> list[str]:
    """Where in the body, without the names that pydantic gives to a union's alternatives."""
    return [
        str(part)
        for part in error["loc"]
        if isinstance(part, int) or not (part in ("str", "int") or "[" in part)
    ]
