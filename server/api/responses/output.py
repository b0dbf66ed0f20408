"""An answer as items: what was thought, said and called, while it is written.

Knows: which part belongs to which item, each item's shape and its events. Does not know: the
response around them, bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from server.api import extension
from server.api.openai.chat import token_logprob
from server.api.responses.turns import Turns
from server.core import Finished, ScoredToken, ToolCall
from server.decoding.parsing import CallArguments, CallBegins, Content, Part, Reasoning

Json = dict[str, Any]


class _Item(ABC):
    """One item. Its events lack what the response adds: a number.

    Args:
        index: in the output. name: makes its id. top: alternatives a token to show; None: no log
            probabilities. trace: whether its pieces are shown.
    """

    prefix: str

    def __init__(self, index: int, name: str, top: int | None, trace: bool) -> None:
        self.id = f"{self.prefix}_{name}"
        self._texts: list[str] = []
        self._index = index
        self._top = top
        self._trace = trace
        self._pieces: list[Json] = []
        self._logprobs: list[Json] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def begins(self) -> Iterator[Json]:
        yield self._about("response.output_item.added", item=self.shown("in_progress", begun=True))

    def grows(self, part: Part) -> Iterator[Json]:
        pieces = extension.pieces([part.piece]) if self._trace else []
        logprobs = self._scores(part)
        text = self._new(part)
        self._texts.append(text)
        self._pieces += pieces
        self._logprobs += logprobs
        if text or pieces or logprobs:
            event = self._delta(text, logprobs)
            if pieces:
                event["nudging"] = {"pieces": pieces}
            yield event

    def ends(self, status: str) -> Iterator[Json]:
        yield from self._whole()
        yield self._about("response.output_item.done", item=self.shown(status))

    def shown(self, status: str, *, begun: bool = False) -> Json:
        """``begun``: as it is when there is nothing of it yet."""
        item: Json = {"id": self.id, "status": status, **self._content(begun)}
        return item | ({"nudging": {"pieces": self._pieces}} if self._trace and not begun else {})

    def _new(self, part: Part) -> str:
        """Of a part, the text that the item gets longer by."""
        return part.piece.text

    def _scores(self, part: Part) -> list[Json]:
        return []

    def _about(self, kind: str, **more: Any) -> Json:
        return {"type": kind, "output_index": self._index, **more}

    def _of_it(self, kind: str, **more: Any) -> Json:
        return self._about(kind, item_id=self.id, **more)

    def _of_content(self, kind: str, **more: Any) -> Json:
        return self._of_it(kind, content_index=0, **more)

    @abstractmethod
    def takes(self, part: Part) -> bool:
        """Whether a part is of it."""

    @abstractmethod
    def tell(self, turns: Turns) -> None:
        """Add it to the conversation."""

    @abstractmethod
    def _delta(self, text: str, logprobs: list[Json]) -> Json: ...

    @abstractmethod
    def _whole(self) -> Iterator[Json]: ...

    @abstractmethod
    def _content(self, begun: bool) -> Json: ...


class _Message(_Item):
    prefix = "msg"

    def begins(self) -> Iterator[Json]:
        yield from super().begins()
        yield self._of_content("response.content_part.added", part=self._part("", []))

    def takes(self, part: Part) -> bool:
        return isinstance(part, Content)

    def tell(self, turns: Turns) -> None:
        turns.said(self.text)

    def _scores(self, part: Part) -> list[Json]:
        return [token_logprob(each, self._top) for each in _reported(part, self._top)]

    def _delta(self, text: str, logprobs: list[Json]) -> Json:
        return self._of_content("response.output_text.delta", delta=text, logprobs=logprobs)

    def _whole(self) -> Iterator[Json]:
        text, logprobs = self.text, self._logprobs
        yield self._of_content("response.output_text.done", text=text, logprobs=logprobs)
        yield self._of_content("response.content_part.done", part=self._part(text, logprobs))

    def _content(self, begun: bool) -> Json:
        content = [] if begun else [self._part(self.text, self._logprobs)]
        return {"type": "message", "role": "assistant", "content": content}

    def _part(self, text: str, logprobs: list[Json]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class _Reasoning(_Item):
    prefix = "rs"

    def begins(self) -> Iterator[Json]:
        yield from super().begins()
        yield self._of_content("response.content_part.added", part=self._part(""))

    def takes(self, part: Part) -> bool:
        return isinstance(part, Reasoning)

    def tell(self, turns: Turns) -> None:
        turns.thought(self.text)

    def _delta(self, text: str, logprobs: list[Json]) -> Json:
        return self._of_content("response.reasoning_text.delta", delta=text)

    def _whole(self) -> Iterator[Json]:
        yield self._of_content("response.reasoning_text.done", text=self.text)
        yield self._of_content("response.content_part.done", part=self._part(self.text))

    def _content(self, begun: bool) -> Json:
        return {
            "type": "reasoning",
            "summary": [],
            "content": [] if begun else [self._part(self.text)],
        }

    def _part(self, text: str) -> Json:
        return {"type": "reasoning_text", "text": text}


class _Call(_Item):
    """``text``: its arguments."""

    prefix = "fc"

    def __init__(self, begin: CallBegins, *args: Any) -> None:
        super().__init__(*args)
        self._number = begin.number
        self._call_id = begin.id
        self._called = begin.name

    def takes(self, part: Part) -> bool:
        return isinstance(part, CallBegins | CallArguments) and part.number == self._number

    def tell(self, turns: Turns) -> None:
        turns.called(ToolCall(self._call_id, self._called, self.text))

    def _new(self, part: Part) -> str:
        return "" if isinstance(part, CallBegins) else part.piece.text

    def _delta(self, text: str, logprobs: list[Json]) -> Json:
        return self._of_it("response.function_call_arguments.delta", delta=text)

    def _whole(self) -> Iterator[Json]:
        yield self._of_it(
            "response.function_call_arguments.done", name=self._called, arguments=self.text
        )

    def _content(self, begun: bool) -> Json:
        return {
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._called,
            "arguments": "" if begun else self.text,
        }


def _reported(part: Part, top: int | None) -> list[ScoredToken]:
    """The tokens of what is said, where they are asked for."""
    return [] if top is None else [each for each in part.piece.scored if each.place == "answer"]


class Output:
    """All items of one answer.

    Args:
        name: makes their ids. top, trace: see `_Item`.
    """

    def __init__(self, name: str, top: int | None, trace: bool) -> None:
        self._name = name
        self._top = top
        self._trace = trace
        self._items: list[_Item] = []
        self._cut = False

    def push(self, part: Part) -> Iterator[Json]:
        """The events of one part."""
        if not self._items or not self._items[-1].takes(part):
            if not self._says(part):
                return
            yield from self._next(part)
        yield from self._items[-1].grows(part)

    def end(self, finished: Finished) -> Iterator[Json]:
        """Those of the end. An answer that is nothing at all is an empty message."""
        self._cut = finished.was_cut
        if not self._items:
            yield from self._add(_Message(*self._arguments))
        yield from self._items[-1].ends("incomplete" if self._cut else "completed")

    @property
    def shown(self) -> list[Json]:
        """The items, once it has ended."""
        *whole, last = self._items
        return [
            *(item.shown("completed") for item in whole),
            last.shown("incomplete" if self._cut else "completed"),
        ]

    def tell(self, turns: Turns) -> None:
        for item in self._items:
            item.tell(turns)

    def _says(self, part: Part) -> bool:
        """Whether an item begins with a part: with tokens alone only where they are shown."""
        if isinstance(part, CallBegins) or part.piece.text:
            return True
        return isinstance(part, Content) and bool(_reported(part, self._top))

    def _next(self, part: Part) -> Iterator[Json]:
        if self._items:
            yield from self._items[-1].ends("completed")
        match part:
            case Content():
                yield from self._add(_Message(*self._arguments))
            case Reasoning():
                yield from self._add(_Reasoning(*self._arguments))
            case CallBegins():
                yield from self._add(_Call(part, *self._arguments))
            case CallArguments():
                raise ValueError("arguments of a call that hasn't begun")

    def _add(self, item: _Item) -> Iterator[Json]:
        self._items.append(item)
        yield from item.begins()

    @property
    def _arguments(self) -> tuple[int, str, int | None, bool]:
        index = len(self._items)
        return index, f"{self._name}_{index}", self._top, self._trace
