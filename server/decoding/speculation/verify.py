"""Several steps of the policy in one forward pass of the base model (``verify``).

The aligned model drafts a few tokens, and the base model says in one pass what it would write at
each of their positions. Where it is uncertain, the drafted word stands, for it is what the
aligned model would write there; where it is certain of the drafted token, that stands too; and its
first other token is its own, behind which the rest of the draft is void.

This is no other policy: the same turns are answered with the same tokens, and some of them are only
known before they are asked. So the answer is the same, token for token, as far as the two models'
arithmetic is (docs/adr/0015).

Knows: `Nudged`, and its sessions. Does not know: the policy's rules, vLLM, HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from server.core import AnswerRequest, NudgingConfig, PromptPair, TokenIds, Usage
from server.decoding.handover import Side
from server.decoding.memory import SessionBefore
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import turn_ahead
from server.decoding.stream import End, Output
from server.engines.base import Engine, EngineInfo, Session, Token, TurnEnd


class CheckedSession(SessionBefore):
    """A session that remembers what its model says of the next positions: ``_known``, each with
    the drafted id that the following ones rest on."""

    def __init__(self, session: Session, info: EngineInfo) -> None:
        super().__init__(session, info)
        self._known: deque[tuple[Token, int | None]] = deque()

    @property
    def next(self) -> Token | None:
        """What the model would write next; None where it isn't known."""
        return self._known[0][0] if self._known else None

    async def read(self, draft: TokenIds, top: int) -> Token:
        """Check a draft that begins here. What the model would write next."""
        checked = await self._session.check(draft, top)
        self._known.extend(zip(checked, [*draft, None], strict=False))
        return checked[0]

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            self._known.clear()
        for number in ids:
            if not self._known:
                break
            if self._known.popleft()[1] != number:
                self._known.clear()
        await self._session.extend(ids, drop=drop)


class CheckedSide(Side):
    """A side whose session is one of those."""

    session: CheckedSession

    def _open(self, engine: Engine, prompt: TokenIds) -> CheckedSession:
        return CheckedSession(engine.open(prompt), engine.info)


class Verified(Nudged):
    """An answer written by drafts, each checked in one pass. Greedy:
    `server.decoding.speculation.drafts.can_draft` must hold."""

    base: CheckedSide
    base_side = CheckedSide
    goes_ahead = False  # the aligned model can't draft and look ahead at once

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
        tokens: int,
    ) -> None:
        """``tokens``: of a draft. Raises `ContextLengthExceeded` if the prompt doesn't fit one of
        the models."""
        super().__init__(base, aligned, prompt, request, config)
        self._tokens = tokens

    async def _base_events(self) -> AsyncGenerator[Token | TurnEnd]:
        await self.base.catch_up()
        return self._checked()

    async def _checked(self) -> AsyncGenerator[Token | TurnEnd]:
        params = self._turn(self.left, stop_below=self.policy.gamma)
        session = self.base.session
        turn = session.turn(params)
        while turn.end is None:
            token = session.next
            if token is None:
                draft = await self._draft(min(self._tokens, params.max_tokens - len(turn.taken)))
                token = await session.read(draft, params.reported)
            if turn.offer(token):
                await session.extend([token.id])
                yield token
        yield turn.end

    async def _draft(self, most: int) -> TokenIds:
        """Up to so many ids that may come next."""
        if not self.aligned.verbatim:
            return []  # what it would write now is for another place
        await self.aligned.catch_up()
        memory = self.aligned.session
        if not memory.ahead:
            memory.begin(turn_ahead(self.request, most))
            await memory.rest()
        return [token.id for token in memory.ahead][:most]


class Faster:
    """Which of two ways to write answers takes less time: as measured, and measured again now
    and then.

    Seconds a token, smoothed, of whole answers. Both ways are tried first; then every
    ``RETRY``-th answer is written in the way that was slower.
    """

    RETRY = 32
    SHORTEST = 8
    """Fewer tokens tell nothing: short answers are taken together."""

    def __init__(self) -> None:
        self._pace: dict[bool, float] = {}
        self._short: dict[bool, tuple[int, float]] = {}
        self._answers = 0

    def choose(self) -> bool:
        """Whether the next answer is to be verified."""
        self._answers += 1
        for way in (True, False):
            if way not in self._pace:
                return way
        best = self._pace[True] < self._pace[False]
        return best != (self._answers % self.RETRY == 0)

    def took(self, verified: bool, tokens: int, seconds: float) -> None:
        others, their_seconds = self._short.pop(verified, (0, 0.0))
        tokens, seconds = tokens + others, seconds + their_seconds
        if tokens < self.SHORTEST:
            self._short[verified] = tokens, seconds
            return
        pace = seconds / tokens
        before = self._pace.get(verified, pace)
        self._pace[verified] = before + 0.25 * (pace - before)


class Timed:
    """An answer that says how long it took."""

    def __init__(self, writer: Nudged, told: Callable[[int, float], None]) -> None:
        """``told``: called with its tokens, and its seconds without those for which it waited for
        its reader, if it is written to its end."""
        self.writer = writer
        self._told = told

    async def write(self, out: Output) -> End:
        began = time.perf_counter()
        end = await self.writer.write(out)
        self._told(self.writer.committed, time.perf_counter() - began - out.waited_s)
        return end

    def usage(self) -> Usage:
        return self.writer.usage()
