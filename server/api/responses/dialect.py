"""Responses as a dialect: from a body to what it asks for, with what was kept for it.

Knows: how a request, the responses that it refers to, and its reply fit together. Does not know:
how an answer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from pydantic import BaseModel, TypeAdapter

from server.api.ask import Ask
from server.api.dialect import Json, Reply
from server.api.errors import ApiError
from server.api.openapi import responses
from server.api.responses.errors import shown
from server.api.responses.items import AnyItem, Item, ReferenceItem
from server.api.responses.reply import Kept, ResponseReply, kept_in
from server.api.responses.requests import ResponseRequest
from server.api.responses.schemas import ResponseEvent, ResponseObject
from server.api.responses.turns import Turns, instructed
from server.api.store import Shelf
from server.core import Message

_ITEM: TypeAdapter[Item | ReferenceItem] = TypeAdapter(AnyItem)


class Responses:
    """``POST /v1/responses``"""

    path = "/v1/responses"
    name = "responses"
    description = "OpenAI's responses; ``nudging`` in the body says how."
    body: type[BaseModel] = ResponseRequest
    statuses: Mapping[int, int] = {}
    responses = responses(
        ResponseObject,
        *(400, 401, 404, 413, 415, 429, 503, 504),
        events=ResponseEvent,
        ends="The last one is `response.completed`, `response.incomplete` or `response.failed`.",
    )

    def parse(self, body: bytes, shelf: Shelf[Kept]) -> tuple[Ask, Reply]:
        request = ResponseRequest.model_validate_json(body)
        if request.store and not shelf.holds:
            raise ApiError(
                400,
                "'store': this server keeps no responses (server.stored_responses)",
                param="store",
            )
        turns = Turns(_before(request.previous_response_id, shelf))
        items = list(_resolved(request.items, shelf))
        for item in items:
            item.tell(turns)
        if not turns.messages:
            raise ApiError(400, "input: there is nothing to answer", param="input")
        ask = request.ask(instructed(request.instructions, turns.messages))
        keeps = shelf.holds and request.store is not False
        return ask, ResponseReply(request, items, turns, shelf if keeps else None)

    def error(self, failure: ApiError) -> Json:
        return shown(failure)


def _before(response_id: str | None, shelf: Shelf[Kept]) -> Sequence[Message]:
    """The conversation up to a stored response's end. Raises `ApiError` (400)."""
    if response_id is None:
        return ()
    kept = shelf.get(response_id)
    if kept is None:
        raise ApiError(
            400,
            f"Previous response with id {response_id[:100]!r} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return kept.conversation


def _resolved(items: Sequence[Item | ReferenceItem], shelf: Shelf[Kept]) -> Iterator[Item]:
    """The items, with those that are referred to in their places. Raises `ApiError` (400)."""
    opened: dict[str, dict[str, Json]] = {}
    for number, item in enumerate(items):
        if not isinstance(item, ReferenceItem):
            yield item
            continue
        response_id = kept_in(item.id)
        if response_id not in opened:
            kept = shelf.get(response_id)
            opened[response_id] = {} if kept is None else kept.by_id()
        found = opened[response_id].get(item.id)
        if found is None:
            raise ApiError(
                400,
                f"Item with id {item.id[:100]!r} not found: only those of stored responses can be "
                "referred to",
                param=f"input.{number}",
            )
        yield cast(Item, _ITEM.validate_python(found))
