"""A session on vLLM: which requests a turn is, and what is kept of them.

Imported by `server.engines.vllm.engine` alone, which sets vLLM's environment first. Knows: vLLM's
requests, as far as they run. Does not know: what they ask for (`requests`) and report (`outputs`),
how an engine is started, the policy, HTTP.

A session here is a list of ids. A turn that the engine ends by itself (at the first uncertain
position, or after a word: a logits processor does it) goes on in one resumable request, which
keeps the KV as it is. Where that can't be had, for other turns, and for what is left of an answer
whose request may grow no more, a turn is one request over the whole context, and vLLM's prefix
cache keeps what it can (docs/adr/0012).
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

import vllm
from vllm import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.core import EngineUnavailable, TokenIds
from server.engines.base import EngineInfo, Token, TurnEnd, TurnParams
from server.engines.silence import Watch
from server.engines.turn import Turn
from server.engines.vllm import outputs, requests
from server.engines.vllm.resumable import Capacity, ResumableRequest, Share
from server.text.words import Part

READ_AT_ONCE = 256
"""Positions of which a check may ask for the probabilities of all tokens at once, which are 1 MB
each with a vocabulary of 256 k. A longer prompt is read before, without them."""

AHEAD = 256
"""Ids that a resumable request may grow by before it has to ask again."""


class Core:
    """What the sessions of one engine share: the engine itself, and what runs in it.

    watch: on whether the engine has fallen silent. died: how, as it is told; None: it lives, or
        vLLM knows.
    resumable: whether sessions may keep what they have read between turns, from the next turn on.
    passes: where the engine speculates, each request's forward passes that no session has counted
        yet; elsewhere a token is one.
    ahead: steps that are in flight behind the one whose output arrives, in vain where that stops.
    """

    def __init__(self, llm: AsyncLLM, info: EngineInfo, capacity: Capacity, watch: Watch) -> None:
        self.llm = llm
        self.info = info
        self.capacity = capacity
        self.watch = watch
        self.died: str | None = None
        self.resumable = True
        self.passes: Counter[str] | None = None
        if llm.vllm_config.speculative_config is not None:
            self.passes = Counter()
        self.ahead = int(bool(llm.vllm_config.scheduler_config.async_scheduling))
        self.running = 0
        self._request_numbers = itertools.count()

    def next_request_id(self) -> str:
        return f"{self.info.name}-{next(self._request_numbers)}"

    def counted(self, request_id: str, tokens: int) -> int:
        """The forward passes that wrote so many tokens of a request; each is told once."""
        return tokens if self.passes is None else self.passes.pop(request_id, 0)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While a session has something in the engine, whose death is `EngineUnavailable`."""
        self.running += 1
        try:
            yield
        except EngineDeadError as error:
            died = self.died or f"engine {self.info.name!r} died"
            raise EngineUnavailable(died) from error
        finally:
            self.running -= 1


