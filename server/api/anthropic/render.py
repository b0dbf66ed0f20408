"""An answer as a message of Anthropic's: as the events of a stream, or as what those join to.

Knows: content blocks, events, and where our trace and usage go in them. Does not know: how parts
come about. Source: Anthropic's documentation of streaming.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic_core import from_json

from server.api import extension, sse
from server.api.anthropic.errors import error_body
from server.api.dialect import Written
from server.api.errors import ApiError
from server.core import Finished, Usage
from server.decoding.parsing import CallArguments, CallBegins, Content, Part, Reasoning

Json = dict[str, Any]

SIGNATURE = "unsigned"
"""Of what was thought. Clients send it back with the text; it is not looked at."""


class Blocks:
    """The content blocks of one message, as events.

    Args:
        trace: whether the pieces go out too.
        silent: whether what was thought is kept back. That there was some is shown.
    """

    def __init__(self, *, trace: bool, silent: bool) -> None:
        self._trace = trace
        self._silent = silent
        self._number = -1
        self._open: str | None = None
        self._untold: list[Json] = []

    def push(self, part: Part) -> Iterator[Json]:
        if self._trace:
            self._untold += extension.pieces([part.piece])
        text = part.piece.text
        match part:
            case Content():
                if text:
                    yield from self._in("text", {"text": ""})
                    yield self._delta({"type": "text_delta", "text": text})
            case Reasoning():
                if text:
                    yield from self._in("thinking", {"thinking": "", "signature": ""})
                    if not self._silent:
                        yield self._delta({"type": "thinking_delta", "thinking": text})
            case CallBegins():
                yield from self.close()
                called = {"id": part.id, "name": part.name, "input": {}}
                yield from self._in("tool_use", called)
            case CallArguments():
                if text:
                    yield self._delta({"type": "input_json_delta", "partial_json": text})

    def close(self) -> Iterator[Json]:
        """The open block is over."""
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._number}
        self._open = None

    def told(self) -> Json:
        """``nudging`` for the next event: the pieces since the last one."""
        pieces, self._untold = self._untold, []
        return {"nudging": {"pieces": pieces}} if pieces else {}

    def _in(self, kind: str, block: Json) -> Iterator[Json]:
        """Inside a block of this kind; it begins where that isn't so yet."""
        if self._open != kind:
            yield from self.close()
            self._open = kind
            self._number += 1
            block = {"type": kind, **block}
            yield {"type": "content_block_start", "index": self._number, "content_block": block}

    def _delta(self, delta: Json) -> Json:
        event = {"type": "content_block_delta", "index": self._number, "delta": delta}
        return event | self.told()


def joined(events: Iterable[Json]) -> list[Json]:
    """The content blocks that a stream's events make up."""
    blocks: list[Json] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append({key: [value] for key, value in event["content_block"].items()})
        elif event["type"] == "content_block_delta":
            for key, value in event["delta"].items():
                if key != "type":
                    blocks[-1].setdefault(key, []).append(value)
    return [_block(block) for block in blocks]


def _block(collected: Json) -> Json:
    (kind,) = collected["type"]
    arguments = "".join(collected.pop("partial_json", ()))
    if kind == "tool_use":
        block = {key: value for key, (value,) in collected.items()}
        if arguments:
            # As SDKs read a stream: what max_tokens cut is as far as it came.
            block["input"] = from_json(arguments, allow_partial=True)
        return block
    return {key: "".join(values) for key, values in collected.items()}


class MessageReply:
    """A request's one answer (`server.api.dialect.Reply`).

    Args:
        model: the name as it was asked for.
        stops: the stop strings that were asked for.
        trace, silent: see `Blocks`.
    """

    keep_alive = sse.event({"type": "ping"}, name="ping")

    def __init__(
        self, model: str, *, stops: Sequence[str] = (), trace: bool = False, silent: bool = False
    ) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._stops = stops
        self._trace = trace
        self._blocks = Blocks(trace=trace, silent=silent)
        self._finished: Finished | None = None

    # -- a stream ----------------------------------------------------------------------------

    def begins(self, index: int, echo: str, usage: Usage | None) -> Iterable[bytes]:
        message = self._message([], {"stop_reason": None, "stop_sequence": None})
        read = _usage(usage or Usage()) | {"output_tokens": 0}
        yield _frame({"type": "message_start", "message": message | {"usage": read}})

    def shows(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterable[bytes]:
        if isinstance(event, Finished):
            self._finished = event
            return map(_frame, self._blocks.close())
        return map(_frame, self._blocks.push(event))

    def over(self, usage: Usage) -> Iterable[bytes]:
        assert self._finished is not None
        event = {"type": "message_delta", "delta": self._end(self._finished)}
        event["usage"] = shown_usage(usage, self._finished)
        if self._trace:
            pieces = self._blocks.told().get("nudging", {"pieces": []})
            event["nudging"] = pieces | extension.outcome(self._finished)
        yield _frame(event)
        yield _frame({"type": "message_stop"})

    def failed(self, failure: ApiError) -> Iterable[bytes]:
        yield _frame(error_body(failure))

    # -- a whole answer ----------------------------------------------------------------------

    def whole(self, answers: Sequence[Written], usage: Usage) -> Json:
        (answer,) = answers
        message = self._message(joined(self._events(answer.parts)), self._end(answer.finished))
        message["usage"] = shown_usage(usage, answer.finished)
        if self._trace:
            pieces = extension.pieces(part.piece for part in answer.parts)
            message["nudging"] = extension.outcome(answer.finished) | {"pieces": pieces}
        return message

    def _events(self, parts: Iterable[Part]) -> Iterator[Json]:
        for part in parts:
            yield from self._blocks.push(part)
        yield from self._blocks.close()

    # -- either ------------------------------------------------------------------------------

    def _message(self, content: list[Json], end: Json) -> Json:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self._model}
        return {**head, "content": content, **end}

    def _end(self, finished: Finished) -> Json:
        """Why it ended. A stop string is told that was asked for; the served model's own is its
        end."""
        reason, matched = "end_turn", None
        if finished.stop_reason == "context":
            reason = "model_context_window_exceeded"
        elif finished.finish_reason == "length":
            reason = "max_tokens"
        elif finished.finish_reason == "tool_calls":
            reason = "tool_use"
        elif finished.stop_reason == "stop_string" and finished.matched in self._stops:
            reason, matched = "stop_sequence", finished.matched
        return {"stop_reason": reason, "stop_sequence": matched}


def _frame(event: Json) -> bytes:
    return sse.event(event, event["type"])


def _usage(counts: Usage) -> Json:
    return {
        "input_tokens": counts.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": counts.completion_tokens,
    }


def shown_usage(counts: Usage, finished: Finished) -> Json:
    """Anthropic's ``usage``, with ``nudging`` where both models took part."""
    thought = {"output_tokens_details": {"thinking_tokens": finished.reasoning_tokens}}
    nudging = extension.usage(counts)
    return _usage(counts) | thought | ({} if nudging is None else {"nudging": nudging})
