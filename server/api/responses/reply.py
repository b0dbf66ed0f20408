"""How a request for a response is answered: as one object, or as the events that build it.

Knows: the response's shape, its events and their numbers, and what is kept of it. Does not know:
its items (`server.api.responses.output`). Both ways are one: a whole answer is what its events
end with.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api import extension, sse
from server.api.dialect import Written
from server.api.errors import ApiError
from server.api.responses import errors
from server.api.responses.items import Item, listed
from server.api.responses.output import Output
from server.api.responses.requests import ResponseRequest
from server.api.responses.turns import Turns, size
from server.api.store import Shelf
from server.core import Finished, Message, Usage
from server.decoding.parsing import Part

Json = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What is kept of a response.

    shown, items: as JSON, the response and the items that it answered.
    conversation: all that was said up to its end, but the instructions.
    """

    shown: bytes
    items: bytes
    conversation: tuple[Message, ...]

    def by_id(self) -> dict[str, Json]:
        """The items of both."""
        items = json.loads(self.items) + json.loads(self.shown)["output"]
        return {item["id"]: item for item in items}

    @property
    def size(self) -> int:
        return len(self.shown) + len(self.items) + size(self.conversation)


def kept_in(item_id: str) -> str:
    """The id of the response that an item belongs to, as the item's id tells it."""
    return f"resp_{item_id.partition('_')[2].partition('_')[0]}"


class ResponseReply:
    """
    Args:
        items: what is answered. turns: the conversation up to there.
        shelf: where the response is kept; None: nowhere.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        request: ResponseRequest,
        items: Sequence[Item],
        turns: Turns,
        shelf: Shelf[Kept] | None,
    ) -> None:
        name = uuid.uuid4().hex
        self.id = f"resp_{name}"
        self._name = name
        self._request = request
        self._items = items
        self._turns = turns
        self._shelf = shelf
        self._created = int(time.time())
        self._output = Output(name, request.top, request.trace)
        self._finished: Finished | None = None
        self._number = 0

    # -- a stream ----------------------------------------------------------------------------

    def begins(self, index: int, echo: str, usage: Usage | None) -> Iterable[bytes]:
        begun = self._shown("in_progress")
        yield self._event({"type": "response.created", "response": begun})
        yield self._event({"type": "response.in_progress", "response": begun})

    def shows(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterable[bytes]:
        return map(self._event, self._taken(event))

    def over(self, usage: Usage) -> Iterable[bytes]:
        response = self._done(usage)
        yield self._event({"type": f"response.{response['status']}", "response": response})

    def failed(self, failure: ApiError) -> Iterable[bytes]:
        if not self._number:
            yield from self.begins(0, "", None)
        told = errors.shown(failure)
        # As the event is described, and where OpenAI's clients look.
        yield self._event(told["error"] | {"type": "error", **told})
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        shown = self._shown("failed") | {"error": {"code": code, "message": str(failure)}}
        yield self._event({"type": "response.failed", "response": shown})

    def _event(self, event: Json) -> bytes:
        numbered = event | {"sequence_number": self._number}
        self._number += 1
        return sse.event(numbered, event["type"])

    # -- a whole answer ----------------------------------------------------------------------

    def whole(self, answers: Sequence[Written], usage: Usage) -> Json:
        for answer in answers:
            for event in (*answer.parts, answer.finished):
                for _ in self._taken(event):
                    pass
        return self._done(usage)

    # -- either ------------------------------------------------------------------------------

    def _taken(self, event: Part | Finished) -> Iterator[Json]:
        if isinstance(event, Finished):
            self._finished = event
            return self._output.end(event)
        return self._output.push(event)

    def _done(self, usage: Usage) -> Json:
        """The response, which is kept now."""
        assert self._finished is not None
        cut = self._finished.was_cut
        response = self._shown("incomplete" if cut else "completed")
        response["output"] = self._output.shown
        response["usage"] = _usage(usage, self._finished.reasoning_tokens)
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        if self._request.trace:
            response["nudging"] = extension.outcome(self._finished)
        self._keep(response)
        return response

    def _keep(self, response: Json) -> None:
        if self._shelf is None:
            return
        self._output.tell(self._turns)
        items = [listed(item, f"{self._name}_in{n}") for n, item in enumerate(self._items)]
        kept = Kept(json.dumps(response).encode(), json.dumps(items).encode(), self._turns.messages)
        self._shelf.put(self.id, kept, kept.size)

    def _shown(self, status: Literal["in_progress", "completed", "incomplete", "failed"]) -> Json:
        asked = self._request
        text = {} if asked.text is None else asked.text.model_dump(by_alias=True, exclude_none=True)
        reasoning = {} if asked.reasoning is None else asked.reasoning.model_dump()
        choice = asked.tool_choice
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None} | reasoning,
            "safety_identifier": asked.safety_identifier,
            "store": self._shelf is not None,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"} | text,
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in asked.tools],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }


def _usage(counts: Usage, reasoning_tokens: int) -> Json:
    """OpenAI's, with ``nudging`` where both models took part."""
    shown: Json = {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }
    nudging = extension.usage(counts)
    return shown if nudging is None else shown | {"nudging": nudging}
