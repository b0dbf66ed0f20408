"""The one memory of what the aligned model would write next.

A session that may have written more than it was asked for. What is ahead stands behind the very
text that the answer has, drawn as it would be now: so whoever asks gets the same tokens as without
it, only sooner, and where the text goes another way it is forgotten. A word is served from here, a
look-ahead is a draft and a glance at its end, and taking back is an index.

Knows: sessions and turns. Does not know: the policy, who drafts and why, vLLM, HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from server.core import TokenIds
from server.engines.base import EngineInfo, Session, Token, TurnEnd, TurnParams, look
from server.engines.turn import Turn

STOP_S = 1.0
"""How long a draft that is broken off may take to its next token."""


class SessionBefore:
    """A session that stands before another one: its turns are its own, and the other one does what
    isn't done here."""

    def __init__(self, session: Session, info: EngineInfo) -> None:
        self._session = session
        self._info = info

    @property
    def length(self) -> int:
        return self._session.length

    @property
    def steps(self) -> int:
        return self._session.steps

    @property
    def prefilled(self) -> int:
        return self._session.prefilled

    @property
    def cached(self) -> int:
        return self._session.cached

    def turn(self, params: TurnParams) -> Turn:
        """One that begins at the context's end."""
        info = self._info
        return Turn(params, info.tokenizer, info.stop_ids, info.context_length - self.length)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        return self._session.generate(params)

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        return await self._session.check(draft, top)

    async def score(self, top: int) -> list[Token]:
        return await self._session.score(top)

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        await self._session.extend(ids, drop=drop)

    async def aclose(self) -> None:
        await self._session.aclose()


class Memory(SessionBefore):
    """See the module. One draft at a time, in a task of its own: turns are served from it while
    it grows, and everything else waits for its end or breaks it off.

    Behind the context, in the engine's, are the tokens ``ahead``; ``_next`` says what the model
    would write behind those and has not: an end, or the beginning of another word.

    reads: held by whoever has it read or write while the other model's turn runs.
    """

    def __init__(self, session: Session, info: EngineInfo) -> None:
        super().__init__(session, info)
        self.ahead: deque[Token] = deque()
        self._next: Token | None = None
        self._served: list[Token] = []  # at the context's end, which may be taken back
        self._draft: asyncio.Task[TurnEnd | None] | None = None
        self._grew = asyncio.Event()
        self._stopping = False
        self.reads = asyncio.Lock()

    @property
    def length(self) -> int:
        return self._session.length - len(self.ahead)

    @property
    def ended(self) -> bool:
        """Whether the model is known to end its text here."""
        following = self._next
        return not self.ahead and following is not None and following.id in self._info.stop_ids

    # -- drafts ------------------------------------------------------------------------------

    def begin(self, params: TurnParams, astray: Callable[[], bool] = lambda: False) -> None:
        """Draft a turn that begins at the context's end; what is ahead already is part of it.

        Args:
            astray: asked after each token; the draft is broken off where it is true.
        """
        turn = self.turn(params)
        for token in self.ahead:  # now, before any of it is served
            if turn.end is None:
                turn.offer(token)
        self._draft = asyncio.create_task(self._write(turn, astray))
        self._draft.add_done_callback(lambda _: self._grew.set())

    async def rest(self) -> TurnEnd | None:
        """Wait for the draft that was begun. How it ended; None where it was broken off."""
        return None if self._draft is None else await self._draft

    async def stop(self) -> None:
        """Break a draft off at its next token, so that the session stays whole."""
        if self._draft is None or self._draft.done():
            return
        self._stopping = True
        await asyncio.wait({self._draft}, timeout=STOP_S)
        self._stopping = False
        draft, self._draft = self._draft, None
        draft.cancel()  # of no effect on a task that is done
        await asyncio.gather(draft, return_exceptions=True)

    @property
    def _drafts(self) -> bool:
        return self._draft is not None and not self._draft.done()

    async def _write(self, turn: Turn, astray: Callable[[], bool]) -> TurnEnd | None:
        if self._next is not None and turn.end is None and turn.offer(self._next):
            begun, self._next = self._next, None
            await self._session.extend([begun.id])
            self._remember(begun)
        if turn.end is not None:
            return turn.end
        self._next = None
        async with aclosing(self._session.generate(turn.rest())) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    self._keep(event)
                    return event
                self._remember(event)
                if self._stopping or astray():
                    return None
        return None

    def _remember(self, token: Token) -> None:
        self.ahead.append(token)
        self._grew.set()

    def _keep(self, end: TurnEnd) -> None:
        if end.reason in ("stop", "word"):
            self._next = end.rejected

    # -- a session's -------------------------------------------------------------------------

    async def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        served = self._served
        turn = self.turn(params)
        while turn.end is None:
            if self.ahead:
                if turn.offer(self.ahead[0]):
                    served.append(self.ahead.popleft())
                    yield served[-1]
            elif self._drafts:
                self._grew.clear()
                await self._grew.wait()
            else:
                await self.rest()  # raises what went wrong with it
                break
        if self._next is not None and turn.end is None and turn.offer(self._next):
            begun, self._next = self._next, None
            await self._session.extend([begun.id])
            served.append(begun)
            yield begun
        if turn.end is not None:
            yield turn.end
            return
        self._next = None
        async with aclosing(self._session.generate(turn.rest())) as events:
            async for event in events:
                if isinstance(event, Token):
                    served.append(event)
                else:
                    self._keep(event)
                yield event

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        await self.stop()
        if drop > len(self._served):  # some of them were given, and are behind what was written
            await self._session.extend([], drop=drop + len(self.ahead))
            self.ahead.clear()
            self._next = None
            self._served.clear()
        elif drop:  # they stay in the engine's context, for what may come
            self.ahead.extendleft(reversed(self._served[-drop:]))
            del self._served[-drop:]
        if ids:
            self._served.clear()
        for count, number in enumerate(ids):
            if not self.ahead or self.ahead[0].id != number:
                await self._turn_to(ids[count:])
                break
            self.ahead.popleft()

    async def _turn_to(self, ids: Sequence[int]) -> None:
        """The text goes another way than what is ahead."""
        await self._session.extend(list(ids), drop=len(self.ahead))
        self.ahead.clear()
        self._next = None

    async def glance(self, params: TurnParams) -> Token:
        """What the model would write next, drawn or the likeliest; `Token.top` says the latter.
        Where it is drawn greedily it is remembered.

        Args:
            params: of the turn that would write it.
        """
        await self.stop()
        if self.ahead:
            return self.ahead[0]
        if self._next is None or not self._next.top:
            seen = await look(self._session, params.reported)
            if not params.by_argmax:
                return seen
            self._next = seen
        return self._next

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        await self._alone()
        return await super().check(draft, top)

    async def score(self, top: int) -> list[Token]:
        await self._alone()
        return await super().score(top)

    async def _alone(self) -> None:
        """Have nothing ahead in the engine's context."""
        await self.stop()
        if self.ahead:
            await self._turn_to([])

    async def aclose(self) -> None:
        if self._draft is not None:
            self._draft.cancel()
            await asyncio.gather(self._draft, return_exceptions=True)
        await super().aclose()
