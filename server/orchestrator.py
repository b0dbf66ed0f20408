"""Where the policy meets the engines: two sessions in, a stream of pieces out.

The life of an answer:
 1. `Nudged` (or `Alone`, `Referenced`) opens its sessions on the prompts.
 2. It asks the policy whose turn it is, lets that engine generate, and tells the policy what
    came. Committed text becomes a `Piece` at once, and goes to the other model's session.
 3. `stream` holds back what could become a stop string, and ends with one `Finished`.
 4. However the stream ends (done, closed early, failed), every session is closed, and with it
    whatever still runs in an engine.

The only place that knows both the policy and the engines. Does not know: OpenAI's schemas, vLLM.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from server.core import (
    AnswerRequest,
    ContextLengthExceeded,
    Finished,
    NudgingConfig,
    Piece,
    PromptPair,
    PromptText,
    Rejected,
    SamplingParams,
    ScoredToken,
    Speaker,
    StopReason,
    TokenIds,
    Usage,
)
from server.engines.base import Engine, Token, TurnEnd, TurnParams
from server.nudging import WORD_TOKENS, Nudging, Turn
from server.reference import CHUNK, Ask, Completion, NoRoom, reference
from server.text import Part, StopStrings, Word

UNLIMITED = 2**31


class Writer(Protocol):
    """Something that writes one answer.

    ``stop_reason`` and ``text`` (see `Finished`) are set once ``pieces`` is exhausted. One that
    ``rewrites`` has its answer in ``text``, and its pieces only tell how it came about.
    """

    rewrites: bool
    text: str | None

    @property
    def stop_reason(self) -> StopReason: ...

    def pieces(self) -> AsyncGenerator[Piece]: ...

    def usage(self) -> Usage: ...


async def stream(writer: Writer, stops: Sequence[str]) -> AsyncGenerator[Piece | Finished]:
    """An answer as pieces, then one `Finished`. Nothing of a stop string gets out."""
    matcher = StopStrings(stops)
    held: deque[Piece] = deque()
    async with aclosing(writer.pieces()) as pieces:
        async for piece in pieces:
            if writer.rewrites:
                yield piece
                continue
            held.append(piece)
            free, matched = matcher.push(piece.text)
            for ready in _release(held, free):
                yield ready
            if matched is not None:
                yield Finished("stop_string", writer.usage(), matched=matched)
                return
    for piece in held:
        yield piece
    text, matched = writer.text, None
    if text is not None:
        free, matched = matcher.push(text)
        text = text[:free] if matched else text
    reason = "stop_string" if matched else writer.stop_reason
    yield Finished(reason, writer.usage(), text, matched)


def _release(held: deque[Piece], free: int) -> list[Piece]:
    """Take the first ``free`` characters off the held pieces, cutting the last one."""
    ready = []
    while held and len(held[0].text) <= free:
        piece = held.popleft()
        free -= len(piece.text)
        ready.append(piece)
    if free:
        piece = held[0]
        ready.append(replace(piece, text=piece.text[:free]))
        held[0] = replace(piece, text=piece.text[free:], tokens=0, rejected=None, scored=())
    return ready


def check_fits(prompt_tokens: int, engine: Engine, speaker: Speaker) -> None:
    """Raises `ContextLengthExceeded` where no token of an answer would fit."""
    if prompt_tokens >= engine.info.context_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens for the {speaker} model, whose context "
            f"holds {engine.info.context_length} with the answer"
        )


class _Side:
    """One model's side of an answer: its session, and text on its way in and out of it."""

    def __init__(self, engine: Engine, speaker: Speaker, prompt: PromptText | TokenIds) -> None:
        self.info = engine.info
        self.tokenizer = engine.info.tokenizer
        self.speaker = speaker
        # A prompt that ends in spaces would cut the answer's first word from the space that
        # its first token has in front ("Answer: " + "Paris" is not " Paris"). So they wait,
        # and join the first text of the answer.
        self._lead = ""
        if isinstance(prompt, tuple):
            prompt, self._lead = _without_trailing_spaces(prompt)
            prompt = self.tokenizer.encode_prompt(prompt)
        self.prompt_tokens = len(prompt)
        check_fits(self.prompt_tokens, engine, speaker)
        self.session = engine.open(prompt)
        self.tokens = 0
        self.other: _Side | None = None
        self._shared = False
        self._verbatim = False  # whether the other side can take `_said` as ids
        self._decoder = self.tokenizer.decoder()
        self._said: list[int] = []  # own tokens since the last whole character
        self._said_text = ""
        self._heard = ""  # the other's text, not encoded yet
        self._waiting: TokenIds = []  # … and what of it is encoded, not in the session yet
        self._drop = 0

    def listen_to(self, other: _Side) -> None:
        other.other = self
        other._shared = other.tokenizer.shares_ids_with(self.tokenizer)
        other._verbatim = other._shared

    @property
    def room(self) -> int:
        return self.info.context_length - self.session.length

    def take(self, token: Token) -> str:
        """Commit a token: the text it completes, which the other side hears too."""
        text = self._decoder.push(token.id)
        self.tokens += 1
        if text and self._lead:
            text = self._begin(text)
        if self.other is not None:
            if self.tokenizer.token_bytes(token.id):  # special tokens never cross
                self._said.append(token.id)
            self._said_text += text
            if not self._decoder.pending:
                self.other.hear(self._said_text, self._said if self._verbatim else None)
                self._said, self._said_text, self._verbatim = [], "", self._shared
        return text

    def _begin(self, text: str) -> str:
        """The answer's first text, by a model whose prompt's trailing spaces still wait."""
        lead, self._lead = self._lead, ""
        spaced = text.startswith(lead)
        if self.other is not None:
            alike = self.other._lead == lead
            if alike and (self._shared or not spaced):
                # The other prompt ends alike: it goes on with the same ids, or as close.
                self.other._lead = ""
            elif spaced:
                self._verbatim = False  # these ids hold spaces that the text has no more
        return text.removeprefix(lead)

    def hear(self, text: str, ids: TokenIds | None = None) -> None:
        """The other model's committed text; ``ids`` where both have the same vocabulary."""
        if self._lead and text:
            text = text if text[0].isspace() else self._lead + text
            self._lead, ids = "", None
        if ids is None:
            self._heard += text
        else:
            self._encode_heard()
            self._waiting += ids

    def take_back(self, tokens: int) -> None:
        """The session's last tokens were not committed after all."""
        self._drop += tokens

    def rest(self) -> None:
        """End of a turn. A character left unfinished is taken back: the next speaker writes
        it whole."""
        if pending := self._decoder.pending:
            self.take_back(pending)
            self.tokens -= pending
            text = self._decoder.pending_text
            self._heard += text
            if self.other is not None:
                self.other.hear(self._said_text)
                self._said, self._said_text = [], ""
            self._decoder.reset()

    async def catch_up(self) -> None:
        """Bring the session up to date, before its next turn."""
        self._encode_heard()
        if self._waiting or self._drop:
            await self.session.extend(self._waiting, drop=self._drop)
            self._waiting, self._drop = [], 0

    def _encode_heard(self) -> None:
        if self._heard:
            self._waiting += self.tokenizer.encode_text(self._heard)
            self._heard = ""

    def scored(self, token: Token, text: str) -> ScoredToken:
        top = tuple((self.tokenizer.token_text(i), logprob) for i, logprob in token.top)
        return ScoredToken(text, token.logprob, top)


