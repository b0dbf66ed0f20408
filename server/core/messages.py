"""What a model reads: turns of a conversation, and prompts as either model has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. parameters: the JSON schema of its arguments, an object.
    strict: whether the schema must be followed exactly, or refused."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made. arguments: a JSON text, an object where a model wrote it well."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    calls: what an assistant called, behind what it said. call_id: in a ``tool``'s message, the call
    that it answers. reasoning: an assistant's, in front of what it said.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Literally:
    """Text of a user that spells a control token and must stay text."""

    text: str


PromptText: TypeAlias = tuple[str | Literally, ...]
"""A rendered prompt: plain strings, in which control tokens are control tokens, and
``Literally`` parts, in which they are not. Joined, it is the text the model reads."""


def joined(prompt: PromptText) -> str:
    """The text of a prompt."""
    return "".join(part if isinstance(part, str) else part.text for part in prompt)


@dataclass(frozen=True, slots=True)
class PromptPair:
    """The same conversation as each model reads it.

    headers: what the base model's prompt has between the turns of a conversation, as far as an
        answer can't hold it. See `server.text.headers`.
    thinking: whether they end where the model thinks already, behind what opens that.
    tools: whether the models are told of some.
    """

    base: PromptText
    aligned: PromptText
    headers: tuple[str, ...] = ()
    thinking: bool = False
    tools: bool = False
