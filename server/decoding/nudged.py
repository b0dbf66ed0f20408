"""Where the policy meets the engines: two sessions in, pieces out.

The life of an answer:
 1. `Nudged` (or `Alone` or `Referenced` of `alone`) opens its sessions on the prompts.
 2. It asks the policy whose turn it is, lets that engine generate, and tells the policy what
    came. Committed text becomes a `Piece` at once, and goes to the other model's session.
 3. `stream` holds back what could become a stop string, and ends with one `Finished`.
 4. However the stream ends (done, closed early, failed), every session is closed, and with it
    whatever still runs in an engine.

The only place that knows both the policy and the engines. Does not know: OpenAI's schemas, vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from server.core import (
    AnswerRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    Rejected,
    StopReason,
    Usage,
)
from server.decoding.handover import Growing, Side, close_all
from server.decoding.rules import WORD_TOKENS, Nudging, Turn
from server.decoding.stream import End, Output
from server.engines.base import Engine, Token, TurnEnd, TurnParams, collect
from server.text.words import Part, Word


class Nudged:
    """An answer by the policy ``nudging``.

    goes_ahead: whether the base model may write on while the aligned model still looks ahead.
    """

    goes_ahead = True

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        """Raises `ContextLengthExceeded` if the prompt doesn't fit one of the models."""
        self.policy = Nudging(config)
        self.request = request
        verbatim = request.grammar is not None
        self.base = Side(base, "base", prompt.base, verbatim=verbatim)
        self.aligned = Side(aligned, "aligned", prompt.aligned, verbatim=verbatim)
        self.base.listen_to(self.aligned)
        self.aligned.listen_to(self.base)
        self._turns = 0
        self.rejected: Rejected | None = None
        # What the aligned model would write next, known from the end of its last word; void
        # once the base model has written something.
        self._draft: Token | None = None
        self._draft_ends = False
        # The base model's next turn, where it runs before the aligned model's is over.
        self._ahead: Ahead | None = None

    @property
    def left(self) -> int:
        return self.request.limit - self.committed

    @property
    def committed(self) -> int:
        return self.base.tokens + self.aligned.tokens

    async def write(self, out: Output) -> End:
        policy = self.policy
        try:
            while policy.turn is not Turn.DONE:
                policy.guarded = self._guarded
                if policy.turn is Turn.ALIGNED:
                    await self._aligned_turn(out)
                else:
                    await self._base_turn(out)
                if out.full:
                    await out.room()
        finally:
            try:
                await self._forget_ahead()
            finally:
                await close_all(self.base.session, self.aligned.session)
        assert policy.stop_reason is not None
        return End(policy.stop_reason, self.rejected)

    @property
    def _guarded(self) -> bool:
        """Whether the policy's loop guards may end the answer. JSON repeats itself by nature."""
        request = self.request
        free = request.ignore_eos or request.grammar is not None
        return not free and self.committed >= request.min_tokens

    def usage(self) -> Usage:
        steps = self.base.session.steps + self.aligned.session.steps
        return Usage(
            base_prompt_tokens=self.base.prompt_tokens,
            aligned_prompt_tokens=self.aligned.prompt_tokens,
            base_tokens=self.base.tokens,
            aligned_tokens=self.aligned.tokens,
            rounds=self.policy.rounds,
            base_steps=self.base.session.steps,
            aligned_steps=self.aligned.session.steps,
            discarded_tokens=max(0, steps - self.committed),
            base_prefilled=self.base.session.prefilled,
            aligned_prefilled=self.aligned.session.prefilled,
        )

    def _turn(
        self,
        max_tokens: int,
        *,
        stop_below: float | None = None,
        word: tuple[int, ...] | None = None,
    ) -> TurnParams:
        self._turns += 1
        request = self.request
        # The base model's end of text is no end of the answer: it never comes too early.
        ends = () if stop_below is not None else self.aligned.info.stop_ids
        return TurnParams(
            sampling=request.sampling,
            stop_token_ids=request.stop_token_ids,
            not_before=request.not_before(ends, self.committed + len(word or ())),
            grammar=request.grammar,
            max_tokens=max_tokens,
            stop_below=stop_below,
            word=word,
            # Two alternatives show whether the next word's first token was a tie.
            top=max(request.top_logprobs or 1, 1 if word is None else 2),
            turn=self._turns,
        )

    # -- the base model ----------------------------------------------------------------------

    async def _base_turn(self, out: Output) -> None:
        base, policy = self.base, self.policy
        growing = Growing(base, scores=self.request.top_logprobs is not None)
        ahead, self._ahead = self._ahead, None
        turn = ahead.events() if ahead is not None else await self._begin_base_turn()
        async with aclosing(turn) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    if event.reason == "length":
                        policy.out_of_room("context" if base.room <= 0 else "length")
                    elif self._at_stop_token(event):
                        policy.out_of_room("stop_token")
                    else:
                        self._reject(event.rejected)
                        policy.base_stopped()
                    break
                if not policy.base_token(event.id, event.top_prob, growing.take(event)):
                    raise RuntimeError("the engine took a token under γ")  # its contract, 3
                self._draft, self._draft_ends = None, False
                if (piece := growing.whole()) is not None:
                    out.emit(piece)
                    if out.full:
                        await out.room()
                if policy.turn is not Turn.BASE:
                    break
        if (piece := growing.rest()) is not None:
            out.emit(piece)

    async def _begin_base_turn(self) -> AsyncGenerator[Token | TurnEnd]:
        await self.base.catch_up()
        return self.base.session.generate(self._turn(self.left, stop_below=self.policy.gamma))

    def _at_stop_token(self, end: TurnEnd) -> bool:
        """Whether one of the request's ``stop_token_ids`` ended a turn."""
        drawn = end.rejected
        return (
            end.reason == "stop" and drawn is not None and drawn.id in self.request.stop_token_ids
        )

    def _reject(self, token: Token | None) -> None:
        if token is None:
            self.rejected = None
        else:
            self.rejected = Rejected(self.base.tokenizer.token_text(token.id), token.top_prob)

    # -- the aligned model -------------------------------------------------------------------

    async def _aligned_turn(self, out: Output) -> None:
        left = self.left
        if self._draft_ends:
            self.policy.aligned_ended()
            return
        if left <= 0:
            self.policy.out_of_room("length")
            return
        await self.aligned.catch_up()
        if self.policy.end_lookahead:
            await self._look_ahead(left, out)
            return
        tokens, end = await self._word()
        text, word = self._commit(tokens)
        if word is not None:
            out.emit(word)
        self._after_word(text, end, took=len(tokens), left=left)

    def _commit(self, tokens: list[Token]) -> tuple[str, Piece | None]:
        """Tokens of the aligned model that are part of the answer, as text and as a piece. Those
        without text are none."""
        before = self.aligned.tokens
        growing = Growing(self.aligned, scores=self.request.top_logprobs is not None)
        for token in tokens:
            growing.take(token)
        piece = growing.rest()
        if piece is None or not piece.text:
            self.aligned.tokens = before
            return "", None
        rejected, self.rejected = self.rejected, None
        return piece.text, replace(piece, top_prob=tokens[0].top_prob, rejected=rejected)

    def _after_word(
        self, text: str, end: TurnEnd, *, took: int, left: int, ending: bool = False
    ) -> None:
        """Tell the policy what the aligned model did.

        What ran out ends the answer, also where a character that was cut is taken back and there
        seems to be room again.

        Args:
            took: tokens of the turn that were to be the answer's.
            left: tokens that the answer had left before them.
            ending: whether they are the whole ending, seen by looking ahead.
        """
        policy = self.policy
        over: StopReason | None = None
        if self._at_stop_token(end):
            over = "stop_token"
        elif end.reason == "stop" and (ending or not took):
            over = "aligned_end"
        elif took >= left:
            over = "length"
        elif end.reason == "length" and self.aligned.room <= 0:
            over = "context"
        if over is None:
            policy.word(text)
            self._draft = end.rejected if end.reason == "word" else None
            self._draft_ends = end.reason == "stop"
        elif over == "aligned_end":
            policy.ending(text) if text else policy.aligned_ended()
        else:
            if text:
                policy.word(text)
            policy.out_of_room(over)

    async def _word(self) -> tuple[list[Token], TurnEnd]:
        """The aligned model's next word, which may be begun already (the draft)."""
        tokens: list[Token] = []
        if self._draft is not None:
            if self._draft.id in self.request.stop_token_ids:
                return tokens, TurnEnd("stop", self._draft)
            tokens.append(self._draft)
            await self.aligned.session.extend([self._draft.id])
            self._draft = None
            if Word(self.aligned.tokenizer).push(tokens[0].id) is Part.LAST:
                return tokens, TurnEnd("word")
        return await self._rest_of_word(tokens)

    async def _rest_of_word(self, begun: list[Token]) -> tuple[list[Token], TurnEnd]:
        """A word of which some tokens are in the session already."""
        most = min(WORD_TOKENS, self.left) - len(begun)
        if most <= 0:
            return begun, TurnEnd("length")
        params = self._turn(most, word=tuple(token.id for token in begun))
        tokens, end = await collect(self.aligned.session, params)
        return [*begun, *tokens], end

    async def _look_ahead(self, left: int, out: Output) -> None:
        """Draft ``end_lookahead`` tokens: the whole ending if the turn ends within them, and
        otherwise the first word of them, or the word that they begin.

        The word is committed either way. So the base model goes on behind it while the rest is
        drafted; what it writes is taken, or forgotten, when that is known.
        """
        word, part = Word(self.aligned.tokenizer), Part.INSIDE
        tokens: list[Token] = []
        kept: int | None = None  # of them, in the first word
        text = ""
        params = self._turn(min(self.policy.end_lookahead, left))
        async with aclosing(self.aligned.session.generate(params)) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    end = event
                    break
                tokens.append(event)
                if kept is not None or len(tokens) > WORD_TOKENS:
                    continue
                part = word.push(event.id)
                if part is not Part.INSIDE:
                    kept = len(tokens) - (part is Part.BEYOND)
                    text, piece = self._commit(tokens[:kept])
                    await self._let_base_go_ahead()
                    if piece is not None:
                        out.emit(piece)
        ending = end.reason == "stop" and not self._at_stop_token(end)
        if ending:
            await self._forget_ahead()
            rest, piece = self._commit(tokens[kept or 0 :])
            text, kept = text + rest, len(tokens)
        elif kept is not None:
            self.aligned.take_back(len(tokens) - kept)
            end, piece = TurnEnd("word"), None
        elif end.reason == "length" and len(tokens) < WORD_TOKENS:  # it is shorter than the word
            tokens, end = await self._rest_of_word(tokens)
            text, piece = self._commit(tokens)
            kept = len(tokens)
        else:  # no word's end in sight
            kept = min(len(tokens), WORD_TOKENS)
            text, piece = self._commit(tokens[:kept])
            self.aligned.take_back(len(tokens) - kept)
            drawn = end.rejected if end.reason == "stop" else None  # one of the stop_token_ids
            if kept < len(tokens) or (drawn and word.push(drawn.id) is Part.BEYOND):
                end = TurnEnd("word")
        if piece is not None:
            out.emit(piece)
        self._after_word(text, end, took=kept, left=left, ending=ending)

    async def _let_base_go_ahead(self) -> None:
        if self.goes_ahead and self.policy.base_may_speak and self.left > 0:
            self._ahead = Ahead(await self._begin_base_turn())

    async def _forget_ahead(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            await ahead.aclose()


class Ahead:
    """A turn that runs already. From its first event on, the engine doesn't wait for a reader."""

    def __init__(self, turn: AsyncGenerator[Token | TurnEnd]) -> None:
        self._turn = turn
        self._first = asyncio.ensure_future(anext(turn))

    async def events(self) -> AsyncGenerator[Token | TurnEnd]:
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
