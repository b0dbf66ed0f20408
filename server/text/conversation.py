"""Messages as a chat template takes them, and what to try where it doesn't.

Knows: Hugging Face's form of messages, and what templates are known to refuse. Does not know:
templates, tokenizers, control tokens.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from server.core import Message, ToolCall
from server.text.tools.formats import Format
from server.text.tools.telling import RESULT

_SHORT = 9
_LETTERS = string.ascii_letters + string.digits


def attempts(messages: Sequence[Message], format: Format) -> Iterator[Sequence[Message]]:
    """The messages as they are, and then in forms that more templates take, in order of loss.

    Some templates (Gemma's) know no system role: it goes in front of the question. Mistral's take
    no id of a call but one of nine letters or digits, Llama's no two calls in one message, and
    many none at all.
    """
    forms = [messages]
    if any(message.calls or message.role == "tool" for message in messages):
        short = [_with_short_ids(message) for message in messages]
        forms += [short, [*_one_by_one(short)], as_text(messages, format)]
    for form in forms:
        yield form
        yield without_system(form)


def hugging_face(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As ``apply_chat_template`` takes them."""
    names = {call.id: call.name for message in messages for call in message.calls}
    return [_one(message, names) for message in messages]


def _one(message: Message, names: dict[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        shown["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": object_of(call.arguments)},
            }
            for call in message.calls
        ]
    if message.reasoning:
        shown["reasoning_content"] = message.reasoning
    if message.role == "tool":
        shown["tool_call_id"] = message.call_id or ""
        shown["name"] = names.get(message.call_id or "", "")
    return shown


def object_of(arguments: str) -> dict[str, Any] | str:
    """Arguments as templates take them; as they were written, where that is no JSON object."""
    try:
        value = json.loads(arguments or "{}")
        json.dumps(value, ensure_ascii=False).encode()  # half of a character may be escaped in it
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def as_text(messages: Sequence[Message], format: Format) -> list[Message]:
    """Calls as an answer has them, results as a user's. What a user says behind a result joins
    it: many templates want the two to take turns."""
    told: list[Message] = []
    for message in messages:
        if message.role == "tool":
            message = Message("user", RESULT.format(message.content))
            if told and told[-1].role == "user":
                told[-1] = replace(told[-1], content=f"{told[-1].content}\n{message.content}")
                continue
        elif message.role == "user" and told and told[-1].role == "user" and _result(told[-1]):
            told[-1] = replace(told[-1], content=f"{told[-1].content}\n{message.content}")
            continue
        told.append(with_calls(message, format))
    return told


def with_calls(message: Message, format: Format) -> Message:
    """A message that has its calls in its text."""
    if not message.calls:
        return message
    said = f"{message.content}\n" if message.content.strip() else ""
    return replace(message, content=said + format.written(message.calls), calls=())


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The system text in front of the first user message."""
    system = "\n".join(m.content for m in messages if m.role == "system")
    rest = [m for m in messages if m.role != "system"]
    for number, message in enumerate(rest):
        if message.role == "user" and system:
            rest[number] = replace(message, content=f"{system}\n{message.content}")
            break
    return rest


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """With more of a system text."""
    if messages and messages[0].role == "system":
        first = messages[0]
        content = f"{first.content}\n\n{text}" if first.content else text
        return [replace(first, content=content), *messages[1:]]
    return [Message("system", text), *messages]


def _result(message: Message) -> bool:
    return message.content.endswith(RESULT.rpartition("{}")[2])


def _with_short_ids(message: Message) -> Message:
    return replace(
        message,
        calls=tuple(replace(call, id=_short(call.id)) for call in message.calls),
        call_id=None if message.call_id is None else _short(message.call_id),
    )


def _short(id: str) -> str:
    if len(id) == _SHORT and id.isalnum() and id.isascii():
        return id
    number = int.from_bytes(hashlib.sha256(id.encode("utf-8", "replace")).digest()[:8])
    return "".join(_LETTERS[number // len(_LETTERS) ** i % len(_LETTERS)] for i in range(_SHORT))


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Each call in a message of its own, and behind it its result."""
    results = {m.call_id: m for m in messages if m.role == "tool"}
    given: set[int] = set()
    for message in messages:
        if id(message) in given:
            continue
        if len(message.calls) < 2:
            yield message
            continue
        for number, call in enumerate(message.calls):
            yield _of_one(message, call, first=not number)
            result = results.get(call.id)
            if result is not None and id(result) not in given:
                given.add(id(result))
                yield result


def _of_one(message: Message, call: ToolCall, *, first: bool) -> Message:
    if first:
        return replace(message, calls=(call,))
    return replace(message, content="", reasoning="", calls=(call,))
