"""Nudges that are ready when they are needed (``eager``).

While the base model writes, the aligned model reads along and writes the word that it would write
next, anew behind each token that it did not expect. Where the base model becomes uncertain, the
word is there, or on its way. It costs the aligned model a word for nearly every token, so it pays
where that is cheap and runs beside the base model: on another GPU.

Knows: `Nudged`, and the aligned model's memory. Does not know: the policy's rules, vLLM, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cached_property

from server.core import TokenIds
from server.decoding.handover import Remembered
from server.decoding.nudged import Nudged
from server.decoding.rules import WORD_TOKENS
from server.decoding.speculation.drafts import turn_ahead
from server.engines.base import Token, TurnEnd, TurnParams


class Reader:
    """Reads along, in a task of its own, as long as there is something to read."""

    def __init__(self, side: Remembered, params: TurnParams) -> None:
        self._side = side
        self._params = params
        self._written: TokenIds = []  # by the other model, since this one caught up
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def begin(self) -> None:
        """The other model's turn begins."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())

    def wrote(self, token: int) -> None:
        """The other model's token is written."""
        self._written.append(token)
        self.begin()

    async def rest(self) -> None:
        """Wait for what is on its way. Raises what went wrong with it."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Break off what is on its way."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        await self._side.session.stop()
        await asyncio.gather(self._task, return_exceptions=True)
        self._stopping = False

    async def _read(self) -> None:
        side, memory = self._side, self._side.session
        while True:
            async with memory.reads:
                if self._stopping or not side.verbatim:
                    return
                self._written.clear()
                await side.catch_up()
                if not (self._stopping or memory.ahead):
                    memory.begin(self._params, self._astray)
                    await memory.rest()
            if not self._written:
                return

    def _astray(self) -> bool:
        """Whether a draft is of no use: the other model wrote something else."""
        drafted = zip(self._side.session.ahead, self._written, strict=False)
        return any(token.id != written for token, written in drafted)


class ReadAlong(Nudged):
    """An answer whose aligned model reads along. `server.decoding.speculation.drafts.can_draft`
    must hold."""

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.aligned, turn_ahead(self.request, WORD_TOKENS, word=()))

    async def _base_events(self) -> AsyncGenerator[Token | TurnEnd]:
        return self._followed(await super()._base_events())

    async def _followed(
        self, turn: AsyncGenerator[Token | TurnEnd]
    ) -> AsyncGenerator[Token | TurnEnd]:
        reader = self._reader
        try:
            # A turn that begins while the aligned model still looks ahead is followed later.
            if not self.policy.end_lookahead:
                reader.begin()
            async with aclosing(turn) as events:
                async for event in events:
                    if isinstance(event, TurnEnd):
                        await reader.rest()
                        yield event
                    else:
                        yield event
                        reader.wrote(event.id)
        finally:
            await reader.stop()
