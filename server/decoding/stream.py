"""An answer as a stream: what a writer is, and what a stop string holds back.

Knows: pieces, stop strings, grammars. Does not know: how a writer comes to its pieces, the
policies, engines, OpenAI's schemas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

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


class Writer(Protocol):
    """Something that writes one answer.

    ``stop_reason`` and ``text`` (see `Finished`) are set once ``pieces`` is exhausted. One that
    ``rewrites`` has its answer in ``text``, and its pieces only tell how it came about.
    ``rejected`` is what the base model would have written next (see `Finished`).
    """

    rewrites: bool
    text: str | None
    rejected: Rejected | None

    @property
    def stop_reason(self) -> StopReason: ...

    def pieces(self) -> AsyncGenerator[Piece]: ...

    def usage(self) -> Usage: ...


Matches = Callable[[Grammar, str], Awaitable[bool]]
"""Whether a whole answer is one that its grammar allows."""


async def stream(
    writer: Writer, request: AnswerRequest, matches: Matches | None = None
) -> AsyncGenerator[Piece | Finished]:
    """An answer as pieces, then one `Finished`. Nothing of a stop string gets out.

    A stop string counts from the piece on with which ``min_tokens`` are exceeded.

    Args:
        matches: asked of a whole answer that has a grammar; None: not compared.

    Raises `InvalidRequest` where an answer ended that its grammar doesn't allow: at a place where
    nothing could follow, or at a limit of what a grammar may take.
    """
    matcher = StopStrings(request.stop)
    held: deque[Piece] = deque()
    tokens = 0
    written: list[str] = []
    async with aclosing(writer.pieces()) as pieces:
        async for piece in pieces:
            tokens += piece.tokens
            if request.grammar is not None:
                written.append(piece.text)
            if writer.rewrites or tokens <= request.min_tokens:
                yield piece
                continue
            held.append(piece)
            free, matched = matcher.push(piece.text)
            for ready in _release(held, free):
                yield ready
            if matched is not None:
                await pieces.aclose()  # before what it cost is told
                yield Finished("stop_string", writer.usage(), matched=matched)
                return
    for piece in held:
        yield piece
    ended = writer.stop_reason in ("aligned_end", "end_of_text")
    if request.grammar is not None and matches is not None and ended:
        await _compare(request.grammar, "".join(written), matches)
    text, matched = writer.text, None
    if text is not None:
        free, matched = matcher.push(text)
        text = text[:free] if matched else text
    reason = "stop_string" if matched else writer.stop_reason
    yield Finished(reason, writer.usage(), text, matched, writer.rejected)


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
