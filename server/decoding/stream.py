"""An answer on its way out: pushed by whoever writes it, through one channel.

    Writer ── emit(piece) ──▶ Output (stop strings) ──▶ Channel ── take() ──▶

Knows: pieces, stop strings, grammars, and that a reader may be slow. Does not know: how a writer
comes to its pieces, engines, what the text is (`server.decoding.parsing`), any API's schemas.
"""

from __future__ import annotations

import asyncio
import sys
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
from server.decoding.loops import ThirdRounds
from server.text.stops import StopStrings
from server.text.tokenizer import TextOffsets

Event = Piece | Finished
Item = tuple[int, Event, Usage | None]
"""An event of one of several answers, and what that one has cost so far, where it is asked for."""

T = TypeVar("T")

CHANNEL_BYTES = 2**20
"""That wait for a slow reader, about; then the writers wait too."""


_ROUNDS: tuple[StopReason, ...] = ("repetition", "repeated_round")
"""Ends of an answer whose last round is not to be seen."""


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


Matches = Callable[[Grammar, str], Awaitable[bool]]
"""Whether a whole answer is one that its grammar allows."""


class _StopString(Exception):
    """One was found. Ends the writer that wrote it."""

    def __init__(self, matched: str) -> None:
        super().__init__(matched)
        self.matched = matched


class Output:
    """What a writer writes to. Nothing of a stop string gets out, nor of the round of a
    repetition that ended the answer, where the writer looks for such (`hold_rounds`).

    A stop string counts from the piece on with which ``min_tokens`` are exceeded. waited_s: for
    the reader.
    """

    def __init__(
        self,
        request: AnswerRequest,
        channel: Channel[Item],
        index: int = 0,
        *,
        observe: Callable[[int, Event], None] | None = None,
        cost: Callable[[], Usage] | None = None,
    ) -> None:
        """
        Args:
            channel: where the answer's events go, `Finished` last.
            index: the answer's, of those of one channel.
            observe: told of each event as it goes out.
            cost: the answer's so far, which is to go with each event.
        """
        self.request = request
        self._channel = channel
        self._index = index
        self._observe = observe
        self._cost = cost
        self._matcher = StopStrings(request.stop)
        self._rounds: ThirdRounds | None = None
        self._held: deque[Piece] = deque()
        self._length = 0  # of their text
        self._tokens = 0
        self._written: list[str] | None = [] if request.grammar is not None else None
        self.waited_s = 0.0

    def emit(self, piece: Piece) -> None:
        """Committed text. Where it completes a stop string, the writer goes no further."""
        self._tokens += piece.tokens
        if self._written is not None:
            self._written.append(piece.text)
        rounds = 0 if self._rounds is None else self._rounds.push(piece.text)
        if self._tokens <= self.request.min_tokens or not (rounds or self._watches):
            self._let_go(self._length)
            self._put(piece)
            return
        self._held.append(piece)
        self._length += len(piece.text)
        free, matched = self._matcher.push(piece.text)
        if matched is not None:
            self._let_go(self._length - len(self._matcher.held) + free)
            raise _StopString(matched)
        self._let_go(self._length - max(rounds, len(self._matcher.held)))

    def hold_rounds(self) -> None:
        """From here on, what comes round the third time waits until the writer lets it."""
        self._rounds = ThirdRounds()

    @property
    def _watches(self) -> bool:
        return self._matcher.watches or bool(self._held)

    def _let_go(self, free: int) -> None:
        """The first ``free`` characters of what is held go out."""
        free = max(0, free)
        self._length -= free
        for ready in _release(self._held, free):
            self._put(ready)

    def _put(self, piece: Piece) -> None:
        self._channel.put(self._item(piece), weight(piece))

    def _item(self, event: Event) -> Item:
        if self._observe is not None:
            self._observe(self._index, event)
        return self._index, event, None if self._cost is None else self._cost()

    @property
    def full(self) -> bool:
        """Whether the writer is to wait for `room` before it goes on."""
        return self._channel.full

    async def room(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._channel.room()
        self.waited_s += clock() - began

    def flush(self) -> None:
        """There is no more: what was held back is the answer's."""
        while self._held:
            self._put(self._held.popleft())

    def end(self, finished: Finished) -> None:
        """How the answer ended."""
        self._channel.put(self._item(finished), weight(finished))

    @property
    def text(self) -> str:
        """Of an answer with a grammar."""
        return "".join(self._written or ())


async def answer(writer: Writer, out: Output, matches: Matches | None = None) -> Finished:
    """Have an answer written.

    Args:
        matches: asked of a whole answer that has a grammar; None: not compared.

    Raises `InvalidRequest` where an answer ended that its grammar doesn't allow: at a place where
    nothing could follow, or at a limit of what a grammar may take.
    """
    grammar = out.request.grammar
    try:
        end = await writer.write(out)
    except _StopString as found:
        finished = Finished("stop_string", writer.usage(), found.matched)
    else:
        if end.stop_reason not in _ROUNDS:
            out.flush()
        ended = end.stop_reason in ("aligned_end", "end_of_text")
        if grammar is not None and matches is not None and ended:
            await _compare(grammar, out.text, matches)
        finished = Finished(end.stop_reason, writer.usage(), rejected=end.rejected)
    out.end(finished)
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
    scored = sum(96 + 64 * len(token.top) for token in event.scored)
    return 256 + len(event.text) + scored + 128 * len(event.markers)


async def whole(writer: Writer, request: AnswerRequest) -> tuple[list[Piece], Finished]:
    """An answer for whoever wants it at once, and nothing before that."""
    channel: Channel[Item] = Channel(sys.maxsize)
    finished = await answer(writer, Output(request, channel))
    return [event for _, event, _ in await channel.take() if isinstance(event, Piece)], finished


async def stream(
    writer: Writer, request: AnswerRequest, matches: Matches | None = None
) -> AsyncGenerator[Event]:
    """One answer, for whoever wants to iterate over it. See `answer`."""
    channel: Channel[Item] = Channel()
    writing = asyncio.create_task(answer(writer, Output(request, channel), matches))
    channel.close_after(writing)
    try:
        while items := await channel.take():
            for _, event, _ in items:
                yield event
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _compare(grammar: Grammar, text: str, matches: Matches) -> None:
    if not await matches(grammar, text):
        raise InvalidRequest(
            "the answer came to a place where the JSON schema can't be followed any further",
            param=grammar.field,
        )


def _release(held: deque[Piece], free: int) -> list[Piece]:
    """Take the first ``free`` characters off the held pieces, cutting the last one."""
    ready = []
    while held and len(held[0].text) <= free:
        piece = held.popleft()
        free -= len(piece.text)
        ready.append(piece)
    if free:
        first, held[0] = cut(held[0], free)
        ready.append(first)
    return ready


def cut(piece: Piece, at: int) -> tuple[Piece, Piece]:
    """The first ``at`` characters of a piece, and the others. A token goes with the characters that
    it begins with, a marker with the character in front of which it stands."""
    offsets = TextOffsets()
    begun = sum(offsets.push(token.data) < at for token in piece.scored)
    return (
        replace(
            piece,
            text=piece.text[:at],
            scored=piece.scored[:begun],
            markers=tuple(each for each in piece.markers if each[0] < at),
        ),
        replace(
            piece,
            text=piece.text[at:],
            tokens=0,
            rejected=None,
            scored=piece.scored[begun:],
            markers=tuple((offset - at, text) for offset, text in piece.markers if offset >= at),
        ),
    )
