"""What nudging is compared with: one model alone, and the authors' own procedure.

Knows: how each is written with engine sessions. Does not know: OpenAI's schemas, vLLM.
"""

from __future__ import annotations

import codecs
from contextlib import aclosing
from dataclasses import replace

from server.core import (
    AnswerRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    PromptText,
    SamplingParams,
    Speaker,
    TokenIds,
    Usage,
)
from server.decoding.budget import ThinkingBudget
from server.decoding.handover import Growing, Side, check_fits
from server.decoding.reference import CHUNK, ROUNDS, Ask, Completion, NoRoom, Outcome, reference
from server.decoding.stream import End, Output, whole
from server.engines.base import Engine, TurnEnd, TurnParams


class Alone:
    """An answer by one of the models alone: plain decoding, the pair's own prompt."""

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker,
        prompt: PromptText | TokenIds,
        request: AnswerRequest,
        spelled: str | None = None,
    ) -> None:
        """
        Args:
            prompt: as ids it is read verbatim.
            spelled: the text that was read as these ids.

        Raises `ContextLengthExceeded`.
        """
        grammar = request.grammar
        verbatim = grammar is not None and not grammar.free
        self.side = Side(engine, speaker, prompt, verbatim=verbatim, marked=request.marked)
        self.request = request
        self._budget = ThinkingBudget(request.thinking)
        self._turns = 0
        self._read = prompt
        self._spelled = spelled

    async def write(self, out: Output) -> End:
        side, request = self.side, self.request
        try:
            if request.prompt_logprobs or not request.limit:
                read = await self._reading()
                if read is not None:
                    out.emit(read)
            if not request.limit:
                return End("length")
            growing = Growing(side, scores=request.top_logprobs is not None)
            while True:
                if self._budget.due and not self._close_thoughts(out):
                    return End("length")
                await side.catch_up()
                if (end := await self._turn(growing, out)) is not None:
                    return end
        finally:
            await side.session.aclose()

    async def _turn(self, growing: Growing, out: Output) -> End | None:
        """Nearly always the whole answer. None: it goes on, for only thoughts were to end."""
        side, request, budget = self.side, self.request, self._budget
        left = request.limit - side.tokens
        params = TurnParams(
            sampling=request.sampling,
            max_tokens=budget.most(left),
            stop_token_ids=request.stop_token_ids,
            not_before=request.not_before(side.info.stop_ids, side.tokens),
            grammar=request.grammar,
            top=self._reported,
            turn=self._turns,
        )
        self._turns += 1
        async with aclosing(side.session.generate(params)) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    if event.reason == "length" and params.max_tokens < left and side.room > 0:
                        self._emit(growing.rest(), out)
                        return None
                    return self._end(event, growing, out)
                growing.take(event)
                self._emit(growing.whole(), out)
                if budget.due:  # it began to think in this turn, and was not limited
                    return None
                if out.full:
                    await out.room()
        raise RuntimeError("the engine's turn ended without saying how")  # its contract, 1

    def _emit(self, piece: Piece | None, out: Output) -> None:
        if piece is not None:
            out.emit(piece)
            self._budget.hear(piece)

    def _close_thoughts(self, out: Output) -> bool:
        """They have taken all tokens that they may. False: there is no room for what ends them."""
        side, text = self.side, self._budget.closing
        tokens = side.count(text)
        if tokens >= min(self.request.limit - side.tokens, side.room):
            return False
        side.say(text)
        self._emit(Piece(text, side.speaker, 1.0, tokens), out)
        return True

    @property
    def _reported(self) -> int:
        """Alternatives that the engine is asked for. A token's own log probability takes one."""
        if self.request.top_logprobs is None:
            return int(self.request.traced)
        return max(1, self.request.top_logprobs)

    async def _reading(self) -> Piece | None:
        """The prompt is read. Its tokens, where they are asked for."""
        side, request = self.side, self.request
        scores = await side.session.score(request.top_logprobs or 1)
        if request.prompt_logprobs and isinstance(self._read, list):
            scored = side.scored_prompt(self._read, self._spelled, scores)
            return Piece("", side.speaker, 1.0, 0, scored=tuple(scored))
        return None

    def _end(self, end: TurnEnd, growing: Growing, out: Output) -> End:
        drawn = end.rejected
        if (last := growing.end(drawn)) is not None:
            out.emit(last)
        if drawn is not None and drawn.id in self.request.stop_token_ids:
            return End("stop_token")
        if end.reason == "stop":
            return End("end_of_text" if self.side.speaker == "base" else "aligned_end")
        return End("context" if self.side.room <= 0 else "length")

    def usage(self) -> Usage:
        side = self.side
        if side.speaker == "base":
            counts = Usage(
                base_prompt_tokens=side.prompt_tokens,
                base_tokens=side.tokens,
                base_steps=side.session.steps,
                base_prefilled=side.session.prefilled,
            )
        else:
            counts = Usage(
                aligned_prompt_tokens=side.prompt_tokens,
                aligned_tokens=side.tokens,
                aligned_steps=side.session.steps,
                aligned_prefilled=side.session.prefilled,
            )
        discarded = side.session.steps - side.tokens + side.given
        return replace(counts, discarded_tokens=discarded, cached_tokens=side.session.cached)


