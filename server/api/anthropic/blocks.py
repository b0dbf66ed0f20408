"""Messages and their content blocks: from Anthropic's to ours.

Knows: which blocks there are, which are read, and how those of one turn come together. Does not
know: the rest of a request, prompts. Source: Anthropic's API reference for messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from server.api.fields import Some, Strict, refused
from server.core import Message, ToolCall

Json = dict[str, Any]

ATTRIBUTION = "x-anthropic-billing-header"
"""How a block begins that Claude Code puts in front of its system prompt. It is for whoever bills,
and Anthropic's own API takes it away."""


def _kind(block: Json) -> str:
    """For pydantic, behind `of_type`. The brackets: no part of the path that an error names."""
    return f"[{block['type']}]"


def of_type(*known: str | None) -> BeforeValidator:
    """Of an object: refuses those of other types by their name."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("should be an object")
        if value.get("type") not in known:
            kind = str(value.get("type"))[:60]
            raise ValueError(f"type {kind!r} is not supported here")
        return value

    return BeforeValidator(check)


class TextBlock(Strict):
    """``cache_control`` asks for what happens anyway: what was read is kept as long as there is
    room."""

    type: Literal["text"]
    text: str


Text = Annotated[TextBlock, of_type("text")]


class ThinkingBlock(Strict):
    """What a model thought in an earlier turn; the signature isn't looked at."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Strict):
    """Another model's thoughts, which only that one could read."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any]


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: str | Some[Text] | None = None
    is_error: bool | None = None


Content = Annotated[
    Annotated[TextBlock, Tag("[text]")] | Annotated[ToolResultBlock, Tag("[tool_result]")],
    Discriminator(_kind),
    of_type("text", "tool_result"),
]
Answer = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedThinkingBlock, Tag("[redacted_thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")],
    Discriminator(_kind),
    of_type("text", "thinking", "redacted_thinking", "tool_use"),
]


class UserTurn(Strict):
    role: Literal["user"]
    content: str | Some[Content]


class AssistantTurn(Strict):
    role: Literal["assistant"]
    content: str | Some[Answer]


class SystemTurn(Strict):
    """In the middle of a conversation."""

    role: Literal["system"]
    content: str | Some[Text]


def _role(message: Json) -> str:
    return f"[{message['role']}]"


def _known_role(message: Any) -> Any:
    roles = ("user", "assistant", "system")
    if not isinstance(message, dict) or message.get("role") not in roles:
        raise ValueError("a message is an object of role 'user', 'assistant' or 'system'")
    return message


AnyMessage = Annotated[
    Annotated[UserTurn, Tag("[user]")]
    | Annotated[AssistantTurn, Tag("[assistant]")]
    | Annotated[SystemTurn, Tag("[system]")],
    Discriminator(_role),
    BeforeValidator(_known_role),
]


def conversation(
    system: str | Sequence[TextBlock] | None,
    messages: Iterable[UserTurn | AssistantTurn | SystemTurn],
    thoughts: int | None = None,
) -> list[Message]:
    """``thoughts``: of how many of the last turns with thoughts these are kept; None: of all.
    Raises `refused` where a result answers no call, or the last turn's call has none."""
    turns: list[Message] = []
    if instructions := _instructions(system):
        turns.append(Message("system", instructions))
    called: set[str] = set()
    for number, message in enumerate(messages):
        if isinstance(message, UserTurn):
            _check_results(message, number, called)
        for turn in _turns(message):
            called.update(call.id for call in turn.calls)
            if turns and turn.role != "tool" and turns[-1].role == turn.role:
                turns[-1] = _together(turns[-1], turn)
            else:
                turns.append(turn)
    if turns and turns[-1].role == "assistant" and turns[-1].calls:
        raise refused("messages", "messages: the last one's 'tool_use' has no 'tool_result'")
    return turns if thoughts is None else _without_thoughts(turns, thoughts)


def _without_thoughts(turns: Sequence[Message], kept: int) -> list[Message]:
    thought = [number for number, turn in enumerate(turns) if turn.reasoning]
    gone = set(thought[: max(0, len(thought) - kept)])
    return [replace(t, reasoning="") if number in gone else t for number, t in enumerate(turns)]


def _instructions(system: str | Sequence[TextBlock] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [block.text for block in system]
    return "\n".join(texts[1:] if texts and texts[0].startswith(ATTRIBUTION) else texts)


def _check_results(message: UserTurn, number: int, called: set[str]) -> None:
    blocks = [] if isinstance(message.content, str) else message.content
    for place, block in enumerate(blocks):
        if isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
            where = f"messages.{number}.content.{place}.tool_use_id"
            raise refused(where, f"{where}: no 'tool_use' before it has this id")


def _turns(message: UserTurn | AssistantTurn | SystemTurn) -> Iterator[Message]:
    """Of one message. What tools gave comes in front of what the user says to it."""
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
    elif isinstance(message, AssistantTurn):
        yield _said(message.content)
    else:
        texts = []
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                yield Message("tool", _result(block), call_id=block.tool_use_id)
            else:
                texts.append(block.text)
        if texts or not message.content:
            yield Message(message.role, "\n".join(texts))


def _said(
    blocks: Sequence[TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock],
) -> Message:
    """The texts of one answer follow each other as they were written."""
    return Message(
        "assistant",
        "".join(block.text for block in blocks if isinstance(block, TextBlock)),
        calls=tuple(
            ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False))
            for block in blocks
            if isinstance(block, ToolUseBlock)
        ),
        reasoning="".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock)),
    )


def _result(block: ToolResultBlock) -> str:
    if isinstance(block.content, list):
        text = "\n".join(part.text for part in block.content)
    else:
        text = block.content or ""
    return f"Error: {text}" if block.is_error else text


def _together(first: Message, second: Message) -> Message:
    """Two messages of one role are one turn."""
    return replace(
        first,
        content="\n".join(filter(None, (first.content, second.content))),
        calls=first.calls + second.calls,
        reasoning="\n".join(filter(None, (first.reasoning, second.reasoning))),
    )
