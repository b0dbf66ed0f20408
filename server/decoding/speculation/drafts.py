"""The aligned model's words before they are asked for.

While a draft stands, it is what the model would write: greedy, and behind the very text that the
answer has. So whoever asks gets the same tokens as without it, only sooner. `verify` and
`predraft` are two uses of that.

Knows: sessions. Does not know: the policy, who drafts and why, vLLM, HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from server.core import AnswerRequest, TokenIds
from server.engines.base import Engine, EngineInfo, Session, Token, TurnEnd, TurnParams
from server.engines.turn import Turn
from server.text.tokenizer import Tokenizer


def share_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether what either model writes can be read by the other as the same ids."""
    return one.shares_ids_with(other) and other.shares_ids_with(one)


def can_draft(request: AnswerRequest, base: Engine, aligned: Engine) -> bool:
    """Whether what comes next depends on the text alone (greedy, and nothing bends the choice),
    and both models read the same ids."""
    sampling = request.sampling
    bent = sampling.penalized or sampling.logit_bias or request.grammar is not None
    plain = sampling.greedy and not (bent or request.min_tokens or request.ignore_eos)
    return plain and share_ids(base.info.tokenizer, aligned.info.tokenizer)


def turn_ahead(
    request: AnswerRequest, max_tokens: int, word: tuple[int, ...] | None = None
) -> TurnParams:
    """A turn of the aligned model that may serve for any that it will be asked for."""
    return TurnParams(
        request.sampling,
        max_tokens=max_tokens,
        word=word,
        top=max(request.top_logprobs or 1, 2),  # a word's turn wants two
        stop_token_ids=request.stop_token_ids,
    )


class SessionBefore:
    """A session that stands before another one: its turns are its own, and the other one does what
    isn't done here."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def length(self) -> int:
        return self._session.length

    @property
    def steps(self) -> int:
        return self._session.steps

    @property
    def prefilled(self) -> int:
        return self._session.prefilled

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        return await self._session.check(draft, top)

    async def score(self, top: int) -> list[Token]:
        return await self._session.score(top)

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        await self._session.extend(ids, drop=drop)

    async def aclose(self) -> None:
        await self._session.aclose()


class DraftedSession(SessionBefore):
    """A session that may have written more than it was asked for.

    Behind its context, in the engine's, are the tokens of ``ahead``; ``_next`` says what the
    model would write behind those and has not: an end, or the beginning of another word.
    """

    def __init__(self, session: Session, info: EngineInfo) -> None:
        super().__init__(session)
        self._info = info
        self.ahead: deque[Token] = deque()
        self._next: Token | None = None
        self._served: list[Token] = []  # at the context's end, which may be taken back

    @property
    def length(self) -> int:
        return self._session.length - len(self.ahead)

    async def draft(
        self, params: TurnParams, *, astray: Callable[[], bool] = lambda: False
    ) -> None:
        """Run a turn ahead, unless there is something ahead already.

        Args:
            astray: asked after each token; the draft is broken off where it is true.
        """
        if self.ahead:
            return
        turn = self._turn(params)
        if self._next is not None and turn.end is None:
            if not turn.offer(self._next):
                return
            begun, self._next = self._next, None
            self.ahead.append(begun)
            await self._session.extend([begun.id])
        if turn.end is not None:
            return
        async with aclosing(self._session.generate(turn.rest())) as events:
            async for event in events:
                if isinstance(event, Token):
                    self.ahead.append(event)
                elif event.reason in ("stop", "word"):
                    self._next = event.rejected
                if astray():
                    return

    async def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        served = self._served
        turn = self._turn(params)
        while self.ahead and turn.end is None:
            if turn.offer(self.ahead[0]):
                served.append(self.ahead.popleft())
                yield served[-1]
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
                yield event

    def _turn(self, params: TurnParams) -> Turn:
        info = self._info
        return Turn(params, info.tokenizer, info.stop_ids, info.context_length - self.length)

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
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

    async def _turn_to(self, ids: TokenIds) -> None:
        """The text goes another way than what is ahead."""
        await self._session.extend(ids, drop=len(self.ahead))
        self.ahead.clear()
        self._next = None

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        if self.ahead:
            await self._turn_to([])
        return await self._session.check(draft, top)

    async def score(self, top: int) -> list[Token]:
        if self.ahead:
            await self._turn_to([])
        return await self._session.score(top)
