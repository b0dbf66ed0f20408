"""An answer on its way out: pushed by whoever writes it, through one channel.

    Writer ── emit(piece) ──▶ Output (stop strings) ──▶ Sink, as a rule into a Channel ── take() ──▶

Knows: pieces, stop strings, grammars, and that a reader may be slow. Does not know: how a writer
comes to its pieces, engines, OpenAI's schemas.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from server.core import (
    AnswerRequest,
    Finished,
    Grammar,
    InvalidRequest,
    Piece,
    Rejected,
    StopReason,
    Usage,
)
from server.text.stops import StopStrings
from server.text.tokenizer import TextOffsets

Event = Piece | Finished
T = TypeVar("T")

CHANNEL_BYTES = 2**20
"""That wait for a slow reader, about; then the writers wait too."""


@dataclass(frozen=True, slots=True)
class End:
    """How a writer came to its end. rejected: see `Finished`."""

    stop_reason: StopReason
    rejected: Rejected | None = None


class Writer(Protocol):
    """Something that writes one answer."""

    async def write(self, out: Output) -> End:
        """Write it, and close every session, however this ends."""

    def usage(self) -> Usage:
        """What it has cost so far."""


class Sink(Protocol):
    """Where an answer's events go."""

    def put(self, event: Event) -> None: ...

    @property
    def full(self) -> bool: ...

    async def room(self) -> None:
        """Returns when it is not full."""


Matches = Callable[[Grammar, str], Awaitable[bool]]
"""Whether a whole answer is one that its grammar allows."""


class Pieces(list[Piece]):
    """A sink for whoever wants an answer as a whole."""

    full = False

    def put(self, event: Event) -> None:
        if isinstance(event, Piece):
            self.append(event)

    async def room(self) -> None:
        return


class _StopString(Exception):
    """One was found. Ends the writer that wrote it."""

    def __init__(self, matched: str) -> None:
        super().__init__(matched)
        self.matched = matched


