"""``POST /v1/messages`` as a dialect.

Knows: what it puts together. Does not know: how an answer is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from server.api.anthropic.errors import STATUSES, MessagesErrorBody, error_body
from server.api.anthropic.render import MessageReply
from server.api.anthropic.requests import MessagesRequest
from server.api.anthropic.schemas import MessageAnswer, MessageEvent
from server.api.ask import Ask
from server.api.dialect import Reply
from server.api.errors import ApiError
from server.api.openapi import responses
from server.api.store import Shelf

FAILURES = (400, 401, 404, 413, 415, 529, 504)


class Messages:
    path = "/v1/messages"
    name = "messages"
    description = "Anthropic's messages; ``nudging`` in the body says how."
    body: type[BaseModel] = MessagesRequest
    statuses: Mapping[int, int] = STATUSES
    responses = responses(
        MessageAnswer,
        *FAILURES,
        429,
        events=MessageEvent,
        ends="The last one is `message_stop`.",
        failure=MessagesErrorBody,
    )

    def parse(self, body: bytes, shelf: Shelf[Any]) -> tuple[Ask, Reply]:
        request = MessagesRequest.model_validate_json(body)
        thinking = request.thinking
        reply = MessageReply(
            request.model,
            stops=request.stop_sequences or (),
            trace=request.trace,
            silent=thinking is not None and thinking.display == "omitted",
        )
        return request.ask(), reply

    def error(self, failure: ApiError) -> dict[str, Any]:
        return error_body(failure)
