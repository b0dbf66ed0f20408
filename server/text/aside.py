"""Control tokens that strangers spell, out of a template's way.

What a user or a tool writes is data. Where it spells a control token of the model ("<|im_end|>"),
each such spelling is set aside as `Literally` before a template sees it, so that it can neither
become a control token nor steer the template.

Knows: messages, tools, and a tokenizer's control tokens. Does not know: templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.core import Literally, Message, PromptText, Tool, ToolCall
from server.text.conversation import object_of
from server.text.tokenizer import Tokenizer

# A private-use character on each side of a number: no template trims, matches or produces it.
_OPEN, _CLOSE = "\uf5d0", "\uf5d1"
_MARK = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")


def mark(number: int) -> str:
    """What stands in a text for another one."""
    return f"{_OPEN}{number}{_CLOSE}"


def between(text: str) -> list[str]:
    """The parts of a text that stand between marks; every second one is a mark's number."""
    return _MARK.split(text)


class Aside:
    """Messages and tools with a numbered mark for each control token, which joins ``spelled``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.spelled: list[str] = []
        self._tokenizer = tokenizer

    def message(self, message: Message) -> Message:
        return replace(
            message,
            content=self._text(message.content),
            calls=tuple(map(self._call, message.calls)),
            reasoning=self._text(message.reasoning),
        )

    def tool(self, tool: Tool) -> Tool:
        description = self._text(tool.description)
        return replace(tool, description=description, parameters=self._value(tool.parameters))

    def _call(self, call: ToolCall) -> ToolCall:
        value = object_of(call.arguments)  # a spelling may be escaped in it
        arguments = self._value(value)
        if not isinstance(value, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return replace(call, name=self._text(call.name), arguments=arguments)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(name): self._value(each) for name, each in value.items()}
        return [*map(self._value, value)] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        return self._tokenizer.replace_control(text, self._mark, also=_OPEN + _CLOSE)

    def _mark(self, literal: str) -> str:
        self.spelled.append(literal)
        return mark(len(self.spelled) - 1)

    def put_back(self, text: str) -> PromptText:
        """A text with what was set aside, as text."""
        parts: list[str | Literally] = []
        for place, part in enumerate(between(text)):
            if place % 2 and int(part) < len(self.spelled):
                parts.append(Literally(self.spelled[int(part)]))
            elif part:
                parts.append(part)
        return tuple(parts)
