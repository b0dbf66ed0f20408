"""Nudges that are ready when they are needed (``eager``).

While the base model writes, the aligned model reads along and writes the word that it would write
next, anew behind each token that it did not expect. Where the base model becomes uncertain, the
word is there, or on its way. It costs the aligned model a word for nearly every token, so it pays
where that is cheap and runs beside the base model: on another GPU.

Knows: sessions, and the writer that has them. Does not know: the policy's rules, vLLM, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.core import TokenIds
from server.decoding.handover import Side
from server.decoding.nudged import Nudged
from server.decoding.rules import WORD_TOKENS
from server.decoding.speculation.drafts import DraftedSession, SessionBefore, turn_ahead
from server.engines.base import Session, Token, TurnEnd, TurnParams

STOP_S = 1.0
"""How long a draft that is broken off may take to its next token."""


class Reader:
    """Reads along, in a task of its own, as long as there is something to read."""

    def __init__(self, side: Side, drafted: DraftedSession, params: TurnParams) -> None:
        self._side = side
        self._drafted = drafted
        self._params = params
        self._written: TokenIds = []  # by the other model, since this one caught up
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def begin(self) -> None:
        """The other model's turn begins."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())

    def wrote(self, token: int) -> None:
        """The other model's token is committed."""
        self._written.append(token)
        self.begin()

    async def rest(self) -> None:
        """Wait for what is on its way. Raises what went wrong with it."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Break off what is on its way, at its next token, so that the session stays whole."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        await asyncio.wait({self._task}, timeout=STOP_S)
        self._stopping = False
        self._task.cancel()  # of no effect on a task that is done
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        while self._side.verbatim:
            self._written.clear()
            await self._side.catch_up()
            await self._drafted.draft(self._params, astray=self._astray)
            if not self._written or self._stopping:
                return

    def _astray(self) -> bool:
        """Whether a draft is of no use: the other model wrote something else."""
        drafted = zip(self._drafted.ahead, self._written, strict=False)
        return self._stopping or any(token.id != written for token, written in drafted)


class FollowedSession(SessionBefore):
    """A session whose turns somebody follows; ``at_once``: from before their first token."""

    def __init__(self, session: Session, reader: Reader, *, at_once: bool) -> None:
        super().__init__(session)
        self._reader = reader
        self._at_once = at_once

    async def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        try:
            if self._at_once:
                self._reader.begin()
            async with aclosing(self._session.generate(params)) as events:
                async for event in events:
                    if isinstance(event, TurnEnd):
                        await self._reader.rest()
                        yield event
                    else:
                        yield event
                        self._reader.wrote(event.id)
        finally:
            await self._reader.stop()

    async def aclose(self) -> None:
        await self._reader.stop()
        await self._session.aclose()


def read_along(nudged: Nudged) -> None:
    """Let the aligned model of an answer that has not begun read along while the base model
    writes. `server.decoding.speculation.drafts.can_draft` must hold."""
    aligned, request = nudged.aligned, nudged.request
    drafted = DraftedSession(aligned.session, aligned.info)
    aligned.session = drafted
    # A base turn that begins while the aligned model still looks ahead is followed later.
    at_once = not nudged.policy.end_lookahead
    reader = Reader(aligned, drafted, turn_ahead(request, WORD_TOKENS, word=()))
    nudged.base.session = FollowedSession(nudged.base.session, reader, at_once=at_once)
