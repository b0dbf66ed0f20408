"""Several steps of the policy in one forward pass of the base model (``verify``).

The aligned model drafts a few tokens, and the base model says in one pass what it would write at
each of their positions. Where it is uncertain, the drafted word stands, for it is what the
aligned model would write there; where it is certain of the drafted token, that stands too; and its
first other token is its own, behind which the rest of the draft is void.

This is no other policy: two sessions answer the same turns with the same tokens as those they
stand for, and only know some of them before they are asked. So the answer is the same, token for
token, as far as the two models' arithmetic is (docs/adr/0015).

Knows: sessions, and the writer that has them. Does not know: the policy's rules, vLLM, HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from server.core import AnswerRequest, NudgingConfig, PromptPair, TokenIds
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import DraftedSession, SessionBefore, turn_ahead
from server.decoding.stream import End, Output
from server.engines.base import Engine, EngineInfo, Session, Token, TurnEnd, TurnParams
from server.engines.turn import Turn


class CheckedSession(SessionBefore):
    """A session that checks drafts instead of writing token by token. Greedy, and plain turns
    with ``stop_below`` only.

    ``_known`` is what the model says of the next positions, each with the drafted id that the
    following ones rest on.
    """

    def __init__(
        self,
        session: Session,
        info: EngineInfo,
        draft: Callable[[int], Awaitable[TokenIds]],
        tokens: int,
    ) -> None:
        """
        Args:
            draft: gives up to so many ids that may come next.
            tokens: of a draft.
        """
        super().__init__(session)
        self._info = info
        self._draft = draft
        self._tokens = tokens
        self._known: deque[tuple[Token, int | None]] = deque()

    async def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        info = self._info
        turn = Turn(params, info.tokenizer, info.stop_ids, info.context_length - self.length)
        while turn.end is None:
            if not self._known:
                draft = await self._draft(min(self._tokens, params.max_tokens - len(turn.taken)))
                checked = await self._session.check(draft, params.reported)
                self._known.extend(zip(checked, [*draft, None], strict=False))
            token, _ = self._known[0]
            if turn.offer(token):
                await self.extend([token.id])
                yield token
        yield turn.end

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            self._known.clear()
        for number in ids:
            if not self._known:
                break
            if self._known.popleft()[1] != number:
                self._known.clear()
        await self._session.extend(ids, drop=drop)


def verify(nudged: Nudged, tokens: int) -> None:
    """Let an answer that has not begun be written by drafts of so many tokens, each checked in
    one pass. `server.decoding.speculation.drafts.can_draft` must hold."""
    base, aligned, request = nudged.base, nudged.aligned, nudged.request
    drafted = DraftedSession(aligned.session, aligned.info)

    async def draft(most: int) -> TokenIds:
        if not aligned.verbatim:
            return []  # what it would write now is for another place
        await aligned.catch_up()
        await drafted.draft(turn_ahead(request, most))
        return [token.id for token in drafted.ahead][:most]

    aligned.session = drafted
    base.session = CheckedSession(base.session, base.info, draft, tokens)
    nudged.goes_ahead = False  # the aligned model can't draft and look ahead at once


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


class Measured(Nudged):
    """An answer that says how long it took."""

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
        told: Callable[[int, float], None],
    ) -> None:
        """``told``: called with its tokens, and its seconds without those for which it waited for
        its reader, if it is written to its end."""
        super().__init__(base, aligned, prompt, request, config)
        self._told = told

    async def write(self, out: Output) -> End:
        began = time.perf_counter()
        end = await super().write(out)
        self._told(self.committed, time.perf_counter() - began - out.waited_s)
        return end