def _without_trailing_spaces(prompt: PromptText) -> tuple[PromptText, str]:
    if not prompt or not isinstance(prompt[-1], str):
        return prompt, ""
    kept = prompt[-1].rstrip(" ")
    if not kept:
        return prompt, ""
    return (*prompt[:-1], kept), prompt[-1][len(kept) :]


class Nudged:
    """An answer by the policy ``nudging``."""

    rewrites = False
    text: str | None = None

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
        self.base = _Side(base, "base", prompt.base)
        self.aligned = _Side(aligned, "aligned", prompt.aligned)
        self.base.listen_to(self.aligned)
        self.aligned.listen_to(self.base)
        self._turns = 0
        self._rejected: Rejected | None = None
        # What the aligned model would write next, known from the end of its last word; void
        # once the base model has written something.
        self._draft: Token | None = None
        self._draft_ends = False
        self._limit = request.max_tokens or UNLIMITED

    @property
    def stop_reason(self) -> StopReason:
        assert self.policy.stop_reason is not None
        return self.policy.stop_reason

    @property
    def left(self) -> int:
        return self._limit - self.base.tokens - self.aligned.tokens

    async def pieces(self) -> AsyncGenerator[Piece]:
        try:
            while self.policy.turn is not Turn.DONE:
                turn = self._aligned_turn if self.policy.turn is Turn.ALIGNED else self._base_turn
                async with aclosing(turn()) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            await self.base.session.aclose()
            await self.aligned.session.aclose()

    def usage(self) -> Usage:
        committed = self.base.tokens + self.aligned.tokens
        steps = self.base.session.steps + self.aligned.session.steps
        return Usage(
            base_prompt_tokens=self.base.prompt_tokens,
            aligned_prompt_tokens=self.aligned.prompt_tokens,
            base_tokens=self.base.tokens,
            aligned_tokens=self.aligned.tokens,
            rounds=self.policy.rounds,
            base_steps=self.base.session.steps,
            aligned_steps=self.aligned.session.steps,
            discarded_tokens=steps - committed,
        )

    def _turn(
        self,
        max_tokens: int,
        *,
        stop_below: float | None = None,
        word: tuple[int, ...] | None = None,
    ) -> TurnParams:
        self._turns += 1
        return TurnParams(
            sampling=self.request.sampling,
            max_tokens=max_tokens,
            stop_below=stop_below,
            word=word,
            # Two alternatives show whether the next word's first token was a tie.
            top=max(self.request.top_logprobs or 1, 1 if word is None else 2),
            turn=self._turns,
        )

    # -- the base model ----------------------------------------------------------------------

    async def _base_turn(self) -> AsyncGenerator[Piece]:
        base, policy = self.base, self.policy
        await base.catch_up()
        lowest = 1.0
        tokens: list[Token] = []  # of the piece being made: one, or those of one character
        scored: list[ScoredToken] = []
        params = self._turn(self.left, stop_below=self.policy.gamma)
        async with aclosing(base.session.generate(params)) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    if event.reason == "length":
                        policy.out_of_room("context" if base.room <= 0 else "length")
                    else:
                        self._reject(event.rejected)
                        policy.base_stopped()
                    break
                text = base.take(event)
                if not policy.base_token(event.id, event.top_prob, text):
                    raise RuntimeError("the engine took a token under γ")  # its contract, 3
                self._draft, self._draft_ends = None, False
                tokens.append(event)
                lowest = min(lowest, event.top_prob)
                if self.request.top_logprobs is not None:
                    scored.append(base.scored(event, text))
                if text:
                    yield Piece(text, "base", lowest, len(tokens), scored=tuple(scored))
                    lowest, tokens, scored = 1.0, [], []
                if policy.turn is not Turn.BASE:
                    break
        base.rest()

    def _reject(self, token: Token | None) -> None:
        if token is None:
            self._rejected = None
        else:
            self._rejected = Rejected(self.base.tokenizer.token_text(token.id), token.top_prob)

    # -- the aligned model -------------------------------------------------------------------

    async def _aligned_turn(self) -> AsyncGenerator[Piece]:
        if self._draft_ends:
            self.policy.aligned_ended()
            return
        aligned = self.aligned
        await aligned.catch_up()
        if self.policy.end_lookahead:
            tokens, end = await self._look_ahead()
        else:
            tokens, end = await self._word()
        text = ""
        scored: list[ScoredToken] = []
        before = aligned.tokens
        for token in tokens:
            new = aligned.take(token)
            text += new
            if self.request.top_logprobs is not None:
                scored.append(aligned.scored(token, new))
        aligned.rest()
        if text:
            count = aligned.tokens - before
            first = tokens[0].top_prob
            yield Piece(text, "aligned", first, count, self._rejected, tuple(scored[:count]))
            self._rejected = None
        else:
            aligned.tokens = before  # tokens without text are no part of the answer
        self._after_word(text, tokens, end)

    def _after_word(self, text: str, tokens: list[Token], end: TurnEnd) -> None:
        """Tell the policy what the aligned model did."""
        policy = self.policy
        if end.reason == "stop" and (not tokens or policy.end_lookahead):
            if tokens:
                policy.ending(text)
            else:
                policy.aligned_ended()
        elif self.left <= 0:
            policy.word(text)
            policy.out_of_room("length")
        elif end.reason == "length" and self.aligned.room <= 0:
            policy.word(text)
            policy.out_of_room("context")
        else:
            policy.word(text)
            self._draft = end.rejected if end.reason == "word" else None
            self._draft_ends = end.reason == "stop"

    async def _word(self) -> tuple[list[Token], TurnEnd]:
        """The aligned model's next word, which may be begun already (the draft)."""
        tokens: list[Token] = []
        if self._draft is not None:
            tokens.append(self._draft)
            await self.aligned.session.extend([self._draft.id])
            self._draft = None
            if Word(self.aligned.tokenizer).push(tokens[0].id) is Part.LAST:
                return tokens, TurnEnd("length")
        most = min(WORD_TOKENS, self.left) - len(tokens)
        if most <= 0:
            return tokens, TurnEnd("length")
        params = self._turn(most, word=tuple(token.id for token in tokens))
        return await self._collect(params, tokens)

    async def _look_ahead(self) -> tuple[list[Token], TurnEnd]:
        """Draft ``end_lookahead`` tokens: the whole ending if the turn ends within them, and
        otherwise the first word of them."""
        params = self._turn(min(self.policy.end_lookahead, self.left))
        tokens, end = await self._collect(params, [])
        if end.reason == "stop":
            return tokens, end
        word = Word(self.aligned.tokenizer)
        for count, token in enumerate(tokens[:WORD_TOKENS]):
            part = word.push(token.id)
            if part is not Part.INSIDE:
                kept = count + (part is Part.LAST)
                break
        else:
            kept = min(len(tokens), WORD_TOKENS)
        self.aligned.take_back(len(tokens) - kept)
        return tokens[:kept], TurnEnd("word" if kept < len(tokens) else end.reason)

    async def _collect(
        self, params: TurnParams, tokens: list[Token]
    ) -> tuple[list[Token], TurnEnd]:
        async with aclosing(self.aligned.session.generate(params)) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    return tokens, event
                tokens.append(event)
        raise RuntimeError("the engine's turn ended without saying how")  # its contract, 1


