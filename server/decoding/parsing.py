"""What an answer's text is: from pieces to its parts.

Between whoever writes an answer (`server.decoding.stream`) and whoever shows it. A `Parser` sees
the pieces of one answer in order, and in them the special tokens that were committed
(`Piece.markers`). Those are no text: what a parser gives away has a piece's, and never a marker's.

Knows: pieces and parts. Does not know: who wrote a piece, engines, how a part is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from server.core import Finished, Piece, ToolCall


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer itself, as a piece, or a part of one (`server.decoding.stream.cut`)."""

    piece: Piece


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that a model thinks before it answers, without the markers around it."""

    piece: Piece


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A tool is called: of which call of the answer, from 0, the id and the tool's name. piece: the
    name as it was written."""

    number: int
    id: str
    name: str
    piece: Piece


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: those of one call join to a JSON text, an object, and come before
    the next call begins."""

    number: int
    piece: Piece


Part: TypeAlias = Content | Reasoning | CallBegins | CallArguments
"""What an answer consists of. What a format puts around these is no text of theirs."""


def calls_of(parts: Sequence[Part]) -> list[ToolCall]:
    """The calls of a whole answer, in order. Of one that was cut the last may not be whole."""
    arguments: dict[int, list[str]] = {}
    begun: list[CallBegins] = []
    for part in parts:
        if isinstance(part, CallBegins):
            begun.append(part)
            arguments[part.number] = []
        elif isinstance(part, CallArguments):
            arguments[part.number].append(part.piece.text)
    return [ToolCall(each.id, each.name, "".join(arguments[each.number])) for each in begun]


class Parser(Protocol):
    """Of one answer."""

    def push(self, piece: Piece) -> Iterable[Part]:
        """The parts that this piece completes, or goes on with."""

    def end(self, finished: Finished) -> Iterable[Part | Finished]:
        """There is no more: what is left of the parts, then how the answer ended."""


class Plain:
    """All text is content."""

    def push(self, piece: Piece) -> Iterable[Part]:
        if not piece.only_tokens or piece.scored:
            yield Content(piece)

    def end(self, finished: Finished) -> Iterable[Part | Finished]:
        yield finished
