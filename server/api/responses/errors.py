"""Failures as this dialect shows them: OpenAI's object, and the names that fields have here.

Knows: what is called otherwise than in `server.api.ask`. Does not know: which failures there are.
"""

from __future__ import annotations

from typing import Any

from server.api.errors import ApiError
from server.api.openai.errors import error_body

_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "logprobs": "include",
    "reasoning_effort": "reasoning.effort",
}


def shown(failure: ApiError) -> dict[str, Any]:
    body = error_body(failure)
    name = body["error"]["param"]
    body["error"]["param"] = _NAMES.get(name, name)
    return body