class Alone:
    """An answer by one of the models alone: plain decoding, the pair's own prompt."""

    rewrites = False
    text: str | None = None
    stop_reason: StopReason

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker,
        prompt: PromptText | TokenIds,
        request: AnswerRequest,
    ) -> None:
        """``prompt`` as ids is read verbatim. Raises `ContextLengthExceeded`."""
        self.side = _Side(engine, speaker, prompt)
        self.request = request

    async def pieces(self) -> AsyncGenerator[Piece]:
        side, request = self.side, self.request
        params = TurnParams(
            sampling=request.sampling,
            max_tokens=request.max_tokens or UNLIMITED,
            top=request.top_logprobs or 1,
        )
        lowest, count = 1.0, 0
        scored: list[ScoredToken] = []
        try:
            async with aclosing(side.session.generate(params)) as events:
                async for event in events:
                    if isinstance(event, TurnEnd):
                        self._end(event)
                        if event.rejected is not None and request.top_logprobs is not None:
                            scored.append(side.scored(event.rejected, ""))
                        break
                    text = side.take(event)
                    count += 1
                    lowest = min(lowest, event.top_prob)
                    if request.top_logprobs is not None:
                        scored.append(side.scored(event, text))
                    if text:
                        yield Piece(text, side.speaker, lowest, count, scored=tuple(scored))
                        lowest, count, scored = 1.0, 0, []
            if scored:  # the end-of-text token, or tokens of a character that was not finished
                yield Piece("", side.speaker, lowest, count, scored=tuple(scored))
        finally:
            await side.session.aclose()

    def _end(self, end: TurnEnd) -> None:
        if end.reason == "stop":
            self.stop_reason = "end_of_text" if self.side.speaker == "base" else "aligned_end"
        else:
            self.stop_reason = "context" if self.side.room <= 0 else "length"

    def usage(self) -> Usage:
        side = self.side
        if side.speaker == "base":
            counts = Usage(side.prompt_tokens, 0, side.tokens, 0, base_steps=side.session.steps)
        else:
            counts = Usage(0, side.prompt_tokens, 0, side.tokens, aligned_steps=side.session.steps)
        return replace(counts, discarded_tokens=side.session.steps - side.tokens)


