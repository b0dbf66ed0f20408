"""From items to the turns of a conversation, as the models read them.

Knows: which items are one turn of the assistant. Does not know: where the items come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from server.core import Message, ToolCall


@dataclass
class _Turn:
    """One of the assistant's, as it grows."""

    reasoning: list[str] = field(default_factory=list)
    content: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def message(self) -> Message:
        return Message(
            "assistant",
            self.content or "",
            tuple(self.calls),
            reasoning="".join(self.reasoning),
        )


class Turns:
    """A conversation, item by item.

    What the assistant thought, said and called is one message of its, where it comes in this
    order.
    """

    def __init__(self, before: Sequence[Message] = ()) -> None:
        self._messages = list(before)
        self._turn: _Turn | None = None
        self._called = {call.id for message in before for call in message.calls}

    @property
    def messages(self) -> tuple[Message, ...]:
        """What it is so far."""
        return (*self._messages, *(() if self._turn is None else (self._turn.message,)))

    def knows(self, call_id: str) -> bool:
        """Whether such a call was made."""
        return call_id in self._called

    def heard(self, message: Message) -> None:
        """From anybody but the assistant."""
        self._end()
        self._messages.append(message)

    def thought(self, text: str) -> None:
        self._saying_nothing().reasoning.append(text)

    def said(self, text: str) -> None:
        self._saying_nothing().content = text

    def called(self, call: ToolCall) -> None:
        self._called.add(call.id)
        self._turn = self._turn or _Turn()
        self._turn.calls.append(call)

    def _saying_nothing(self) -> _Turn:
        """A turn of the assistant's that has neither said nor called anything yet."""
        if self._turn is not None and (self._turn.content is not None or self._turn.calls):
            self._end()
        self._turn = self._turn or _Turn()
        return self._turn

    def _end(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message)
            self._turn = None


def instructed(instructions: str | None, messages: Iterable[Message]) -> list[Message]:
    """A conversation as the models read it: whatever systems and developers say at its beginning
    is one message, because many chat templates take no second one."""
    told = [*([Message("system", instructions)] if instructions else ()), *messages]
    count = next((n for n, each in enumerate(told) if each.role != "system"), len(told))
    if count < 2:
        return told
    return [Message("system", "\n\n".join(each.content for each in told[:count])), *told[count:]]


def size(messages: Iterable[Message]) -> int:
    """Bytes that they take, about."""
    return sum(
        200
        + len(each.content)
        + len(each.reasoning)
        + sum(200 + len(call.arguments) for call in each.calls)
        for each in messages
    )
