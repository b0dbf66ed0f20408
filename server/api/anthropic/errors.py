"""Anthropic's error object.

Knows: its shape, its types and their statuses, and what some fields are called there. Does not
know: which errors there are (`server.api.errors`). Source: Anthropic's API reference, "Errors".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.errors import ApiError
from server.api.openapi import sometimes

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
]

STATUSES = {503: 529}
"""Where Anthropic has another one for what we mean."""

_TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_FIELDS = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "continue_final_message": "messages",
    "prompt": "messages",
}
"""Fields that `server.api.ask` names otherwise."""


class MessagesErrorDetails(BaseModel):
    error_code: str | None = Field(description="Which failure of this type it is.")
    param: str | None = Field(description="The field of the request that is wrong.")


class MessagesErrorDetail(BaseModel):
    type: ErrorType
    message: str
    details: MessagesErrorDetails


class MessagesErrorBody(BaseModel):
    """Every failure."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str = sometimes("Not in a stream.")


def error_body(failure: ApiError) -> dict[str, Any]:
    default = "api_error" if failure.status >= 500 else "invalid_request_error"
    message, param = str(failure), failure.param
    if param in _FIELDS:
        message, param = message.replace(param, _FIELDS[param]), _FIELDS[param]
    if failure.code == "context_length_exceeded":
        # Anthropic's words, which agents look for to know that they should shorten their prompt.
        message = f"prompt is too long: {message}"
    body: dict[str, Any] = {
        "type": "error",
        "error": {
            "type": _TYPES.get(failure.status, default),
            "message": message,
            "details": {"error_code": failure.code, "param": param},
        },
    }
    return body | ({} if failure.request_id is None else {"request_id": failure.request_id})
