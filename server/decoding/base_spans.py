"""What the base model's turns add to an answer: which of its tokens, and where it gives way.

Knows: the policy, and both sides of an answer. Does not know: how a turn is computed, engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.core import AnswerRequest, Piece, PromptPair, Rejected
from server.decoding.budget import ThinkingBudget
from server.decoding.handover import Growing, Remembered, Side
from server.decoding.held import Held
from server.decoding.rules import Nudging, Turn
from server.decoding.stream import Output
from server.engines.base import Token, TurnEnd, TurnParams

Events = AsyncGenerator[Token | TurnEnd]
"""A turn of an engine."""


class BaseSpans:
    """Those of one answer.

    held: what may be a turn's header. rejected: what the model would have written where it gave
    way last; None where that was taken up, or nothing is known. budget: of the answer's thoughts.
    """

    def __init__(
        self,
        policy: Nudging,
        base: Side,
        aligned: Remembered,
        prompt: PromptPair,
        request: AnswerRequest,
    ) -> None:
        self._policy = policy
        self._side = base
        self._aligned = aligned
        self._request = request
        self._glance = TurnParams(request.sampling, max_tokens=1, top=request.top_logprobs or 1)
        self.budget = ThinkingBudget(request.thinking)
        self.held = Held(base.tokenizer, prompt.headers)
        self.rejected: Rejected | None = None
        self._front = 0  # characters of the token that is taken back next which were committed

    async def add(self, turn: Events, out: Output) -> None:
        """A turn, up to where the policy has somebody else speak."""
        policy, held = self._policy, self.held
        growing = Growing(self._side, scores=self._request.top_logprobs is not None)
        async with aclosing(turn) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    self._take(held.rest(), growing, out)
                    self._ended(event)
                    break
                untaken = self._take(held.push(event), growing, out)
                if policy.turn is Turn.BASE and held.line is not None:
                    if policy.checks_ends and await self._would_end(held.line):
                        self._take_front(growing, out)
                        if policy.turn is Turn.BASE:
                            policy.ended_at_break()
                    else:
                        untaken = self._take(held.go_on(), growing, out)
                if policy.turn is Turn.BASE and held.found:
                    self._take_front(growing, out)
                    if policy.turn is Turn.BASE:
                        policy.base_stopped()
                if policy.turn is not Turn.BASE:
                    await self._give_way([*untaken, *held.drop()], events)
                    break
                if out.full:
                    await out.room()
        if (piece := growing.rest()) is not None:
            self._emit(piece, out)

    def _emit(self, piece: Piece, out: Output) -> None:
        out.emit(piece)
        self.budget.hear(piece)
        if self.budget.due and self._policy.turn is Turn.BASE:
            self._policy.base_stopped()

    def _take(self, tokens: list[Token], growing: Growing, out: Output) -> list[Token]:
        """Commit tokens. Those that are not, for the model has to give way."""
        policy = self._policy
        for number, token in enumerate(tokens):
            if policy.turn is not Turn.BASE:
                return tokens[number:]
            if not policy.base_token(token.id, token.top_prob, growing.take(token)):
                raise RuntimeError("the engine took a token under γ")  # its contract, 3
            if (piece := growing.whole()) is not None:
                self._emit(piece, out)
        return []

    def _take_front(self, growing: Growing, out: Output) -> None:
        """Commit the text that the answer gets of a token which it doesn't get."""
        token, text = self.held.first, self.held.front
        if text:
            self._front = len(text)
            self._policy.base_token(token.id, token.top_prob, growing.take_front(token, text))
            if (piece := growing.whole()) is not None:
                self._emit(piece, out)

    async def _would_end(self, before: str) -> bool:
        return await self._aligned.would_end(before, self._glance)

    async def _give_way(self, untaken: list[Token], events: Events) -> None:
        """The turn ends before the model would. untaken: what it wrote and the answer doesn't
        have; where that is nothing, its next token is."""
        if not untaken and self._policy.turn is Turn.ALIGNED:
            following = await anext(events)
            if isinstance(following, TurnEnd):
                self._reject(following.rejected)
                return
            untaken = [following]
        self._side.take_back(len(untaken))
        self._reject(*untaken, front=self._front)
        self._front = 0

    def _ended(self, end: TurnEnd) -> None:
        policy, drawn = self._policy, end.rejected
        if end.reason == "length" and policy.turn is Turn.BASE:
            policy.out_of_room("context" if self._side.room <= 0 else "length")
        elif policy.turn is Turn.BASE and end.drew(self._request.stop_token_ids):
            policy.out_of_room("stop_token")
        else:
            self._reject(drawn)
            if policy.turn is Turn.BASE:
                policy.base_stopped()

    def _reject(self, *tokens: Token | None, front: int = 0) -> None:
        spelled = self._side.tokenizer.token_text
        known = [token for token in tokens if token is not None]
        text = "".join(spelled(token.id) for token in known)
        self.rejected = Rejected(text[front:], known[0].top_prob) if known else None

    def heard(self, piece: Piece) -> None:
        """The answer goes on with what the aligned model wrote."""
        self.held.hear(piece.text)
        self.budget.hear(piece)

    def take_up(self) -> Rejected | None:
        """What was rejected, for the word that stands there."""
        rejected, self.rejected = self.rejected, None
        return rejected


class Ahead:
    """A turn that runs already. From its first event on, the engine doesn't wait for a reader."""

    def __init__(self, turn: Events) -> None:
        self._turn = turn
        self._first = asyncio.ensure_future(anext(turn))

    async def events(self) -> Events:
        try:
            yield await self._first
            async for event in self._turn:
                yield event
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._turn.aclose()