class Referenced:
    """An answer by the policy ``reference``, all of it at the end.

    The pieces are the rounds, in order: one of the aligned model each (also when it is empty),
    and one of the base model where it wrote; without what the procedure's clean-up takes off at
    both ends.
    """

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        self.engines: dict[Speaker, Engine] = {"base": base, "aligned": aligned}
        self.prompts: dict[Speaker, PromptText] = {"base": prompt.base, "aligned": prompt.aligned}
        self.prompt_tokens: dict[Speaker, int] = {}
        for speaker, engine in self.engines.items():
            # Checked here, so that a prompt that is too long fails before the answer starts.
            self.prompt_tokens[speaker] = len(self._ids(speaker, ""))
            check_fits(self.prompt_tokens[speaker], engine, speaker)
        self.request = request
        self.config = config
        self._steps: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._prefilled: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._cached: int | None = None  # of the base model's prompt, before it is read
        self._tokens: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._rounds = 0

    async def write(self, out: Output) -> End:
        outcome = await self._outcome()
        self._rounds = len(outcome.rounds)
        count = self.engines["aligned"].info.tokenizer.count
        whole = "".join(nudge + base for nudge, base in outcome.rounds)
        before = len(whole) - len(whole.lstrip())
        left = len(outcome.text)
        for nudge, base in outcome.rounds:
            spans: list[tuple[Speaker, str]] = [("aligned", nudge), ("base", base)]
            for speaker, written in spans:
                text = written[before:][:left]
                before, left = max(0, before - len(written)), left - len(text)
                self._tokens[speaker] += count(written)
                if text or speaker == "aligned":
                    out.emit(Piece(text, speaker, 0.0, 0))
        return End(outcome.stop_reason)

    async def _outcome(self) -> Outcome:
        count = self.engines["aligned"].info.tokenizer.count
        rounds = self.config.max_rounds or ROUNDS
        steps = reference(self.config.gamma, self.request.limit, rounds, count)
        try:
            ask = next(steps)
            while True:
                completion = await self._complete(ask)
                ask = steps.throw(NoRoom()) if completion is None else steps.send(completion)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    def _ids(self, speaker: Speaker, output: str) -> TokenIds:
        """Prompt and output as one text, tokenized anew as the authors' requests are."""
        *head, last = self.prompts[speaker] or ("",)
        whole = (*head, last + output) if isinstance(last, str) else (*head, last, output)
        return self.engines[speaker].info.tokenizer.encode_prompt(whole)

    async def _complete(self, ask: Ask) -> Completion | None:
        engine = self.engines[ask.speaker]
        ids = self._ids(ask.speaker, ask.text)
        if len(ids) >= engine.info.context_length:
            return None
        greedy = AnswerRequest(SamplingParams(temperature=0), max_tokens=CHUNK, top_logprobs=1)
        writer = Alone(engine, ask.speaker, ids, greedy)
        pieces, finished = await whole(writer, greedy)
        scored = [token for piece in pieces for token in piece.scored]
        self._steps[ask.speaker] += writer.side.session.steps
        self._prefilled[ask.speaker] += writer.side.session.prefilled
        if ask.speaker == "base" and self._cached is None:
            self._cached = min(writer.side.session.cached, self.prompt_tokens["base"])
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tokens = [utf8.decode(token.data) for token in scored]  # a character is its last token's
        top = [token.top[0][1] for token in scored]
        return Completion("".join(tokens), tokens, top, finished.finish_reason)

    def usage(self) -> Usage:
        return Usage(
            base_prompt_tokens=self.prompt_tokens["base"],
            aligned_prompt_tokens=self.prompt_tokens["aligned"],
            base_tokens=self._tokens["base"],
            aligned_tokens=self._tokens["aligned"],
            rounds=self._rounds,
            base_steps=self._steps["base"],
            aligned_steps=self._steps["aligned"],
            discarded_tokens=max(0, sum(self._steps.values()) - sum(self._tokens.values())),
            base_prefilled=self._prefilled["base"],
            aligned_prefilled=self._prefilled["aligned"],
            cached_tokens=self._cached or 0,
        )
