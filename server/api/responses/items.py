"""The items of a conversation, as a request gives them: what was said, thought, called, answered.

Knows: their fields, and what each adds to the turns. Does not know: how an answer's items come
about (`server.api.responses.output`). Source: OpenAI's API reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator

from server.api.fields import MAX_ITEMS, Some, Strict, kind_of, refused
from server.api.responses.turns import Turns
from server.core import InvalidRequest, Message, ToolCall

Named = Annotated[str, Field(min_length=1, max_length=1000)]


class SaidText(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str


class SaidRefusal(Strict):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _part(data: Any) -> str:
    return "[refusal]" if kind_of(data) == "refusal" else "[text]"


# The brackets: no part of the path that an error names.
Said: TypeAlias = Annotated[
    Annotated[SaidText, Tag("[text]")] | Annotated[SaidRefusal, Tag("[refusal]")],
    Discriminator(_part),
]


class MessageItem(Strict):
    type: Literal["message"] | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Some[Said]

    def tell(self, turns: Turns) -> None:
        if self.role == "assistant":
            turns.said(_text(self.content))
        else:
            # OpenAI: `developer` is the newer name of `system`.
            role = "system" if self.role == "developer" else self.role
            turns.heard(Message(role, _text(self.content)))


class CallItem(Strict):
    type: Literal["function_call"]
    id: str | None = None
    call_id: Named
    name: Named
    arguments: str

    def tell(self, turns: Turns) -> None:
        turns.called(ToolCall(self.call_id, self.name, self.arguments))


class CallOutputItem(Strict):
    type: Literal["function_call_output"]
    id: str | None = None
    call_id: Named
    output: str | Some[SaidText]

    def tell(self, turns: Turns) -> None:
        """Raises `InvalidRequest` for a call that nobody made."""
        if not turns.knows(self.call_id):
            raise InvalidRequest(
                f"input: no function_call has the call_id {self.call_id[:60]!r}", param="input"
            )
        turns.heard(Message("tool", _text(self.output), call_id=self.call_id))


class Thought(Strict):
    type: Literal["summary_text", "reasoning_text", "text"]
    text: str


class ReasoningItem(Strict):
    """It is read by its content, or by its summary where it has no other."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Some[Thought] | None = None
    content: Some[Thought] | None = None
    encrypted_content: str | None = None

    @field_validator("encrypted_content")
    @classmethod
    def _in_the_clear(cls, value: str | None) -> None:
        if value:
            raise ValueError("only the server that wrote it can read it; leave it out")

    def tell(self, turns: Turns) -> None:
        turns.thought(_text(self.content or self.summary or []))


class ReferenceItem(Strict):
    """To an item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: Named


Item: TypeAlias = MessageItem | CallItem | CallOutputItem | ReasoningItem

_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _kind(data: Any) -> str:
    kind = kind_of(data)
    if kind is None and isinstance(data, dict) and "id" in data and "role" not in data:
        return "[item_reference]"
    return f"[{kind}]" if kind in _KINDS else "[message]"


def _served(value: Any) -> Any:
    """Refuses by its name an item that isn't served, and endless lists."""
    if not isinstance(value, list):
        return value
    parts = 0
    for number, item in enumerate(value):
        if isinstance(item, dict):
            kind = kind_of(item)
            if kind is not None and kind not in _KINDS:
                where = f"input.{number}"
                raise refused(where, f"{where}: items of type {kind[:60]!r} are not supported")
            content = item.get("content")
            parts += len(content) if isinstance(content, list) else 0
    if parts > MAX_ITEMS:
        raise refused("input", f"input: more than {MAX_ITEMS} content parts")
    return value


AnyItem: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[CallItem, Tag("[function_call]")]
    | Annotated[CallOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")]
    | Annotated[ReferenceItem, Tag("[item_reference]")],
    Discriminator(_kind),
]


def _as_items(value: str | list[Any]) -> list[Any]:
    return [MessageItem(role="user", content=value)] if isinstance(value, str) else value


Input: TypeAlias = Annotated[
    str | Some[AnyItem], BeforeValidator(_served), AfterValidator(_as_items)
]
"""A user's text, or items: read as items."""


def _text(said: str | Iterable[SaidText | SaidRefusal | Thought]) -> str:
    return said if isinstance(said, str) else "\n".join(part.text for part in said)


# -- as they are listed ---------------------------------------------------------------------------

_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def listed(item: Item, name: str) -> dict[str, Any]:
    """An item as it is listed among those that a response answered. ``name``: makes its id, where
    it has none."""
    shown = item.model_dump(exclude_none=True) | {"type": item.type or "message"}
    shown = {"id": f"{_PREFIXES.get(shown['type'], 'msg')}_{name}", "status": "completed"} | shown
    if isinstance(item, MessageItem):
        own = "output_text" if item.role == "assistant" else "input_text"
        if isinstance(item.content, str):
            shown["content"] = [{"type": own, "text": item.content}]
        for part in shown["content"]:
            if part["type"] != "refusal":
                part["type"] = own
            if part["type"] == "output_text":
                part["annotations"] = []
    if isinstance(item, ReasoningItem):
        shown.setdefault("summary", [])
    return shown