class VllmSession:
    """See `server.engines.base.Session`."""

    def __init__(self, core: Core, prompt: TokenIds) -> None:
        self._core = core
        self._ids = list(prompt)
        self._prompt_length = len(prompt)
        self._key = core.next_request_id()
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None
        self._kept: ResumableRequest | None = None
        self._kept_until = 0  # ids that it may hold: those of its last turn, as far as they came
        self._own: AsyncGenerator[vllm.RequestOutput] | None = None  # a turn's, if not the kept
        self._own_id = ""
        self._ended = True  # whether the engine is through with the turn
        self._given = 0  # ids that the engine was given with the turn and has not read, as far as
        self._held = 0  # is seen from here, behind so many that the request held before
        self._read = 0  # ids that the engine has read, and may have in its cache still
        self._share: Share | None = Share()  # None: no more, for this answer
        self.steps = 0
        self.prefilled = 0
        self._cached: int | None = None  # before anything is read

    @property
    def cached(self) -> int:
        return self._cached or 0

    @property
    def length(self) -> int:
        return len(self._ids)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        core, info, ids = self._core, self._core.info, self._ids
        watch, top = core.watch, params.reported
        turn = Turn(params, info.tokenizer, info.stop_ids, info.context_length - len(ids))
        self._ended = True
        with core.at_work():
            try:
                while turn.end is None:
                    if self._ended:  # at its beginning, or as far as its request could grow
                        events = await self._ask(turn.rest())
                    watch.waiting += 1
                    try:
                        output = await anext(events)
                    except StopAsyncIteration:
                        raise EngineUnavailable(f"engine {info.name!r} broke a turn off") from None
                    finally:
                        watch.waiting -= 1
                    self._hear(output)
                    completion = output.outputs[0]
                    tokens = outputs.tokens(completion, top)
                    stopped = tokens.pop() if completion.finish_reason == "stop" else None
                    for token in tokens:
                        # Rounding could let p1 and γ disagree between here and the engine; what
                        # is reported keeps the law p1 ≥ γ.
                        if turn.offer(token):
                            ids.append(token.id)
                            yield token
                        if turn.end is not None:
                            # A word's last token the engine sees too, one step later: where
                            # it goes on in the same request, it may finish that.
                            self._ended |= turn.part is Part.LAST and self._own is None
                            break
                    else:
                        if stopped is not None:
                            turn.offer_stopped(stopped)
                        self._kept_until = len(ids)
                yield turn.end
            finally:
                await self._turn_is_over()

    async def _ask(self, params: TurnParams) -> AsyncGenerator[vllm.RequestOutput]:
        """Begin a turn, or what is left of one, in the engine: the kept request goes on, or
        there is one of its own."""
        core, ids = self._core, self._ids
        self._ended = False
        await self._drop_own()
        most = min(params.max_tokens, core.info.context_length - len(ids))
        kept = await self._resumable(params)
        self._held = 0 if kept is None else kept.length
        self._given = len(ids) - self._held
        core.watch.reading[self] = self._given
        self._read = len(ids)
        if kept is not None:
            return kept.begin(ids[self._held :], self._sampling(params, min(most, AHEAD)))
        prompt = TokensPrompt(prompt_token_ids=ids.copy())
        sampling = self._sampling(params, most)
        self._own_id = core.next_request_id()
        self._own = core.llm.generate(prompt, sampling, self._own_id)
        return self._own

    def _sampling(self, params: TurnParams, most: int) -> vllm.SamplingParams:
        return requests.for_turn(params, self._core.info, most, self._prompt_length, self._key)

    def _hear(self, output: vllm.RequestOutput) -> None:
        """Keep account of an output of the turn that runs."""
        completion = output.outputs[0]
        self.steps += self._core.counted(output.request_id, len(completion.token_ids))
        self._ended = completion.finish_reason is not None
        if completion.finish_reason == "stop":  # the scheduler knows a length before
            self.steps += self._core.ahead
        if self._own is None:
            assert self._kept is not None
            self._kept.heard(output)
        if self._given:
            self._core.watch.reading.pop(self, None)
            # What a request was begun with may be in the prefix cache.
            self.prefilled += self._given - (0 if self._held else self._found(output))
            self._given = 0

    def _found(self, output: vllm.RequestOutput) -> int:
        """Ids of a request that were in the prefix cache."""
        cached: int = output.num_cached_tokens or 0
        if self._cached is None:
            self._cached = min(cached, self._prompt_length)
        return cached

    async def _turn_is_over(self) -> None:
        """Where it was left before its end, what is under way is aborted."""
        self._kept_until = len(self._ids)
        self._given = 0
        self._core.watch.reading.pop(self, None)
        if not self._ended:
            # What was under way when the request was aborted.
            self.steps += 1 + self._core.ahead
            self._ended = True
            await self._forget()
        await self._drop_own()

    async def _drop_own(self) -> None:
        if self._own is not None:
            own, self._own = self._own, None
            await own.aclose()
            self._core.counted(self._own_id, 0)

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        core, length = self._core, len(self._ids)
        await self._forget()
        draft = draft[: core.info.context_length - length - 1]
        with core.at_work():
            if draft and length - self._read > READ_AT_ONCE:
                # But its last id, behind which the draft's first one is asked for.
                output = await self._asked(self._ids[:-1], requests.for_reading())
                self.steps += 1
                self.prefilled += length - 1 - self._found(output)
            self._read = length
            while True:
                sampling = requests.for_check(top, bool(draft))
                output = await self._asked([*self._ids, *draft], sampling)
                self.steps += 1
                cached = self._found(output)
                self.prefilled += length + len(draft) - cached
                if not draft or cached < length:
                    break
                # Somebody else wrote the same before, so the engine reads some of the draft in
                # its cache, and doesn't compute what was asked. It has whole blocks only.
                size = core.capacity.block_size
                draft = draft[: max(0, -(-length // size) * size - length)]
        # An entry for each id, at the end the draft's: what the model says of it. V2's model runner
        # leaves out those that it found in the cache.
        said = (output.prompt_logprobs or [])[-len(draft) :] if draft else []
        positions = outputs.positions([*said, *output.outputs[0].logprobs])
        return [outputs.likeliest(logprobs, top) for logprobs in positions]

    async def score(self, top: int) -> list[Token]:
        core = self._core
        await self._forget()
        with core.at_work():
            output = await self._asked(self._ids.copy(), requests.for_score(top))
        self.steps += 1
        self.prefilled += len(self._ids)
        assert output.prompt_logprobs is not None
        positions = outputs.positions(output.prompt_logprobs[1:])
        return [
            outputs.token(number, logprobs, top)
            for number, logprobs in zip(self._ids[1:], positions, strict=True)
        ]

    async def _asked(self, ids: TokenIds, sampling: vllm.SamplingParams) -> vllm.RequestOutput:
        """The one output of a request of its own."""
        core = self._core
        request_id = core.next_request_id()
        request = core.llm.generate(TokensPrompt(prompt_token_ids=ids), sampling, request_id)
        watch = core.watch
        watch.reading[self] = len(ids)
        try:
            async with contextlib.aclosing(request) as events:
                with watch.waits():
                    return await anext(events)
        finally:
            watch.reading.pop(self, None)
            core.counted(request_id, 0)

    # -- what is kept between turns ----------------------------------------------------------

    async def _resumable(self, params: TurnParams) -> ResumableRequest | None:
        """The request that a turn goes on in; None where it is to be one of its own."""
        if self._share is None or not self._core.resumable or not requests.ends_by_itself(params):
            return None
        await self._settle()
        read = len(self._ids)
        if self._kept is not None and self._kept.length == read:
            await self._forget()  # it must be given something
        if not self._core.capacity.grow(
            self._share, min(read + AHEAD, self._core.info.context_length)
        ):
            await self._forget()
            self._share = None
            return None
        if self._kept is None:
            self._kept = ResumableRequest(self._core.llm, self._core.next_request_id())
        return self._kept

    async def _settle(self) -> None:
        """See the last turn's end, and whether the request holds what the session does."""
        if self._kept is not None:
            with self._core.watch.waits():
                await self._kept.settle()
            if self._kept.length > self._kept_until:
                await self._forget()

    async def _forget(self) -> None:
        """Free what the engine keeps. Another turn may begin anew."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            await kept.aclose()
            self._core.counted(kept.id, 0)
        if self._share is not None:
            self._core.capacity.release(self._share)

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            await self._settle()
            del self._ids[-drop:]
            if self._kept is not None and self._kept.length > len(self._ids):
                await self._forget()
        self._ids += ids

    async def aclose(self) -> None:
        try:
            if self._turn is not None:
                await self._turn.aclose()
        finally:
            await self._forget()
