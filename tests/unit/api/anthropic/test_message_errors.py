"""Each failure as Anthropic shows it."""

from __future__ import annotations

import pytest

from server.api import errors
from server.api.anthropic.errors import MessagesErrorBody, error_body
from server.api.errors import ApiError, as_api_error
from server.core import ContextLengthExceeded, EngineUnavailable, InvalidRequest
from server.serving.catalog import UnknownModel


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InvalidRequest("x"), "invalid_request_error", None),
        (errors.no_key(), "authentication_error", "invalid_api_key"),
        (ApiError(403, "x"), "permission_error", None),
        (UnknownModel("x"), "not_found_error", "model_not_found"),
        (ApiError(405, "x"), "invalid_request_error", None),
        (errors.too_large(1), "request_too_large", "request_too_large"),
        (errors.unsupported_encoding("gzip"), "invalid_request_error", None),
        (errors.too_many("x", "queue_full"), "rate_limit_error", "queue_full"),
        (RuntimeError("secret"), "api_error", "internal_error"),
        (EngineUnavailable("x"), "overloaded_error", "engine_unavailable"),
        (errors.timed_out(1), "timeout_error", "timeout"),
    ],
)
def test_each_has_its_type(error: Exception, kind: str, code: str | None):
    body = error_body(as_api_error(error))
    MessagesErrorBody.model_validate(body)
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert "secret" not in body["error"]["message"]
    if code is not None:
        assert body["error"]["details"]["error_code"] == code
    assert "request_id" not in body


def test_the_request_is_named_where_it_is_known():
    failure = ApiError(400, "x")
    failure.request_id = "r-1"
    assert error_body(failure)["request_id"] == "r-1"


def test_fields_have_anthropics_names():
    failure = ApiError(400, "response_format has no effect on x", param="response_format")
    error = error_body(failure)["error"]
    assert error["details"]["param"] == "output_config.format"
    assert error["message"] == "output_config.format has no effect on x"


def test_a_prompt_that_is_too_long_is_called_that():
    error = error_body(as_api_error(ContextLengthExceeded("maximum is 5")))["error"]
    assert error["message"] == "prompt is too long: maximum is 5"
    assert error["details"] == {"error_code": "context_length_exceeded", "param": "messages"}
