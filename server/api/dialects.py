"""The dialects that the server speaks, and failures as each of them shows them.

Knows: which there are. Does not know: how any of them reads or shows anything.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from server.api.anthropic.messages import Messages
from server.api.dialect import Dialect
from server.api.errors import ApiError, as_api_error
from server.api.openai.chat import ChatCompletions
from server.api.openai.completions import Completions
from server.api.openai.errors import error_body
from server.api.responses.dialect import Responses
from server.core import EngineUnavailable, InvalidRequest
from server.serving.catalog import UnknownModel

DIALECTS: tuple[Dialect, ...] = (ChatCompletions(), Completions(), Responses(), Messages())


def refusal(failure: ApiError, scope: Scope) -> JSONResponse:
    """A failure in the dialect of its path; where that has none, in OpenAI's shape.

    Leaves in the request's state: ``error``, the code, for whoever logs the request.
    """
    scope["state"]["error"] = failure.code
    failure.request_id = scope["state"].get("request_id")
    path = scope.get("path", "")
    spoken = (each for each in DIALECTS if f"{path}/".startswith(f"{each.path}/"))
    dialect = next(spoken, None)
    if dialect is None:
        return JSONResponse(error_body(failure), failure.status, failure.headers)
    status = dialect.statuses.get(failure.status, failure.status)
    return JSONResponse(dialect.error(failure), status, failure.headers)


def install(app: FastAPI) -> None:
    """Answer what the routes raise in their dialect, and FastAPI's own errors too. What nobody
    foresaw goes on to `server.api.middleware.Failures`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        failure = as_api_error(error)
        if failure.status == 405:
            failure.headers["Allow"] = _allowed(failure, request)
        return refusal(failure, request.scope)

    for kind in (ApiError, ValidationError, InvalidRequest, UnknownModel, EngineUnavailable):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(HTTPException, handle)


def _allowed(failure: ApiError, request: Request) -> str:
    """The methods of every route of a path: the router names those of the first one."""
    methods = set(failure.headers.get("Allow", "").split(", ")) - {""}
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))
