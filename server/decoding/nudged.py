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

from dataclasses import replace

from server.core import (
    AnswerRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    StopReason,
    Usage,
)
from server.decoding.base_spans import Ahead, BaseSpans, Events
from server.decoding.handover import Growing, Remembered, Side, close_all
from server.decoding.prose import Prose
from server.decoding.rules import WORD_TOKENS, Nudging, Turn
from server.decoding.stream import End, Output
from server.engines.base import Engine, Token, TurnEnd, TurnParams, collect


class Nudged:
    """An answer by the policy ``nudging``.

    goes_ahead: whether the base model may write on while the aligned model still looks ahead.
    """

    goes_ahead = True
    base_side: type[Side] = Side

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        """Raises `ContextLengthExceeded` if the prompt doesn't fit one of the models."""
        grammar = request.grammar
        self.policy = Nudging(config, Prose(grammar))
        self.request = request
        verbatim = grammar is not None and not grammar.free
        how = {"verbatim": verbatim, "marked": request.marked}
        self.base = self.base_side(base, "base", prompt.base, **how)
        self.aligned = Remembered(aligned, "aligned", prompt.aligned, **how)
        self.base.listen_to(self.aligned)
        self.aligned.listen_to(self.base)
        self.spans = BaseSpans(self.policy, self.base, self.aligned, prompt, request)
        self._turns = 0
        # The base model's next turn, where it runs before the aligned model's is over.
        self._ahead: Ahead | None = None

    @property
    def committed(self) -> int:
        return self.base.tokens + self.aligned.tokens

    @property
    def left(self) -> int:
        return self.request.limit - self.committed

    async def write(self, out: Output) -> End:
        policy = self.policy
        if policy.base_may_speak and not self.request.ignore_eos:
            out.hold_rounds()
        try:
            while policy.turn is not Turn.DONE:
                policy.guarded = self._guarded
                if self.spans.budget.due:
                    await self._close_thoughts(out)
                elif policy.turn is Turn.ALIGNED:
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
        if self.base.markers:  # both sides', with no text behind them
            out.emit(Piece("", "base", 1.0, 0, markers=tuple(self.base.markers)))
        return End(policy.stop_reason, self.spans.rejected)

    @property
    def _guarded(self) -> bool:
        """Whether the policy's loop guards may end the answer, where it is prose."""
        request = self.request
        return not request.ignore_eos and self.committed >= request.min_tokens

    def usage(self) -> Usage:
        base, aligned = self.base, self.aligned
        steps = base.session.steps + aligned.session.steps
        return Usage(
            base_prompt_tokens=base.prompt_tokens,
            aligned_prompt_tokens=aligned.prompt_tokens,
            base_tokens=base.tokens,
            aligned_tokens=aligned.tokens,
            rounds=self.policy.rounds,
            base_steps=base.session.steps,
            aligned_steps=aligned.session.steps,
            discarded_tokens=max(0, steps - self.committed + aligned.given),
            base_prefilled=base.session.prefilled,
            aligned_prefilled=aligned.session.prefilled,
            cached_tokens=base.session.cached,
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
        base = stop_below is not None
        # The base model's end of text is no end of the answer: it never comes too early.
        ends = () if base else self.aligned.info.stop_ids
        return TurnParams(
            sampling=request.sampling,
            ends=self.base.tokenizer.turn_ids if base else (),
            stop_token_ids=request.stop_token_ids,
            not_before=request.not_before(ends, self.committed),
            grammar=request.grammar,
            max_tokens=max_tokens,
            stop_below=stop_below,
            word=word,
            # Two alternatives show whether the next word's first token was a tie.
            top=max(request.top_logprobs or 1, 1 if word is None else 2),
            turn=self._turns,
        )

    async def _base_turn(self, out: Output) -> None:
        ahead, self._ahead = self._ahead, None
        await self.spans.add(await self._base_events() if ahead is None else ahead.events(), out)

    async def _base_events(self) -> Events:
        """A turn of the base model, up to where it is uncertain."""
        await self.base.catch_up()
        return self.base.session.generate(self._turn(self.left, stop_below=self.policy.gamma))

    async def _aligned_turn(self, out: Output) -> None:
        """One word; or, where it looks ahead and sees its end, the whole ending.

        The word is committed either way. So the base model goes on behind it while the rest is
        drafted; what it writes is taken, or forgotten, when that is known.
        """
        aligned, memory, left = self.aligned, self.aligned.session, self.left
        await aligned.catch_up()
        if memory.ended:
            self.policy.aligned_ended()
            return
        if left <= 0:
            self.policy.out_of_room("length")
            return
        most = self.spans.budget.most(left)
        looks = self.policy.end_lookahead > 0
        if looks:
            memory.begin(self._turn(min(self.policy.end_lookahead, left)))
        tokens, end = await collect(memory, self._turn(min(WORD_TOKENS, most), word=()))
        text = self._commit(tokens, out)
        if looks and await self._sees_its_end(end):
            await aligned.catch_up()
            more, _ = await collect(memory, self._turn(self.left))
            text += self._commit(more, out)
            self.policy.ending(text) if text else self.policy.aligned_ended()
        else:
            self._after_word(text, end, took=len(tokens), left=left)

    def _commit(self, tokens: list[Token], out: Output) -> str:
        """The text of the aligned model's tokens, which are part of the answer. Those without any
        are not."""
        before = self.aligned.tokens
        growing = Growing(self.aligned, scores=self.request.top_logprobs is not None)
        for token in tokens:
            growing.take(token)
        piece = growing.rest()
        if piece is None or not piece.text:
            self.aligned.tokens = before
            return ""
        rejected = self.spans.take_up()
        out.emit(replace(piece, top_prob=tokens[0].top_prob, rejected=rejected))
        self.spans.heard(piece)
        return piece.text

    async def _close_thoughts(self, out: Output) -> None:
        """They have taken all tokens that they may: the aligned model ends them, asked or not."""
        await self._forget_ahead()
        policy, text = self.policy, self.spans.budget.closing
        if policy.turn is Turn.BASE:
            policy.base_stopped()
        tokens = self.aligned.count(text)
        if tokens >= self.left:
            policy.out_of_room("length")
        elif max(tokens, self.base.count(text)) >= min(self.base.room, self.aligned.room):
            policy.out_of_room("context")
        else:
            self.aligned.say(text)
            self.spans.take_up()
            piece = Piece(text, "aligned", 1.0, tokens)
            out.emit(piece)
            self.spans.heard(piece)
            policy.word(text)

    def _after_word(self, text: str, end: TurnEnd, *, took: int, left: int) -> None:
        """Tell the policy what the aligned model did.

        What ran out ends the answer, also where a character that was cut is taken back and there
        seems to be room again.

        Args:
            took: tokens of the turn. left: tokens that the answer had left before them.
        """
        policy = self.policy
        over: StopReason | None = None
        if end.drew(self.request.stop_token_ids):
            over = "stop_token"
        elif took >= left:
            over = "length"
        elif end.reason == "length" and self.aligned.room <= 0:
            over = "context"
        if over is None and end.reason == "stop" and not took:
            policy.aligned_ended()
            return
        if text or over is None:
            policy.word(text)
        if over is not None:
            policy.out_of_room(over)

    async def _sees_its_end(self, end: TurnEnd) -> bool:
        """Whether the draft that was begun comes to the model's end. ``end``: of its first word,
        behind which the base model writes meanwhile."""
        goes_ahead = self.goes_ahead and self.policy.base_may_speak and self.left > 0
        if goes_ahead and end.reason == "word":
            self._ahead = Ahead(await self._base_events())
        drafted = await self.aligned.session.rest()
        if drafted is None or drafted.reason != "stop" or drafted.drew(self.request.stop_token_ids):
            return False
        await self._forget_ahead()
        return True

    async def _forget_ahead(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            await ahead.aclose()
