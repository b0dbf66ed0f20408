"""What a dialect is: a way to ask for answers over HTTP, and to be answered.

Knows: what every dialect has to have. Does not know: any of them (`server.api.dialects`).

A dialect is a folder of its own and a row there. It reads a body into an `Ask`, and shows what
comes of that. Who answers, the limits, the queue, the writing, and clients that leave are the same
for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from server.api.ask import Ask
from server.api.errors import ApiError
from server.api.store import Shelf
from server.core import Finished, Usage
from server.decoding.parsing import Part

Json = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """One whole answer. echo: the text that goes in front of it."""

    parts: Sequence[Part]
    finished: Finished
    echo: str = ""


class Reply(Protocol):
    """How one request is answered: as a stream, whose methods give frames, bytes as they are sent,
    or as a whole.

    id: of the response. keep_alive: what a stream says where it has nothing to say.
    """

    id: str
    keep_alive: bytes

    def begins(self, index: int, echo: str, usage: Usage | None) -> Iterable[bytes]:
        """Before anything of an answer. ``echo``: see `Written`. ``usage``: so far, where the
        `Ask` wants it (``running_usage``); so in `shows`."""

    def shows(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterable[bytes]:
        """A part of an answer, or its end."""

    def over(self, usage: Usage) -> Iterable[bytes]:
        """After the last answer. ``usage``: of the whole request."""

    def failed(self, failure: ApiError) -> Iterable[bytes]:
        """Instead of all that would still have come."""

    def whole(self, answers: Sequence[Written], usage: Usage) -> Json:
        """The answers in the order of their ``index``, where they aren't streamed."""


class Dialect(Protocol):
    """
    path: of its route; everything under it is answered in this dialect where it fails.
    name, description: of the route, for OpenAPI. body: of a request. responses: see
    `server.api.openapi.responses`. statuses: where its failures have another one than ours.
    """

    path: str
    name: str
    description: str
    body: type[BaseModel]
    responses: dict[int | str, Json]
    statuses: Mapping[int, int]

    def parse(self, body: bytes, shelf: Shelf[Any]) -> tuple[Ask, Reply]:
        """What a body, JSON, asks for, and how that is answered. ``shelf``: what is kept for
        whoever asks. Raises ``ValidationError``, `ApiError`, `InvalidRequest`."""

    def error(self, failure: ApiError) -> Json:
        """A failure as it is shown. Its ``param`` names a field as `server.api.ask` does."""