class Referenced:
    """An answer by the policy ``reference``: the whole text at the end, in `Finished.text`.

    The pieces are the rounds, in order: one of the aligned model each (also when it is empty),
    and one of the base model where it wrote. They join to the text before its clean-up.
    """

    rewrites = True

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
        self.text: str | None = None
        self.stop_reason: StopReason
        self._steps: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._tokens: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._rounds = 0

    async def pieces(self) -> AsyncGenerator[Piece]:
        count = self.engines["aligned"].info.tokenizer.count
        max_tokens = self.request.max_tokens or UNLIMITED
        steps = reference(self.config.gamma, max_tokens, self.config.max_rounds, count)
        try:
            ask = next(steps)
            while True:
                completion = await self._complete(ask)
                ask = steps.throw(NoRoom()) if completion is None else steps.send(completion)
        except StopIteration as stop:
            outcome = stop.value
        self.text, self.stop_reason = outcome.text, outcome.stop_reason
        self._rounds = len(outcome.rounds)
        for nudge, base_text in outcome.rounds:
            self._tokens["aligned"] += count(nudge)
            yield Piece(nudge, "aligned", 0.0, 0)
            if base_text:
                self._tokens["base"] += count(base_text)
                yield Piece(base_text, "base", 0.0, 0)

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
        scored: list[ScoredToken] = []
        async with aclosing(writer.pieces()) as pieces:
            async for piece in pieces:
                scored += piece.scored
        self._steps[ask.speaker] += writer.side.session.steps
        tokens = [token.text for token in scored]
        finish = "length" if writer.stop_reason in ("length", "context") else "stop"
        return Completion("".join(tokens), tokens, [token.top[0][1] for token in scored], finish)

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
        )