class Output:
    """What a writer writes to. Nothing of a stop string gets out.

    A stop string counts from the piece on with which ``min_tokens`` are exceeded. waited_s: for
    the reader.
    """

    def __init__(self, request: AnswerRequest, sink: Sink) -> None:
        self._sink = sink
        self._matcher = StopStrings(request.stop)
        self._min_tokens = request.min_tokens
        self._held: deque[Piece] = deque()
        self._tokens = 0
        self._written: list[str] | None = [] if request.grammar is not None else None
        self.waited_s = 0.0

    def emit(self, piece: Piece) -> None:
        """Committed text. Where it completes a stop string, the writer goes no further."""
        self._tokens += piece.tokens
        if self._written is not None:
            self._written.append(piece.text)
        if not self._matcher.watches or self._tokens <= self._min_tokens:
            self._sink.put(piece)
            return
        self._held.append(piece)
        free, matched = self._matcher.push(piece.text)
        for ready in _release(self._held, free):
            self._sink.put(ready)
        if matched is not None:
            raise _StopString(matched)

    @property
    def full(self) -> bool:
        """Whether the writer is to wait for `room` before it goes on."""
        return self._sink.full

    async def room(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._sink.room()
        self.waited_s += clock() - began

    def flush(self) -> None:
        """There is no more: what was held back is no stop string."""
        while self._held:
            self._sink.put(self._held.popleft())

    @property
    def text(self) -> str:
        """Of an answer with a grammar."""
        return "".join(self._written or ())


async def answer(
    writer: Writer, request: AnswerRequest, sink: Sink, matches: Matches | None = None
) -> Finished:
    """Have an answer written. Its events go to the sink, `Finished` last.

    Args:
        matches: asked of a whole answer that has a grammar; None: not compared.

    Raises `InvalidRequest` where an answer ended that its grammar doesn't allow: at a place where
    nothing could follow, or at a limit of what a grammar may take.
    """
    out = Output(request, sink)
    try:
        end = await writer.write(out)
    except _StopString as found:
        finished = Finished("stop_string", writer.usage(), found.matched)
    else:
        out.flush()
        ended = end.stop_reason in ("aligned_end", "end_of_text")
        if request.grammar is not None and matches is not None and ended:
            await _compare(request.grammar, out.text, matches)
        finished = Finished(end.stop_reason, writer.usage(), rejected=end.rejected)
    sink.put(finished)
    return finished


class Channel(Generic[T]):
    """Between those who write and one who reads: as much as there is at once, and no more than a
    bound. Closed by the writers' side, with an error or without."""

    def __init__(self, most: int = CHANNEL_BYTES) -> None:
        self._items: list[T] = []
        self._most = most
        self._bytes = 0
        self._closed = False
        self._error: BaseException | None = None
        self._there = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, item: T, size: int) -> None:
        self._items.append(item)
        self._bytes += size
        if self._bytes >= self._most:
            self._room.clear()
        self._there.set()

    @property
    def full(self) -> bool:
        return self._bytes >= self._most

    async def room(self) -> None:
        await self._room.wait()

    def close(self, error: BaseException | None = None) -> None:
        """No more comes. The second time does nothing."""
        if not self._closed:
            self._closed, self._error = True, error
            self._there.set()

    def close_after(self, task: asyncio.Task[Any]) -> None:
        """When a task is done, with what it raised."""
        task.add_done_callback(
            lambda done: self.close(None if done.cancelled() else done.exception())
        )

    async def begun(self) -> None:
        """Returns when something is there, or nothing will come. Raises the error that it was
        closed with, where that is all."""
        await self._there.wait()
        if self._error is not None and not self._items:
            raise self._error

    async def take(self) -> list[T]:
        """All that is there, at least one; empty where nothing more comes. Raises the error that
        it was closed with, once what came before that was taken."""
        await self.begun()
        items, self._items = self._items, []
        self._bytes = 0
        self._room.set()
        if not self._closed:
            self._there.clear()
        return items


def weight(event: Event) -> int:
    """About how many bytes an event takes."""
    if isinstance(event, Finished):
        return 256
    return 256 + len(event.text) + sum(96 + 64 * len(token.top) for token in event.scored)


class _Alone:
    """The sink of one answer: a channel of its own."""

    def __init__(self) -> None:
        self.channel: Channel[Event] = Channel()
        self.room = self.channel.room

    def put(self, event: Event) -> None:
        self.channel.put(event, weight(event))

    @property
    def full(self) -> bool:
        return self.channel.full


async def stream(
    writer: Writer, request: AnswerRequest, matches: Matches | None = None
) -> AsyncGenerator[Event]:
    """One answer, for whoever wants to iterate over it. See `answer`."""
    sink = _Alone()
    writing = asyncio.create_task(answer(writer, request, sink, matches))
    sink.channel.close_after(writing)
    try:
        while events := await sink.channel.take():
            for event in events:
                yield event
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _compare(grammar: Grammar, text: str, matches: Matches) -> None:
    if not await matches(grammar, text):
        raise InvalidRequest(
            "the answer came to a place where the JSON schema can't be followed any further",
            param="response_format",
        )


def _release(held: deque[Piece], free: int) -> list[Piece]:
    """Take the first ``free`` characters off the held pieces, cutting the last one. A token goes
    with the characters that it begins with."""
    ready = []
    while held and len(held[0].text) <= free:
        piece = held.popleft()
        free -= len(piece.text)
        ready.append(piece)
    if free:
        piece, offsets = held[0], TextOffsets()
        begun = sum(offsets.push(token.data) < free for token in piece.scored)
        ready.append(replace(piece, text=piece.text[:free], scored=piece.scored[:begun]))
        held[0] = replace(
            piece, text=piece.text[free:], tokens=0, rejected=None, scored=piece.scored[begun:]
        )
    return ready
