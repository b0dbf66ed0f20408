"""OpenAI's error object, and that of every route that is of no dialect.

Knows: its shape. Does not know: which errors there are (`server.api.errors`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.errors import ApiError


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None


class ErrorBody(BaseModel):
    """Every failure."""

    error: ErrorDetail


def error_body(failure: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": str(failure),
            "type": failure.kind,
            "param": failure.param,
            "code": failure.code,
        }
    }
